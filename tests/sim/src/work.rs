//! What a host does: starts its core, does what that asks, gives packets to the guest, lets
//! output leave.

use std::time::Duration;

use plover_types::{Mode, NodeId, NodeSpec, RoleEntry};
use rand::Rng;
use rand::rngs::SmallRng;
use replication::core::{Action, Core, CoreConfig, Event, FailoverProgress, Notice, Persist};
use replication::durable::SnapshotState;
use replication::epoch::{CopyCommand, CopyEvent, LocalCopy};
use replication::output_rule::HoldQueue;
use replication::storage::LogStorage;
use replication::ticks::Ticks;
use replication::wire::{self, Body, Envelope};

use crate::GROUP;
use crate::clock::{Clock, DRIFT_PPM_MAX};
use crate::coverage::role_change;
use crate::disk::Disk;
use crate::driver::{Driver, Job};
use crate::host::Host;
use crate::queue::What;
use crate::settings::Settings;
use crate::violation::Violation;
use crate::vm::Vm;
use crate::watch::{kind_name, packet_number, pair_of};
use crate::world::{ELECTION_TICKS, TICK_US, World};

/// Packets that a burst of the client's holds at most.
const BURST_PACKETS_MAX: u32 = 4;

impl Host {
    pub(crate) fn new(
        spec: NodeSpec,
        settings: &Settings,
        is_alone: bool,
        random: &mut SmallRng,
    ) -> Self {
        let is_durable = !is_alone && (!spec.is_replica || settings.replicas_durable);
        let id = spec.id;
        let offset = random.random_range(0..1_000_000_000);
        let rate = random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
        Self {
            spec,
            core: None,
            incarnation: 0,
            clock: Clock::new(offset, rate),
            ticks: Ticks::new(Duration::from_micros(TICK_US), Duration::ZERO),
            is_stopped: false,
            waiting: Vec::new(),
            hold: HoldQueue::default(),
            vm: Vm::absent(),
            driver: Driver::default(),
            disk: is_durable.then(Disk::default),
            disk_failed: false,
            is_gone: false,
            is_replaced: false,
            joins: false,
            members: Vec::new(),
            uplink_up: true,
            filling: None,
            passed: 0,
            host_facts: 1 + u64::from(settings.unequal_hosts && id == NodeId(2)),
            applied_seen: plover_types::LogIndex(0),
            copy_seen: LocalCopy::Absent,
        }
    }
}

impl World {
    /// The node's processes start.
    pub(crate) fn start(&mut self, host: usize) {
        let now = self.local(host);
        self.trace(host, || "starts".into());
        let it = &mut self.hosts[host];
        let members = it.members.clone();
        let voters: Vec<NodeId> = match it.joins {
            true => Vec::new(),
            false => members.iter().map(|spec| spec.id).collect(),
        };
        let is_restarted = it.incarnation > 0;
        it.incarnation += 1;
        let config = CoreConfig {
            own: it.spec.id,
            nodes: members,
            joins: it.joins,
            tick: Duration::from_micros(TICK_US),
            election_ticks: ELECTION_TICKS,
            sync_timeout: Duration::from_millis(800),
            on_backup_loss: self.settings.on_backup_loss,
            is_durable: it.disk.is_some(),
            is_restarted,
            incarnation: it.incarnation,
            host_facts_hash: if it.spec.is_replica { it.host_facts } else { 0 },
        };
        let storage = match &it.disk {
            Some(disk) => disk.recover(&voters),
            None => LogStorage::new(&voters),
        };
        it.core = Some(Core::new(config, storage, now).expect("a valid configuration"));
        it.ticks = Ticks::new(Duration::from_micros(TICK_US), now);
        it.applied_seen = plover_types::LogIndex(0);
        it.copy_seen = LocalCopy::Absent;
        it.disk_failed = false;
        let phase = self.random.random_range(1..TICK_US);
        self.schedule(host, phase, What::Tick);
        if self.hosts[host].spec.is_replica {
            self.launch(host);
        }
    }

    /// A VMM starts.
    pub(crate) fn launch(&mut self, host: usize) {
        let count = self.hosts[host].driver.start(Job::Launch);
        let delay = self.random.random_range(1_000..80_000);
        self.schedule(host, delay, What::Job(count));
    }

    /// Tells the core what became of the copy.
    pub(crate) fn report(&mut self, host: usize, event: CopyEvent) {
        let now = self.local(host);
        self.core(host).step(now, Event::Copy(event));
    }

    /// Does what the core asks, gives packets to the guest, lets output leave; until nothing moves.
    pub(crate) fn pump(&mut self, host: usize) -> Result<(), Violation> {
        while self.hosts[host].core.is_some() {
            self.watch_log(host)?;
            let mut actions = self.core(host).take_actions();
            let is_idle = actions.is_empty();
            for action in actions.drain(..) {
                self.act(host, action)?;
            }
            self.core(host).recycle(actions);
            self.run_driver(host);
            let given = self.deliver(host)?;
            let sent = self.transmit(host)?;
            if is_idle && given == 0 && sent == 0 {
                break;
            }
        }
        Ok(())
    }

