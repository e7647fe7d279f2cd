//! A group around `RawNode`, driven as `replication::core` drives it: an entry is in the log's
//! memory at once, and a message that depends on the disk leaves when the disk says so. Messages
//! pass our wire form and the check against the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use plover_types::{LogIndex, NodeId, NodeSpec, Offload, PacketBurstBuilder, Term};
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};
use raft::{Config, RawNode, StateRole};
use replication::group::GroupState;
use replication::members::Members;
use replication::storage::LogStorage;
use replication::wire::{Body, Envelope, GroupId, check_against_log, decode, encode};

use super::safety::{Promises, logs_match};

const GROUP: GroupId = GroupId(7);
/// Turns after which a group that does not come to rest never will.
const TURNS_MAX: usize = 1000;
/// Ticks of an election timeout and of a heartbeat, unless a scenario says otherwise.
pub const ELECTION_TICKS: usize = 10;

/// How a group is made. The options are the core's, unless a scenario is about them.
#[derive(Clone, Copy)]
pub struct Setup {
    pub nodes: u64,
    pub checks_quorum: bool,
    pub pre_votes: bool,
    pub in_flight: usize,
    pub append_bytes: u64,
    pub uncommitted_bytes: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 3,
            checks_quorum: true,
            pre_votes: true,
            in_flight: 256,
            append_bytes: 64 * 1024,
            uncommitted_bytes: 1 << 20,
        }
    }
}

impl Setup {
    /// Raft as in the paper: no pre-votes, and a leader that never steps down by itself.
    pub fn plain(nodes: u64) -> Self {
        Self {
            nodes,
            checks_quorum: false,
            pre_votes: false,
            ..Self::default()
        }
    }
}

/// What waits for a node's disk.
struct Waiting {
    number: u64,
    messages: Vec<Message>,
    snapshot: Option<u64>,
    /// The log with it.
    log: LogStorage,
}

/// One node.
pub struct Node {
    pub raft: RawNode<LogStorage>,
    /// A slow disk: nothing is durable until [`Group::write`].
    pub is_slow: bool,
    waiting: VecDeque<Waiting>,
    /// What a restart finds.
    kept: LogStorage,
    /// Index up to which entries were applied.
    pub applied: u64,
    was: (StateRole, u64),
}

impl Node {
    /// The log, as held in memory.
    pub fn log(&self) -> &LogStorage {
        self.raft.store()
    }

    /// The terms of the entries that it holds.
    pub fn terms(&self) -> Vec<u64> {
        let log = self.log();
        (log.first().0..=log.last().0)
            .filter_map(|index| log.term_of(LogIndex(index)))
            .map(|term| term.0)
            .collect()
    }
}

/// The group, and what is on its way between the nodes.
pub struct Group {
    setup: Setup,
    pub nodes: BTreeMap<u64, Node>,
    pub wire: VecDeque<Message>,
    /// Ways on which everything is lost.
    cut: BTreeSet<(u64, u64)>,
    promises: Promises,
    /// Messages that did not fit the receiver's log.
    pub unfit: usize,
}

impl Group {
    pub fn new(setup: Setup) -> Self {
        let ids: Vec<NodeId> = (1..=setup.nodes).map(NodeId).collect();
        let nodes = (1..=setup.nodes)
            .map(|id| (id, start(&setup, id, LogStorage::new(&ids))))
            .collect();
        Self {
            setup,
            nodes,
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            promises: Promises::default(),
            unfit: 0,
        }
    }

