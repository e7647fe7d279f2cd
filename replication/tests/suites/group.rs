//! A group around `RawNode`, driven as `replication::core` drives it: an entry is in the log's
//! memory at once, and a message that depends on the disk leaves when the disk says so. Messages
//! pass our wire form and the check against the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use plover_types::NodeId;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{RawNode, StateRole};
use replication::group::GroupState;
use replication::storage::LogStorage;
use replication::wire::{Body, Envelope, GroupId, check_against_log, decode, encode};

pub use super::content::{burst, message, snapshot};
pub use super::node::{ELECTION_TICKS, Setup};
use super::node::{Node, Waiting, apply, is_durable, start};
use super::safety::{Promises, logs_match};
use super::trace::{Seen, Trace};

const GROUP: GroupId = GroupId(7);
/// Turns after which a group that does not come to rest never will.
const TURNS_MAX: usize = 1000;
/// The group, and what is on its way between the nodes.
pub struct Group {
    pub setup: Setup,
    pub nodes: BTreeMap<u64, Node>,
    pub wire: VecDeque<Message>,
    /// Ways on which everything is lost.
    pub cut: BTreeSet<(u64, u64)>,
    promises: Promises,
    /// Messages that did not fit the receiver's log.
    pub unfit: usize,
    /// What happened, if it is written down.
    pub trace: Option<Trace>,
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
            trace: None,
        }
    }

    /// Writes down what happens from now on.
    pub fn start_trace(&mut self) {
        let mut trace = Trace::default();
        for (id, node) in &self.nodes {
            trace.starts(*id, &node.raft);
        }
        self.trace = Some(trace);
    }

    /// Lets a node do something, and writes down what came of it.
    fn traced<T>(&mut self, id: u64, act: impl FnOnce(&mut RawNode<LogStorage>) -> T) -> T {
        let raft = &mut self.nodes.get_mut(&id).expect("a node").raft;
        let before = Seen::of(raft);
        let result = act(raft);
        if let Some(trace) = &mut self.trace {
            trace.steps(id, &before, raft);
        }
        result
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
        self.traced(id, RawNode::campaign).expect("a campaign");
        self.ready(id);
    }

    pub fn tick(&mut self, id: u64, ticks: usize) {
        for _ in 0..ticks {
            self.traced(id, RawNode::tick);
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
        let result = self.traced(id, |raft| raft.step(message));
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
                    let before = Seen::of(&node.raft);
                    if let Some(trace) = &mut self.trace {
                        trace.is_written(id, &before);
                    }
                    self.wire.extend(is_durable(node, waiting));
                    if let Some(trace) = &mut self.trace {
                        trace.steps(id, &before, &node.raft);
                    }
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
        let before = Seen::of(&node.raft);
        let copy = self.trace.is_some().then(|| message.clone());
        // What raft-rs refuses is as good as lost.
        let _ = node.raft.step(message);
        if let (Some(trace), Some(message)) = (&mut self.trace, copy) {
            trace.receives(&message, &before, &node.raft);
            trace.steps(id, &before, &node.raft);
        }
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
