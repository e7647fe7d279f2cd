//! One node of a [group](super::group): `RawNode` over our log, and a disk that may be slow.

use std::collections::VecDeque;

use plover_types::LogIndex;
use raft::eraftpb::{Entry, Message};
use raft::{Config, RawNode, StateRole};
use replication::storage::LogStorage;

use super::safety::Promises;

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
pub struct Waiting {
    pub number: u64,
    pub messages: Vec<Message>,
    pub snapshot: Option<u64>,
    /// The log with it.
    pub log: LogStorage,
}

/// One node.
pub struct Node {
    pub raft: RawNode<LogStorage>,
    /// A slow disk: nothing is durable until [`Group::write`].
    pub is_slow: bool,
    pub waiting: VecDeque<Waiting>,
    /// What a restart finds.
    pub kept: LogStorage,
    /// Index up to which entries were applied.
    pub applied: u64,
    pub was: (StateRole, u64),
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

pub fn start(setup: &Setup, id: u64, mut log: LogStorage) -> Node {
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

pub fn is_durable(node: &mut Node, waiting: Waiting) -> Vec<Message> {
    node.kept = waiting.log;
    node.raft.on_persist_ready(waiting.number);
    if let Some(index) = waiting.snapshot {
        node.raft.advance_apply_to(index);
    }
    waiting.messages
}

pub fn apply(node: &mut Node, id: u64, committed: &[Entry], promises: &mut Promises) {
    for entry in committed {
        assert_eq!(entry.index, node.applied + 1, "node {id} skips an entry");
        node.applied = entry.index;
        promises.applies(id, entry.index, entry.term, &entry.data);
    }
    if let Some(last) = committed.last() {
        node.raft.advance_apply_to(last.index);
    }
}