    /// A group whose node 1 leads, with everything settled.
    pub fn led_by_first(setup: Setup) -> Self {
        let mut group = Self::new(setup);
        group.campaign(1);
        group.settle();
        assert_eq!(group.leader(), 1);
        group
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub fn raft(&mut self, id: u64) -> &mut RawNode<LogStorage> {
        &mut self.nodes.get_mut(&id).expect("a node").raft
    }

    pub fn state(&self, id: u64) -> StateRole {
        self.node(id).raft.raft.state
    }

    pub fn term(&self, id: u64) -> u64 {
        self.node(id).raft.raft.term
    }

    pub fn committed(&self, id: u64) -> u64 {
        self.node(id).raft.raft.raft_log.committed
    }

    pub fn last(&self, id: u64) -> u64 {
        self.node(id).log().last().0
    }

    /// The leader of the highest term.
    pub fn leader(&self) -> u64 {
        let leads = |(_, node): &(&u64, &Node)| node.raft.raft.state == StateRole::Leader;
        let leaders = self.nodes.iter().filter(leads);
        let newest = leaders.max_by_key(|(_, node)| node.raft.raft.term);
        newest.map_or(0, |(id, _)| *id)
    }

    /// What a leader believes of a follower.
    pub fn progress(&self, leader: u64, of: u64) -> &raft::Progress {
        let tracker = self.node(leader).raft.raft.prs();
        tracker.get(of).expect("a member")
    }

    pub fn campaign(&mut self, id: u64) {
        self.raft(id).campaign().expect("a campaign");
        self.ready(id);
    }

    pub fn tick(&mut self, id: u64, ticks: usize) {
        for _ in 0..ticks {
            self.raft(id).tick();
            self.ready(id);
        }
    }

    /// Proposes an entry of its own content, as the core does: by a message to itself.
    pub fn propose(&mut self, id: u64, number: u32) -> raft::Result<()> {
        let entry = Entry {
            data: burst(number),
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = id;
        message.set_entries(vec![entry].into());
        let result = self.raft(id).step(message);
        self.ready(id);
        result
    }

    /// Puts a message straight into a node, as one of a stranger's making.
    pub fn inject(&mut self, message: Message) {
        self.wire.push_back(message);
        self.deliver_last();
    }

    fn deliver_last(&mut self) {
        if let Some(message) = self.wire.pop_back() {
            self.receive(message);
        }
    }

    /// Takes what a node has to say, as `core::log` does.
    pub fn ready(&mut self, id: u64) {
        let promises = &mut self.promises;
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        while node.raft.has_ready() {
            let mut ready = node.raft.ready();
            self.wire.extend(ready.take_messages());
            let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
            if let Some(snapshot) = &snapshot {
                node.applied = snapshot.get_metadata().index;
                let log = node.raft.mut_store();
                log.apply_snapshot(snapshot).expect("a newer snapshot");
            }
            let committed = ready.take_committed_entries();
            let entries = ready.take_entries();
            let log = node.raft.mut_store();
            log.append(&entries).expect("raft-rs appends to its log");
            if let Some(state) = ready.hs() {
                log.set_hard_state(state.clone());
                promises.votes(id, state.term, state.vote);
            }
            let log = log.clone();
            let number = ready.number();
            let messages = ready.take_persisted_messages();
            node.raft.advance_append_async(ready);
            let snapshot = snapshot.map(|snapshot| snapshot.get_metadata().index);
            node.waiting.push_back(Waiting {
                number,
                messages,
                snapshot,
                log,
            });
            if !node.is_slow {
                while let Some(waiting) = node.waiting.pop_front() {
                    self.wire.extend(is_durable(node, waiting));
                }
            }
            apply(node, id, &committed, promises);
        }
        let now = (node.raft.raft.state, node.raft.raft.term);
        if now != node.was && now.0 == StateRole::Leader {
            promises.leads(id, now.1);
            promises.is_complete(id, node.log());
        }
        node.was = now;
    }

    /// A slow disk finishes so many of what it was given.
    pub fn write(&mut self, id: u64, count: usize) {
        let node = self.nodes.get_mut(&id).expect("a node");
        for _ in 0..count {
            if let Some(waiting) = node.waiting.pop_front() {
                self.wire.extend(is_durable(node, waiting));
            }
        }
        self.ready(id);
    }

    /// How much a node's disk has still to do.
    pub fn unwritten(&self, id: u64) -> usize {
        self.node(id).waiting.len()
    }

    /// Gives these nodes what is on its way to them, in order, once.
    pub fn deliver(&mut self, to: &[u64]) {
        let (now, later) = std::mem::take(&mut self.wire)
            .into_iter()
            .partition(|message| to.contains(&message.to));
        self.wire = later;
        let now: VecDeque<Message> = now;
        for message in now {
            self.receive(message);
        }
    }

    /// Lets a leader and these talk until the leader has sent a snapshot.
    pub fn until_snapshot(&mut self, leader: u64, others: &[u64]) {
        for _ in 0..TURNS_MAX {
            if !self.on_the_way(MessageType::MsgSnapshot).is_empty() {
                return;
            }
            self.deliver(others);
            self.deliver(&[leader]);
        }
        panic!("the leader sends no snapshot");
    }

    fn receive(&mut self, message: Message) {
        if self.cut.contains(&(message.from, message.to)) {
            return;
        }
        let id = message.to;
        let Some(message) = self.over_the_wire(message) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if check_against_log(&message, &node.raft.raft.raft_log).is_err() {
            self.unfit += 1;
            return;
        }
        // What raft-rs refuses is as good as lost.
        let _ = node.raft.step(message);
        self.ready(id);
    }

    /// As the peer's bytes come out of our decoder. Snapshots are of groups of three there.
    fn over_the_wire(&self, message: Message) -> Option<Message> {
        if message.get_msg_type() == MessageType::MsgSnapshot && self.setup.nodes != 3 {
            return Some(message);
        }
        let (from, to) = (NodeId(message.from), NodeId(message.to));
        let envelope = Envelope {
            from,
            to,
            body: Body::Raft(message),
        };
        let mut bytes = BytesMut::new();
        encode(&envelope, GROUP, &mut bytes).expect("what a node sends can be encoded");
        let known = |node: NodeId| self.nodes.contains_key(&node.0);
        match decode(bytes.freeze(), GROUP, to, known)
            .expect("and decoded")
            .body
        {
            Body::Raft(mut message) => {
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    // The members are in the data, and raft-rs is told of them, as the core does.
                    let snapshot = message.mut_snapshot();
                    let state = GroupState::decode(snapshot.data.clone()).expect("a state");
                    let members = state.members().conf_state();
                    snapshot.mut_metadata().set_conf_state(members);
                }
                Some(message)
            }
            Body::Report(_) => None,
        }
    }

    /// Lets these nodes talk among themselves until they rest; what others are to get waits.
    pub fn settle_among(&mut self, ids: &[u64]) {
        for _ in 0..TURNS_MAX {
            for id in ids {
                self.ready(*id);
            }
            let is_for_them = |message: &Message| ids.contains(&message.to);
            if !self.wire.iter().any(is_for_them) {
                return self.check();
            }
            self.deliver(ids);
        }
        panic!("the group does not come to rest");
    }

    pub fn settle(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        self.settle_among(&ids);
    }

    /// Loses what is on its way to these nodes.
    pub fn lose_to(&mut self, ids: &[u64]) {
        self.wire.retain(|message| !ids.contains(&message.to));
    }

    /// Loses everything between two nodes, from now on.
    pub fn cut(&mut self, one: u64, other: u64) {
        self.cut.extend([(one, other), (other, one)]);
    }

    /// Loses everything to and from a node, from now on.
    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|o| *o != id).collect();
        others.iter().for_each(|other| self.cut(id, *other));
    }

    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// Takes a snapshot at the applied index and drops the log up to it.
    pub fn compact(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let index = LogIndex(node.applied);
        let log = node.raft.mut_store();
        let term = log.term_of(index).expect("applied entries are there");
        log.set_snapshot_data(index, term, state_of_three())
            .expect("a snapshot of what is applied");
        log.compact(index.next()).expect("up to the snapshot");
        node.kept = node.raft.store().clone();
    }

    /// SIGKILL: what the disk did not finish is gone.
    pub fn restart(&mut self, id: u64) {
        let node = &self.nodes[&id];
        let (kept, is_slow) = (node.kept.clone(), node.is_slow);
        let mut node = start(&self.setup, id, kept);
        node.is_slow = is_slow;
        self.nodes.insert(id, node);
    }

    /// Replaces what a node has on disk: its term, entries of these terms, and what is committed.
    pub fn give_log(&mut self, id: u64, terms: &[u64], term: u64, commit: u64) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().map(NodeId).collect();
        let mut log = LogStorage::new(&ids);
        let entries: Vec<Entry> = (1..)
            .zip(terms)
            .map(|(index, term)| {
                let is_first = terms.iter().position(|first| first == term) == Some(index - 1);
                Entry {
                    index: index as u64,
                    term: *term,
                    // A leader's first entry is empty.
                    data: if is_first {
                        Bytes::new()
                    } else {
                        burst(index as u32)
                    },
                    ..Entry::default()
                }
            })
            .collect();
        log.append(&entries).expect("a log from the start");
        let mut state = log.hard_state().clone();
        state.term = term;
        state.commit = commit;
        log.set_hard_state(state);
        self.nodes.insert(id, start(&self.setup, id, log));
    }

    /// Lets a node have voted, in the term that it is in.
    pub fn give_vote(&mut self, id: u64, vote: u64) {
        let mut log = self.node(id).kept.clone();
        let mut state = log.hard_state().clone();
        state.vote = vote;
        log.set_hard_state(state);
        self.nodes.insert(id, start(&self.setup, id, log));
    }

    /// All that is asked of logs whoever leads.
    pub fn check(&self) {
        let logs: Vec<&LogStorage> = self.nodes.values().map(Node::log).collect();
        for (at, first) in logs.iter().enumerate() {
            for second in &logs[at + 1..] {
                logs_match(first, second);
            }
        }
    }

    /// All nodes hold and applied the same, up to `last`.
    pub fn is_level(&self, last: u64) {
        for (id, node) in &self.nodes {
            assert_eq!(node.log().last().0, last, "the log of node {id}");
            assert_eq!(node.applied, last, "what node {id} applied");
        }
    }

    /// What is on its way, by kind.
    pub fn on_the_way(&self, kind: MessageType) -> Vec<&Message> {
        let of_kind = |message: &&Message| message.get_msg_type() == kind;
        self.wire.iter().filter(of_kind).collect()
    }
}

