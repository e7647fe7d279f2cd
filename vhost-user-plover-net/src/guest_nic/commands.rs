//! What moves the card's rings through their lives: the control thread's commands, and the core's
//! own freeze, thaw and resync.

use super::GuestNic;
use super::pair::{Draining, Pair};
use super::slot::Slot;
use super::state::PairCounts;
use crate::control::mailbox::{Answer, Command, Memory, Replaced, Request};
use crate::ring::{Direction, RingId};

impl GuestNic {
    /// Carries out what the control thread asked for. Between bursts.
    ///
    /// A stop (or disable) of a transmit ring is answered after the next [`Self::take`] that
    /// empties the ring or runs out of room, so `take` must go on being called, with no room too.
    pub fn take_commands(&mut self) {
        while let Some(Request { number, command }) = self.mailbox.take() {
            self.obey(number, command);
        }
    }

    /// From here on guest memory is not touched. What was delivered is published first; requests
    /// that wait for a transmit ring are answered. Commands are still obeyed and answered.
    pub fn freeze(&mut self) {
        if self.frozen {
            return;
        }
        for number in 0..self.pairs_used {
            self.finish_draining(number);
        }
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
        self.pairs
            .iter_mut()
            .flat_map(Pair::slots_mut)
            .for_each(Slot::forget);
        self.run_rings();
    }

    fn obey(&mut self, number: u64, command: Command) {
        let mut replaced = Replaced::default();
        let mut index = 0;
        match command {
            Command::Connect => self.connected = true,
            Command::Disconnect => replaced = self.disconnect(),
            Command::SetMemory(memory) => replaced.memory = self.set_memory(memory),
            Command::StartRing(ring, setup) => {
                self.pairs_used = self.pairs_used.max(usize::from(ring.pair) + 1);
                replaced
                    .fds
                    .extend(self.slot(ring).start(setup).into_iter().flatten());
                self.run_rings();
            }
            Command::EnableRing(ring, false) if self.must_drain(ring) => {
                self.pair(ring).draining = Some(Draining::ToDisable { number });
                return;
            }
            Command::EnableRing(ring, enabled) => self.enable(ring, enabled),
            Command::SetCall(ring, call) => replaced.fds.extend(self.slot(ring).set_call(call)),
            Command::StopRing(ring) if self.must_drain(ring) => {
                self.pair(ring).draining = Some(Draining::ToStop { number });
                return;
            }
            Command::StopRing(ring) => index = self.stop(ring, &mut replaced),
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

    /// A transmit ring with frames in it gives them first.
    fn must_drain(&mut self, ring: RingId) -> bool {
        ring.direction == Direction::Transmit && self.slot(ring).offered() > 0
    }

    fn enable(&mut self, ring: RingId, enabled: bool) {
        if !enabled {
            self.pause(ring);
        }
        self.slot(ring).enable(enabled);
        self.run_rings();
    }

    /// Stops a ring and returns where it stood.
    fn stop(&mut self, ring: RingId, replaced: &mut Replaced) -> u16 {
        self.pause(ring);
        let slot = self.pairs[usize::from(ring.pair)].slot(ring.direction);
        slot.look_up_index(self.memory.as_ref());
        let (index, fds) = slot.stop();
        replaced.fds.extend(fds.into_iter().flatten());
        index
    }

    fn disconnect(&mut self) -> Replaced {
        let mut replaced = Replaced::default();
        for ring in self.rings() {
            self.stop(ring, &mut replaced);
            self.slot(ring).enable(false);
            let pair = self.pair(ring);
            pair.draining = None;
            pair.receive_starved = false;
            pair.counts = PairCounts::default();
        }
        self.pairs_used = 1;
        self.connected = false;
        replaced.memory = self.memory.take();
        replaced
    }

    fn set_memory(&mut self, memory: Memory) -> Option<Memory> {
        self.pause_rings();
        let former = self.memory.replace(memory);
        self.run_rings();
        former
    }

    pub(super) fn finish_draining(&mut self, number: usize) {
        let Some(draining) = self.pairs[number].draining.take() else {
            return;
        };
        let ring = RingId::transmit(number as u8);
        let mut replaced = Replaced::default();
        let (number, index) = match draining {
            Draining::ToStop { number } => (number, self.stop(ring, &mut replaced)),
            Draining::ToDisable { number } => {
                self.enable(ring, false);
                (number, 0)
            }
        };
        self.answer(Answer {
            number,
            index,
            replaced,
        });
    }

    fn pause_rings(&mut self) {
        for ring in self.rings() {
            self.pause(ring);
        }
    }

    /// Publishes what is still to be published and lets go of the ring's memory.
    fn pause(&mut self, ring: RingId) {
        let slot = self.pairs[usize::from(ring.pair)].slot(ring.direction);
        if let Err(fault) = slot.pause(&self.counters) {
            self.fail(ring, fault);
        }
    }

    fn run_rings(&mut self) {
        if self.frozen {
            return;
        }
        for ring in self.rings() {
            let slot = self.pairs[usize::from(ring.pair)].slot(ring.direction);
            if let Err(fault) = slot.run(self.memory.as_ref(), &self.counters) {
                self.fail(ring, fault);
            }
        }
    }

    /// The rings of all pairs in use, in virtqueue order.
    fn rings(&self) -> impl Iterator<Item = RingId> + use<> {
        (0..2 * self.pairs_used).filter_map(RingId::from_index)
    }

    fn pair(&mut self, ring: RingId) -> &mut Pair {
        &mut self.pairs[usize::from(ring.pair)]
    }

    pub(super) fn slot(&mut self, ring: RingId) -> &mut Slot {
        self.pair(ring).slot(ring.direction)
    }

    fn answer(&mut self, answer: Answer) {
        if !self.mailbox.answer(answer) {
            self.counters.answers_lost.add(1);
        }
    }
}
