//! The modelled network: delays, loses, duplicates, reorders and cuts short what nodes send.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::NODES_MAX;

/// How the links behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Messages lost, in permille.
    pub(crate) loss_permille: u32,
    /// Messages sent twice, in permille.
    pub(crate) duplicate_permille: u32,
    /// Messages cut short, in permille.
    pub(crate) short_permille: u32,
    /// Longest delay, µs. Messages overtake each other.
    pub(crate) delay_max_us: u64,
}

/// No fault, and what a rack's switch takes.
pub(crate) const FAIR: Weather = Weather {
    loss_permille: 0,
    duplicate_permille: 0,
    short_permille: 0,
    delay_max_us: 300,
};

/// State of the links between the nodes.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// How often each directed link was cut and not mended yet.
    cuts: [[u8; NODES_MAX]; NODES_MAX],
}

impl Default for Network {
    fn default() -> Self {
        Self {
            weather: FAIR,
            cuts: [[0; NODES_MAX]; NODES_MAX],
        }
    }
}

impl Network {
    /// Cuts the link in one direction; each cut is mended once.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from][to] += 1;
    }

    /// Undoes a cut.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.cuts[from][to] = self.cuts[from][to].saturating_sub(1);
    }

    /// Whether messages pass from one node to the other.
    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0
    }

    /// Whether two nodes reach each other, as a TCP connection between them needs.
    pub(crate) fn connects(&self, one: usize, other: usize) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// Says when (µs from now), and as what, a message arrives: never, once or twice.
    pub(crate) fn send(
        &self,
        from: usize,
        to: usize,
        message: &Bytes,
        random: &mut SmallRng,
        mut arrives: impl FnMut(u64, Bytes),
    ) {
        let weather = &self.weather;
        if !self.passes(from, to) || chance(weather.loss_permille, random) {
            return;
        }
        let copies = 1 + u8::from(chance(weather.duplicate_permille, random));
        for _ in 0..copies {
            let delay = random.random_range(10..=weather.delay_max_us);
            arrives(delay, self.maybe_short(message, random));
        }
    }

    /// The transport's authentication finds damage on the wire; what is cut short here stands for
    /// a malformed message of a peer, which the wire form must refuse.
    fn maybe_short(&self, message: &Bytes, random: &mut SmallRng) -> Bytes {
        if message.is_empty() || !chance(self.weather.short_permille, random) {
            return message.clone();
        }
        message.slice(..random.random_range(0..message.len()))
    }
}

fn chance(permille: u32, random: &mut SmallRng) -> bool {
    permille > 0 && random.random_ratio(permille, 1000)
}
