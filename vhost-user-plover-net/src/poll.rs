//! The poll core: one thread that owns ports, rings, log and held output, and takes the steps of
//! a packet's path in order, again and again. Nothing of ours on it blocks, locks, logs, or
//! allocates per packet.
//!
//! Other threads reach it by [`PollCommand`]s, which it takes between bursts; it answers with
//! [`PollEvent`]s. What VMM and hasher are to do it passes on as such events, too.

mod channel;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use dpdk_config::Mbuf;
use plover_types::{Mode, Offload, PacketBurst, PacketBurstBuilder, Position, SyncId};
use replication::core::{Action, Event};
use replication::epoch::{CopyCommand, LocalCopy, Side};
use replication::node::Node;
use replication::output_rule::HoldQueue;

pub use channel::{PollCommand, PollConfig, PollEvent, PollSetup};

use crate::event_fd::EventFd;
use crate::guest_nic::{Delivery, GuestNic};
use crate::limits::{
    BURSTS_PER_TURN, IDLE_RINGS, IDLE_SYNC_INTERVAL, LINK_CHECK_INTERVAL, QUIET_RINGS, SPIN,
    UNDELIVERED_ENTRIES_MAX,
};
use crate::path::admit::{self, Refused};
use crate::path::announce::{Learned, SEND_AFTER};
use crate::path::ports::NodePort;
use crate::record::DeliveryRecord;
use crate::status::{PathCounters, Status};
use crate::wait;

/// The poll core.
pub struct PollCore {
    node: Node,
    replication: NodePort,
    uplink: Option<NodePort>,
    nic: Option<GuestNic>,
    config: PollConfig,
    commands: Receiver<PollCommand>,
    events: Sender<(Instant, PollEvent)>,
    bell: Arc<EventFd>,
    wake: Arc<EventFd>,
    record: Option<DeliveryRecord>,
    burst: PacketBurstBuilder,
    /// Admitted, and refused by the log for the moment.
    admitted: Option<PacketBurst>,
    hold: HoldQueue<Mbuf>,
    learned: Learned,
    todo: Vec<Action>,
    is_frozen: bool,
    vcpus_idle: bool,
    guest_was_up: bool,
    quiet: Option<(SyncId, Duration)>,
    last_ring_activity: Duration,
    last_sync: Duration,
    last_link_check: Duration,
    uplink_up: bool,
    was_serving: bool,
    has_released: bool,
    announce: VecDeque<Duration>,
    counters: PathCounters,
}

impl PollCore {
    /// A core, ready to run.
    #[must_use]
    pub fn new(setup: PollSetup) -> Self {
        Self {
            node: setup.node,
            replication: setup.replication,
            uplink: setup.uplink,
            nic: setup.nic,
            config: setup.config,
            commands: setup.commands,
            events: setup.events,
            bell: setup.bell,
            wake: setup.wake,
            record: setup.record,
            burst: PacketBurstBuilder::new(),
            admitted: None,
            hold: HoldQueue::default(),
            learned: Learned::default(),
            todo: Vec::new(),
            is_frozen: false,
            vcpus_idle: false,
            guest_was_up: false,
            quiet: None,
            last_ring_activity: Duration::ZERO,
            last_sync: Duration::ZERO,
            last_link_check: Duration::ZERO,
            uplink_up: true,
            was_serving: false,
            has_released: false,
            announce: VecDeque::new(),
            counters: PathCounters::default(),
        }
    }

