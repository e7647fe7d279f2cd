//! raft-rs's output: what is to be stored, what is durable, what the log still needs.

use plover_types::{LogEntry, LogIndex, Mode, PacketBurst, Position, RoleEntry};
use raft::StateRole;
use raft::eraftpb::Snapshot;

use super::{Action, AwaitingPersist, Core, Persist};
use crate::epoch::LocalCopy;
use crate::group::GroupState;
use crate::input::KeptPackets;
use crate::limits::{COMPACT_BYTES, COMPACT_ENTRIES, COMPACT_ENTRIES_MIN};
use crate::planted::{Bug, planted};

impl Core {
    pub(super) fn drain_raft(&mut self) {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            let messages = ready.take_messages();
            self.send_raft(messages);
            let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
            if let Some(snapshot) = &snapshot {
                self.restore(snapshot);
            }
            let committed = ready.take_committed_entries();
            let entries = ready.take_entries();
            let must_sync = ready.must_sync() || snapshot.is_some();
            let store = self.raft.mut_store();
            store
                .append(&entries)
                .expect("raft-rs appends behind its own log");
            if let Some(hard_state) = ready.hs() {
                store.set_hard_state(hard_state.clone());
            }
            let mut hard_state = store.hard_state().clone();
            if planted(Bug::VoteNotWritten) {
                hard_state.vote = 0;
            }
            let number = ready.number();
            let messages = ready.take_persisted_messages();
            self.raft.advance_append_async(ready);
            let snapshot_index = snapshot
                .as_ref()
                .map(|snapshot| snapshot.get_metadata().index);
            let waiting = AwaitingPersist {
                number,
                ready: number,
                messages,
                snapshot_index,
            };
            if self.config.is_durable && must_sync {
                let persist = Persist {
                    number,
                    entries,
                    hard_state,
                    snapshot,
                };
                self.actions.push(Action::Persist(persist));
                if planted(Bug::AcknowledgeBeforeSync) {
                    self.is_durable_now(waiting);
                } else {
                    self.awaiting.push_back(waiting);
                }
            } else if let Some(last) = self.awaiting.back_mut() {
                // Nothing of its own for the disk, but what was there before must be durable
                // first: raft-rs takes the number as "all up to here".
                last.ready = number;
                last.messages.extend(waiting.messages);
            } else {
                self.is_durable_now(waiting);
            }
            self.apply(&committed);
        }
    }

    pub(super) fn persisted(&mut self, number: u64) {
        if self.is_mute {
            return;
        }
        while self
            .awaiting
            .front()
            .is_some_and(|awaiting| awaiting.number <= number)
        {
            if let Some(awaiting) = self.awaiting.pop_front() {
                self.is_durable_now(awaiting);
            }
        }
    }

    pub(super) fn is_durable_now(&mut self, awaiting: AwaitingPersist) {
        self.raft.on_persist_ready(awaiting.ready);
        if let Some(index) = awaiting.snapshot_index {
            self.raft.advance_apply_to(index);
        }
        self.send_raft(awaiting.messages);
    }

    /// A received snapshot is not durable yet. raft-rs would look for entries before it when it
    /// starts an election now, so time and messages stand still until it is.
    pub(super) fn awaits_snapshot(&self) -> bool {
        self.awaiting
            .iter()
            .any(|awaiting| awaiting.snapshot_index.is_some())
    }

    /// A snapshot from the leader: the log up to it is gone, and with it input that a copy here
    /// would have needed.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.raft
            .mut_store()
            .apply_snapshot(snapshot)
            .expect("raft-rs restores only snapshots ahead of its log");
        self.applied = LogIndex(snapshot.get_metadata().index);
        let actions = &mut self.actions;
        self.copy
            .on_snapshot(|command| actions.push(Action::Copy(command)));
        self.cursor.seek(Position::start_of(self.applied.next()));
        match GroupState::decode(snapshot.data.clone()) {
            Some(group) => {
                let is_other = group.members() != self.group.members();
                self.group = group;
                if is_other {
                    self.follow_members();
                }
            }
            None => self.counters.entries_malformed += 1,
        }
        self.sync_began_at = self.now;
    }

    /// The first input that this copy may still have to be given: one that is being loaded goes
    /// back to the sync's position.
    pub(super) fn needed_position(&self) -> Position {
        let at = self.cursor.position();
        match (&self.copy, self.group.last_end()) {
            (LocalCopy::Loading { .. }, Some((_, position))) => at.min(position),
            _ => at,
        }
    }

    /// Writes out the stubs whose packets `kept` has, and drops those that were delivered. Returns
    /// how many were written out. The packets may be forgotten afterwards.
    pub fn write_out(&mut self, kept: &impl KeptPackets) -> usize {
        let from = self.needed_position().index;
        let last = self.raft.raft.raft_log.store().last();
        let mut count = 0;
        for index in (from.0..=last.0).map(LogIndex) {
            let store = self.raft.mut_store();
            let Some(stub) = store
                .entry(index)
                .filter(|entry| LogEntry::is_stub(&entry.data))
            else {
                continue;
            };
            let written = kept.first_of(index).and_then(|first| {
                PacketBurst::of_log(stub.data.clone())?
                    .written_out(|number| kept.packet(first + number as u64))
            });
            // The others' packets are gone: whoever comes to them stops there.
            if let Some(entry) = written {
                store.write_out(index, entry.encoded().clone());
                count += 1;
            }
        }
        self.cursor.reread();
        // Its last entry, too.
        self.compact_to(self.applied.next(), 1);
        count
    }

    /// Drops the part of the log that no copy needs, by batches.
    pub(super) fn compact(&mut self) {
        let is_large = self.log_bytes() >= COMPACT_BYTES && !self.config.is_durable;
        let batch = if is_large {
            COMPACT_ENTRIES_MIN
        } else {
            COMPACT_ENTRIES
        };
        self.compact_to(self.applied, batch);
    }

    /// Drops the part of the log before `end` that no copy needs, if that is `batch` entries: what
    /// lies before the last sync's position while the group is protected, before the primary's
    /// delivered position otherwise, nothing while a sync is in flight, and nothing that this
    /// leader may have to send again to a copy that the role counts on.
    fn compact_to(&mut self, end: LogIndex, batch: u64) {
        let Some(role) = self.group.role().copied() else {
            return;
        };
        if self.group.sync().is_some() {
            return;
        }
        let needed = match role.mode {
            Mode::Protected if planted(Bug::CompactPastBackup) => Some(self.needed_position()),
            Mode::Protected => self.group.last_end().map(|(_, position)| position),
            Mode::Unprotected if role.primary == self.config.own => Some(self.needed_position()),
            Mode::Unprotected => self
                .peers
                .iter()
                .find(|peer| peer.spec.id == role.primary)
                .and_then(|peer| peer.report)
                .map(|(_, _, report)| report.delivered),
        };
        let Some(needed) = needed else { return };
        let to = needed.index.min(end);
        let first = self.raft.store().first();
        let drops_enough = |to: LogIndex| to.0.saturating_sub(first.0) >= batch;
        if !drops_enough(to) {
            return;
        }
        let to = self.first_unacknowledged(&role).map_or(to, |at| to.min(at));
        if !drops_enough(to) {
            return;
        }
        let store = self.raft.mut_store();
        let Some(term) = store.term_of(self.applied) else {
            return;
        };
        let data = self.group.encode();
        let compacted = store
            .set_snapshot_data(self.applied, term, data.clone())
            .and_then(|()| store.compact(to));
        match compacted {
            Ok(()) => {
                if self.config.is_durable {
                    let hard_state = self.hard_state().clone();
                    self.actions.push(Action::Compact {
                        to,
                        index: self.applied,
                        term,
                        data,
                        hard_state,
                    });
                }
            }
            Err(error) => unreachable!("compacting an applied log: {error}"),
        }
    }

    /// The first entry that a node whose copy the role lists has not acknowledged to this leader.
    /// It may have it all the same. But after a loss raft-rs sends again from here on, or a snapshot
    /// if the log does not reach back that far; and a snapshot voids the copy. A node that is
    /// silent does not hold the log back for long: no sync ends without it, or the role changes.
    fn first_unacknowledged(&self, role: &RoleEntry) -> Option<LogIndex> {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader || planted(Bug::CompactPastBackup) {
            return None;
        }
        let members = self.group.members();
        let others = role.valid.iter();
        others
            .filter(|node| *node != self.config.own && !members.is_gone(*node))
            .filter_map(|node| raft.prs().get(node.0))
            .map(|progress| LogIndex(progress.matched).next())
            .min()
    }
}
