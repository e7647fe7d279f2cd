//! The log in memory, as raft-rs reads it: entries since the last compaction, hard state, the
//! members as of the snapshot, and the snapshot that a follower gets when it is too far behind.
//!
//! What lives here: bookkeeping and its bounds. What does not: when to compact, what a snapshot
//! says, the disk (see `durable`). The `RawNode` owns the storage; change it through `mut_store()`.
//!
//! ```text
//!   compacted          first_index                snapshot              last_index
//!   (index, term) | entry entry entry ...  (index, term, data) ... entry |
//! ```
//! The snapshot never lies before the compaction point, so a follower that needs an entry which
//! is gone can always be given it.

use std::collections::VecDeque;

use bytes::Bytes;
use plover_types::{LogEntry, LogIndex, NodeId, Term};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::durable::Recovered;
use crate::group::conf_state_of;
use crate::wire::limits::ENTRY_HEADER_BYTES;

/// Bytes of memory that an entry takes beside its data, for [`LogStorage::bytes`].
pub const ENTRY_OVERHEAD_BYTES: usize = size_of::<Entry>();

/// What raft-rs has to know of an entry: a node does not ask for votes while a change of the members
/// is committed and not applied. It never reads the data itself (see `Core::propose_members`).
pub(crate) fn entry_type_of(data: &[u8]) -> EntryType {
    if LogEntry::is_members(data) {
        EntryType::EntryConfChangeV2
    } else {
        EntryType::EntryNormal
    }
}

/// Why the log was not changed. Each is a bug of the caller, or a file that lies.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    /// Appended entries start after a gap, before the first entry, or have gaps themselves.
    #[error("appending entry {index} to a log of entries {first} to {last}")]
    Append {
        /// The entry that does not fit.
        index: u64,
        /// First entry of the log.
        first: u64,
        /// Last entry of the log.
        last: u64,
    },
    /// Compaction would remove entries that no snapshot covers.
    #[error("compacting to entry {to}, past the snapshot at {snapshot}")]
    Compact {
        /// The first entry to keep.
        to: u64,
        /// Index of the snapshot.
        snapshot: u64,
    },
    /// The snapshot's index is not in the log, or has another term there.
    #[error("snapshot at entry {index} of term {term}, which the log does not hold")]
    Snapshot {
        /// Index of the snapshot.
        index: u64,
        /// Term of the snapshot.
        term: u64,
    },
    /// The snapshot is older than what the log starts from.
    #[error("snapshot at entry {index} for a log that starts from {compacted}")]
    SnapshotOld {
        /// Index of the snapshot.
        index: u64,
        /// The entry before the first.
        compacted: u64,
    },
    /// The hard state commits what the log does not hold.
    #[error("hard state commits entry {commit} of a log of entries {first} to {last}")]
    Commit {
        /// The committed index.
        commit: u64,
        /// First entry of the log.
        first: u64,
        /// Last entry of the log.
        last: u64,
    },
}

/// The in-memory log of one node.
#[derive(Clone, Debug)]
pub struct LogStorage {
    hard_state: HardState,
    conf_state: ConfState,
    /// The entry before the first: its index and term outlive it.
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
    /// Bytes of the entries' data.
    data_bytes: usize,
    snapshot: (u64, u64),
    /// None: there is nothing to give yet.
    snapshot_data: Option<Bytes>,
}

impl LogStorage {
    /// The empty log of a new group of these voters.
    #[must_use]
    pub fn new(voters: &[NodeId]) -> Self {
        let conf_state = ConfState {
            voters: voters.iter().map(|voter| voter.0).collect(),
            ..ConfState::default()
        };
        Self {
            hard_state: HardState::default(),
            conf_state,
            compacted: (0, 0),
            entries: VecDeque::new(),
            data_bytes: 0,
            snapshot: (0, 0),
            snapshot_data: None,
        }
    }

