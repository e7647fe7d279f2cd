//! The guest's network card as the poll core sees it: two rings, moved by commands from the
//! control thread and by the packets of the core. One thread owns it; nothing here blocks,
//! allocates per packet, locks or logs. Where packets come from and go to is not known here.
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

mod slot;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crossbeam_channel::Sender;

use self::slot::Slot;
use crate::control::mailbox::{Answer, Callee, Command, Memory, Replaced, Request};
use crate::metrics::NicCounters;
use crate::ring::{ReceiveScratch, RingFault, RingId, Taken, TransmitScratch};

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

/// A ring that was stopped by what guest memory held. For the control thread's log.
#[derive(Clone, Copy, Debug)]
pub struct FaultReport {
    /// Which ring.
    pub ring: RingId,
    /// Why.
    pub fault: RingFault,
}

/// Where the card stands.
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
    /// Why the receive ring was stopped, if by a fault.
    pub receive_fault: Option<RingFault>,
    /// Why the transmit ring was stopped, if by a fault.
    pub transmit_fault: Option<RingFault>,
}

/// The card. Made by [`crate::channel`].
pub struct GuestNic {
    mailbox: Callee,
    faults: Sender<FaultReport>,
    counters: Arc<NicCounters>,
    memory: Option<Memory>,
    receive: Slot,
    transmit: Slot,
    receive_scratch: ReceiveScratch,
    transmit_scratch: TransmitScratch,
    /// The request that waits until the transmit ring is drained.
    draining: Option<Draining>,
    /// The last frame found no buffer: a kick of the receive ring is worth waking up for.
    receive_starved: bool,
    resync_when_thawed: bool,
    asleep: bool,
    connected: bool,
    frozen: bool,
}

#[derive(Clone, Copy)]
enum Draining {
    ToStop { number: u64 },
    ToDisable { number: u64 },
}

impl GuestNic {
    pub(crate) fn new(mailbox: Callee, faults: Sender<FaultReport>) -> Self {
        let counters = Arc::new(NicCounters::default());
        Self {
            mailbox,
            faults,
            memory: None,
            receive: Slot::new(),
            transmit: Slot::new(),
            receive_scratch: ReceiveScratch::default(),
            transmit_scratch: TransmitScratch::default(),
            draining: None,
            receive_starved: false,
            resync_when_thawed: false,
            asleep: false,
            connected: false,
            frozen: false,
            counters,
        }
    }

    /// Carries out what the control thread asked for. Between bursts.
    ///
    /// A stop (or disable) of the transmit ring is answered after the next [`Self::take`] that
    /// empties the ring or runs out of room, so `take` must go on being called, with no room too.
    pub fn take_commands(&mut self) {
        while let Some(Request { number, command }) = self.mailbox.take() {
            self.obey(number, command);
        }
    }

    /// Lays a frame into the receive ring. The guest sees it after [`Self::publish`].
    #[inline]
    pub fn deliver(&mut self, frame: &[u8]) -> Delivery {
        let Some(ring) = self.receive.running() else {
            return Delivery::Stopped;
        };
        match ring.deliver(&mut self.receive_scratch, frame) {
            Ok(true) => {
                self.counters.received_packets.add(1);
                self.counters.received_bytes.add(frame.len() as u64);
                self.receive_starved = false;
                Delivery::Delivered
            }
            Ok(false) => {
                self.counters.receive_waits.add(1);
                self.receive_starved = true;
                Delivery::NoBuffer
            }
            Err(fault) => {
                self.fail(RingId::Receive, fault);
                Delivery::Stopped
            }
        }
    }

    /// Shows the guest what was delivered since the last call, with one store of the used index
    /// and at most one call.
    #[inline]
    pub fn publish(&mut self) {
        if let Err(fault) = self.receive.publish(&self.counters) {
            self.fail(RingId::Receive, fault);
        }
    }

    /// Takes up to `room` frames from the transmit ring and gives each to `sink`; the descriptors
    /// go back to the guest at once. Returns how many `sink` was given.
    #[inline]
    pub fn take(&mut self, room: usize, sink: &mut dyn FnMut(&[u8])) -> usize {
        let mut given = 0;
        if let Err(fault) = self.take_burst(room, &mut given, sink) {
            self.fail(RingId::Transmit, fault);
        }
        if self.draining.is_some() && (given == room || !self.tx_pending()) {
            self.finish_draining();
        }
        given
    }

