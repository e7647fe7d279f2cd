//! One VMM's connection: what it negotiated, its guest memory, and the way to the poll core.
//! Messages end here as commands; a message that is refused ends the connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::info;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::ShutdownHandle;

use super::card::{CardConfig, names};
use super::mailbox::{Caller, Command, MailboxError, Memory};
use super::memory::{MemoryEvent, MemoryListener, MemoryMap, check_regions};
use crate::error::Refusal;
use crate::limits::GUEST_ADDRESS_END_MAX;
use crate::metrics::ControlCounters;
use crate::ring::{GuestMap, RingFault, RingFeatures, RingId, RingLayout, VmmMemory, WrittenPages};

const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// What outlives a connection: the poll core, the bitmap, who is told of memory.
pub(super) struct Station {
    pub(super) caller: Caller,
    pub(super) listener: MemoryListener,
    pub(super) written: Option<Arc<WrittenPages>>,
}

/// One connection.
pub(super) struct Session {
    station: Arc<Mutex<Station>>,
    card: CardConfig,
    counters: Arc<ControlCounters>,
    negotiated: Mutex<Negotiated>,
    ending: Mutex<Ending>,
    rings_made: AtomicUsize,
}

#[derive(Default)]
struct Negotiated {
    features: u64,
    map: Option<Arc<GuestMap>>,
}

#[derive(Default)]
struct Ending {
    refusal: Option<Refusal>,
    hangup: Option<ShutdownHandle>,
}

impl Session {
    pub(super) fn new(
        station: Arc<Mutex<Station>>,
        card: CardConfig,
        counters: Arc<ControlCounters>,
    ) -> Self {
        Self {
            station,
            card,
            counters,
            negotiated: Mutex::default(),
            ending: Mutex::default(),
            rings_made: AtomicUsize::new(0),
        }
    }

    /// What the card is to the guest.
    pub(super) fn card(&self) -> &CardConfig {
        &self.card
    }

    /// The virtqueues of a connection are made in order.
    pub(super) fn next_ring(&self) -> Option<RingId> {
        RingId::from_index(self.rings_made.fetch_add(1, Ordering::Relaxed))
    }

    /// Posts a command to the poll core and waits until it is done.
    pub(super) fn call(&self, command: Command) -> Result<u16, MailboxError> {
        lock(&self.station).caller.call(command)
    }

    /// As [`Self::call`]; a core that does not answer ends the connection.
    pub(super) fn call_or_refuse(&self, command: Command) -> Option<u16> {
        self.call(command)
            .map_err(|error| self.refuse(error.into()))
            .ok()
    }

    /// Ends the connection. The first reason is the one that is logged.
    pub(super) fn refuse(&self, refusal: Refusal) {
        let mut ending = lock(&self.ending);
        if let Some(hangup) = &ending.hangup {
            hangup.shutdown();
        }
        ending.refusal.get_or_insert(refusal);
    }

    /// Whether the connection is at its end: nothing more is obeyed.
    pub(super) fn is_refused(&self) -> bool {
        lock(&self.ending).refusal.is_some()
    }

    /// Takes the way to end the connection; it may have to be ended already.
    pub(super) fn set_hangup(&self, hangup: ShutdownHandle) {
        let mut ending = lock(&self.ending);
        if ending.refusal.is_some() {
            hangup.shutdown();
        }
        ending.hangup = Some(hangup);
    }

    /// Why we ended it, if we did.
    pub(super) fn take_refusal(&self) -> Option<Refusal> {
        lock(&self.ending).refusal.take()
    }

    pub(super) fn set_features(&self, acked: u64) {
        let former = std::mem::replace(&mut lock(&self.negotiated).features, acked);
        info!(features = names(acked), "features negotiated");
        if (former ^ acked) & LOG_ALL != 0 {
            self.call_or_refuse(Command::LogForVmm(acked & LOG_ALL != 0));
        }
    }

    pub(super) fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(lock(&self.negotiated).features)
    }

    /// Whether a ring can be found in the present guest memory.
    pub(super) fn check_layout(&self, layout: RingLayout) -> Result<(), RingFault> {
        let negotiated = lock(&self.negotiated);
        let map = negotiated.map.as_ref().ok_or(RingFault::NoMemory)?;
        layout.locate(map).map(drop)
    }

    /// Checks a memory table and takes it into use.
    pub(super) fn set_memory(&self, memory: &Arc<VmmMemory>) -> Result<(), Refusal> {
        let regions = check_regions(memory)?;
        let map = Arc::new(GuestMap::new(Arc::clone(memory)).ok_or(Refusal::TooManyRegions)?);
        {
            let mut negotiated = lock(&self.negotiated);
            map.set_log_for_vmm(negotiated.features & LOG_ALL != 0);
            negotiated.map = Some(Arc::clone(&map));
        }
        let mut station = lock(&self.station);
        let written = station.written_pages_up_to(map.guest_end())?;
        let memory = Memory {
            map,
            written: Arc::clone(&written),
        };
        station.caller.call(Command::SetMemory(memory))?;
        self.counters.memory_tables.add(1);
        info!(regions = regions.len(), "memory table in use");
        (station.listener)(MemoryEvent::Mapped(MemoryMap {
            regions,
            written_pages: written,
        }));
        Ok(())
    }

    pub(super) fn connect(&self) -> Result<(), MailboxError> {
        self.call(Command::Connect).map(drop)
    }

    /// Stops everything of this connection.
    pub(super) fn disconnect(&self) -> Result<(), MailboxError> {
        let had_memory = lock(&self.negotiated).map.take().is_some();
        let mut station = lock(&self.station);
        let result = station.caller.call(Command::Disconnect).map(drop);
        if had_memory {
            (station.listener)(MemoryEvent::Unmapped);
        }
        result
    }
}

impl Station {
    /// The bitmap, at least as long as memory that ends at `end`.
    fn written_pages_up_to(&mut self, end: u64) -> Result<Arc<WrittenPages>, Refusal> {
        debug_assert!(end <= GUEST_ADDRESS_END_MAX);
        let failed = |source| Refusal::WrittenPages { end, source };
        let pages = match self.written.take() {
            Some(pages) if pages.covers(end) => pages,
            Some(pages) => {
                let grown = pages.grown(end).map_err(failed);
                // A failure leaves the shorter one in place, and the marks in it.
                self.written = Some(pages);
                Arc::new(grown?)
            }
            None => Arc::new(WrittenPages::create(end).map_err(failed)?),
        };
        self.written = Some(Arc::clone(&pages));
        Ok(pages)
    }
}

/// A poisoned lock means that a message handler panicked; what it guards is set anew by each
/// connection or written in one step, so it stays usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