    /// The log as a node left it on disk. What `recovered` says was checked when it was read.
    ///
    /// # Errors
    /// Its parts do not fit together.
    pub fn restore(voters: &[NodeId], recovered: &Recovered) -> Result<Self, LogError> {
        let mut log = Self::new(voters);
        let (index, term) = recovered.compacted;
        log.compacted = (index.0, term.0);
        log.append(&recovered.entries)?;
        log.hard_state = recovered.hard_state.clone();
        let (first, last) = (log.first().0, log.last().0);
        let commit = log.hard_state.commit;
        if commit < index.0 || commit > last {
            return Err(LogError::Commit {
                commit,
                first,
                last,
            });
        }
        if let Some(snapshot) = &recovered.snapshot {
            log.set_snapshot_data(snapshot.index, snapshot.term, snapshot.data.clone())?;
        }
        Ok(log)
    }

    /// The entry before the first, and its term.
    #[must_use]
    pub fn compacted(&self) -> (LogIndex, Term) {
        (LogIndex(self.compacted.0), Term(self.compacted.1))
    }

    /// Index of the first entry, or of the next one if there is none.
    #[must_use]
    pub fn first(&self) -> LogIndex {
        LogIndex(self.compacted.0 + 1)
    }

    /// Index of the last entry, or of the one before the first if there is none.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        LogIndex(self.compacted.0 + self.entries.len() as u64)
    }

    /// Bytes of memory that the entries take. Data that shares a buffer with other entries is
    /// counted once for each, at its own length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data_bytes + self.entries.len() * ENTRY_OVERHEAD_BYTES
    }

    /// The entry, if the log holds it.
    #[must_use]
    pub fn entry(&self, index: LogIndex) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Term of an entry, or of the one before the first.
    #[must_use]
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index.0 == self.compacted.0 {
            return Some(Term(self.compacted.1));
        }
        self.entry(index).map(|entry| Term(entry.term))
    }

    /// The hard state as last set.
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Replaces the hard state.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Moves the committed index of the hard state forward; never back.
    pub fn set_commit(&mut self, commit: LogIndex) {
        self.hard_state.commit = self.hard_state.commit.max(commit.0);
    }

    /// Adds entries; those with an index that the log holds replace it and all that follow.
    ///
    /// # Errors
    /// The entries leave a gap, or start before the first entry. Nothing is changed then.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        let Some(start) = entries.first().map(|entry| entry.index) else {
            return Ok(());
        };
        let (first, last) = (self.first().0, self.last().0);
        let fits = |index| LogError::Append { index, first, last };
        if start < first || start > last + 1 {
            return Err(fits(start));
        }
        for (entry, expected) in entries.iter().zip(start..) {
            if entry.index != expected {
                return Err(fits(entry.index));
            }
        }
        while self.last().0 >= start {
            if let Some(replaced) = self.entries.pop_back() {
                self.data_bytes -= replaced.data.len();
            }
        }
        for entry in entries {
            self.data_bytes += entry.data.len();
            self.entries.push_back(entry.clone());
        }
        // A snapshot is of committed entries, which are not replaced.
        Ok(())
    }

    /// Puts the bytes of the entry at `index` in its stub's place.
    ///
    /// # Panics
    /// If there is no stub: the log would change.
    pub fn write_out(&mut self, index: LogIndex, written: Bytes) {
        let offset = index.0.checked_sub(self.compacted.0 + 1);
        let entry = offset.and_then(|offset| self.entries.get_mut(usize::try_from(offset).ok()?));
        let stub = entry.filter(|entry| LogEntry::is_stub(&entry.data));
        let stub = stub.expect("only a stub is written out");
        self.data_bytes = self.data_bytes - stub.data.len() + written.len();
        stub.data = written;
    }

    /// Drops the entries before `to`. Dropping what is gone already is no error.
    ///
    /// # Errors
    /// `to` lies past the entry after the snapshot. Nothing is changed then.
    pub fn compact(&mut self, to: LogIndex) -> Result<(), LogError> {
        if to <= self.first() {
            return Ok(());
        }
        if self.snapshot_data.is_none() || to.0 > self.snapshot.0 + 1 {
            return Err(LogError::Compact {
                to: to.0,
                snapshot: self.snapshot.0,
            });
        }
        while self.first() < to {
            // The snapshot's index is in the log, so there is an entry.
            let Some(dropped) = self.entries.pop_front() else {
                break;
            };
            self.data_bytes -= dropped.data.len();
            self.compacted = (dropped.index, dropped.term);
        }
        Ok(())
    }

    /// Sets what a follower that is too far behind is given: the state after entry `index`.
    ///
    /// # Errors
    /// The log does not hold that entry in that term. Nothing is changed then.
    pub fn set_snapshot_data(
        &mut self,
        index: LogIndex,
        term: Term,
        data: Bytes,
    ) -> Result<(), LogError> {
        if self.term_of(index) != Some(term) {
            return Err(LogError::Snapshot {
                index: index.0,
                term: term.0,
            });
        }
        // The members as they were then: those of later entries are applied again with them.
        if let Some(conf_state) = conf_state_of(&data) {
            self.conf_state = conf_state;
        }
        self.snapshot = (index.0, term.0);
        self.snapshot_data = Some(data);
        Ok(())
    }

    /// Index, term and data of the snapshot, if there is one.
    #[must_use]
    pub fn snapshot_data(&self) -> Option<(LogIndex, Term, &Bytes)> {
        let data = self.snapshot_data.as_ref()?;
        Some((LogIndex(self.snapshot.0), Term(self.snapshot.1), data))
    }

    /// Starts the log anew from a snapshot that a leader sent.
    ///
    /// # Errors
    /// The snapshot is older than what the log starts from. Nothing is changed then.
    pub fn apply_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), LogError> {
        let metadata = snapshot.get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        if index < self.compacted.0 {
            return Err(LogError::SnapshotOld {
                index,
                compacted: self.compacted.0,
            });
        }
        self.entries.clear();
        self.data_bytes = 0;
        self.compacted = (index, term);
        self.snapshot = (index, term);
        self.snapshot_data = Some(snapshot.data.clone());
        self.hard_state.term = self.hard_state.term.max(term);
        self.hard_state.commit = self.hard_state.commit.max(index);
        self.conf_state = metadata.get_conf_state().clone();
        Ok(())
    }
}

