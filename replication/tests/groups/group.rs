//! Several cores in one thread and in virtual time: messages in their wire form, a disk for the
//! witness, a driver that does what it is told after a while.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use plover_types::{Certificate, LogIndex, Mode, NodeId, NodeSpec, PacketBurst, Term};
use replication::core::{
    Action, Core, CoreConfig, Event, FailoverRefused, Notice, Persist, members_at_start,
};
use replication::durable::{Recovered, SnapshotState};
use replication::epoch::{CopyCommand, CopyEvent, Side};
use replication::group::GroupState;
use replication::members::ReplaceRefused;
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;
use replication::wire::{self, Body, GroupId, WireError};

const GROUP: GroupId = GroupId(7);
const TICK_US: u64 = 10_000;
const STEP_US: u64 = 100;
/// What a port's ring holds for a node that stands still.
const RING_MESSAGES: usize = 256;
/// What is waited for comes within this time.
const WAIT_US: u64 = 20_000_000;

/// How a node is reached: opaque to the core.
pub fn place(node: NodeId) -> Bytes {
    Bytes::from(format!("host {node}"))
}

enum Due {
    Message(Bytes),
    Copy(CopyEvent),
    Persisted(u64),
}

struct Node {
    spec: NodeSpec,
    config: CoreConfig,
    core: Option<Core>,
    next_tick: u64,
    due: VecDeque<(u64, Due)>,
    /// Those that it listens to.
    known: Vec<NodeId>,
    disk: Recovered,
    log: Vec<Action>,
    log_times: Vec<u64>,
    is_parted: bool,
    /// Its process stands still; what comes is kept by the kernel, up to a point.
    is_frozen: bool,
    guest: Guest,
}

/// What a copy's guest does with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// It is given none.
    Away,
    /// It takes it, and moves its rings.
    Lives,
    /// Its rings fill; its VMM does not answer, either.
    Stands,
}

/// The group.
pub struct Group {
    now_us: u64,
    nodes: Vec<Node>,
    /// Fills begin and do not end.
    pub fills_stall: bool,
    /// Raft's messages from one node to another are lost; reports arrive.
    pub raft_lost: Vec<(NodeId, NodeId)>,
    /// Times that two nodes might transmit at once.
    pub two_leases: u32,
    /// Longest time that nobody might transmit, since it was last reset.
    pub longest_gap_us: u64,
    gap_us: u64,
}

fn config(own: NodeId, nodes: Vec<NodeSpec>, joins: bool) -> CoreConfig {
    let is_durable = nodes.iter().any(|node| node.id == own && !node.is_replica);
    CoreConfig {
        own,
        nodes,
        joins,
        tick: Duration::from_micros(TICK_US),
        election_ticks: 15,
        sync_timeout: Duration::from_secs(1),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable,
        is_restarted: false,
        incarnation: own.0,
        host_facts_hash: 5,
    }
}

impl Group {
    /// Two replicas and a witness, protected; node 1 is the primary.
    pub fn protected() -> Self {
        Self::protected_or(OnBackupLoss::Continue)
    }

    /// As [`Self::protected`]; what the primary does without a backup.
    pub fn protected_or(on_backup_loss: OnBackupLoss) -> Self {
        let specs = [
            NodeSpec::replica(1),
            NodeSpec::replica(2),
            NodeSpec::witness(3),
        ];
        let specs = specs.map(|spec| NodeSpec {
            place: place(spec.id),
            ..spec
        });
        let mut group = Self {
            now_us: 0,
            nodes: Vec::new(),
            fills_stall: false,
            raft_lost: Vec::new(),
            two_leases: 0,
            longest_gap_us: 0,
            gap_us: 0,
        };
        for spec in &specs {
            group.add(CoreConfig {
                on_backup_loss,
                ..config(spec.id, specs.to_vec(), false)
            });
        }
        group.run_until("protected", |group| group.mode() == Mode::Protected);
        assert_eq!(
            group
                .core(NodeId(1))
                .group()
                .role()
                .expect("as the test set it up")
                .primary,
            NodeId(1)
        );
        group
    }

    fn add(&mut self, config: CoreConfig) {
        let spec = config.nodes.iter().find(|node| node.id == config.own);
        let start = SnapshotState {
            index: LogIndex(0),
            term: Term(0),
            data: GroupState::of(members_at_start(&config)).encode(),
        };
        let own = config.own;
        self.nodes.push(Node {
            spec: spec.expect("as the test set it up").clone(),
            known: config.nodes.iter().map(|node| node.id).collect(),
            config,
            core: None,
            next_tick: 0,
            due: VecDeque::new(),
            disk: Recovered {
                snapshot: Some(start),
                ..Recovered::default()
            },
            log: Vec::new(),
            log_times: Vec::new(),
            is_parted: false,
            is_frozen: false,
            guest: Guest::Away,
        });
        self.start(own);
    }

