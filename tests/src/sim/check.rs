//! What must always hold, checked against everything that the world does.

use std::collections::HashMap;

use plover_types::{NodeId, SyncId};

use super::vm::Answer;

/// Something that must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A copy was given another packet at this place than the other copy.
    Order {
        /// The copy.
        node: NodeId,
        /// How many packets it had been given.
        place: usize,
    },
    /// The client saw two different answers to one packet, or one that the serving copy lacks.
    LostAnswer {
        /// The copy that serves.
        node: NodeId,
        /// The answer that it does not know.
        packet: u64,
    },
    /// The backup differs from the primary's memory at the sync point.
    Differs {
        /// The backup.
        node: NodeId,
        /// The sync.
        sync: SyncId,
    },
    /// Two nodes may transmit at once.
    TwoPrimaries(NodeId, NodeId),
    /// No copy is left, and no fault destroyed the last one.
    LostAll,
    /// Faults stopped, a valid copy is left, and nothing is served.
    NotServing,
    /// Faults stopped, both replicas live, and the group is not protected.
    NotProtected,
}

/// Remembers what was seen.
#[derive(Debug, Default)]
pub struct Checker {
    order: Vec<u64>,
    seen: HashMap<u64, u64>,
    sync_points: HashMap<SyncId, Vec<Answer>>,
}

impl Checker {
    /// A copy that had been given `place` packets is given this one.
    pub fn given(&mut self, node: NodeId, place: usize, packet: u64) -> Result<(), Violation> {
        match self.order.get(place) {
            None if place == self.order.len() => self.order.push(packet),
            Some(known) if *known == packet => {}
            _ => return Err(Violation::Order { node, place }),
        }
        Ok(())
    }

    /// The client sees an answer that `node` sent, whose memory is `memory`.
    pub fn seen(&mut self, node: NodeId, answer: Answer) -> Result<(), Violation> {
        match self.seen.insert(answer.packet, answer.drawn) {
            Some(before) if before != answer.drawn => Err(Violation::LostAnswer {
                node,
                packet: answer.packet,
            }),
            _ => Ok(()),
        }
    }

    /// `node` serves with this memory: it must know every answer that was seen.
    pub fn serves(&self, node: NodeId, memory: &[Answer]) -> Result<(), Violation> {
        let known: HashMap<u64, u64> = memory
            .iter()
            .map(|answer| (answer.packet, answer.drawn))
            .collect();
        match self
            .seen
            .iter()
            .find(|(packet, drawn)| known.get(packet) != Some(drawn))
        {
            Some((packet, _)) => Err(Violation::LostAnswer {
                node,
                packet: *packet,
            }),
            None => Ok(()),
        }
    }

    /// The primary was paused for `sync`.
    pub fn sync_point(&mut self, sync: SyncId, memory: &[Answer]) {
        self.sync_points.insert(sync, memory.to_vec());
    }

    /// The primary's memory at the sync point.
    #[must_use]
    pub fn memory_at(&self, sync: SyncId) -> Option<&[Answer]> {
        self.sync_points.get(&sync).map(Vec::as_slice)
    }

    /// The backup loaded `sync` and holds this memory.
    pub fn loaded(&self, node: NodeId, sync: SyncId, memory: &[Answer]) -> Result<(), Violation> {
        if self.memory_at(sync) == Some(memory) {
            Ok(())
        } else {
            Err(Violation::Differs { node, sync })
        }
    }

    /// Whether the client saw an answer to this packet.
    #[must_use]
    pub fn was_answered(&self, packet: u64) -> bool {
        self.seen.contains_key(&packet)
    }

    /// Answers seen.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.seen.len()
    }
}
