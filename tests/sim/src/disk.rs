//! The modelled disk of a node that keeps its log: writes take time and are synced in order, several at once; a crash keeps a
//! part of what was under way.

use std::collections::VecDeque;

use bytes::Bytes;
use plover_types::{LogIndex, NodeId, Term};
use raft::eraftpb::HardState;
use rand::Rng;
use rand::rngs::SmallRng;
use replication::core::Persist;
use replication::durable::{Recovered, SnapshotState};
use replication::storage::LogStorage;

/// What survives a crash, and what may.
#[derive(Default)]
pub(crate) struct Disk {
    /// Synced.
    kept: Recovered,
    /// Handed to the disk, not synced.
    under_way: VecDeque<Persist>,
    /// When the last write handed in will be done.
    busy_until_us: u64,
}

impl Disk {
    /// A log that is new notes the members that its group starts with, before anything else: the
    /// configuration may be another when the node starts again.
    pub(crate) fn note_members(&mut self, start: Bytes) {
        if self.kept == Recovered::default() {
            self.kept.snapshot = Some(SnapshotState {
                index: LogIndex(0),
                term: Term(0),
                data: start,
            });
        }
    }

    /// Takes a write; answers when it will be synced.
    pub(crate) fn submit(&mut self, persist: Persist, now_us: u64, delay_us: u64) -> u64 {
        self.under_way.push_back(persist);
        self.busy_until_us = self.busy_until_us.max(now_us + delay_us);
        self.busy_until_us
    }

    /// Writes up to this number are synced.
    pub(crate) fn synced(&mut self, number: u64) {
        while self
            .under_way
            .front()
            .is_some_and(|next| next.number <= number)
        {
            if let Some(persist) = self.under_way.pop_front() {
                self.write(persist);
            }
        }
    }

    /// The node crashes: of the writes under way some reached the disk, in order. The next one may
    /// be torn: its checksum does not fit, and recovery cuts it off, so it is as if it were lost.
    pub(crate) fn crash(&mut self, random: &mut SmallRng) -> (usize, usize) {
        let count = self.under_way.len();
        let whole = random.random_range(0..=count);
        for persist in self.under_way.drain(..).take(whole).collect::<Vec<_>>() {
            self.write(persist);
        }
        self.busy_until_us = 0;
        (whole, count - whole)
    }

    fn write(&mut self, persist: Persist) {
        let log = &mut self.kept;
        if let Some(snapshot) = persist.snapshot {
            let metadata = snapshot.get_metadata();
            let (index, term) = (LogIndex(metadata.index), Term(metadata.term));
            log.entries.clear();
            log.compacted = (index, term);
            log.snapshot = Some(SnapshotState {
                index,
                term,
                data: snapshot.data.clone(),
            });
        }
        if let Some(first) = persist.entries.first() {
            let keep = (first.index - 1 - log.compacted.0.0) as usize;
            log.entries.truncate(keep);
        }
        log.entries.extend(persist.entries);
        log.hard_state = persist.hard_state;
    }

    /// Drops the log before `to`. In order with what is being written; a compaction that is left
    /// out does no harm.
    pub(crate) fn compact(&mut self, to: LogIndex, snapshot: SnapshotState, hard_state: HardState) {
        let log = &mut self.kept;
        let dropped = to.0.saturating_sub(log.compacted.0.0 + 1) as usize;
        if !self.under_way.is_empty() || dropped == 0 || dropped > log.entries.len() {
            return;
        }
        let last = &log.entries[dropped - 1];
        log.compacted = (LogIndex(last.index), Term(last.term));
        log.entries.drain(..dropped);
        log.snapshot = Some(snapshot);
        log.hard_state = hard_state;
    }

    /// What is synced.
    pub(crate) fn kept(&self) -> &Recovered {
        &self.kept
    }

    /// The last entry that is synced.
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.kept.compacted.0.0 + self.kept.entries.len() as u64)
    }

    /// The log as a node finds it when it starts.
    pub(crate) fn recover(&self, voters: &[NodeId]) -> LogStorage {
        let mut recovered = self.kept.clone();
        let commit = recovered.hard_state.commit;
        recovered.hard_state.commit = commit.max(recovered.compacted.0.0).min(self.last().0);
        LogStorage::restore(voters, &recovered).expect("a stored log is consistent")
    }
}
