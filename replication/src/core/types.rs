//! What goes into a core and comes out of it.

use std::time::Duration;

use bytes::Bytes;
use plover_types::limits::GROUP_NODES_MAX;
use plover_types::{LogIndex, NodeId, NodeSpec, Position, RoleEntry, SyncId, Term};
use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::epoch::{CopyCommand, CopyEvent, LocalCopy};
use crate::plan::OnBackupLoss;
use crate::wire::Envelope;

/// What a core is made with.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub own: NodeId,
    /// The members that the group starts with, this one included, in the same order on every node:
    /// of a node that joins, those of the group as it will be. What the log says of the members
    /// counts for more.
    pub nodes: Vec<NodeSpec>,
    /// Whether the group runs already, and this node is to become a member by an entry of its log:
    /// until then it has no vote.
    pub joins: bool,
    /// Length of a tick. [`Event::Tick`] must not come more often.
    pub tick: Duration,
    /// Ticks without a leader before an election (the first node's; the others' follow).
    pub election_ticks: u32,
    /// When a sync that does not finish is given up.
    pub sync_timeout: Duration,
    /// What to do without a backup.
    pub on_backup_loss: OnBackupLoss,
    /// Whether the driver persists: then it answers each [`Action::Persist`].
    pub is_durable: bool,
    /// Whether this node ran before under this id. It then grants no vote for one election
    /// timeout: a lease that it acknowledged may still be running.
    pub is_restarted: bool,
    /// Random, per process start.
    pub incarnation: u64,
    /// Hash of what both hosts must have in common.
    pub host_facts_hash: u64,
}

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// One tick passed since the last one, or more.
    Tick,
    /// A checked message of a peer arrived.
    Receive(Envelope),
    /// What the action with this number asked for is on disk.
    Persisted(u64),
    /// The disk failed: from now on this node acknowledges nothing.
    PersistFailed,
    /// The driver of the copy reports.
    Copy(CopyEvent),
}

/// What goes to disk before anything that depends on it is sent.
#[derive(Clone, Debug)]
pub struct Persist {
    /// Comes back in [`Event::Persisted`].
    pub number: u64,
    /// Entries to append; they replace what is there from the first one's index on.
    pub entries: Vec<Entry>,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// A snapshot that replaces the log, if one was received.
    pub snapshot: Option<Snapshot>,
}

/// Something to do outside.
#[derive(Debug)]
pub enum Action {
    /// Send a message.
    Send(Envelope),
    /// Make this durable, then say [`Event::Persisted`].
    Persist(Persist),
    /// The log before `to` is not needed any more; `data` stands for everything up to `index`.
    Compact {
        /// First entry to keep.
        to: LogIndex,
        /// The snapshot's index.
        index: LogIndex,
        /// The snapshot's term.
        term: Term,
        /// The snapshot.
        data: Bytes,
        /// Term, vote and commit as they were then: a snapshot stands for committed entries only.
        hard_state: HardState,
    },
    /// A command for the driver of the copy.
    Copy(CopyCommand),
    /// The sync ended: its epoch may leave.
    EndEpoch(SyncId),
    /// The sync was given up: its epoch merges into the next.
    AbortEpoch(SyncId),
    /// The members that are to be talked to from here on, this node included: all but one that is
    /// being replaced.
    Members(Vec<NodeSpec>),
    /// Something to tell the operator.
    Note(Notice),
}

/// What an operator, a test or a log wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// This node sees a leader, or none (id 0).
    Leader {
        /// The term.
        term: Term,
        /// The leader.
        leader: NodeId,
    },
    /// This node asks for votes.
    Campaign {
        /// The term in which it does.
        term: Term,
        /// When it last heard a leader.
        last_heard: Duration,
    },
    /// A role was committed and applied.
    Role(RoleEntry),
    /// A sync starts.
    SyncBegan(crate::group::SyncInFlight),
    /// A sync ended.
    SyncEnded {
        /// Which.
        sync: crate::group::SyncInFlight,
        /// Where both copies go on.
        position: Position,
    },
    /// A sync was given up.
    SyncAborted(crate::group::SyncInFlight),
    /// This leader asks another node to lead.
    HandOver {
        /// The other node.
        to: NodeId,
    },
    /// The state of this node's copy changed.
    Copy(LocalCopy),
    /// A planned failover ended.
    Failover(super::FailoverProgress),
    /// Others belong to the group from here on.
    Members {
        /// Counts the changes.
        version: u64,
        /// All members.
        members: Vec<plover_types::Member>,
    },
    /// A node that was replaced is there, and is not listened to.
    GoneHeard {
        /// The node.
        node: NodeId,
    },
    /// This node belongs to the group no longer: it takes no part in it any more.
    Removed,
    /// The primary's guest, here, has something to do and does nothing.
    GuestStands {
        /// The backup's goes on: it is to take over. Otherwise nothing is done.
        is_alone: bool,
    },
    /// The other replica's host has other facts: its copy will not be filled.
    HostsDiffer {
        /// The other replica.
        node: NodeId,
    },
}

/// Counts of what was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CoreCounters {
    /// Messages that do not fit the log.
    pub messages_unfit: u64,
    /// Messages that raft-rs refused.
    pub messages_refused: u64,
    /// Times that this node did not hear a leader and asked whether others would vote for it.
    pub campaigns: u64,
    /// Times that it took a primary's work over without being asked to.
    pub failovers: u64,
    /// Those of them after which the primary turned out to be alive.
    pub false_failovers: u64,
    /// Times that the primary's guest stood still here, and only here: the backup was to take over.
    pub guest_stood: u64,
    /// Messages of nodes that were replaced.
    pub messages_of_gone: u64,
    /// Votes withheld after a restart.
    pub votes_withheld: u64,
    /// Committed entries whose bytes are no entry.
    pub entries_malformed: u64,
    /// Control entries proposed under another role.
    pub entries_ignored: u64,
    /// Times that a copy's next input was no longer in the log.
    pub input_missed: u64,
    /// Bursts that could not be proposed at once.
    pub proposals_refused: u64,
}

/// Why a core could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// raft-rs refused the configuration.
    #[error("the consensus core refused its configuration")]
    Raft(#[from] raft::Error),
    /// This node is not a member.
    #[error("node {0} is not among the nodes of the group")]
    NotMember(NodeId),
    /// The group has too many nodes, or two.
    #[error("a group has 1 or {GROUP_NODES_MAX} nodes, not {0}")]
    NodeCount(usize),
    /// A group of one node that is no replica, or that would come back with the input of a guest
    /// that is gone.
    #[error("node {0} is alone in its group: it must be a replica, with its log in memory")]
    Alone(NodeId),
    /// The recovered snapshot is not one of ours.
    #[error("the stored snapshot of the group's state cannot be read; see docs/operations.md")]
    Snapshot,
}
