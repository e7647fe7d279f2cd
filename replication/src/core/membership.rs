//! Who belongs to the group: asked for, put into the log, applied. What follows from what is in
//! [`members`](crate::members), when the next step is taken in [`plan`](crate::plan).

use std::time::Duration;

use plover_types::{LogEntry, LogIndex, MembersEntry, NodeId, NodeSpec, Standing};
use raft::StateRole;
use raft::eraftpb::{ConfState, Entry, EntryType};

use super::{Action, Core, Notice, PeerState};
use crate::limits::CAUGHT_UP_ENTRIES;
use crate::members::{Members, ReplaceRefused};

impl Core {
    /// Puts a new member in the place of one that is lost for good. It follows the log without a vote
    /// first; the rest is done by whoever leads. Asking again for what is under way changes nothing.
    ///
    /// # Errors
    /// Says why not, and what to do.
    pub fn replace(
        &mut self,
        now: Duration,
        lost: NodeId,
        new: &NodeSpec,
    ) -> Result<(), ReplaceRefused> {
        self.now = now;
        let members = self.group.members();
        let is_under_way = members
            .list()
            .iter()
            .any(|member| member.spec == *new && member.standing.replaces() == Some(lost));
        if is_under_way {
            return Ok(());
        }
        if !self.leads() || self.is_mute || self.applied < self.proposed {
            return Err(match self.leader().0 {
                Some(leader) if leader != self.config.own => ReplaceRefused::NotLeader(leader),
                _ => ReplaceRefused::NoLeader,
            });
        }
        if lost == self.config.own {
            return Err(ReplaceRefused::Own(lost));
        }
        let entry = members.replaced(lost, new)?;
        let is_heard = |peer: &&PeerState| {
            let heard = peer.report.as_ref().map(|(_, at_tick, _)| *at_tick);
            peer.spec.id == lost && heard.is_some_and(|at_tick| self.is_recent(at_tick))
        };
        if self.peers.iter().find(is_heard).is_some() {
            return Err(ReplaceRefused::Alive(lost));
        }
        if !self.propose_members(&entry) {
            return Err(ReplaceRefused::NoLeader);
        }
        self.settle();
        Ok(())
    }

    /// As raft-rs proposes a change of its configuration, without its form of one: it would parse the
    /// data. What it checks there is checked here: this node leads, hands over to nobody, and the
    /// change before is applied ([`plan`](crate::plan) is asked only then).
    pub(super) fn propose_members(&mut self, entry: &MembersEntry) -> bool {
        let raft = &mut self.raft.raft;
        if raft.state != StateRole::Leader
            || raft.lead_transferee.is_some()
            || raft.has_pending_conf()
        {
            return false;
        }
        let mut change = Entry {
            data: LogEntry::Members(entry.clone()).encode(),
            ..Entry::default()
        };
        change.set_entry_type(EntryType::EntryConfChangeV2);
        if !raft.append_entry(&mut [change]) {
            return false;
        }
        raft.pending_conf_index = raft.raft_log.last_index();
        raft.bcast_append();
        self.proposed = LogIndex(self.raft.raft.raft_log.last_index());
        true
    }

    /// The list changed: raft-rs is told, and everybody else.
    pub(super) fn members_changed(&mut self, before: &ConfState) {
        for change in self.group.members().conf_changes(before) {
            // Each follows from the one before: see `Members::apply`.
            if self.raft.apply_conf_change(&change).is_err() {
                self.counters.entries_malformed += 1;
            }
        }
        // A lease counts with those who can elect another leader now.
        self.lease.reset();
        if self.raft.raft.state == StateRole::Leader {
            self.raft.ping();
        }
        self.renew_snapshot();
        self.follow_members();
    }

    /// A node that comes in is not among the members of a snapshot taken before, and refuses it. The
    /// next one may be far off: while the backup is awaited, nothing is compacted.
    fn renew_snapshot(&mut self) {
        let data = self.group.encode();
        let store = self.raft.mut_store();
        if store.snapshot_data().is_some()
            && let Some(term) = store.term_of(self.applied)
            && store.set_snapshot_data(self.applied, term, data).is_err()
        {
            self.counters.entries_malformed += 1;
        }
    }

    /// Talks to those who belong to the group, from now on.
    pub(super) fn follow_members(&mut self) {
        let own = self.config.own;
        let members = self.group.members();
        if members.is_empty() {
            return;
        }
        let specs: Vec<NodeSpec> = members.reachable().map(|it| it.spec.clone()).collect();
        let mut before = std::mem::take(&mut self.peers);
        for spec in specs.iter().filter(|spec| spec.id != own) {
            let known = before.iter().position(|peer| peer.spec.id == spec.id);
            let mut peer =
                known.map_or_else(|| PeerState::new(spec.clone()), |at| before.swap_remove(at));
            peer.spec = spec.clone();
            self.peers.push(peer);
        }
        self.actions.push(Action::Members(specs));
        self.actions.push(Action::Note(Notice::Members {
            version: members.version(),
            members: members.list().to_vec(),
        }));
        let was_member = std::mem::replace(&mut self.is_member, members.standing(own).is_some());
        if was_member && !self.is_member {
            self.leave();
        }
    }

    /// Others took this node's place: it votes no more, and its copy counts for nothing.
    fn leave(&mut self) {
        self.is_mute = true;
        let actions = &mut self.actions;
        self.copy
            .on_snapshot(|command| actions.push(Action::Copy(command)));
        actions.push(Action::Note(Notice::Removed));
    }

    /// Whether the follower has the log but for its last entries.
    pub(super) fn has_log(&self, peer: NodeId) -> bool {
        let raft = &self.raft.raft;
        let missing = |matched| raft.raft_log.last_index().saturating_sub(matched);
        let progress = raft.prs().get(peer.0);
        progress.is_some_and(|progress| missing(progress.matched) <= CAUGHT_UP_ENTRIES)
    }

    pub(super) fn standing(&self, peer: NodeId) -> Standing {
        // A node that nothing is known of decides nothing.
        let unknown = Standing::Learner { replaces: peer };
        self.group.members().standing(peer).unwrap_or(unknown)
    }

    /// Whether this node has a vote, as far as it knows.
    #[must_use]
    pub fn has_vote(&self) -> bool {
        self.standing(self.config.own).votes()
    }

    /// Something came from a node that was replaced. It is not listened to.
    pub fn heard_gone(&mut self, node: NodeId) {
        self.counters.messages_of_gone += 1;
        if self.gone_heard != Some(node) {
            self.gone_heard = Some(node);
            self.actions.push(Action::Note(Notice::GoneHeard { node }));
        }
    }

    /// Whether the node was a member and is one no longer, or is being replaced.
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.group.members().is_gone(node)
    }
}

/// The members that a group starts with: none are known while this node has still to be let in.
#[must_use]
pub fn members_at_start(config: &super::CoreConfig) -> Members {
    if config.joins {
        Members::default()
    } else {
        Members::of(&config.nodes)
    }
}
