//! Passthrough: a card without replication. One thread moves packets between a DPDK port and the
//! guest's rings and keeps neither log nor held output; the port's frames go into the rings in one
//! copy, the guest's out of them in one.
//!
//! ```text
//!   port rx ──▶ admit ──▶ steer ──▶ waiting, by pair ──▶ receive rings
//!   port tx ◀── sending ◀────────────────────────────── transmit rings
//! ```
//!
//! Nothing is lost from the guest: what the port does not take at once stays in `sending`, and no
//! more is taken from the guest until it has left. What comes from the port waits for a buffer of
//! the guest's, one burst for each pair; while every pair has one waiting nothing is received, and
//! the port's own queue takes what comes, or drops and counts it, as on any card.

mod channel;

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, TryRecvError};
use dpdk_config::{BURST_PACKETS_MAX, Burst, Eal, Mbuf, Mempool, Port};

pub use channel::{
    PassthroughCommand, PassthroughConfig, PassthroughCounters, PassthroughSetup, PassthroughStatus,
};

use crate::event_fd::EventFd;
use crate::guest_nic::{GuestNic, Undelivered};
use crate::limits::{COMMAND_TURNS, FRAME_BYTES_MIN, QUEUE_PAIRS_MAX, SPIN};
use crate::mbuf_sink::MbufSink;
use crate::offload;
use crate::path::admit::{Refused, Station};
use crate::path::flow_hash;
use crate::path::outgoing::Outgoing;
use crate::ring::Frame;
use crate::wait;

/// The core of a node that does not replicate.
pub struct PassthroughCore {
    eal: Eal,
    uplink: Port,
    pool: Mempool,
    nic: GuestNic,
    config: PassthroughConfig,
    commands: Receiver<PassthroughCommand>,
    wake: Arc<EventFd>,
    /// What the port has just given.
    received: Burst,
    /// Admitted, and waiting for a buffer, by queue pair.
    waiting: [Burst; QUEUE_PAIRS_MAX],
    /// Taken from the guest, and not yet by the port.
    sending: Burst,
    /// Finished frames of a guest that leaves that to us, waiting for room in `sending`.
    cut: VecDeque<Mbuf>,
    outgoing: Outgoing,
    /// Queue pairs that run; looked at with the commands.
    pairs: u8,
    /// What the guest sends may have to be finished here; looked at with the commands.
    leaves_open: bool,
    counters: PassthroughCounters,
}

impl PassthroughCore {
    /// A core, ready to run.
    #[must_use]
    pub fn new(setup: PassthroughSetup) -> Self {
        Self {
            eal: setup.eal,
            uplink: setup.uplink,
            pool: setup.pool,
            nic: setup.nic,
            config: setup.config,
            commands: setup.commands,
            wake: setup.wake,
            received: Burst::new(),
            waiting: [const { Burst::new() }; QUEUE_PAIRS_MAX],
            sending: Burst::new(),
            cut: VecDeque::new(),
            outgoing: Outgoing::default(),
            pairs: 0,
            leaves_open: false,
            counters: PassthroughCounters::default(),
        }
    }

