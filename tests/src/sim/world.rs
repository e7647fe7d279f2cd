//! The world: three nodes, a client, time.

mod disk;
mod faults;
mod work;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use plover_types::limits::QUEUE_PAIRS_MAX;
use plover_types::{LogEntry, LogIndex, Mode, NodeId, Offload, PacketBurstBuilder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use replication::core::{Action, Core, CoreConfig, Event, NodeSpec, Notice, Persist};
use replication::durable::SnapshotState;
use replication::epoch::LocalCopy;
use replication::output_rule::{HoldQueue, OutputPolicy};
use replication::plan::OnBackupLoss;
use replication::ticks::Ticks;
use replication::wire::{self, GroupId};

use disk::Disk;

use super::check::{Checker, Violation};
use super::driver::{Driver, Job};
use super::network::Network;
use super::vm::{Answer, Vm};

const TICK_US: u64 = 10_000;
const ELECTION_TICKS: u32 = 15;
const GROUP: GroupId = GroupId(7);
const NODES: [NodeSpec; 3] = [
    NodeSpec::replica(1),
    NodeSpec::replica(2),
    NodeSpec::witness(3),
];
const FAULTS_FROM_US: u64 = 600_000;
const FAULTS_UNTIL_US: u64 = 4_000_000;
const END_US: u64 = 9_000_000;
/// A group that is not protected by then gets until here: failed fills are repeated ever later.
const END_LATEST_US: u64 = 40_000_000;
/// After the last fault: time for elections, relaunches and a fill.
const SETTLED_US: u64 = 7_000_000;

/// A deliberate fault of ours, to see that the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The core as it is.
    None,
    /// Output leaves when its epoch is closed, before the sync ended.
    ReleaseAtClose,
    /// The lease is not asked.
    IgnoreLease,
    /// The backup resumes although it promised not to.
    ResumeStaged,
    /// The backup goes on from its own position after a sync.
    KeepPosition,
}

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Nodes of the group: 3, or 1.
    pub nodes: usize,
    /// Whether anything fails.
    pub with_faults: bool,
    /// A planted bug.
    pub sabotage: Sabotage,
    /// Prints what happens, for a seed that failed.
    pub trace: bool,
}

/// What a run saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answers that the client saw.
    pub answers: usize,
    /// Syncs that ended.
    pub syncs: usize,
    /// Roles that were committed.
    pub roles: u64,
    /// Whether a valid copy was left at the end.
    pub survived: bool,
}

enum What {
    Tick,
    Message(Bytes),
    Persisted(u64),
    Job(u64),
    Restart,
    Continue,
}

struct Scheduled {
    at_us: u64,
    sequence: u64,
    node: usize,
    incarnation: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.sequence) == (other.at_us, other.sequence)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

struct Node {
    spec: NodeSpec,
    core: Option<Core>,
    incarnation: u64,
    /// Local time = rate (ppm over global time) and an offset.
    rate_ppm: i64,
    ticks: Ticks,
    /// Stopped (SIGSTOP): events wait.
    is_stopped: bool,
    waiting: Vec<Scheduled>,
    hold: HoldQueue<Answer>,
    vm: Vm,
    driver: Driver,
    disk: Disk,
    unpersisted: Vec<Persist>,
}

impl Node {
    /// Whether its log has a role entry that it has not applied. A witness that is down has its
    /// log on disk.
    fn has_undecided_role(&self) -> bool {
        let is_role = |data: &Bytes| matches!(LogEntry::decode(data), Ok(LogEntry::Role(_)));
        match &self.core {
            Some(core) => (core.applied().0 + 1..)
                .map_while(|index| core.log_entry(LogIndex(index)))
                .any(|(_, data)| is_role(&data)),
            None => self
                .disk
                .recovered
                .entries
                .iter()
                .any(|entry| is_role(&entry.data)),
        }
    }
}

struct World {
    options: Options,
    random: StdRng,
    now_us: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    nodes: Vec<Node>,
    network: Network,
    checker: Checker,
    builder: PacketBurstBuilder,
    next_packet: u64,
    replica_killed: bool,
    /// A fault destroyed a copy while no other valid one was there: losing the VM is no bug then.
    last_copy_destroyed: bool,
    mends: Vec<(u64, Mend)>,
    outcome: Outcome,
}

enum Mend {
    Link(NodeId, NodeId),
    Network,
}

/// Runs one seed.
///
/// # Errors
/// The first violation.
pub fn run(options: Options) -> Result<Outcome, Violation> {
    let mut world = World::new(options);
    world.run()?;
    Ok(world.outcome)
}