impl Storage for LogStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState {
            hard_state: self.hard_state.clone(),
            conf_state: self.conf_state.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first().0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (Ok(skip), Ok(count)) = (
            usize::try_from(low - self.first().0),
            usize::try_from(high.saturating_sub(low)),
        ) else {
            return Err(StorageError::Unavailable.into());
        };
        let range = self.entries.range(skip..skip + count);
        // Asked for to be sent: a stub is written out first.
        if context.can_async() && range.clone().any(|entry| LogEntry::is_stub(&entry.data)) {
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        let Some(bytes_max) = max_size.into() else {
            return Ok(range.cloned().collect());
        };
        let mut bytes = 0;
        let fitting = range.enumerate().take_while(|(number, entry)| {
            bytes += counted_bytes(entry);
            *number == 0 || bytes <= bytes_max
        });
        Ok(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(LogIndex(index)) {
            Some(term) => Ok(term.0),
            None if index < self.compacted.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let Some(data) = &self.snapshot_data else {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        if self.snapshot.0 == 0 || self.snapshot.0 < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot {
            data: data.clone(),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = self.snapshot;
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

/// An entry's size as a message's bound counts it: raft-rs counts the protobuf form, the wire has
/// its own; the larger of the two keeps both bounds.
fn counted_bytes(entry: &Entry) -> u64 {
    u64::from(entry.compute_size()).max((ENTRY_HEADER_BYTES + entry.data.len()) as u64)
}

#[cfg(test)]
mod tests;
