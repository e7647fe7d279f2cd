//! Where the card stands, for those who ask.

use arrayvec::ArrayVec;
use serde::Serialize;

use super::GuestNic;
use super::slot::Slot;
use crate::limits::QUEUE_PAIRS_MAX;
use crate::ring::{RingFault, RingId};

/// Odd and above any index: changes of several indices do not make up for each other by chance.
const SIGN_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Packets of a queue pair since the VMM connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PairCounts {
    /// Given to the guest.
    pub delivered: u64,
    /// Taken from the guest, as it sent them.
    pub taken: u64,
}

/// A ring that was stopped by what guest memory held. For the control thread's log.
#[derive(Clone, Copy, Debug)]
pub struct FaultReport {
    /// Which ring.
    pub ring: RingId,
    /// Why.
    pub fault: RingFault,
}

/// Where the card stands. "The" rings are those of pair 0, which every driver starts first; the
/// faults are the first of any pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicState {
    /// A VMM is connected.
    pub connected: bool,
    /// There is a memory table.
    pub has_memory: bool,
    /// No access to guest memory until thawed.
    pub frozen: bool,
    /// The VMM has started the receive ring.
    pub receive_started: bool,
    /// The receive ring takes packets.
    pub receive_runs: bool,
    /// The VMM has started the transmit ring.
    pub transmit_started: bool,
    /// The transmit ring gives packets.
    pub transmit_runs: bool,
    /// Queue pairs with both rings running.
    pub pairs_running: u8,
    /// The guest's driver may leave checksums open and send large packets.
    pub leaves_open: bool,
    /// Why a receive ring was stopped, if by a fault.
    pub receive_fault: Option<RingFault>,
    /// Why a transmit ring was stopped, if by a fault.
    pub transmit_fault: Option<RingFault>,
}

impl GuestNic {
    /// Queue pairs, from the first on, whose receive rings take packets.
    #[inline]
    #[must_use]
    pub fn receive_pairs(&self) -> usize {
        let runs = |pair: &&super::Pair| pair.receive.runs();
        self.used().iter().take_while(runs).count()
    }

    /// A number that changes when the guest does anything with its rings; none if that cannot be
    /// seen: a receive ring does not run, or its driver does not say what it has taken.
    #[must_use]
    pub fn signs_of_life(&self) -> Option<u64> {
        self.used().iter().try_fold(0, |sum: u64, pair| {
            let received = pair.receive.guest_indices()?;
            // An empty transmit ring says as much as a full one.
            let sent = pair.transmit.guest_indices().unwrap_or_default();
            let indices = received.into_iter().chain(sent);
            Some(indices.fold(sum, |sum, index| {
                sum.wrapping_mul(SIGN_FACTOR).wrapping_add(index.into())
            }))
        })
    }

    /// Packets of each pair that the VMM has started.
    #[must_use]
    pub fn pair_counts(&self) -> ArrayVec<PairCounts, QUEUE_PAIRS_MAX> {
        self.used().iter().map(|pair| pair.counts).collect()
    }

    /// Where the card stands.
    #[must_use]
    pub fn state(&self) -> NicState {
        let first = &self.pairs[0];
        let running = |pair: &&super::Pair| pair.slots().into_iter().all(Slot::runs);
        NicState {
            connected: self.connected,
            has_memory: self.memory.is_some(),
            frozen: self.frozen,
            receive_started: first.receive.is_started(),
            receive_runs: first.receive.runs(),
            transmit_started: first.transmit.is_started(),
            transmit_runs: first.transmit.runs(),
            pairs_running: self.used().iter().filter(running).count() as u8,
            leaves_open: self.used().iter().any(|pair| pair.transmit.offloads()),
            receive_fault: self.used().iter().find_map(|pair| pair.receive.fault()),
            transmit_fault: self.used().iter().find_map(|pair| pair.transmit.fault()),
        }
    }
}
