//! The modelled network: delays, loses, duplicates, reorders and corrupts what nodes send.

use std::collections::BTreeSet;

use bytes::Bytes;
use plover_types::NodeId;
use rand::Rng;
use rand::rngs::StdRng;

/// State of the links between the nodes.
#[derive(Debug)]
pub struct Network {
    /// Messages lost, in permille.
    pub loss_permille: u32,
    /// Messages sent twice, in permille.
    pub duplicate_permille: u32,
    /// Messages with a flipped bit, in permille.
    pub corrupt_permille: u32,
    /// Longest delay, µs.
    pub delay_max_us: u64,
    /// Directed links that are cut.
    cut: BTreeSet<(NodeId, NodeId)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss_permille: 0,
            duplicate_permille: 0,
            corrupt_permille: 0,
            delay_max_us: 300,
            cut: BTreeSet::new(),
        }
    }
}

impl Network {
    /// Cuts or mends the link in one direction.
    pub fn set_cut(&mut self, from: NodeId, to: NodeId, is_cut: bool) {
        if is_cut {
            self.cut.insert((from, to));
        } else {
            self.cut.remove(&(from, to));
        }
    }

    /// Whether messages pass from one node to the other.
    #[must_use]
    pub fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        *self = Self::default();
    }

    /// When (µs from now), and as what, a message arrives: never, once or twice.
    pub fn send(
        &self,
        from: NodeId,
        to: NodeId,
        message: &Bytes,
        random: &mut StdRng,
    ) -> Vec<(u64, Bytes)> {
        if !self.passes(from, to) || random.random_ratio(self.loss_permille, 1000) {
            return Vec::new();
        }
        let copies = 1 + usize::from(random.random_ratio(self.duplicate_permille, 1000));
        (0..copies)
            .map(|_| {
                let delay = random.random_range(10..=self.delay_max_us);
                (delay, self.maybe_corrupt(message, random))
            })
            .collect()
    }

    fn maybe_corrupt(&self, message: &Bytes, random: &mut StdRng) -> Bytes {
        if message.is_empty() || !random.random_ratio(self.corrupt_permille, 1000) {
            return message.clone();
        }
        let mut bytes = message.to_vec();
        // The transport's checksum finds damage on the wire; cutting short what it passes on
        // models a hostile peer's malformed message, which the wire form must refuse.
        bytes.truncate(random.random_range(0..bytes.len()));
        Bytes::from(bytes)
    }
}