    /// Starts a node that is to become a member in the place of a lost one. Its configuration names
    /// the group as it will be.
    pub fn join(&mut self, lost: NodeId, spec: &NodeSpec) {
        let cores = self.nodes.iter().filter_map(|node| node.core.as_ref());
        let newest = cores.max_by_key(|core| core.applied());
        let nodes = newest.expect("a node runs");
        let before = nodes.group().members().list().iter();
        let others = before.filter(|member| member.spec.id != spec.id);
        let nodes = others.map(|member| match member.spec.id == lost {
            true => spec.clone(),
            false => member.spec.clone(),
        });
        self.add(config(spec.id, nodes.collect(), true));
    }

    fn start(&mut self, id: NodeId) {
        let now = Duration::from_micros(self.now_us);
        let now_us = self.now_us;
        let node = self.node_mut(id);
        let mut config = node.config.clone();
        config.is_restarted = node.disk.hard_state.term > 0;
        let voters: Vec<NodeId> = members_at_start(&config)
            .list()
            .iter()
            .map(|member| member.spec.id)
            .collect();
        let mut recovered = node.disk.clone();
        let last = recovered.compacted.0.0 + recovered.entries.len() as u64;
        let commit = recovered.hard_state.commit;
        recovered.hard_state.commit = commit.max(recovered.compacted.0.0).min(last);
        let storage = LogStorage::restore(&voters, &recovered).expect("as the test set it up");
        node.core = Some(Core::new(config, storage, now).expect("as the test set it up"));
        node.next_tick = now_us + 1_000 * id.0;
        if node.spec.is_replica {
            node.due
                .push_back((now_us + 5_000, Due::Copy(CopyEvent::Ready)));
        }
        self.settle(id);
    }

    /// The node's process ends at once; so does its VM. What it had on its way stays.
    pub fn crash(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.core = None;
        node.due.clear();
    }

    /// A node with a disk starts again.
    pub fn restart(&mut self, id: NodeId) {
        self.start(id);
    }

    /// Cuts a node off, or connects it again.
    pub fn part(&mut self, id: NodeId, is_parted: bool) {
        self.node_mut(id).is_parted = is_parted;
    }

    /// Stops a node's process, or lets it go on. Its port's ring holds a few messages meanwhile.
    pub fn freeze(&mut self, id: NodeId, is_frozen: bool) {
        let now_us = self.now_us;
        let node = self.node_mut(id);
        node.is_frozen = is_frozen;
        if !is_frozen {
            // A tick that is noticed late; those between never were.
            node.next_tick = now_us;
            let keep = node.due.len().saturating_sub(RING_MESSAGES);
            node.due.drain(..keep);
        }
    }

    /// What a replica's guest does from here on, and how long it may stand still.
    pub fn guest(&mut self, id: NodeId, guest: Guest, watchdog: Duration) {
        let node = self.node_mut(id);
        node.guest = guest;
        let core = node.core.as_mut().expect("the node runs");
        core.set_watchdog(watchdog);
    }