    fn act(&mut self, host: usize, action: Action) -> Result<(), Violation> {
        match action {
            Action::Send(envelope) => self.send(host, &envelope)?,
            Action::Persist(persist) => self.persist(host, persist),
            Action::Compact {
                to,
                index,
                term,
                data,
                hard_state,
            } => {
                let it = &mut self.hosts[host];
                if let Some(disk) = it.disk.as_mut().filter(|_| !it.disk_failed) {
                    disk.compact(to, SnapshotState { index, term, data }, hard_state);
                }
            }
            Action::Copy(command) => {
                self.trace(host, || format!("is told {command:?}"));
                let it = &mut self.hosts[host];
                if command == CopyCommand::Void {
                    it.vm.is_paused = true;
                    it.hold.discard();
                }
                it.driver.commands.push_back(command);
            }
            Action::EndEpoch(sync) => self.hosts[host].hold.end(sync),
            Action::AbortEpoch(sync) => {
                let it = &mut self.hosts[host];
                it.hold.abort(sync);
                it.filling = it.filling.filter(|filling| *filling != sync);
            }
            Action::Members(members) => self.hosts[host].members = members,
            Action::Note(notice) => self.note(host, &notice)?,
        }
        Ok(())
    }

    fn send(&mut self, host: usize, envelope: &Envelope) -> Result<(), Violation> {
        self.watch_message(host, envelope)?;
        let Some(to) = self.index_of(envelope.to) else {
            return Ok(());
        };
        if let Body::Raft(message) = &envelope.body {
            self.outcome
                .coverage
                .sent(kind_name(message.get_msg_type()));
        }
        self.message.clear();
        wire::encode(envelope, GROUP, &mut self.message).expect("our own messages fit");
        let bytes = self.message.split().freeze();
        let incarnation = self.hosts[to].incarnation;
        let (now, queue) = (self.now_us, &mut self.queue);
        self.network
            .send(host, to, &bytes, &mut self.random, |delay, bytes| {
                queue.push(now + delay, to, incarnation, What::Message(bytes));
            });
        Ok(())
    }

    fn persist(&mut self, host: usize, persist: Persist) {
        let longest = if self.slow_disks { 300_000 } else { 2_000 };
        let delay = self.random.random_range(50..longest);
        let number = persist.number;
        let now = self.now_us;
        let it = &mut self.hosts[host];
        if let Some(disk) = it.disk.as_mut().filter(|_| !it.disk_failed) {
            let at = disk.submit(persist, now, delay);
            self.schedule(host, at - now, What::Persisted(number));
        }
    }

    fn note(&mut self, host: usize, notice: &Notice) -> Result<(), Violation> {
        self.trace(host, || format!("{notice:?}"));
        let coverage = &mut self.outcome.coverage;
        let node = self.hosts[host].spec.id;
        match notice {
            Notice::Role(role) => {
                self.hosts[host].filling = None;
                let before = self.checker.newest_role().copied();
                if self.checker.role(node, role)? {
                    self.watch_role(role)?;
                    let coverage = &mut self.outcome.coverage;
                    coverage.decided(role_change(before.as_ref(), role));
                    let is_new = self
                        .index_of(role.primary)
                        .is_some_and(|at| self.hosts[at].joins);
                    if is_new && before.is_some_and(|before| before.primary != role.primary) {
                        self.outcome
                            .coverage
                            .decided("role: taken over by a new member");
                    }
                    self.outcome.roles += 1;
                }
            }
            Notice::SyncBegan(sync) if self.checker.first("begins", sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync begins", "fill begins"]));
            }
            Notice::SyncEnded { sync, .. } if self.checker.ended(sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync ends", "fill ends"]));
                self.outcome.syncs += 1;
            }
            Notice::SyncAborted(sync) if self.checker.first("aborted", sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync aborted", "fill aborted"]));
            }
            Notice::HandOver { to } => {
                coverage.decided("handover");
                if !self.hosts[host].spec.is_replica {
                    coverage.decided("handover by the witness");
                }
                self.part_from(host, *to);
            }
            Notice::Campaign { .. } => coverage.decided("campaign"),
            Notice::Copy(copy) => {
                coverage.copy(&self.hosts[host].copy_seen, copy);
                let loads = matches!(self.hosts[host].copy_seen, LocalCopy::Loading { .. });
                if *copy == LocalCopy::Void && !loads {
                    self.given_up(host)?;
                }
                self.hosts[host].copy_seen = *copy;
            }
            Notice::Failover(FailoverProgress::Done { .. }) => {
                coverage.decided("planned failover done");
            }
            _ => {}
        }
        Ok(())
    }

    fn run_driver(&mut self, host: usize) {
        while self.hosts[host].driver.takes_command() {
            let Some(command) = self.hosts[host].driver.commands.pop_front() else {
                break;
            };
            self.follow(host, command);
        }
    }

