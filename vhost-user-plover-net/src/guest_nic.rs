//! The guest's network card as the poll core sees it: queue pairs of two rings, moved by commands
//! from the control thread (`commands`) and by the packets of the core (`packets`). One thread
//! owns it; nothing here blocks, allocates per packet, locks or logs. Where packets come from and
//! go to is not known here.
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
mod packets;
mod pair;
mod sleep;
mod slot;
mod state;

use std::sync::Arc;

use crossbeam_channel::Sender;

use self::pair::Pair;
use crate::control::mailbox::{Callee, Memory};
use crate::limits::{FRAME_BYTES_MAX, QUEUE_PAIRS_MAX};
use crate::metrics::NicCounters;
use crate::ring::{ReceiveScratch, RingFault, RingId, TransmitScratch};

pub use packets::{Delivered, Delivery, Undelivered};
pub use state::{FaultReport, NicState, PairCounts};

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
    /// One frame, for those who take frames one by one.
    frame: Vec<u8>,
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
            frame: vec![0; FRAME_BYTES_MAX],
            resync_when_thawed: false,
            asleep: false,
            connected: false,
            frozen: false,
        }
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
