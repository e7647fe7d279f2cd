//! One ring of the card through its life: set up, running, paused, faulted. When it runs is
//! decided in `guest_nic`; what it does while running is in `ring`.

use std::os::fd::{AsRawFd, RawFd};

use crate::control::mailbox::{Memory, RingSetup};
use crate::event_fd::EventFd;
use crate::metrics::NicCounters;
use crate::ring::{RingFault, SplitRing};

/// A ring's place in the card.
pub(super) struct Slot {
    setup: Option<RingSetup>,
    enabled: bool,
    running: Option<SplitRing>,
    fault: Option<RingFault>,
    /// The used index when the ring last ran. What a stop answers.
    last_index: u16,
    /// Whether `last_index` is of the present set-up.
    has_run: bool,
}

impl Slot {
    pub(super) const fn new() -> Self {
        Self {
            setup: None,
            enabled: false,
            running: None,
            fault: None,
            last_index: 0,
            has_run: false,
        }
    }

    #[inline]
    pub(super) fn running(&mut self) -> Option<&mut SplitRing> {
        self.running.as_mut()
    }

    pub(super) fn is_started(&self) -> bool {
        self.setup.is_some()
    }

    pub(super) fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Whether the headers of a ring that runs say what is left to do.
    pub(super) fn offloads(&self) -> bool {
        self.running.as_ref().is_some_and(SplitRing::offloads)
    }

    pub(super) fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Chains offered by the guest; none where the ring does not run. A jump counts as one, so
    /// that who asks goes on to take it and meets the fault.
    #[inline]
    pub(super) fn offered(&self) -> u16 {
        self.running
            .as_ref()
            .map_or(0, |ring| ring.offered().unwrap_or(1))
    }

    /// What the guest moves in the ring, if it runs; see [`SplitRing::guest_indices`].
    pub(super) fn guest_indices(&self) -> Option<[u16; 2]> {
        self.running.as_ref().and_then(SplitRing::guest_indices)
    }

    /// Takes what the ring is to be run with. Returns fds of a former set-up.
    pub(super) fn start(&mut self, setup: RingSetup) -> [Option<EventFd>; 2] {
        let (_, former) = self.stop();
        self.enabled = setup.enabled;
        self.setup = Some(setup);
        self.has_run = false;
        former
    }

    pub(super) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Runs the ring, if it is to run and does not yet.
    pub(super) fn run(
        &mut self,
        memory: Option<&Memory>,
        counters: &NicCounters,
    ) -> Result<(), RingFault> {
        let Some(setup) = &self.setup else {
            return Ok(());
        };
        if !self.enabled || self.running.is_some() || self.fault.is_some() {
            return Ok(());
        }
        let memory = memory.ok_or(RingFault::NoMemory)?;
        let ring = SplitRing::start(&memory.map, &memory.written, setup.layout, setup.features)?;
        self.last_index = ring.index();
        self.has_run = true;
        self.running = Some(ring);
        counters.ring_starts.add(1);
        self.call(counters);
        Ok(())
    }

    /// Shows the guest what was returned, and calls it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, counters: &NicCounters) -> Result<(), RingFault> {
        if let Some(ring) = &mut self.running
            && ring.publish()?
        {
            self.call(counters);
        }
        Ok(())
    }

    /// Publishes and lets go of guest memory.
    pub(super) fn pause(&mut self, counters: &NicCounters) -> Result<(), RingFault> {
        let published = self.publish(counters);
        if let Some(ring) = self.running.take() {
            self.last_index = ring.index();
        }
        published
    }

    /// Forgets indexes and faults, without a look at guest memory.
    pub(super) fn forget(&mut self) {
        self.running = None;
        self.fault = None;
    }

    /// Guest memory is not what it may be: the ring stays stopped until it is set up again.
    pub(super) fn fail(&mut self, fault: RingFault) {
        if let Some(ring) = self.running.take() {
            self.last_index = ring.index();
        }
        self.fault = Some(fault);
    }

    /// A ring that was started but never ran (frozen, disabled) stands where guest memory says.
    /// One read; nothing is written.
    pub(super) fn look_up_index(&mut self, memory: Option<&Memory>) {
        if let (false, Some(setup), Some(memory)) = (self.has_run, &self.setup, memory)
            && let Ok(index) = SplitRing::index_in_memory(&memory.map, setup.layout)
        {
            self.last_index = index;
        }
    }

    /// Back to nothing but the index where the ring stood. Returns its fds.
    pub(super) fn stop(&mut self) -> (u16, [Option<EventFd>; 2]) {
        self.running = None;
        self.fault = None;
        let fds = match self.setup.take() {
            Some(setup) => [Some(setup.kick), setup.call],
            None => Default::default(),
        };
        (self.last_index, fds)
    }

    /// Swaps the call fd and signals the new one: a call may just have gone to the former.
    pub(super) fn set_call(&mut self, call: Option<EventFd>) -> Option<EventFd> {
        let setup = self.setup.as_mut()?;
        let former = std::mem::replace(&mut setup.call, call);
        if self.running.is_some()
            && let Some(call) = &setup.call
        {
            call.signal();
        }
        former
    }

    pub(super) fn want_kicks(&mut self, wanted: bool) {
        if let Some(ring) = &mut self.running {
            ring.want_kicks(wanted);
        }
    }

    pub(super) fn kick_fd(&self) -> Option<RawFd> {
        self.running.as_ref()?;
        self.setup.as_ref().map(|setup| setup.kick.as_raw_fd())
    }

    pub(super) fn drain_kicks(&self) {
        if let Some(setup) = &self.setup {
            setup.kick.drain();
        }
    }

    #[inline]
    fn call(&self, counters: &NicCounters) {
        if let Some(call) = self.setup.as_ref().and_then(|setup| setup.call.as_ref()) {
            call.signal();
            counters.calls.add(1);
        }
    }
}
