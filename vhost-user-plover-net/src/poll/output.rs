//! The way out: from the guest's transmit rings through the queue of held output to the uplink.

use std::time::Duration;

use super::costs::Step;
use super::{PollCore, PollEvent};
use crate::limits::{BURSTS_PER_TURN, TAKEN_PER_TURN};

impl PollCore {
    /// Steps 6 and 7: bursts from the guest's transmit rings, held with their epoch. No room: stop
    /// taking; the guest waits.
    pub(super) fn guest_tx(&mut self, now: Duration) -> usize {
        if self.is_frozen {
            0
        } else {
            self.take_from_guest(now, TAKEN_PER_TURN)
        }
    }

    /// Takes up to `packets_max` packets, a turn's worth at a time: a large packet becomes many
    /// held frames, and the room is looked at anew before it is overdrawn by more than the pool
    /// has to spare ([`crate::limits::CUT_MBUFS`]).
    pub(super) fn take_from_guest(&mut self, now: Duration, packets_max: usize) -> usize {
        let mut taken = 0;
        loop {
            let wanted = (packets_max - taken).min(TAKEN_PER_TURN);
            let now_taken = self.take_and_hold(now, wanted);
            taken += now_taken;
            if now_taken < TAKEN_PER_TURN || taken == packets_max {
                return taken;
            }
        }
    }

    fn take_and_hold(&mut self, now: Duration, packets_max: usize) -> usize {
        let (Some(nic), Some(uplink)) = (&mut self.nic, &self.uplink) else {
            return 0;
        };
        let room = self.config.held_packets_max.saturating_sub(self.hold.len());
        let room = room.min(packets_max);
        let taken = nic.take_burst(room, &mut uplink.sink(&mut self.outgoing));
        self.costs.done(Step::Tx, taken);
        if taken > 0 {
            self.hold.extend(self.outgoing.drain());
            self.counters.taken += taken as u64;
            self.counters.outgoing(self.outgoing.counters());
            self.last_ring_activity = now;
        }
        self.costs.done(Step::Hold, taken);
        taken
    }

    /// Step 8: what is agreed leaves, burst by burst, each under a live lease.
    pub(super) fn release(&mut self, now: Duration) -> usize {
        let policy = self.node.core().output_policy(self.hold.has_closed());
        self.hold.set_policy(policy);
        let Some(uplink) = &mut self.uplink else {
            return 0;
        };
        let mut released = 0;
        for _ in 0..BURSTS_PER_TURN {
            if self.hold.agreed() == 0 || !self.node.core().may_transmit(self.node.now()) {
                break;
            }
            let sent = uplink.release(&mut self.hold);
            released += sent;
            if sent == 0 {
                break;
            }
        }
        self.counters.released += released as u64;
        if released > 0 && !self.has_released {
            self.has_released = true;
            self.tell(PollEvent::FirstRelease);
        }
        self.announce(now);
        self.costs.done(Step::Release, released);
        released
    }

    /// After a takeover: where the guest's addresses are now.
    fn announce(&mut self, now: Duration) {
        let Some(at) = self.announce.front() else {
            return;
        };
        if now < *at || !self.node.core().may_transmit(self.node.now()) {
            return;
        }
        self.announce.pop_front();
        if let (Some(uplink), Some(mac)) = (&mut self.uplink, self.config.guest_mac) {
            self.outgoing
                .learned()
                .frames(mac, |frame| uplink.send(&[frame]));
            uplink.flush();
            self.counters.announcements += 1;
        }
    }
}
