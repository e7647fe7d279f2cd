//! Committed entries take effect, in order.

use plover_types::{LogEntry, LogIndex, Mode, Position, SyncKind};
use raft::StateRole;
use raft::eraftpb::Entry;

use super::{Action, Core, Notice};
use crate::epoch::CopyCommand;
use crate::group::Applied;
use crate::limits::{RETRY_AFTER_ABORT, RETRY_AFTER_FILL, RETRY_AFTER_FILL_MAX};
use crate::planted::{Bug, planted};

impl Core {
    pub(super) fn apply(&mut self, committed: &[Entry]) {
        for entry in committed {
            self.applied = LogIndex(entry.index);
            if entry.term == self.raft.raft.term && self.raft.raft.state == StateRole::Leader {
                self.leads_since_term = entry.term;
            }
            // Input was checked when it came into the log, and changes nothing here.
            if entry.data.is_empty() || LogEntry::is_input(&entry.data) {
                continue;
            }
            match LogEntry::decode(&entry.data) {
                Ok(entry) => self.apply_control(&entry),
                Err(_) => self.counters.entries_malformed += 1,
            }
        }
        if let Some(last) = committed.last() {
            self.raft.advance_apply_to(last.index);
            self.compact();
        }
    }

    fn apply_control(&mut self, entry: &LogEntry) {
        let applied = self.group.apply(self.applied, entry);
        let actions = &mut self.actions;
        match applied {
            Applied::Ignored => self.counters.entries_ignored += 1,
            Applied::Input => {}
            Applied::Members { ref before } => return self.members_changed(before),
            Applied::Role { sync, .. } => {
                if let Some(sync) = sync.filter(|sync| !sync.ended) {
                    actions.push(Action::AbortEpoch(sync.id));
                    actions.push(Action::Note(Notice::SyncAborted(sync)));
                }
                if let Some(role) = self.group.role().copied() {
                    if role.mode == Mode::Protected {
                        self.fill_wait = RETRY_AFTER_FILL;
                    }
                    actions.push(Action::Note(Notice::Role(role)));
                    self.failover_role(&role);
                }
                self.aborted_in_a_row = 0;
                self.not_before = self.now;
                self.handed_over_at = None;
            }
            Applied::SyncBegan(sync) => {
                actions.push(Action::Note(Notice::SyncBegan(sync)));
                self.sync_began_at = self.now;
                self.sync_wanted = false;
            }
            Applied::SyncEnded { sync, position, .. } => {
                actions.push(Action::EndEpoch(sync.id));
                actions.push(Action::Note(Notice::SyncEnded { sync, position }));
                self.aborted_in_a_row = 0;
            }
            Applied::SyncAborted(sync) => {
                actions.push(if planted(Bug::AbortReleases) {
                    Action::EndEpoch(sync.id)
                } else {
                    Action::AbortEpoch(sync.id)
                });
                actions.push(Action::Note(Notice::SyncAborted(sync)));
                self.aborted_in_a_row += 1;
                let wait = match sync.kind {
                    SyncKind::Delta => RETRY_AFTER_ABORT,
                    SyncKind::Fill => {
                        let wait = self.fill_wait;
                        self.fill_wait = (wait * 2).min(RETRY_AFTER_FILL_MAX);
                        wait
                    }
                };
                self.not_before = self.now + wait;
            }
        }
        if planted(Bug::DeliverTwiceAfterTakeover)
            && let Applied::Role {
                replaced: Some(before),
                ..
            } = &applied
            && before.primary != self.config.own
            && self.is_primary()
        {
            let again = self.cursor.position().index.0.saturating_sub(1);
            self.cursor.seek(Position::start_of(LogIndex(again)));
        }
        let actions = &mut self.actions;
        let (cursor, index) = (&mut self.cursor, self.applied);
        // An entry from before a restart: the guest may have run, and answered, since.
        let may_boot = index > self.recovered;
        let (own, role) = (self.config.own, self.group.role());
        self.copy
            .on_applied(own, role, &applied, may_boot, |command| {
                match command {
                    CopyCommand::Begin { sync, .. } => cursor.set_barrier(Some(sync.0)),
                    CopyCommand::Boot => cursor.seek(Position::start_of(index.next())),
                    _ => {}
                }
                actions.push(Action::Copy(command));
            });
    }
}
