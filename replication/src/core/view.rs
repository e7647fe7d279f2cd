//! What a core says of itself.

use std::time::Duration;

use bytes::Bytes;
use plover_types::{Generation, LogIndex, NodeId, Position, Term};
use raft::eraftpb::HardState;

use super::{Core, CoreCounters};
use crate::epoch::LocalCopy;
use crate::group::GroupState;
use crate::limits::DETECTION_TICKS_BEYOND;
use crate::wire::CopyReport;

impl Core {
    /// The committed state.
    #[must_use]
    pub fn group(&self) -> &GroupState {
        &self.group
    }

    /// Whether this node takes no part any more: its disk failed, or another took its place.
    #[must_use]
    pub fn is_mute(&self) -> bool {
        self.is_mute
    }

    /// From the last heartbeat of a leader that is gone to a replica's asking for votes, at most.
    #[must_use]
    pub fn detection(&self) -> Duration {
        self.config.tick * (self.config.election_ticks + DETECTION_TICKS_BEYOND)
    }

    /// This node's copy.
    #[must_use]
    pub fn copy(&self) -> &LocalCopy {
        &self.copy
    }

    /// The next packet to deliver.
    #[must_use]
    pub fn position(&self) -> Position {
        self.cursor.position()
    }

    /// Index up to which the log is applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The leader that this node knows, and the term.
    #[must_use]
    pub fn leader(&self) -> (Option<NodeId>, Term) {
        let leader = self.raft.raft.leader_id;
        (
            (leader != raft::INVALID_ID).then_some(NodeId(leader)),
            Term(self.raft.raft.term),
        )
    }

    /// The last report of each peer, and when it came.
    pub fn reports(&self) -> impl Iterator<Item = (NodeId, Duration, &CopyReport)> {
        self.peers.iter().filter_map(|peer| {
            peer.report
                .as_ref()
                .map(|(at, _, report)| (peer.spec.id, *at, report))
        })
    }

    /// Whether the other replica says that it is idle (or there is none to wait for).
    #[must_use]
    pub fn backup_is_idle(&self) -> bool {
        self.peers
            .iter()
            .filter(|peer| peer.spec.is_replica)
            .all(|peer| peer.report.is_none_or(|(_, _, report)| report.idle))
    }

    /// Counts of what was refused.
    #[must_use]
    pub fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    /// The entry at `index`, for checkers.
    #[must_use]
    pub fn log_entry(&self, index: LogIndex) -> Option<(Term, Bytes)> {
        let entry = self.raft.raft.raft_log.store().entry(index)?;
        Some((Term(entry.term), entry.data.clone()))
    }

    /// Term, vote and commit, as last handed out to be persisted.
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        self.raft.raft.raft_log.store().hard_state()
    }

    /// The last entry that the log no longer has, and its term.
    #[must_use]
    pub fn compacted(&self) -> Option<(LogIndex, Term)> {
        Some(self.raft.raft.raft_log.store().compacted()).filter(|(index, _)| index.0 > 0)
    }

    /// Bytes of log in memory.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.raft.raft.raft_log.store().bytes()
    }

    /// The generation of the committed role.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.group.generation()
    }
}