    fn follow(&mut self, host: usize, command: CopyCommand) {
        match command {
            CopyCommand::Boot => {
                let count = self.hosts[host].driver.start(Job::Boot);
                self.schedule(host, 5_000, What::Job(count));
            }
            CopyCommand::Begin { sync, kind, side } => self.begin_round(host, sync, kind, side),
            CopyCommand::Commit { sync, position } => self.commit_round(host, sync, position),
            CopyCommand::Finish { .. } => {
                let driver = &mut self.hosts[host].driver;
                (driver.round, driver.job) = (None, None);
            }
            CopyCommand::Abort { sync, resume } => self.abort_round(host, sync, resume),
            CopyCommand::Void => {
                let it = &mut self.hosts[host];
                it.driver.forget();
                it.vm.is_alive = false;
                it.hold.discard();
                self.launch(host);
            }
        }
    }

    pub(crate) fn job_done(&mut self, host: usize, count: u64) -> Result<(), Violation> {
        match self.hosts[host].driver.complete(count) {
            None => {}
            Some(Job::Launch) => self.report(host, CopyEvent::Ready),
            Some(Job::Boot) => {
                self.hosts[host].vm.boot();
                self.report(host, CopyEvent::Booted);
            }
            Some(Job::Step) => self.step_done(host)?,
        }
        Ok(())
    }

    fn deliver(&mut self, host: usize) -> Result<usize, Violation> {
        let it = &mut self.hosts[host];
        let node = it.spec.id;
        let (Some(core), vm, hold) = (it.core.as_mut(), &mut it.vm, &mut it.hold) else {
            return Ok(0);
        };
        if !vm.is_running() {
            return Ok(0);
        }
        let (random, checker) = (&mut self.random, &mut self.checker);
        let mut violation = None;
        // The guest has room for a few packets at a time.
        let mut room = random.random_range(0..8);
        let given = core.deliver(|_, packet| {
            if room == 0 || violation.is_some() {
                return false;
            }
            room -= 1;
            let number = packet_number(packet.bytes);
            assert_eq!(packet.pair, pair_of(number), "the log keeps the queue pair");
            violation = checker.given(node, vm.image.count(), number).err();
            hold.push(vm.process(number, &mut checker.histories, random));
            true
        });
        violation.map_or(Ok(given), Err)
    }

    fn transmit(&mut self, host: usize) -> Result<usize, Violation> {
        let now = self.local(host);
        let it = &mut self.hosts[host];
        let Some(core) = it.core.as_mut() else {
            return Ok(0);
        };
        let policy = core.output_policy(it.hold.has_closed());
        it.hold.set_policy(policy);
        let is_alone =
            |role: &RoleEntry| role.mode == Mode::Unprotected && role.primary == it.spec.id;
        if core.group().role().is_some_and(is_alone) && it.filling.is_none() {
            it.passed = it.vm.image.count();
        }
        if it.hold.agreed() == 0 || !core.may_transmit(now) {
            return Ok(0);
        }
        let mut sent = 0;
        while let Some(answer) = it.hold.pop_agreed() {
            self.checker.seen(it.spec.id, answer, it.passed)?;
            sent += 1;
        }
        self.checker.serves(it.spec.id, &it.vm.image)?;
        Ok(sent)
    }

    /// The switch floods: every replica's uplink sees the packets, only the primary proposes them.
    pub(crate) fn client_sends(&mut self) -> Result<(), Violation> {
        if self.now_us < self.quiet_until_us {
            self.queue.push(self.quiet_until_us, 0, 0, What::Client);
            return Ok(());
        }
        for _ in 0..self.random.random_range(1..=BURST_PACKETS_MAX) {
            let number = self.next_packet;
            self.next_packet += 1;
            let mut packet = [0u8; 64];
            packet[..8].copy_from_slice(&number.to_le_bytes());
            let pushed = self
                .builder
                .push(pair_of(number), plover_types::Offload::PLAIN, &packet);
            debug_assert_eq!(pushed, Ok(()));
        }
        if let Some(burst) = self.builder.finish() {
            for host in 0..self.hosts.len() {
                let it = &self.hosts[host];
                if !it.is_up() || !it.spec.is_replica || !it.uplink_up {
                    continue;
                }
                let now = self.local(host);
                // A packet that cannot be proposed is dropped at admit, as the uplink would.
                if self.core(host).propose(now, burst.clone()).is_ok() {
                    self.pump(host)?;
                }
            }
        }
        let next = self
            .random
            .random_range(400..self.settings.client_gap_max_us);
        self.queue.push(self.now_us + next, 0, 0, What::Client);
        Ok(())
    }
}

fn sync_name(kind: plover_types::SyncKind, names: [&'static str; 2]) -> &'static str {
    match kind {
        plover_types::SyncKind::Delta => names[0],
        plover_types::SyncKind::Fill => names[1],
    }
}
