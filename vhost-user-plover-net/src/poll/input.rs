//! The way in: from the uplink through the log to the guest's receive rings.

use std::time::Duration;

use dpdk_config::{BURST_PACKETS_MAX, Mbuf, PortOffloads};
use plover_types::{PacketBurst, PacketBurstBuilder, PacketHeader};
use replication::core::Core;

use super::costs::Step;
use super::{PollCore, PollEvent};
use crate::guest_nic::GuestNic;
use crate::limits::{
    BURSTS_PER_TURN, KEPT_BYTES_MIN, KEPT_FOR, UNDELIVERED_ENTRIES_MAX, WAITING_ENTRIES_MAX,
};
use crate::offload;
use crate::path::admit::{Gate, Refused, Station};
use crate::path::flow_hash;
use crate::path::kept::Kept;
use crate::status::PathCounters;

impl PollCore {
    /// Steps 1 and 2: bursts from the uplink, as many as one entry holds; what is not for the
    /// guest, or beyond the bounds, is dropped here by counter and never later. Where nobody else
    /// reads the log, packets stay in their mbufs, and only their headers are entered. Behind a guest that
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
        let keeps =
            gate.is_open() && !is_paused && self.kept.has_room() && self.node.core().takes_stubs();
        let mut admission = Admission {
            gate,
            station: self.station,
            pairs: self.nic.as_ref().map_or(1, GuestNic::receive_pairs),
            burst: &mut self.burst,
            kept: &mut self.kept,
            scratch: &mut self.scratch,
            counters: &mut self.counters,
        };
        let mut count = 0;
        for _ in 0..BURSTS_PER_TURN {
            let received = uplink.receive();
            self.costs.done(Step::Rx, received);
            if received == 0 {
                break;
            }
            admission.counters.received += received as u64;
            if keeps && uplink.has_received(KEPT_BYTES_MIN) {
                uplink.take_received(|mbuf, offloads| admission.keep(mbuf, offloads));
            } else {
                uplink.received(|mbuf, offloads| admission.write(mbuf, offloads));
            }
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
            let Some(burst) = self.fit_for_log(burst) else {
                continue;
            };
            match self.node.core_mut().propose(now, burst.clone()) {
                Ok(index) => {
                    proposed += burst.len();
                    if burst.is_stub() {
                        self.kept.logged(&burst, index);
                    }
                }
                Err(burst) if self.node.core().is_serving() => {
                    self.admitted = Some(burst);
                    break;
                }
                Err(burst) => {
                    self.counters.dropped_role_lost += burst.len() as u64;
                    if burst.is_stub() {
                        self.kept.refused(&burst);
                    }
                }
            }
        }
        self.counters.proposed += proposed as u64;
        self.costs.done(Step::Propose, proposed);
        proposed
    }

    /// A stub that was made for a log which takes none any more is written out.
    fn fit_for_log(&mut self, burst: PacketBurst) -> Option<PacketBurst> {
        if !burst.is_stub() || self.node.core().takes_stubs() {
            return Some(burst);
        }
        self.counters.entries_written_out += 1;
        let written = self.kept.write_out(&burst);
        debug_assert!(written.is_some(), "the packets of a stub are kept");
        written
    }

    /// Packets that are kept too long, or for a log that somebody else reads, are written into it.
    pub(super) fn write_out_stale(&mut self, now: Duration) {
        if self.kept.is_empty() {
            self.last_delivery = now;
        } else if now > self.last_delivery + KEPT_FOR || !self.node.core().takes_stubs() {
            self.write_out_kept();
        }
    }

    /// Writes the packets of the log's stubs into it, and frees them.
    pub(super) fn write_out_kept(&mut self) {
        if !self.kept.is_empty() {
            let entries = self.node.core_mut().write_out(&self.kept);
            self.counters.entries_written_out += entries as u64;
            self.kept.written_out();
        }
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
                        self.node.receive_frame(now, mbuf.data_mut());
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
        let given = core.deliver_kept(&self.kept, |position, packets| {
            let delivered = nic.deliver_burst(packets[0].pair, packets).frames;
            if let Some(record) = record {
                record.note_run(position, &packets[..delivered]);
            }
            delivered
        });
        if given > 0 {
            nic.publish();
            self.kept.delivered(self.node.core().position());
            self.counters.delivered += given as u64;
            self.last_ring_activity = now;
            self.last_delivery = now;
        }
        self.costs.done(Step::Deliver, given);
        given
    }
}

/// What a turn's packets are measured by, and where those go that pass.
struct Admission<'a> {
    gate: Gate,
    station: Option<Station>,
    pairs: usize,
    burst: &'a mut PacketBurstBuilder,
    kept: &'a mut Kept,
    /// A packet in several mbufs, in one piece.
    scratch: &'a mut [u8],
    counters: &'a mut PathCounters,
}

impl Admission<'_> {
    /// Keeps the packet and enters its header, if it is admitted, and long enough for that to pay.
    /// Otherwise as [`Self::write`], and the mbuf comes back.
    #[inline(always)]
    fn keep(&mut self, mut mbuf: Mbuf, offloads: PortOffloads) -> Option<Mbuf> {
        // Several pieces could not be referred to as one packet.
        if mbuf.len() < KEPT_BYTES_MIN || !mbuf.is_contiguous() {
            self.write(&mut mbuf, offloads);
            return Some(mbuf);
        }
        let frame = mbuf.data();
        if let Err(why) = check(self.gate, self.station, frame) {
            self.counters.refuse(why);
            return Some(mbuf);
        }
        let header = PacketHeader {
            pair: flow_hash::pair_of(frame, self.pairs),
            bytes: frame.len(),
            offload: offload::received(&mut mbuf, offloads),
        };
        if self.burst.push_kept(header).is_err() {
            self.counters.refuse(Refused::Length);
            return Some(mbuf);
        }
        self.counters.admitted += 1;
        let kept = self.kept.push(mbuf);
        kept.expect("room was looked at for the whole turn");
        None
    }

    /// Copies the packet into the entry, if it is admitted.
    #[inline(always)]
    fn write(&mut self, mbuf: &mut Mbuf, offloads: PortOffloads) {
        let offload = offload::received(mbuf, offloads);
        let Some(frame) = mbuf.linear(self.scratch) else {
            self.counters.dropped_length += 1;
            return;
        };
        if let Err(why) = check(self.gate, self.station, frame) {
            return self.counters.refuse(why);
        }
        let pair = flow_hash::pair_of(frame, self.pairs);
        match self.burst.push(pair, offload, frame) {
            Ok(()) => self.counters.admitted += 1,
            Err(_) => self.counters.refuse(Refused::Length),
        }
    }
}

#[inline(always)]
fn check(gate: Gate, station: Option<Station>, frame: &[u8]) -> Result<(), Refused> {
    station.map_or(Ok(()), |station| station.check(frame))?;
    gate.check()
}

/// Entries that wait for the guest.
fn undelivered(core: &Core) -> u64 {
    core.applied().0.saturating_sub(core.position().index.0)
}