    fn take_burst(
        &mut self,
        room: usize,
        given: &mut usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), RingFault> {
        let Some(ring) = self.transmit.running() else {
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
        self.transmit.publish(&self.counters)?;
        result
    }

    /// Whether the guest has offered frames that were not taken.
    #[inline]
    #[must_use]
    pub fn tx_pending(&self) -> bool {
        self.transmit.offered() > 0
    }

    /// Receive chains that the guest has posted. A packet may need more than one.
    #[inline]
    #[must_use]
    pub fn rx_room(&self) -> usize {
        usize::from(self.receive.offered())
    }

    /// From here on guest memory is not touched. What was delivered is published first; requests
    /// that wait for the transmit ring are answered. Commands are still obeyed and answered.
    pub fn freeze(&mut self) {
        if self.frozen {
            return;
        }
        self.finish_draining();
        self.pause_rings();
        self.frozen = true;
    }

    /// Guest memory may be touched again: rings that are started go on from the indexes found
    /// there.
    pub fn thaw(&mut self) {
        if !self.frozen {
            return;
        }
        self.frozen = false;
        if std::mem::take(&mut self.resync_when_thawed) {
            self.resync();
        } else {
            self.run_rings();
        }
    }

    /// Guest memory was replaced under us: forget every index, faults too, read the rings afresh
    /// and call the guest on each of them. While frozen, this waits for [`Self::thaw`].
    pub fn resync(&mut self) {
        if self.frozen {
            self.resync_when_thawed = true;
            return;
        }
        self.counters.resyncs.add(1);
        for ring in RingId::ALL {
            self.slot(ring).forget();
        }
        self.run_rings();
    }

    /// Asks the guest for kicks. False if there is work already: then don't sleep.
    /// After a true, wait for one of [`Self::wake_fds`] or a timeout, then [`Self::after_sleep`].
    pub fn prepare_sleep(&mut self) -> bool {
        self.asleep = true;
        if self.receive_starved {
            let before = self.receive.offered();
            self.receive.want_kicks(true);
            if self.receive.offered() != before {
                self.after_sleep();
                return false;
            }
        }
        self.transmit.want_kicks(true);
        if self.tx_pending() || !self.mailbox.is_empty() {
            self.after_sleep();
            return false;
        }
        true
    }

    /// What to wait for: commands, and kicks of running rings.
    pub fn wake_fds(&self) -> impl Iterator<Item = RawFd> {
        let kicks = [&self.receive, &self.transmit]
            .into_iter()
            .filter_map(Slot::kick_fd);
        std::iter::once(self.mailbox.doorbell().as_raw_fd()).chain(kicks)
    }

    /// The core is awake: no more kicks, please.
    pub fn after_sleep(&mut self) {
        if !std::mem::take(&mut self.asleep) {
            return;
        }
        self.mailbox.doorbell().drain();
        for slot in [&mut self.receive, &mut self.transmit] {
            slot.drain_kicks();
            slot.want_kicks(false);
        }
    }

    /// Where the card stands.
    #[must_use]
    pub fn state(&self) -> NicState {
        NicState {
            connected: self.connected,
            has_memory: self.memory.is_some(),
            frozen: self.frozen,
            receive_started: self.receive.is_started(),
            receive_runs: self.receive.runs(),
            transmit_started: self.transmit.is_started(),
            transmit_runs: self.transmit.runs(),
            receive_fault: self.receive.fault(),
            transmit_fault: self.transmit.fault(),
        }
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

    fn obey(&mut self, number: u64, command: Command) {
        let mut replaced = Replaced::default();
        let mut index = 0;
        match command {
            Command::Connect => self.connected = true,
            Command::Disconnect => replaced = self.disconnect(),
            Command::SetMemory(memory) => replaced.memory = self.set_memory(memory),
            Command::StartRing(ring, setup) => {
                replaced.fds = self.slot(ring).start(setup);
                self.run_rings();
            }
            Command::EnableRing(RingId::Transmit, false) if self.tx_pending() => {
                self.draining = Some(Draining::ToDisable { number });
                return;
            }
            Command::EnableRing(ring, enabled) => self.enable(ring, enabled),
            Command::SetCall(ring, call) => replaced.fds[0] = self.slot(ring).set_call(call),
            Command::StopRing(RingId::Transmit) if self.tx_pending() => {
                self.draining = Some(Draining::ToStop { number });
                return;
            }
            Command::StopRing(ring) => (index, replaced) = self.stop(ring),
            Command::LogForVmm(on) => {
                if let Some(memory) = &self.memory {
                    memory.map.set_log_for_vmm(on);
                }
            }
        }
        self.answer(Answer {
            number,
            index,
            replaced,
        });
    }

    fn enable(&mut self, ring: RingId, enabled: bool) {
        if !enabled {
            self.pause(ring);
        }
        self.slot(ring).enable(enabled);
        self.run_rings();
    }

    fn stop(&mut self, ring: RingId) -> (u16, Replaced) {
        self.pause(ring);
        let slot = match ring {
            RingId::Receive => &mut self.receive,
            RingId::Transmit => &mut self.transmit,
        };
        slot.look_up_index(self.memory.as_ref());
        let (index, fds) = slot.stop();
        (index, Replaced { fds, memory: None })
    }

    fn disconnect(&mut self) -> Replaced {
        self.draining = None;
        let (_, receive) = self.stop(RingId::Receive);
        let (_, transmit) = self.stop(RingId::Transmit);
        let [kick_receive, call_receive, ..] = receive.fds;
        let [kick_transmit, call_transmit, ..] = transmit.fds;
        for ring in RingId::ALL {
            self.slot(ring).enable(false);
        }
        self.connected = false;
        self.receive_starved = false;
        Replaced {
            memory: self.memory.take(),
            fds: [kick_receive, call_receive, kick_transmit, call_transmit],
        }
    }

    fn set_memory(&mut self, memory: Memory) -> Option<Memory> {
        self.pause_rings();
        let former = self.memory.replace(memory);
        self.run_rings();
        former
    }

    fn finish_draining(&mut self) {
        let Some(draining) = self.draining.take() else {
            return;
        };
        let (number, index, replaced) = match draining {
            Draining::ToStop { number } => {
                let (index, replaced) = self.stop(RingId::Transmit);
                (number, index, replaced)
            }
            Draining::ToDisable { number } => {
                self.enable(RingId::Transmit, false);
                (number, 0, Replaced::default())
            }
        };
        self.answer(Answer {
            number,
            index,
            replaced,
        });
    }

    fn pause_rings(&mut self) {
        for ring in RingId::ALL {
            self.pause(ring);
        }
    }

    /// Publishes what is still to be published and lets go of the ring's memory.
    fn pause(&mut self, ring: RingId) {
        let counters = Arc::clone(&self.counters);
        if let Err(fault) = self.slot(ring).pause(&counters) {
            self.fail(ring, fault);
        }
    }

    fn run_rings(&mut self) {
        if self.frozen {
            return;
        }
        for ring in RingId::ALL {
            let slot = match ring {
                RingId::Receive => &mut self.receive,
                RingId::Transmit => &mut self.transmit,
            };
            if let Err(fault) = slot.run(self.memory.as_ref(), &self.counters) {
                self.fail(ring, fault);
            }
        }
    }

    #[cold]
    fn fail(&mut self, ring: RingId, fault: RingFault) {
        self.counters.ring_faults.add(1);
        self.slot(ring).fail(fault);
        // If the log is behind, the counter still knows.
        let _ = self.faults.try_send(FaultReport { ring, fault });
    }

    fn slot(&mut self, ring: RingId) -> &mut Slot {
        match ring {
            RingId::Receive => &mut self.receive,
            RingId::Transmit => &mut self.transmit,
        }
    }

    fn answer(&mut self, answer: Answer) {
        if !self.mailbox.answer(answer) {
            self.counters.answers_lost.add(1);
        }
    }
}
