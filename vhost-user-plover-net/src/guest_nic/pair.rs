//! A queue pair: its two rings, and what waits for them.

use super::slot::Slot;
use super::state::PairCounts;
use crate::ring::Direction;

/// Two rings of the card.
pub(super) struct Pair {
    pub(super) receive: Slot,
    pub(super) transmit: Slot,
    /// The request that waits until the transmit ring is drained.
    pub(super) draining: Option<Draining>,
    /// The last frame found no buffer: a kick of the receive ring is worth waking up for.
    pub(super) receive_starved: bool,
    /// Since the VMM connected.
    pub(super) counts: PairCounts,
}

/// What is done once a transmit ring is drained.
#[derive(Clone, Copy)]
pub(super) enum Draining {
    /// It stops.
    ToStop {
        /// The request to answer then.
        number: u64,
    },
    /// It is disabled.
    ToDisable {
        /// The request to answer then.
        number: u64,
    },
}

impl Pair {
    pub(super) const fn new() -> Self {
        Self {
            receive: Slot::new(),
            transmit: Slot::new(),
            draining: None,
            receive_starved: false,
            counts: PairCounts {
                delivered: 0,
                taken: 0,
            },
        }
    }

    pub(super) fn slot(&mut self, direction: Direction) -> &mut Slot {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Transmit => &mut self.transmit,
        }
    }

    pub(super) fn slots(&self) -> [&Slot; 2] {
        [&self.receive, &self.transmit]
    }

    pub(super) fn slots_mut(&mut self) -> [&mut Slot; 2] {
        [&mut self.receive, &mut self.transmit]
    }
}