impl World {
    fn new(options: Options) -> Self {
        let mut random = StdRng::seed_from_u64(options.seed);
        let members = &NODES[..options.nodes];
        let nodes = members
            .iter()
            .map(|spec| Node {
                spec: spec.clone(),
                core: None,
                incarnation: 0,
                rate_ppm: random.random_range(-4000..=4000),
                ticks: Ticks::new(Duration::from_micros(TICK_US), Duration::ZERO),
                is_stopped: false,
                waiting: Vec::new(),
                hold: HoldQueue::default(),
                vm: Vm::default(),
                driver: Driver::default(),
                disk: Disk::default(),
                unpersisted: Vec::new(),
            })
            .collect();
        let mut world = Self {
            options,
            random,
            now_us: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            nodes,
            network: Network::default(),
            checker: Checker::default(),
            builder: PacketBurstBuilder::new(),
            next_packet: 0,
            replica_killed: false,
            last_copy_destroyed: false,
            mends: Vec::new(),
            outcome: Outcome::default(),
        };
        for node in 0..members.len() {
            world.start(node);
        }
        world
    }

    fn run(&mut self) -> Result<(), Violation> {
        let mut next_client = 300_000;
        let mut next_fault = FAULTS_FROM_US;
        let mut healed = false;
        let mut first_settled = None;
        while self.now_us < END_US || (self.now_us < END_LATEST_US && !self.is_at_rest()) {
            let Some(Reverse(event)) = self.queue.pop() else {
                break;
            };
            self.now_us = event.at_us;
            self.mend();
            if self.now_us >= next_client {
                next_client = self.now_us + self.random.random_range(500..8_000);
                self.client_sends()?;
            }
            let faulty = self.options.with_faults && self.now_us < FAULTS_UNTIL_US;
            if faulty && self.now_us >= next_fault {
                next_fault = self.now_us + self.random.random_range(20_000..700_000);
                self.fault()?;
            }
            if self.now_us >= FAULTS_UNTIL_US && !healed {
                healed = true;
                self.heal();
            }
            if self.now_us >= SETTLED_US && first_settled.is_none() {
                first_settled = Some(self.next_packet);
            }
            self.dispatch(event)?;
            self.one_transmits()?;
        }
        self.finish(first_settled.unwrap_or(0))
    }