    /// From the last heartbeat that a node heard to its last campaign.
    pub fn heard_to_campaign_us(&self, id: NodeId) -> u64 {
        let campaign = self
            .node(id)
            .log_times
            .iter()
            .rev()
            .zip(self.node(id).log.iter().rev());
        let found = campaign.into_iter().find_map(|(at, action)| match action {
            Action::Note(Notice::Campaign { last_heard, .. }) => {
                Some(at - u64::try_from(last_heard.as_micros()).unwrap_or(0))
            }
            _ => None,
        });
        found.expect("it asked for votes")
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.spec.id == id)
            .expect("as the test set it up")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.spec.id == id)
            .expect("as the test set it up")
    }

    /// A node's core.
    pub fn core(&self, id: NodeId) -> &Core {
        self.node(id).core.as_ref().expect("the node runs")
    }

    /// What the newest role says, of those that the nodes applied.
    pub fn mode(&self) -> Mode {
        let cores = self.nodes.iter().filter_map(|node| node.core.as_ref());
        let roles = cores.filter_map(|core| core.group().role());
        let newest = roles.max_by_key(|role| role.generation);
        newest.map_or(Mode::Unprotected, |role| role.mode)
    }

    /// What a node thinks.
    pub fn mode_of(&self, id: NodeId) -> Mode {
        self.core(id)
            .group()
            .role()
            .expect("as the test set it up")
            .mode
    }

    /// Whether a node may transmit now.
    pub fn may_transmit(&self, id: NodeId) -> bool {
        let now = Duration::from_micros(self.now_us);
        self.node(id)
            .core
            .as_ref()
            .is_some_and(|core| core.may_transmit(now))
    }

    /// Asks a node to replace another.
    pub fn replace(
        &mut self,
        by: NodeId,
        lost: NodeId,
        new: &NodeSpec,
    ) -> Result<(), ReplaceRefused> {
        let now = Duration::from_micros(self.now_us);
        let core = self
            .node_mut(by)
            .core
            .as_mut()
            .expect("as the test set it up");
        let result = core.replace(now, lost, new);
        self.settle(by);
        result
    }

    /// Asks a node to hand its work over.
    pub fn fail_over(&mut self, by: NodeId) -> Result<NodeId, FailoverRefused> {
        let now = Duration::from_micros(self.now_us);
        let core = self
            .node_mut(by)
            .core
            .as_mut()
            .expect("as the test set it up");
        let result = core.fail_over(now);
        self.settle(by);
        result
    }

    /// Offers a burst of input to a node, which gives its guest all that is committed. False if the
    /// log takes none.
    pub fn input(&mut self, to: NodeId, burst: PacketBurst) -> bool {
        let now = Duration::from_micros(self.now_us);
        let node = self.node_mut(to);
        let core = node.core.as_mut().expect("the node runs");
        if node.guest == Guest::Away {
            core.deliver(|_, _| true);
        }
        let is_taken = core.propose(now, burst).is_ok();
        self.settle(to);
        is_taken
    }

    /// Asks a node for a sync.
    pub fn want_sync(&mut self, of: NodeId) {
        let now = Duration::from_micros(self.now_us);
        let core = self.node_mut(of).core.as_mut();
        core.expect("the node runs").want_sync(now);
        self.settle(of);
    }

    /// How often a node asked for votes.
    pub fn campaigns(&self, id: NodeId) -> usize {
        let asks = |action: &&Action| matches!(action, Action::Note(Notice::Campaign { .. }));
        self.node(id).log.iter().filter(asks).count()
    }

    /// The last of a node's actions that `pick` knows.
    pub fn last<T>(&self, id: NodeId, pick: impl Fn(&Action) -> Option<T>) -> Option<T> {
        self.node(id).log.iter().rev().find_map(pick)
    }

    /// Runs until something is so; it has to become so.
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now_us + WAIT_US;
        while !done(self) {
            assert!(self.now_us < end, "waited too long until {what}");
            self.step();
        }
    }

    /// Runs for so long.
    pub fn run_ms(&mut self, millis: u64) {
        for _ in 0..millis * 1000 / STEP_US {
            self.step();
        }
    }

    /// A tenth of a millisecond.
    pub fn step(&mut self) {
        self.now_us += STEP_US;
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.spec.id).collect();
        for id in ids {
            self.step_node(id);
        }
        let may = self
            .nodes
            .iter()
            .filter(|node| self.may_transmit(node.spec.id));
        match may.count() {
            0 => self.gap_us += STEP_US,
            1 => self.gap_us = 0,
            _ => self.two_leases += 1,
        }
        self.longest_gap_us = self.longest_gap_us.max(self.gap_us);
    }

    fn step_node(&mut self, id: NodeId) {
        let now_us = self.now_us;
        let now = Duration::from_micros(now_us);
        loop {
            let node = self.node_mut(id);
            let Some(core) = node.core.as_mut().filter(|_| !node.is_frozen) else {
                return;
            };
            if node.next_tick <= now_us {
                node.next_tick += TICK_US;
                core.step(now, Event::Tick);
            } else if let Some(at) = node.due.iter().position(|(due, _)| *due <= now_us) {
                match node.due.remove(at).expect("as the test set it up").1 {
                    Due::Copy(event) => core.step(now, Event::Copy(event)),
                    Due::Persisted(number) => core.step(now, Event::Persisted(number)),
                    Due::Message(bytes) => {
                        let (own, known) = (node.spec.id, &node.known);
                        match wire::decode(bytes, GROUP, own, |node| known.contains(&node)) {
                            Ok(envelope) => core.step(now, Event::Receive(envelope)),
                            Err(WireError::From(from)) if core.is_gone(from) => {
                                core.heard_gone(from);
                            }
                            Err(_) => {}
                        }
                    }
                }
            } else {
                return self.feed(id);
            }
            self.settle(id);
        }
    }

    /// Gives the guest what is committed.
    fn feed(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let (guest, Some(core)) = (node.guest, &mut node.core) else {
            return;
        };
        if guest != Guest::Away
            && core.copy().can_serve()
            && core.deliver(|_, _| true) > 0
            && guest == Guest::Lives
        {
            core.guest_gave_sign();
        }
    }

    /// Does what the core asks.
    fn settle(&mut self, id: NodeId) {
        let now_us = self.now_us;
        let Some(core) = &mut self.node_mut(id).core else {
            return;
        };
        for action in core.take_actions() {
            match &action {
                Action::Send(envelope) => {
                    let mut bytes = BytesMut::new();
                    wire::encode(envelope, GROUP, &mut bytes).expect("what is sent has a form");
                    let (to, is_parted) = (envelope.to, self.node(id).is_parted);
                    let is_raft = matches!(envelope.body, Body::Raft(_));
                    if is_raft && self.raft_lost.contains(&(id, to)) {
                        continue;
                    }
                    let due = (now_us + 2 * STEP_US, Due::Message(bytes.freeze()));
                    let peer = self.nodes.iter_mut().find(|node| node.spec.id == to);
                    if let Some(peer) = peer
                        && !is_parted
                        && !peer.is_parted
                        && peer.core.is_some()
                        && (!peer.is_frozen || peer.due.len() < RING_MESSAGES)
                    {
                        peer.due.push_back(due);
                    }
                    continue;
                }
                Action::Persist(persist) => {
                    let node = self.node_mut(id);
                    write(&mut node.disk, persist);
                    let due = (now_us + 3 * STEP_US, Due::Persisted(persist.number));
                    node.due.push_back(due);
                    continue;
                }
                Action::Compact {
                    to,
                    index,
                    term,
                    data,
                    ..
                } => {
                    let snapshot = SnapshotState {
                        index: *index,
                        term: *term,
                        data: data.clone(),
                    };
                    compact(&mut self.node_mut(id).disk, *to, snapshot);
                }
                Action::Copy(command) => self.drive(id, *command),
                Action::Members(specs) => {
                    let known = specs.iter().map(|spec| spec.id).collect();
                    self.node_mut(id).known = known;
                }
                Action::EndEpoch(_) | Action::AbortEpoch(_) | Action::Note(_) => {}
            }
            let node = self.node_mut(id);
            node.log.push(action);
            node.log_times.push(now_us);
        }
    }

    fn drive(&mut self, id: NodeId, command: CopyCommand) {
        let fills_stall = self.fills_stall;
        let now_us = self.now_us;
        let node = self.node_mut(id);
        let core = node.core.as_mut().expect("as the test set it up");
        let certificate = Certificate([7; 16]);
        if node.guest == Guest::Stands && matches!(command, CopyCommand::Begin { .. }) {
            return;
        }
        let (after, event) = match command {
            CopyCommand::Boot => (1_000, CopyEvent::Booted),
            CopyCommand::Begin {
                kind: plover_types::SyncKind::Fill,
                ..
            } if fills_stall => return,
            CopyCommand::Begin {
                sync,
                side: Side::Primary,
                ..
            } => {
                let position = core.position();
                let event = CopyEvent::CopiedOut {
                    sync,
                    certificate,
                    position,
                };
                (2_000, event)
            }
            CopyCommand::Begin { sync, .. } => (3_000, CopyEvent::Staged { sync, certificate }),
            CopyCommand::Commit { sync, position } => {
                assert!(core.seek(position));
                core.lift_barrier(Some(sync));
                (2_000, CopyEvent::Loaded { sync })
            }
            CopyCommand::Finish { sync } | CopyCommand::Abort { sync, .. } => {
                return core.lift_barrier(Some(sync));
            }
            CopyCommand::Void => (5_000, CopyEvent::Ready),
        };
        node.due.push_back((now_us + after, Due::Copy(event)));
    }
}

fn write(disk: &mut Recovered, persist: &Persist) {
    if let Some(snapshot) = &persist.snapshot {
        let metadata = snapshot.get_metadata();
        let (index, term) = (LogIndex(metadata.index), Term(metadata.term));
        disk.entries.clear();
        disk.compacted = (index, term);
        disk.snapshot = Some(SnapshotState {
            index,
            term,
            data: snapshot.data.clone(),
        });
    }
    if let Some(first) = persist.entries.first() {
        disk.entries.retain(|entry| entry.index < first.index);
    }
    disk.entries.extend(persist.entries.iter().cloned());
    disk.hard_state = persist.hard_state.clone();
}

fn compact(disk: &mut Recovered, to: LogIndex, snapshot: SnapshotState) {
    let dropped = disk.entries.iter().find(|entry| entry.index + 1 == to.0);
    let Some(dropped) = dropped else { return };
    disk.compacted = (LogIndex(dropped.index), Term(dropped.term));
    disk.entries.retain(|entry| entry.index >= to.0);
    disk.snapshot = Some(snapshot);
}