fn start(setup: &Setup, id: u64, mut log: LogStorage) -> Node {
    let applied = log.snapshot_data().map_or(0, |(index, ..)| index.0);
    log.set_commit(LogIndex(applied));
    let config = Config {
        id,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: 1,
        min_election_tick: ELECTION_TICKS + 3 * usize::try_from(id).unwrap_or(0),
        max_election_tick: ELECTION_TICKS + 3 * usize::try_from(id).unwrap_or(0) + 1,
        applied,
        max_size_per_msg: setup.append_bytes,
        max_inflight_msgs: setup.in_flight,
        max_uncommitted_size: setup.uncommitted_bytes,
        check_quorum: setup.checks_quorum,
        pre_vote: setup.pre_votes,
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let kept = log.clone();
    let raft = RawNode::new(&config, log, &logger).expect("a valid configuration");
    Node {
        was: (raft.raft.state, raft.raft.term),
        raft,
        is_slow: false,
        waiting: VecDeque::new(),
        kept,
        applied,
    }
}

fn is_durable(node: &mut Node, waiting: Waiting) -> Vec<Message> {
    node.kept = waiting.log;
    node.raft.on_persist_ready(waiting.number);
    if let Some(index) = waiting.snapshot {
        node.raft.advance_apply_to(index);
    }
    waiting.messages
}

fn apply(node: &mut Node, id: u64, committed: &[Entry], promises: &mut Promises) {
    for entry in committed {
        assert_eq!(entry.index, node.applied + 1, "node {id} skips an entry");
        node.applied = entry.index;
        promises.applies(id, entry.index, entry.term, &entry.data);
    }
    if let Some(last) = committed.last() {
        node.raft.advance_apply_to(last.index);
    }
}

/// An entry of input: one packet with this number.
pub fn burst(number: u32) -> Bytes {
    let mut packet = [0; 60];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    let mut builder = PacketBurstBuilder::new();
    builder.push(0, Offload::PLAIN, &packet).expect("a packet");
    builder.finish().expect("a burst").encoded().clone()
}

/// What a snapshot of a group of three says.
fn state_of_three() -> Bytes {
    let nodes: Vec<NodeSpec> = (1..=3).map(NodeSpec::replica).collect();
    GroupState::of(Members::of(&nodes)).encode()
}

/// A message between nodes, to be filled in.
pub fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (from, to, term);
    message
}

/// A snapshot of the group's state at an entry.
pub fn snapshot(index: LogIndex, term: Term) -> Snapshot {
    let mut snapshot = Snapshot {
        data: state_of_three(),
        ..Snapshot::default()
    };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index.0, term.0);
    metadata.mut_conf_state().voters = (1..=3).collect();
    snapshot
}