    /// Runs on this thread until `stop` is set or nobody can send commands any more.
    pub fn run(mut self, stop: &AtomicBool) {
        // Without it every packet buffer comes from the pool's shared ring: slower, no more. A
        // thread that has one already is told so by an error.
        let _cache = self.eal.register_thread();
        let mut last_work = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if !self.take_commands() {
                break;
            }
            let mut work = 0;
            for _ in 0..COMMAND_TURNS {
                work += self.turn();
            }
            if self.config.is_busy {
                continue;
            }
            if work > 0 {
                last_work = Instant::now();
            } else if last_work.elapsed() > SPIN {
                self.sleep();
            }
        }
    }

    /// One turn: both ways. Returns how many packets moved.
    #[inline]
    fn turn(&mut self) -> usize {
        let received = self.uplink_rx();
        let delivered = self.guest_rx();
        let taken = self.guest_tx();
        let sent = self.uplink_tx();
        received + delivered + taken + sent
    }

    /// False once nobody can send commands any more.
    fn take_commands(&mut self) -> bool {
        self.nic.take_commands();
        let nic = self.nic.state();
        self.set_pairs(nic.pairs_running);
        self.leaves_open = nic.leaves_open;
        loop {
            match self.commands.try_recv() {
                Ok(PassthroughCommand::Status(reply)) => {
                    // Nobody waiting for it any more is no concern of the core's.
                    let _ = reply.try_send(Box::new(self.status()));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// What waits for pairs that do not run any more is dropped: they are somebody else's now.
    fn set_pairs(&mut self, pairs: u8) {
        if pairs != self.pairs {
            self.pairs = pairs;
            for waiting in &mut self.waiting[usize::from(pairs)..] {
                self.counters.dropped_guest_down += waiting.len() as u64;
                waiting.clear();
            }
        }
    }

    /// A burst from the port: what is not for the guest is dropped by counter, the rest waits for
    /// its pair.
    #[inline]
    fn uplink_rx(&mut self) -> usize {
        let pairs = usize::from(self.pairs.max(1));
        if self.waiting[..pairs].iter().all(|burst| !burst.is_empty()) {
            return 0;
        }
        let count = self.uplink.rx_burst(&mut self.received);
        if count == 0 {
            return 0;
        }
        self.counters.received += count as u64;
        self.admit();
        if pairs == 1 && self.waiting[0].is_empty() {
            std::mem::swap(&mut self.received, &mut self.waiting[0]);
        } else {
            self.steer();
        }
        count
    }

    #[inline]
    fn admit(&mut self) {
        let (counters, station) = (&mut self.counters, self.config.station);
        let longest = self.config.frame_bytes_max;
        let is_up = self.pairs > 0;
        self.received.retain(|mbuf| {
            // A chain of buffers is longer than any frame of the port's MTU.
            let refused = if mbuf.is_contiguous() {
                check(mbuf.data(), station, longest).err()
            } else {
                Some(Refused::Length)
            };
            match refused {
                None if is_up => return true,
                None => counters.dropped_guest_down += 1,
                Some(Refused::Length) => counters.dropped_length += 1,
                Some(_) => counters.dropped_foreign += 1,
            }
            false
        });
    }

    /// To the pairs by flow, so that the packets of one stay in order.
    fn steer(&mut self) {
        for mbuf in self.received.drain() {
            let pair = flow_hash::pair_of(mbuf.data(), self.pairs.into());
            if self.waiting[usize::from(pair)].push(mbuf).is_err() {
                self.counters.dropped_no_buffer += 1;
            }
        }
    }

    #[inline]
    fn guest_rx(&mut self) -> usize {
        let mut delivered = 0;
        for pair in 0..usize::from(self.pairs.max(1)) {
            if !self.waiting[pair].is_empty() {
                delivered += self.deliver(pair);
            }
        }
        if delivered > 0 {
            self.nic.publish();
        }
        delivered
    }

    #[inline]
    fn deliver(&mut self, pair: usize) -> usize {
        let waiting = &mut self.waiting[pair];
        let offloads = self.uplink.offloads();
        let frames: ArrayVec<Frame<'_>, BURST_PACKETS_MAX> = waiting
            .iter_mut()
            .map(|mbuf| Frame {
                offload: offload::received(mbuf, offloads),
                bytes: mbuf.data(),
            })
            .collect();
        let delivered = self.nic.deliver_burst(pair as u8, &frames);
        drop(frames);
        self.counters.delivered += delivered.frames as u64;
        match delivered.stop {
            None => waiting.clear(),
            Some(Undelivered::NoBuffer) => waiting.free_first(delivered.frames),
            Some(Undelivered::Stopped) => {
                self.counters.dropped_guest_down += (waiting.len() - delivered.frames) as u64;
                waiting.clear();
            }
        }
        delivered.frames
    }

    /// A burst from the guest. No room: it waits. Called then, too, since a ring that is to stop
    /// is answered here.
    #[inline]
    fn guest_tx(&mut self) -> usize {
        if self.leaves_open {
            return self.guest_tx_unfinished();
        }
        let room = self.sending.room();
        let mut sink = MbufSink::new(&self.pool, &mut self.sending);
        let taken = self.nic.take_burst(room, &mut sink);
        let dropped = sink.finish();
        self.counters.taken += taken as u64;
        self.counters.transmit_dropped += dropped as u64;
        taken
    }

    /// The same from a guest that leaves checksums open and sends large packets: one of them may
    /// become many frames, so these have a queue of their own.
    fn guest_tx_unfinished(&mut self) -> usize {
        let room = if self.cut.is_empty() {
            self.sending.room()
        } else {
            0
        };
        let mut sink = self.outgoing.sink(&self.uplink, &self.pool);
        let taken = self.nic.take_burst(room, &mut sink);
        self.cut.extend(self.outgoing.drain());
        self.counters.taken += taken as u64;
        let dropped = self.outgoing.counters();
        self.counters.transmit_dropped = dropped.too_long + dropped.malformed + dropped.no_mbuf;
        taken
    }

    #[inline]
    fn uplink_tx(&mut self) -> usize {
        while !self.sending.is_full()
            && let Some(mbuf) = self.cut.pop_front()
        {
            if let Err(mbuf) = self.sending.push(mbuf) {
                self.cut.push_front(mbuf);
            }
        }
        if self.sending.is_empty() {
            return 0;
        }
        let sent = self.uplink.tx_burst(&mut self.sending);
        self.counters.sent += sent as u64;
        sent
    }

    fn sleep(&mut self) {
        let interrupt: [Option<RawFd>; 1] = [self.uplink.rx_interrupt_fd()];
        wait::sleep(
            Some(&mut self.nic),
            &interrupt,
            &self.wake,
            wait::Longest {
                idle: self.config.idle_sleep,
                // Nothing happens here by time alone.
                due: Duration::MAX,
            },
        );
    }

    fn status(&self) -> PassthroughStatus {
        PassthroughStatus::of(&self.nic, &self.uplink, self.counters)
    }
}

/// Whether a frame goes to the guest.
#[inline]
fn check(frame: &[u8], station: Option<Station>, longest: usize) -> Result<(), Refused> {
    match station {
        Some(station) => station.check(frame),
        None if (FRAME_BYTES_MIN..=longest).contains(&frame.len()) => Ok(()),
        None => Err(Refused::Length),
    }
}
