//! The way in: from the uplink through the log to the guest's receive rings.

use std::time::Duration;

use arrayvec::ArrayVec;
use dpdk_config::BURST_PACKETS_MAX;
use plover_types::Packet;
use replication::core::Core;
use replication::limits::RUN_PACKETS_MAX;

use super::costs::Step;
use super::{PollCore, PollEvent};
use crate::guest_nic::GuestNic;
use crate::limits::{BURSTS_PER_TURN, UNDELIVERED_ENTRIES_MAX, WAITING_ENTRIES_MAX};
use crate::offload;
use crate::path::admit::{Gate, Refused};
use crate::path::flow_hash;
use crate::ring::Frame;

impl PollCore {
    /// Steps 1 and 2: bursts from the uplink, as many as one entry holds; what is not for the
    /// guest, or beyond the bounds, is dropped here by counter and never later. Behind a guest that
    /// runs and does not keep up, packets stay with the port: what its queue cannot hold is lost
    /// there and costs nothing.
    pub(super) fn nic_rx(&mut self) -> usize {
        let Some(uplink) = &mut self.uplink else {
            return 0;
        };
        if self.admitted.is_some() || !self.burst.is_empty() {
            return 0;
        }
        let undelivered = undelivered(self.node.core());
        let has_room = self.guest_was_up && undelivered < UNDELIVERED_ENTRIES_MAX;
        let gate = Gate::of(self.node.core(), has_room);
        let is_paused = self.is_frozen || self.node.core().holds_input_back();
        if gate.is_open() && undelivered >= WAITING_ENTRIES_MAX && !is_paused {
            return 0;
        }
        let pairs = self.nic.as_ref().map_or(1, GuestNic::receive_pairs);
        let mut count = 0;
        for _ in 0..BURSTS_PER_TURN {
            let received = uplink.receive();
            self.costs.done(Step::Rx, received);
            if received == 0 {
                break;
            }
            let (burst, counters) = (&mut self.burst, &mut self.counters);
            let (station, scratch) = (self.station, &mut self.scratch);
            counters.received += received as u64;
            uplink.received(|mbuf, offloads| {
                let offload = offload::received(mbuf, offloads);
                let Some(frame) = mbuf.linear(scratch) else {
                    counters.dropped_length += 1;
                    return;
                };
                let for_guest = station.map_or(Ok(()), |station| station.check(frame));
                let admitted = for_guest.and_then(|()| gate.check());
                if let Err(why) = admitted {
                    return counters.refuse(why);
                }
                let pair = flow_hash::pair_of(frame, pairs);
                match burst.push(pair, offload, frame) {
                    Ok(()) => counters.admitted += 1,
                    Err(_) => counters.refuse(Refused::Length),
                }
            });
            self.costs.done(Step::Admit, received);
            count += received;
            if received < BURST_PACKETS_MAX {
                break;
            }
        }
        count
    }

    /// Step 3: one log entry for what was admitted; more, if it does not fit one. An entry that the
    /// log refuses for the moment waits; one that was admitted by a node which is no longer primary
    /// goes with its role.
    pub(super) fn propose(&mut self, now: Duration) -> usize {
        let mut proposed = 0;
        while let Some(burst) = self.admitted.take().or_else(|| self.burst.finish()) {
            let packets = burst.len();
            match self.node.core_mut().propose(now, burst) {
                Ok(()) => proposed += packets,
                Err(burst) if self.node.core().is_serving() => {
                    self.admitted = Some(burst);
                    break;
                }
                Err(_) => self.counters.dropped_role_lost += packets as u64,
            }
        }
        self.counters.proposed += proposed as u64;
        self.costs.done(Step::Propose, proposed);
        proposed
    }

    /// Step 4: what the peers say.
    pub(super) fn hear_peers(&mut self, now: Duration) -> usize {
        let mut count = 0;
        if let Some(replication) = &mut self.replication {
            for _ in 0..BURSTS_PER_TURN {
                let received = replication.receive();
                replication.received(|mbuf, _| {
                    // A chain of mbufs is longer than any frame of a peer's.
                    if mbuf.is_contiguous() {
                        self.node.receive_frame(now, mbuf.data());
                    }
                });
                count += received;
                if received == 0 {
                    break;
                }
            }
        }
        if let Err(error) = self.node.poll(now) {
            self.tell(PollEvent::DiskFailed(error.to_string()));
        }
        count
    }

    /// Step 5: committed packets into the guest's receive rings, in log order. No buffer: wait.
    pub(super) fn deliver(&mut self, now: Duration) -> usize {
        let Some(nic) = &mut self.nic else { return 0 };
        let core = self.node.core_mut();
        let is_kept_back = !self.config.deliver_to_backup && !core.is_serving();
        if self.is_frozen || is_kept_back || !core.copy().can_serve() {
            return 0;
        }
        let record = &mut self.record;
        let given = core.deliver_runs(|position, packets| {
            let frames = packets.iter().map(frame_of).take(RUN_PACKETS_MAX);
            let frames: ArrayVec<_, RUN_PACKETS_MAX> = frames.collect();
            let delivered = nic.deliver_burst(packets[0].pair, &frames).frames;
            if let Some(record) = record {
                record.note_run(position, &packets[..delivered]);
            }
            delivered
        });
        if given > 0 {
            nic.publish();
            self.counters.delivered += given as u64;
            self.last_ring_activity = now;
        }
        self.costs.done(Step::Deliver, given);
        given
    }
}

#[inline]
fn frame_of<'a>(packet: &Packet<'a>) -> Frame<'a> {
    Frame {
        offload: packet.offload,
        bytes: packet.bytes,
    }
}

/// Entries that wait for the guest.
fn undelivered(core: &Core) -> u64 {
    core.applied().0.saturating_sub(core.position().index.0)
}
