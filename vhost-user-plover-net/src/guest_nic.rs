//! The guest's network card as the poll core sees it: queue pairs of two rings, moved by commands
//! from the control thread (`commands`) and by the packets of the core (here). One thread owns it;
//! nothing here blocks, allocates per packet, locks or logs. Where packets come from and go to is
//! not known here.
//!
//! A ring runs while it is started, enabled, has memory, had no fault and is not frozen:
//!
//! ```text
//!            StartRing            EnableRing(true)
//!   stopped -----------> started -----------------> running --fault--> faulted
//!      ^                    ^                        |  ^  |               |
//!      |                    +--- EnableRing(false) --+  |  +--freeze--> frozen
//!      |                         (drained first)        +------thaw-------+
//!      +--------- StopRing (drained first) from any of them, Disconnect at once
//! ```
//!
//! Whenever a ring begins to run it takes its position from the used index in guest memory, and
//! the guest is called once: a call that got lost with the VMM would otherwise stay lost.

mod commands;
mod pair;
mod sleep;
mod slot;
mod state;

use std::sync::Arc;

use crossbeam_channel::Sender;

use self::pair::Pair;
use crate::control::mailbox::{Callee, Memory};
use crate::limits::QUEUE_PAIRS_MAX;
use crate::metrics::NicCounters;
use crate::ring::{ReceiveScratch, RingFault, RingId, Taken, TransmitScratch};

pub use state::{FaultReport, NicState};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the ring; the guest sees it after [`GuestNic::publish`].
    Delivered,
    /// The guest has posted too little room: try again later.
    NoBuffer,
    /// The receive ring does not run.
    Stopped,
}

/// The card. Made by [`crate::channel`].
pub struct GuestNic {
    mailbox: Callee,
    faults: Sender<FaultReport>,
    counters: Arc<NicCounters>,
    memory: Option<Memory>,
    pairs: [Pair; QUEUE_PAIRS_MAX],
    /// Pairs that have been started since the VMM connected: the others are not looked at.
    pairs_used: usize,
    /// The pair that is looked at first when frames are taken.
    first_to_take: usize,
    receive_scratch: ReceiveScratch,
    transmit_scratch: TransmitScratch,
    resync_when_thawed: bool,
    asleep: bool,
    connected: bool,
    frozen: bool,
}

impl GuestNic {
    pub(crate) fn new(mailbox: Callee, faults: Sender<FaultReport>) -> Self {
        Self {
            mailbox,
            faults,
            counters: Arc::new(NicCounters::default()),
            memory: None,
            pairs: [const { Pair::new() }; QUEUE_PAIRS_MAX],
            pairs_used: 1,
            first_to_take: 0,
            receive_scratch: ReceiveScratch::default(),
            transmit_scratch: TransmitScratch::default(),
            resync_when_thawed: false,
            asleep: false,
            connected: false,
            frozen: false,
        }
    }

    /// Lays a frame into the receive ring of pair 0. The guest sees it after [`Self::publish`].
    #[inline]
    pub fn deliver(&mut self, frame: &[u8]) -> Delivery {
        let pair = &mut self.pairs[0];
        let Some(ring) = pair.receive.running() else {
            return Delivery::Stopped;
        };
        match ring.deliver(&mut self.receive_scratch, frame) {
            Ok(true) => {
                self.counters.received_packets.add(1);
                self.counters.received_bytes.add(frame.len() as u64);
                pair.receive_starved = false;
                Delivery::Delivered
            }
            Ok(false) => {
                self.counters.receive_waits.add(1);
                pair.receive_starved = true;
                Delivery::NoBuffer
            }
            Err(fault) => {
                self.fail(RingId::receive(0), fault);
                Delivery::Stopped
            }
        }
    }

    /// Shows the guest what was delivered since the last call, with one store of the used index
    /// and at most one call for each pair.
    #[inline]
    pub fn publish(&mut self) {
        for number in 0..self.pairs_used {
            if let Err(fault) = self.pairs[number].receive.publish(&self.counters) {
                self.fail(RingId::receive(number as u8), fault);
            }
        }
    }

    /// Takes up to `room` frames from the transmit rings and gives each to `sink`; the descriptors
    /// go back to the guest at once. Returns how many `sink` was given.
    #[inline]
    pub fn take(&mut self, room: usize, sink: &mut dyn FnMut(&[u8])) -> usize {
        let mut given = 0;
        // Another pair goes first each time: with little room none waits for the others.
        self.first_to_take = (self.first_to_take + 1) % self.pairs_used;
        for turn in 0..self.pairs_used {
            let number = (self.first_to_take + turn) % self.pairs_used;
            if let Err(fault) = self.take_from(number, room, &mut given, sink) {
                self.fail(RingId::transmit(number as u8), fault);
            }
            if self.pairs[number].draining.is_some()
                && (given == room || self.pairs[number].transmit.offered() == 0)
            {
                self.finish_draining(number);
            }
        }
        given
    }

    fn take_from(
        &mut self,
        number: usize,
        room: usize,
        given: &mut usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), RingFault> {
        let transmit = &mut self.pairs[number].transmit;
        let Some(ring) = transmit.running() else {
            return Ok(());
        };
        let offered = ring.offered()?;
        let mut result = Ok(());
        for _ in 0..offered {
            if *given == room {
                break;
            }
            match ring.take(&mut self.transmit_scratch) {
                Ok(Taken::Frame(frame)) => {
                    self.counters.transmitted_packets.add(1);
                    self.counters.transmitted_bytes.add(frame.len() as u64);
                    *given += 1;
                    sink(frame);
                }
                Ok(Taken::TooLong) => self.counters.transmit_too_long.add(1),
                Ok(Taken::TooShort) => self.counters.transmit_too_short.add(1),
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        // What was taken before a fault was given on, so the guest gets it back all the same.
        transmit.publish(&self.counters)?;
        result
    }

    /// Whether the guest has offered frames that were not taken.
    #[inline]
    #[must_use]
    pub fn tx_pending(&self) -> bool {
        self.used().iter().any(|pair| pair.transmit.offered() > 0)
    }

    /// Receive chains that the guest has posted in pair 0. A packet may need more than one.
    #[inline]
    #[must_use]
    pub fn rx_room(&self) -> usize {
        usize::from(self.pairs[0].receive.offered())
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &NicCounters {
        &self.counters
    }

    /// The counters, for another thread to read.
    #[must_use]
    pub fn shared_counters(&self) -> Arc<NicCounters> {
        Arc::clone(&self.counters)
    }

    /// The pairs that the VMM has started, from 0 up to the highest.
    #[inline]
    fn used(&self) -> &[Pair] {
        &self.pairs[..self.pairs_used]
    }

    #[cold]
    fn fail(&mut self, ring: RingId, fault: RingFault) {
        self.counters.ring_faults.add(1);
        self.slot(ring).fail(fault);
        // If the log is behind, the counter still knows.
        let _ = self.faults.try_send(FaultReport { ring, fault });
    }
}