    /// Runs until `stop` is set or nobody can send commands any more.
    pub fn run(mut self, stop: &AtomicBool) {
        let mut last_work = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let now = self.node.now();
            let Some(work) = self.turn(now) else { break };
            if work > 0 {
                last_work = now;
            } else if !self.config.is_busy && now > last_work + SPIN {
                self.sleep();
            }
        }
    }

    /// One turn: the steps of the path in order. Returns how much there was to do, or nothing
    /// once the other threads are gone.
    fn turn(&mut self, now: Duration) -> Option<usize> {
        let mut work = self.take_commands(now)?;
        work += self.hear_peers(now);
        work += self.nic_rx();
        work += self.propose(now);
        work += self.act(now);
        work += self.deliver(now);
        work += self.guest_tx(now);
        work += self.release(now);
        self.watch(now);
        Some(work)
    }

    fn take_commands(&mut self, now: Duration) -> Option<usize> {
        if let Some(nic) = &mut self.nic {
            nic.take_commands();
        }
        let mut count = 0;
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(now, command),
                Err(TryRecvError::Empty) => return Some(count),
                Err(TryRecvError::Disconnected) => return None,
            }
            count += 1;
        }
    }

    fn obey(&mut self, now: Duration, command: PollCommand) {
        match command {
            PollCommand::Quiesce { sync, longest } => self.quiet = Some((sync, now + longest)),
            PollCommand::Freeze { sync, side } => self.freeze(now, sync, side),
            PollCommand::Thaw { sync } => self.thaw(sync),
            PollCommand::Replace { sync, position } => self.replace(sync, position),
            PollCommand::Stop => {
                self.leave_guest_alone();
                self.counters.discarded += self.hold.discard() as u64;
            }
            PollCommand::Copy(event) => self.node.core_mut().step(now, Event::Copy(event)),
            PollCommand::VcpusIdle(idle) => self.vcpus_idle = idle,
            PollCommand::Status(reply) => {
                // Nobody waiting for it any more is no concern of the core's.
                let _ = reply.try_send(Box::new(self.status(now)));
            }
        }
    }

    fn freeze(&mut self, now: Duration, sync: SyncId, side: Side) {
        self.take_from_guest(now);
        self.leave_guest_alone();
        // A sync that was given up meanwhile closes nothing.
        let is_current = self
            .node
            .core()
            .group()
            .sync()
            .is_some_and(|current| current.id == sync);
        if side == Side::Primary && is_current {
            self.hold.close(sync);
            // At once: what the guest sends after it is thawed belongs to the next epoch.
            self.hold.set_policy(self.node.core().output_policy(true));
        }
        let position = self.node.core().position();
        self.tell(PollEvent::Frozen {
            sync,
            position,
            held: self.hold.held(),
        });
    }

    fn leave_guest_alone(&mut self) {
        self.is_frozen = true;
        // It gets no quieter than that; whoever waits for it must not wait on.
        if let Some((sync, _)) = self.quiet.take() {
            self.tell(PollEvent::Quiet(sync));
        }
        if let Some(nic) = &mut self.nic {
            nic.freeze();
        }
        if let Some(record) = &mut self.record {
            record.flush();
        }
    }

    fn thaw(&mut self, sync: Option<SyncId>) {
        self.is_frozen = false;
        self.quiet = None;
        self.node.core_mut().lift_barrier(sync);
        if let Some(nic) = &mut self.nic {
            nic.thaw();
        }
    }

    fn replace(&mut self, sync: SyncId, position: Position) {
        let found = self.node.core_mut().seek(position);
        let discarded = self.hold.discard();
        self.counters.discarded += discarded as u64;
        if let Some(nic) = &mut self.nic {
            nic.resync();
        }
        self.tell(PollEvent::Replaced {
            sync,
            found,
            discarded,
        });
    }

    /// Step 4: what the peers say.
    fn hear_peers(&mut self, now: Duration) -> usize {
        let mut count = 0;
        for _ in 0..BURSTS_PER_TURN {
            let node = &mut self.node;
            let received = self.replication.receive(|frame| {
                node.receive_frame(now, frame);
            });
            count += received;
            if received == 0 {
                break;
            }
        }
        if let Err(error) = self.node.poll(now) {
            self.tell(PollEvent::DiskFailed(error.to_string()));
        }
        count
    }

    /// Steps 1 and 2: a burst from the uplink; what is not for the guest, or beyond the bounds, is
    /// dropped here by counter and never later.
    fn nic_rx(&mut self) -> usize {
        let Some(uplink) = &mut self.uplink else {
            return 0;
        };
        if self.admitted.is_some() {
            return 0;
        }
        let core = self.node.core();
        let may_propose = core.may_propose();
        let log_has_room = core.log_has_room();
        let backlog = core.applied().0.saturating_sub(core.position().index.0);
        let has_room = backlog < UNDELIVERED_ENTRIES_MAX && self.guest_was_up;
        let (burst, counters, mac) = (&mut self.burst, &mut self.counters, self.config.guest_mac);
        uplink.receive(|frame| {
            counters.received += 1;
            match admit::check(frame, mac) {
                Err(Refused::Length) => counters.dropped_length += 1,
                Err(Refused::NotForGuest | Refused::FromGuest) => counters.dropped_foreign += 1,
                Ok(()) if !log_has_room => counters.dropped_log_full += 1,
                Ok(()) if !may_propose => counters.dropped_not_primary += 1,
                Ok(()) if !has_room => counters.dropped_no_room += 1,
                Ok(()) => {
                    if burst.push(0, Offload::PLAIN, frame).is_ok() {
                        counters.admitted += 1;
                    } else {
                        counters.dropped_length += 1;
                    }
                }
            }
        })
    }

    /// Step 3: one log entry for the burst. A burst that the log refuses for the moment waits; one
    /// that was admitted by a node which is no longer primary goes with its role.
    fn propose(&mut self, now: Duration) -> usize {
        let Some(burst) = self.admitted.take().or_else(|| self.burst.finish()) else {
            return 0;
        };
        let packets = burst.len();
        match self.node.core_mut().propose(now, burst) {
            Ok(()) => {
                self.counters.proposed += packets as u64;
                packets
            }
            Err(burst) if self.node.core().is_serving() => {
                self.admitted = Some(burst);
                0
            }
            Err(_) => {
                self.counters.dropped_role_lost += packets as u64;
                0
            }
        }
    }

    /// Does what the core of the group asks.
    fn act(&mut self, now: Duration) -> usize {
        let (replication, todo) = (&mut self.replication, &mut self.todo);
        let count = self.node.drain(
            |header, payload| replication.send(&[&header[..], payload]),
            |action| todo.push(action),
        );
        self.replication.flush();
        for action in std::mem::take(&mut self.todo).drain(..) {
            match action {
                Action::EndEpoch(sync) => {
                    self.hold.end(sync);
                    self.last_sync = now;
                }
                Action::AbortEpoch(sync) => {
                    self.hold.abort(sync);
                    self.last_sync = now;
                }
                Action::Copy(command) => {
                    if command == CopyCommand::Void {
                        self.leave_guest_alone();
                        self.counters.discarded += self.hold.discard() as u64;
                    }
                    self.tell(PollEvent::Command(command));
                }
                Action::Note(notice) => self.tell(PollEvent::Note(notice)),
                // The node does these itself.
                Action::Send(_) | Action::Persist(_) | Action::Compact { .. } => {}
            }
        }
        count
    }

    /// Step 5: committed packets into the guest's receive ring, in log order. No buffer: wait.
    fn deliver(&mut self, now: Duration) -> usize {
        let Some(nic) = &mut self.nic else { return 0 };
        let core = self.node.core_mut();
        let is_kept_back = !self.config.deliver_to_backup && !core.is_serving();
        if self.is_frozen || is_kept_back || !core.copy().can_serve() {
            return 0;
        }
        let record = &mut self.record;
        let given = core.deliver(|position, packet| {
            let is_delivered = nic.deliver(packet.bytes) == Delivery::Delivered;
            if is_delivered && let Some(record) = record {
                record.note(position, packet);
            }
            is_delivered
        });
        if given > 0 {
            nic.publish();
            self.counters.delivered += given as u64;
            self.last_ring_activity = now;
        }
        given
    }

    /// Steps 6 and 7: a burst from the guest's transmit ring, held with its epoch. No room: stop
    /// taking; the guest waits.
    fn guest_tx(&mut self, now: Duration) -> usize {
        if self.is_frozen {
            0
        } else {
            self.take_from_guest(now)
        }
    }

    fn take_from_guest(&mut self, now: Duration) -> usize {
        let (Some(nic), Some(uplink)) = (&mut self.nic, &self.uplink) else {
            return 0;
        };
        let room = self.config.held_packets_max.saturating_sub(self.hold.len());
        let room = room.min(uplink.buffers_left() as usize / 2);
        let (hold, learned, counters) = (&mut self.hold, &mut self.learned, &mut self.counters);
        let taken = nic.take(room, &mut |frame| {
            learned.look_at(frame);
            match uplink.copy(frame) {
                Some(mbuf) => hold.push(mbuf),
                // The room was checked; a frame longer than an mbuf cannot be sent at all.
                None => counters.transmit_dropped += 1,
            }
        });
        if taken > 0 {
            self.counters.taken += taken as u64;
            self.last_ring_activity = now;
        }
        taken
    }

    /// Step 8: what is agreed leaves, burst by burst, each under a live lease.
    fn release(&mut self, now: Duration) -> usize {
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
        if let Some(uplink) = &mut self.uplink {
            self.learned
                .frames(self.config.guest_mac, |frame| uplink.send(&[frame]));
            uplink.flush();
            self.counters.announcements += 1;
        }
    }

    /// What depends on time: quiet, idle, a sync that is due, the uplink.
    fn watch(&mut self, now: Duration) {
        self.watch_serving(now);
        if let Some(nic) = &self.nic
            && !self.guest_was_up
        {
            self.guest_was_up = nic.state().receive_runs;
        }
        if let Some((sync, deadline)) = self.quiet {
            let rests = now > self.last_ring_activity + QUIET_RINGS;
            if now >= deadline || (rests && self.node.core().is_drained()) {
                self.quiet = None;
                self.tell(PollEvent::Quiet(sync));
            }
        }
        if now >= self.last_link_check + LINK_CHECK_INTERVAL {
            self.last_link_check = now;
            self.uplink_up = self
                .uplink
                .as_ref()
                .is_some_and(|uplink| uplink.port().link_up());
        }
        let idle = self.vcpus_idle && now > self.last_ring_activity + IDLE_RINGS;
        self.node
            .core_mut()
            .set_condition(now, idle, self.uplink_up);
        if self.sync_is_due(now, idle) {
            self.node.core_mut().want_sync(now);
        }
    }

    fn watch_serving(&mut self, now: Duration) {
        let is_serving = self.node.core().is_serving();
        if is_serving == self.was_serving {
            return;
        }
        self.was_serving = is_serving;
        self.has_released = false;
        self.announce.clear();
        if is_serving {
            self.announce
                .extend(SEND_AFTER.iter().map(|after| now + *after));
        }
        self.tell(PollEvent::Serving(is_serving));
    }

    fn sync_is_due(&self, now: Duration, idle: bool) -> bool {
        let core = self.node.core();
        let protected = core
            .group()
            .role()
            .is_some_and(|role| role.mode == Mode::Protected);
        if !protected
            || !core.is_serving()
            || core.group().sync().is_some()
            || !matches!(core.copy(), LocalCopy::Running { .. })
        {
            return false;
        }
        let since = now.saturating_sub(self.last_sync);
        let held = self.hold.held();
        let full = held * 2 >= self.config.held_packets_max;
        let both_idle = idle && core.backup_is_idle();
        since >= self.config.sync_interval_min
            && (full
                || since >= IDLE_SYNC_INTERVAL
                || (held > 0 && (both_idle || since >= self.config.sync_interval_max)))
    }

    fn status(&self, now: Duration) -> Status {
        Status::of(
            &self.node,
            now,
            self.hold.held(),
            self.hold.agreed(),
            self.is_frozen,
            self.nic.as_ref().map(GuestNic::state),
            self.counters,
        )
    }

    fn tell(&self, event: PollEvent) {
        // The other end lives as long as the process; without it there is nobody to tell.
        let _ = self.events.send((Instant::now(), event));
        self.bell.signal();
    }

    /// Sleeps until a kick, a command, an interrupt of a port, or the bound.
    fn sleep(&mut self) {
        let mut interrupts = ArrayVec::<_, 2>::new();
        interrupts.push(self.replication.port().rx_interrupt_fd());
        interrupts.extend(
            self.uplink
                .as_ref()
                .map(|uplink| uplink.port().rx_interrupt_fd()),
        );
        wait::sleep(
            self.nic.as_mut(),
            &interrupts,
            &self.wake,
            self.config.idle_sleep,
        );
    }
}
