//! What a host does: starts its core, and does what that asks.

use std::time::Duration;

use plover_types::{NodeId, NodeSpec};
use rand::Rng;
use rand::rngs::SmallRng;
use replication::core::{Action, Core, CoreConfig, Event, Persist, members_at_start};
use replication::durable::SnapshotState;
use replication::epoch::{CopyCommand, CopyEvent, LocalCopy};
use replication::group::GroupState;
use replication::output_rule::HoldQueue;
use replication::storage::LogStorage;
use replication::ticks::Ticks;
use replication::wire::{self, Body, Envelope};

use crate::GROUP;
use crate::clock::{Clock, DRIFT_PPM_MAX};
use crate::disk::Disk;
use crate::driver::{Driver, Job};
use crate::host::Host;
use crate::queue::What;
use crate::settings::Settings;
use crate::violation::Violation;
use crate::vm::Vm;
use crate::watch::kind_name;
use crate::world::{ELECTION_TICKS, TICK_US, World};

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
        let storage = match &mut it.disk {
            Some(disk) => {
                disk.note_members(GroupState::of(members_at_start(&config)).encode());
                disk.recover(&voters)
            }
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
}
