//! The world: hosts, a client, time. Takes the next event, lets the host concerned act until
//! nothing moves, and has everything checked.

use bytes::BytesMut;
use plover_types::{NodeId, NodeSpec, PacketBurstBuilder};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use replication::core::{Core, Event};
use replication::wire::{self, WireError};

use crate::GROUP;
use crate::check::Checker;
use crate::host::Host;
use crate::network::Network;
use crate::outcome::Outcome;
use crate::queue::{Queue, Scheduled, What};
use crate::settings::{FAULTS_FROM_US, Options, Settings};
use crate::violation::Violation;

/// Length of a core's tick, µs.
pub(crate) const TICK_US: u64 = 10_000;

/// Ticks without a leader before an election.
pub(crate) const ELECTION_TICKS: u32 = 15;

/// The client starts then: the first primary has booted.
const CLIENT_FROM_US: u64 = 200_000;

/// A run without faults ends then.
const CALM_END_US: u64 = 3_000_000;

/// Bursts that a NIC keeps for a process that stands still.
const WAITING_MAX: usize = 512;

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) settings: Settings,
    pub(crate) random: SmallRng,
    pub(crate) now_us: u64,
    pub(crate) queue: Queue,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    pub(crate) outcome: Outcome,
    /// Faults may come; off once the world is healed.
    pub(crate) faults_on: bool,
    pub(crate) slow_disks: bool,
    /// Until then the client is silent, and nobody wants a sync.
    pub(crate) quiet_until_us: u64,
    /// A fault destroyed a copy while no other valid one was there: losing the VM is no bug then.
    pub(crate) last_copy_destroyed: bool,
    pub(crate) builder: PacketBurstBuilder,
    pub(crate) message: BytesMut,
    pub(crate) next_packet: u64,
    /// The first packet that was sent after the world was healed.
    pub(crate) first_settled: Option<u64>,
    /// The first packet that was not looked at yet when counting answers after healing.
    pub(crate) settled_seen: u64,
    pub(crate) settled_answers: u32,
    pub(crate) lines: Vec<String>,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let mut random = SmallRng::seed_from_u64(options.seed);
        let settings = Settings::draw(&options, &mut random);
        let hosts = (0..options.nodes)
            .map(|host| {
                let id = host as u64 + 1;
                let spec = match host {
                    0 | 1 => NodeSpec::replica(id),
                    _ => NodeSpec::witness(id),
                };
                Host::new(spec, &settings, options.nodes == 1, &mut random)
            })
            .collect();
        let mut world = Self {
            faults_on: options.with_faults,
            options,
            settings,
            random,
            now_us: 0,
            queue: Queue::default(),
            hosts,
            network: Network::default(),
            checker: Checker::default(),
            outcome: Outcome::default(),
            slow_disks: false,
            quiet_until_us: 0,
            last_copy_destroyed: false,
            builder: PacketBurstBuilder::new(),
            message: BytesMut::new(),
            next_packet: 0,
            first_settled: None,
            settled_seen: 0,
            settled_answers: 0,
            lines: Vec::new(),
        };
        let members: Vec<NodeSpec> = world.hosts.iter().map(|host| host.spec.clone()).collect();
        for host in 0..world.hosts.len() {
            world.hosts[host].members.clone_from(&members);
            world.start(host);
        }
        world.queue.push(CLIENT_FROM_US, 0, 0, What::Client);
        if world.faults_on {
            let heal = world.settings.faults_until_us;
            world.queue.push(FAULTS_FROM_US, 0, 0, What::Fault);
            world.queue.push(heal, 0, 0, What::Heal);
        }
        world
    }

    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        while !self.is_over() {
            let Some(event) = self.queue.pop() else { break };
            self.now_us = event.at_us;
            self.outcome.events += 1;
            self.dispatch(event)?;
            self.watch_leases()?;
        }
        self.finish()
    }

    fn is_over(&mut self) -> bool {
        if self.options.with_faults {
            !self.faults_on && self.is_settled()
        } else {
            self.now_us >= CALM_END_US
        }
    }

    pub(crate) fn schedule(&mut self, host: usize, delay_us: u64, what: What) {
        let incarnation = self.hosts[host].incarnation;
        self.queue
            .push(self.now_us + delay_us, host, incarnation, what);
    }

    pub(crate) fn trace(&mut self, host: usize, line: impl FnOnce() -> String) {
        if self.options.trace {
            let node = self.hosts[host].spec.id;
            let seconds = self.now_us as f64 / 1e6;
            self.lines
                .push(format!("{seconds:>10.6} node {node}  {}", line()));
        }
    }

    /// The core of a host that runs.
    pub(crate) fn core(&mut self, host: usize) -> &mut Core {
        self.hosts[host]
            .core
            .as_mut()
            .expect("only running nodes are asked")
    }

    /// A host's own time.
    pub(crate) fn local(&self, host: usize) -> std::time::Duration {
        self.hosts[host].clock.at(self.now_us)
    }

    pub(crate) fn index_of(&self, node: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.spec.id == node)
    }

    fn dispatch(&mut self, event: Scheduled) -> Result<(), Violation> {
        let host = event.host;
        if !event.what.is_of_life() {
            return self.world_event(host, event.what);
        }
        let it = &mut self.hosts[host];
        if event.incarnation != it.incarnation || it.core.is_none() {
            return Ok(());
        }
        match event.what {
            What::Continue => return self.go_on(host),
            What::Interrupt(sync, step, by) => return self.interrupt(host, sync, step, by),
            What::Repair => {
                self.kill(host);
                return Ok(());
            }
            _ => {}
        }
        let it = &mut self.hosts[host];
        if it.is_stopped {
            if it.waiting.len() < WAITING_MAX || !matches!(event.what, What::Message(_)) {
                it.waiting.push(event);
            }
            return Ok(());
        }
        self.host_event(host, event.what)
    }

    fn world_event(&mut self, host: usize, what: What) -> Result<(), Violation> {
        match what {
            What::Client => self.client_sends(),
            What::Fault => self.draw_fault(),
            What::Replace(new) => self.ask_to_replace(host, new),
            What::PartVoter(other, voter) => {
                self.part_voter(host, other, voter);
                Ok(())
            }
            What::Squeeze(other, with_restart) => {
                self.squeeze_now(host, other, with_restart);
                Ok(())
            }
            What::Restart => {
                self.outcome.coverage.decided("node restarted with its log");
                self.start(host);
                Ok(())
            }
            other => {
                self.mend(host, &other);
                Ok(())
            }
        }
    }

    fn host_event(&mut self, host: usize, what: What) -> Result<(), Violation> {
        let now = self.local(host);
        match what {
            What::Tick => self.tick(host),
            What::Message(bytes) => {
                let own = self.hosts[host].spec.id;
                let known = |id: NodeId| id != own && self.is_reached(host, id);
                match wire::decode(bytes, GROUP, own, known) {
                    Ok(envelope) => self.core(host).step(now, Event::Receive(envelope)),
                    Err(WireError::From(node)) if self.core(host).is_gone(node) => {
                        self.core(host).heard_gone(node);
                    }
                    Err(_) => {}
                }
                self.watch_reports(host)?;
            }
            What::Persisted(number) => {
                if let Some(disk) = &mut self.hosts[host].disk {
                    disk.synced(number);
                }
                self.core(host).step(now, Event::Persisted(number));
            }
            What::Job(count) => self.job_done(host, count)?,
            other => unreachable!("not of a host: {other:?}"),
        }
        self.pump(host)
    }

    /// A stopped host goes on: what came meanwhile comes now.
    fn go_on(&mut self, host: usize) -> Result<(), Violation> {
        self.trace(host, || "continues".into());
        self.hosts[host].is_stopped = false;
        for late in std::mem::take(&mut self.hosts[host].waiting) {
            self.dispatch(late)?;
        }
        Ok(())
    }

    /// No two nodes transmit at once; nobody leads in a later term while a lease holds.
    fn watch_leases(&mut self) -> Result<(), Violation> {
        let mut holder: Option<(NodeId, u64)> = None;
        for host in 0..self.hosts.len() {
            let now = self.local(host);
            let it = &self.hosts[host];
            let Some(core) = &it.core else { continue };
            if !core.may_transmit(now) {
                continue;
            }
            if let Some((other, _)) = holder {
                return Err(Violation::TwoPrimaries(other, it.spec.id));
            }
            let names_us = |role: &plover_types::RoleEntry| role.primary == it.spec.id;
            if !self.checker.newest_role().is_some_and(names_us) {
                return Err(Violation::VoidServes { node: it.spec.id });
            }
            holder = Some((it.spec.id, core.leader().1.0));
        }
        for host in 0..self.hosts.len() {
            let it = &self.hosts[host];
            let Some(core) = &it.core else { continue };
            let (leader, term) = core.leader();
            if leader != Some(it.spec.id) {
                continue;
            }
            if let Some((holder, held)) = holder
                && term.0 > held
            {
                return Err(Violation::LeaseBroken {
                    holder,
                    leader: it.spec.id,
                });
            }
            self.checker.leads(it.spec.id, term.0)?;
        }
        Ok(())
    }

    pub(crate) fn tick(&mut self, host: usize) {
        let now = self.local(host);
        while self.hosts[host].ticks.due(now) {
            self.core(host).step(now, Event::Tick);
            let wants = self.random.random_ratio(1, self.settings.sync_rarity);
            if wants && self.now_us >= self.quiet_until_us {
                self.core(host).want_sync(now);
            }
        }
        let idle = self.random.random();
        let uplink_up = self.hosts[host].uplink_up;
        self.core(host).set_condition(now, idle, uplink_up);
        if self.hosts[host].vm.is_running() && self.random.random() {
            let random = &mut self.random;
            self.hosts[host].vm.wander(random);
        }
        // A host looks at the time when it gets to it, and sometimes late.
        let late = self.random.random_ratio(1, 20);
        let longest = if late { 4 * TICK_US } else { TICK_US };
        let next = self.random.random_range(TICK_US / 4..=longest);
        self.schedule(host, next, What::Tick);
    }
}