    fn schedule(&mut self, node: usize, delay_us: u64, what: What) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled {
            at_us: self.now_us + delay_us,
            sequence: self.sequence,
            node,
            incarnation: self.nodes[node].incarnation,
            what,
        }));
    }

    fn local(&self, node: usize) -> Duration {
        let rate = 1_000_000 + self.nodes[node].rate_ppm;
        let us = i128::from(self.now_us) * i128::from(rate) / 1_000_000;
        Duration::from_micros(u64::try_from(us).expect("time is positive"))
    }

    fn start(&mut self, node: usize) {
        let now = self.local(node);
        let is_restarted = self.nodes[node].incarnation > 0;
        self.trace(node, &"started");
        self.nodes[node].incarnation += 1;
        let it = &self.nodes[node];
        let is_durable = !it.spec.is_replica;
        let config = CoreConfig {
            own: it.spec.id,
            nodes: NODES[..self.options.nodes].to_vec(),
            joins: false,
            tick: Duration::from_micros(TICK_US),
            election_ticks: ELECTION_TICKS,
            sync_timeout: Duration::from_millis(800),
            on_backup_loss: OnBackupLoss::Continue,
            is_durable,
            is_restarted,
            incarnation: self.nodes[node].incarnation,
            host_facts_hash: 0,
        };
        let core = Core::new(config, it.disk.recover(self.options.nodes), now)
            .expect("a valid configuration");
        self.nodes[node].ticks = Ticks::new(Duration::from_micros(TICK_US), now);
        self.nodes[node].core = Some(core);
        let phase = self.random.random_range(1..TICK_US);
        self.schedule(node, phase, What::Tick);
        if self.nodes[node].spec.is_replica {
            self.launch(node);
        }
    }

    fn launch(&mut self, node: usize) {
        let count = self.nodes[node].driver.start(Job::Launch);
        let delay = self.random.random_range(1_000..100_000);
        self.schedule(node, delay, What::Job(count));
    }

    fn dispatch(&mut self, event: Scheduled) -> Result<(), Violation> {
        let node = event.node;
        if event.incarnation != self.nodes[node].incarnation {
            return Ok(());
        }
        if matches!(event.what, What::Restart) {
            self.start(node);
            return Ok(());
        }
        if matches!(event.what, What::Continue) {
            self.trace(node, &"continues");
            self.nodes[node].is_stopped = false;
            for late in std::mem::take(&mut self.nodes[node].waiting) {
                self.dispatch(late)?;
            }
            return Ok(());
        }
        if self.nodes[node].core.is_none() {
            return Ok(());
        }
        if self.nodes[node].is_stopped {
            self.nodes[node].waiting.push(event);
            return Ok(());
        }
        match event.what {
            What::Tick => {
                let now = self.local(node);
                while self.nodes[node].ticks.due(now) {
                    self.core(node).step(now, Event::Tick);
                    self.want_syncs(node);
                }
                // A host looks at the time when it gets to it.
                let late = self.random.random_ratio(1, 20);
                let next = self
                    .random
                    .random_range(1_000..if late { 40_000 } else { TICK_US });
                self.schedule(node, next, What::Tick);
            }
            What::Message(bytes) => {
                let own = self.nodes[node].spec.id;
                let known = |id| NODES.iter().any(|spec| spec.id == id);
                if let Ok(envelope) = wire::decode(bytes, GROUP, own, known) {
                    let now = self.local(node);
                    self.core(node).step(now, Event::Receive(envelope));
                }
            }
            What::Persisted(number) => self.persisted(node, number),
            What::Job(count) => self.job_done(node, count)?,
            What::Restart | What::Continue => {}
        }
        self.pump(node)
    }

    fn core(&mut self, node: usize) -> &mut Core {
        self.nodes[node]
            .core
            .as_mut()
            .expect("only live nodes are asked")
    }

    fn want_syncs(&mut self, node: usize) {
        if self.random.random_ratio(1, 3) {
            let now = self.local(node);
            self.core(node).want_sync(now);
        }
    }

    /// Does what the core asks, gives packets to the guest, lets output leave; until nothing moves.
    fn pump(&mut self, node: usize) -> Result<(), Violation> {
        loop {
            let actions = self.core(node).take_actions();
            let idle = actions.is_empty();
            for action in actions {
                self.act(node, action);
            }
            self.run_driver(node)?;
            let given = self.deliver(node)?;
            let sent = self.transmit(node)?;
            if idle && given == 0 && sent == 0 {
                return Ok(());
            }
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Send(envelope) => {
                let mut bytes = BytesMut::new();
                wire::encode(&envelope, GROUP, &mut bytes).expect("our own messages fit");
                let bytes = bytes.freeze();
                let to = envelope.to;
                let arrivals = self
                    .network
                    .send(envelope.from, to, &bytes, &mut self.random);
                for (delay, bytes) in arrivals {
                    self.schedule(index_of(to), delay, What::Message(bytes));
                }
            }
            Action::Persist(persist) => {
                let delay = self.random.random_range(50..3_000);
                let number = persist.number;
                self.nodes[node].unpersisted.push(persist);
                self.schedule(node, delay, What::Persisted(number));
            }
            Action::Compact {
                to,
                index,
                term,
                data,
                hard_state,
            } => {
                // In order with what is being written; a compaction that is left out does no harm.
                if self.nodes[node].unpersisted.is_empty() {
                    let snapshot = SnapshotState { index, term, data };
                    self.nodes[node].disk.compact(to, snapshot, hard_state);
                }
            }
            Action::Copy(command) => self.command(node, command),
            Action::EndEpoch(sync) => self.nodes[node].hold.end(sync),
            Action::AbortEpoch(sync) => self.nodes[node].hold.abort(sync),
            // The members stay as they are.
            Action::Members(_) => {}
            Action::Note(notice) => {
                self.trace(node, &notice);
                self.note(&notice);
            }
        }
    }

    fn trace(&self, node: usize, what: &dyn std::fmt::Debug) {
        if self.options.trace {
            println!(
                "{:>9} node {}: {what:?}",
                self.now_us, self.nodes[node].spec.id
            );
        }
    }

    fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::SyncEnded { .. } => self.outcome.syncs += 1,
            Notice::Role(role) => {
                self.outcome.roles = self.outcome.roles.max(role.generation.0);
            }
            _ => {}
        }
    }

    fn deliver(&mut self, node: usize) -> Result<usize, Violation> {
        let own = self.nodes[node].spec.id;
        let random = &mut self.random;
        let checker = &mut self.checker;
        let it = &mut self.nodes[node];
        let (Some(core), vm, hold) = (it.core.as_mut(), &mut it.vm, &mut it.hold) else {
            return Ok(0);
        };
        if !vm.is_running() {
            return Ok(0);
        }
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
            violation = checker.given(own, vm.memory.len(), number).err();
            hold.push(vm.process(number, random));
            true
        });
        violation.map_or(Ok(given), Err)
    }

    fn transmit(&mut self, node: usize) -> Result<usize, Violation> {
        let now = self.local(node);
        let own = self.nodes[node].spec.id;
        let sabotage = self.options.sabotage;
        let it = &mut self.nodes[node];
        let Some(core) = it.core.as_mut() else {
            return Ok(0);
        };
        let mut policy = core.output_policy(it.hold.has_closed());
        if sabotage == Sabotage::ReleaseAtClose && it.hold.has_closed() {
            policy = OutputPolicy::Pass;
        }
        it.hold.set_policy(policy);
        let may = match sabotage {
            Sabotage::IgnoreLease => core.is_serving(),
            _ => core.may_transmit(now),
        };
        if !may || it.hold.agreed() == 0 {
            return Ok(0);
        }
        let mut sent = 0;
        while let Some(answer) = it.hold.pop_agreed() {
            self.checker.seen(own, answer)?;
            sent += 1;
        }
        self.checker.serves(own, &it.vm.memory)?;
        Ok(sent)
    }

    fn one_transmits(&self) -> Result<(), Violation> {
        let mut found: Option<NodeId> = None;
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(core) = &node.core else { continue };
            let now = self.local(index);
            let may = match self.options.sabotage {
                Sabotage::IgnoreLease => core.is_serving(),
                _ => core.may_transmit(now),
            };
            if may && let Some(other) = found.replace(node.spec.id) {
                return Err(Violation::TwoPrimaries(other, node.spec.id));
            }
        }
        Ok(())
    }

    /// The switch floods: both uplinks see the packet, only the primary proposes it.
    fn client_sends(&mut self) -> Result<(), Violation> {
        let number = self.next_packet;
        self.next_packet += 1;
        let mut packet = [0u8; 64];
        packet[..8].copy_from_slice(&number.to_le_bytes());
        let pushed = self.builder.push(pair_of(number), Offload::PLAIN, &packet);
        debug_assert_eq!(pushed, Ok(()));
        let Some(burst) = self.builder.finish() else {
            return Ok(());
        };
        for node in 0..self.nodes.len().min(2) {
            if self.nodes[node].core.is_none() || self.nodes[node].is_stopped {
                continue;
            }
            let now = self.local(node);
            // A packet that cannot be proposed is dropped at admit, as the uplink would.
            if self.core(node).propose(now, burst.clone()).is_ok() {
                self.pump(node)?;
            }
        }
        Ok(())
    }

    fn persisted(&mut self, node: usize, number: u64) {
        let it = &mut self.nodes[node];
        let done: Vec<Persist>;
        (done, it.unpersisted) = std::mem::take(&mut it.unpersisted)
            .into_iter()
            .partition(|persist| persist.number <= number);
        for persist in done {
            it.disk.write(persist);
        }
        let now = self.local(node);
        self.core(node).step(now, Event::Persisted(number));
    }

    fn is_alone(&self) -> bool {
        self.options.nodes == 1
    }

    /// Whether the group is what it should be once faults have stopped.
    fn is_at_rest(&self) -> bool {
        self.replica_killed
            || self.is_alone()
            || self.newest_role().is_some_and(|role| {
                role.mode == Mode::Protected || !self.nodes.iter().any(|node| node.vm.is_alive)
            })
    }

    fn finish(&mut self, first_settled: u64) -> Result<(), Violation> {
        self.outcome.answers = self.checker.answers();
        for node in 0..self.nodes.len() {
            if let Some(core) = &self.nodes[node].core {
                self.trace(
                    node,
                    &(core.counters(), core.leader(), core.applied(), core.copy()),
                );
            }
        }
        let role = self.newest_role();
        let valid_left = role.is_none_or(|role| {
            self.nodes.iter().any(|node| {
                role.valid.contains(node.spec.id)
                    && node.core.as_ref().is_some_and(|core| {
                        core.copy().can_serve() || *core.copy() == LocalCopy::Ready
                    })
                    && node.vm.is_alive
            })
        });
        self.outcome.survived = valid_left;
        if !valid_left {
            return if self.last_copy_destroyed {
                Ok(())
            } else {
                Err(Violation::LostAll)
            };
        }
        let served =
            (first_settled..self.next_packet).any(|packet| self.checker.was_answered(packet));
        if !served {
            return Err(Violation::NotServing);
        }
        let may_be_protected = !self.replica_killed && !self.is_alone();
        if may_be_protected && role.is_none_or(|role| role.mode != Mode::Protected) {
            return Err(Violation::NotProtected);
        }
        for node in &self.nodes {
            if node.core.as_ref().is_some_and(Core::is_serving) {
                self.checker.serves(node.spec.id, &node.vm.memory)?;
            }
        }
        Ok(())
    }
}

fn index_of(node: NodeId) -> usize {
    NODES
        .iter()
        .position(|spec| spec.id == node)
        .expect("messages go to members")
}

/// The queue pair that an uplink would choose for a packet.
fn pair_of(number: u64) -> u8 {
    (number % u64::from(QUEUE_PAIRS_MAX)) as u8
}

fn packet_number(packet: &[u8]) -> u64 {
    packet
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
