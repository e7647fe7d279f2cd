//! The poll core: one thread that owns ports, rings, log and held output, and takes the steps of
//! a packet's path in order, again and again. Nothing of ours on it blocks, locks, logs, or
//! allocates per packet.
//!
//! Other threads reach it by [`PollCommand`]s, which it takes between bursts; it answers with
//! [`PollEvent`]s. What VMM and hasher are to do it passes on as such events, too.

mod channel;
mod costs;
mod input;
mod output;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use dpdk_config::Mbuf;
use plover_types::{PacketBurst, PacketBurstBuilder, Position, SyncId};
use replication::core::{Action, Event};
use replication::epoch::Side;
use replication::node::Node;
use replication::output_rule::HoldQueue;

pub use channel::{PollCommand, PollConfig, PollEvent, PollSetup};
pub use costs::{Step, StepCost, StepCosts};

use self::costs::Costs;
use crate::event_fd::EventFd;
use crate::guest_nic::GuestNic;
use crate::limits::{FRAME_BYTES_MAX, SPIN};
use crate::path::admit::Station;
use crate::path::kept::Kept;
use crate::path::outgoing::Outgoing;
use crate::path::ports::NodePort;
use crate::record::DeliveryRecord;
use crate::status::{PathCounters, Status};
use crate::wait;

/// The poll core.
pub struct PollCore {
    node: Node,
    replication: Option<NodePort>,
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
    /// Packets of the log's stubs.
    kept: Kept,
    hold: HoldQueue<Mbuf>,
    outgoing: Outgoing,
    /// None: frames to and from any station are taken.
    station: Option<Station>,
    /// A received packet that lies in several mbufs, in one piece.
    scratch: Box<[u8]>,
    todo: Vec<Action>,
    is_frozen: bool,
    vcpus_idle: bool,
    guest_was_up: bool,
    quiet: Option<(SyncId, Duration)>,
    last_ring_activity: Duration,
    /// When the guest last took what was kept for it, or nothing was.
    last_delivery: Duration,
    last_sync: Duration,
    last_link_check: Duration,
    last_guest_look: Duration,
    /// What the guest had moved in its rings then.
    guest_signs: Option<u64>,
    uplink_up: bool,
    was_serving: bool,
    has_released: bool,
    announce: VecDeque<Duration>,
    counters: PathCounters,
    costs: Costs,
}

impl PollCore {
    /// A core, ready to run.
    #[must_use]
    pub fn new(setup: PollSetup) -> Self {
        let config = &setup.config;
        Self {
            station: config
                .guest_mac
                .map(|mac| Station::new(mac, config.guest_mtu)),
            costs: Costs::new(config.measures_steps),
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
            kept: Kept::default(),
            hold: HoldQueue::default(),
            outgoing: Outgoing::default(),
            scratch: vec![0; FRAME_BYTES_MAX].into(),
            todo: Vec::new(),
            is_frozen: false,
            vcpus_idle: false,
            guest_was_up: false,
            quiet: None,
            last_ring_activity: Duration::ZERO,
            last_delivery: Duration::ZERO,
            last_sync: Duration::ZERO,
            last_link_check: Duration::ZERO,
            last_guest_look: Duration::ZERO,
            guest_signs: None,
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

    /// One turn, if the core has still somebody to work for.
    fn turn_now(&mut self) -> bool {
        let now = self.node.now();
        self.turn(now).is_some()
    }

    /// One turn: the steps of the path in order. Returns how much there was to do, or nothing
    /// once the other threads are gone.
    fn turn(&mut self, now: Duration) -> Option<usize> {
        self.costs.begin();
        let mut work = self.take_commands(now)?;
        self.costs.done(Step::Other, work);
        let messages = self.hear_peers(now);
        self.costs.done(Step::Replicate, 0);
        work += messages + self.nic_rx();
        let proposed = self.propose(now);
        work += proposed + self.act(now);
        self.costs.done(Step::Replicate, proposed);
        work += self.deliver(now);
        work += self.guest_tx(now);
        work += self.release(now);
        self.watch(now);
        self.costs.done(Step::Other, 0);
        self.costs.end(work > 0);
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
            PollCommand::FailOver(reply) => {
                let _ = reply.try_send(self.node.core_mut().fail_over(now));
            }
            PollCommand::ReplaceMember { lost, new, reply } => {
                let _ = reply.try_send(self.node.core_mut().replace(now, lost, &new));
            }
        }
    }

    fn freeze(&mut self, now: Duration, sync: SyncId, side: Side) {
        self.take_from_guest(now, usize::MAX);
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
        self.write_out_kept();
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

    fn status(&self, now: Duration) -> Status {
        let mut status = Status::of(
            &self.node,
            now,
            self.hold.held(),
            self.hold.agreed(),
            self.is_frozen,
            self.nic.as_ref().map(GuestNic::state),
            self.counters,
        );
        status.costs = self.costs.report();
        if let Some(nic) = &self.nic {
            status.pairs = nic.pair_counts().to_vec();
        }
        status
    }

    fn tell(&self, event: PollEvent) {
        // The other end lives as long as the process; without it there is nobody to tell.
        let _ = self.events.send((Instant::now(), event));
        self.bell.signal();
    }

    /// Sleeps until a kick, a command, an interrupt of a port, or a bound: what is due on the link
    /// to the peers, above all.
    fn sleep(&mut self) {
        let mut interrupts = ArrayVec::<_, 2>::new();
        let ports = self.replication.iter().chain(&self.uplink);
        interrupts.extend(ports.map(|port| port.port().rx_interrupt_fd()));
        wait::sleep(
            self.nic.as_mut(),
            &interrupts,
            &self.wake,
            wait::Longest {
                idle: self.config.idle_sleep,
                due: self.node.due().saturating_sub(self.node.now()),
            },
        );
    }
}

/// Runs several cores on one thread, a turn of each after the other, without ever sleeping: for
/// groups that are measured on one processor.
pub fn run_in_turns(mut cores: Vec<PollCore>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if !cores.iter_mut().all(PollCore::turn_now) {
            break;
        }
    }
}
