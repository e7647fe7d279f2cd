//! Leadership: noticed, acted on ([`plan`]), handed over.

use arrayvec::ArrayVec;
use bytes::Bytes;
use plover_types::limits::MEMBERS_MAX;
use plover_types::{LogEntry, LogIndex, NodeId, Term};
use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType};

use super::{Action, Core, Notice};
use crate::limits::{ABORTED_IN_A_ROW_MAX, HANDOVER_RETRY_TIMEOUTS};
use crate::plan::{Peer, Plan, View, plan};
use crate::planted::{Bug, planted};

impl Core {
    pub(super) fn watch_leadership(&mut self) {
        let raft = &self.raft.raft;
        if raft.state != self.seen_role {
            let asks = |role| matches!(role, StateRole::PreCandidate | StateRole::Candidate);
            if asks(raft.state) && !asks(self.seen_role) {
                let notice = Notice::Campaign {
                    term: Term(raft.term),
                    last_heard: self.last_heard,
                };
                self.actions.push(Action::Note(notice));
            }
            self.seen_role = raft.state;
            self.watch_detection(self.seen_role);
            self.lease.reset();
            self.handed_over_at = None;
            self.proposed = LogIndex(0);
            // The lease counts from a heartbeat that a quorum answers: one goes out now, not with
            // the next tick. Only a leader's does.
            self.raft.ping();
        }
        let raft = &self.raft.raft;
        if (raft.term, raft.leader_id) != self.seen_leader {
            self.seen_leader = (raft.term, raft.leader_id);
            let notice = Notice::Leader {
                term: Term(raft.term),
                leader: NodeId(raft.leader_id),
            };
            self.actions.push(Action::Note(notice));
        }
    }

    /// Does what a leader should do next. True if something changed.
    pub(super) fn act_on_plan(&mut self) -> bool {
        if !self.leads() || self.is_mute || self.applied < self.proposed {
            return false;
        }
        match self.decide() {
            Plan::HandOver(to) => {
                if self.guest_stands_alone() {
                    self.tell_guest_stands();
                }
                self.hand_over(to)
            }
            _ if self.gives_up_hand_over() => true,
            Plan::Wait => false,
            Plan::Propose(entry) => self.propose_control(&entry),
        }
    }

    /// Nobody took over, and there is no reason any more. The other node may still hold our request,
    /// and ask for votes that disregard our lease whenever it gets to it: so this node does not just
    /// open its uplink again, it steps down.
    fn gives_up_hand_over(&mut self) -> bool {
        let timeout = self.config.tick * self.config.election_ticks;
        let is_late = |at| self.now >= at + timeout * HANDOVER_RETRY_TIMEOUTS;
        let gives_up = self.handed_over_at.is_some_and(is_late);
        if gives_up {
            self.step_down();
        }
        gives_up
    }

    /// Leads no more; whoever does next does so in a later term.
    pub(super) fn step_down(&mut self) {
        let raft = &mut self.raft.raft;
        raft.become_follower(raft.term, raft::INVALID_ID);
    }

    pub(super) fn decide(&self) -> Plan {
        let peers: ArrayVec<Peer<'_>, MEMBERS_MAX> = self
            .peers
            .iter()
            .map(|peer| Peer {
                id: peer.spec.id,
                is_replica: peer.spec.is_replica,
                heard_at_tick: peer.report.as_ref().map_or(0, |(_, at_tick, _)| *at_tick),
                report: peer
                    .report
                    .as_ref()
                    .filter(|(_, at_tick, _)| self.is_recent(*at_tick))
                    .map(|(_, _, report)| report),
                answers: self.answers(peer.spec.id),
                standing: self.standing(peer.spec.id),
                has_log: self.has_log(peer.spec.id),
            })
            .collect();
        let failover = self
            .failover
            .filter(super::failover::Failover::is_under_way);
        let may_begin = self.now >= self.not_before;
        plan(&View {
            own: self.config.own,
            group: &self.group,
            copy: &self.copy,
            peers: &peers,
            host_facts_hash: self.config.host_facts_hash,
            uplink_up: self.uplink_up,
            sync_wanted: (self.sync_wanted && may_begin) || failover.is_some(),
            failover: failover.map(|failover| (failover.to, failover.since)),
            sync_age: self.now.saturating_sub(self.sync_began_at),
            sync_timeout: self.config.sync_timeout,
            aborted_in_a_row: self.aborted_in_a_row,
            aborted_max: ABORTED_IN_A_ROW_MAX,
            fill_allowed: may_begin,
            guest_stands: self.guest_stands(),
            guest_stands_alone: self.guest_stands_alone(),
            on_backup_loss: self.config.on_backup_loss,
        })
    }

    fn answers(&self, peer: NodeId) -> bool {
        let progress = self.raft.raft.prs().get(peer.0);
        progress.is_some_and(|progress| progress.recent_active)
    }

    pub(super) fn propose_control(&mut self, entry: &LogEntry) -> bool {
        if let LogEntry::Members(entry) = entry {
            return self.propose_members(entry);
        }
        if self.propose_bytes(entry.encode()).is_err() {
            return false;
        }
        self.proposed = LogIndex(self.raft.raft.raft_log.last_index());
        if planted(Bug::ReleaseBeforeCommit)
            && let LogEntry::SyncEnd { sync, .. } = entry
        {
            self.actions.push(Action::EndEpoch(*sync));
        }
        true
    }

    /// Stops transmitting first (`handed_over_at` closes the uplink), then asks the other node to
    /// start an election.
    pub(super) fn hand_over(&mut self, to: NodeId) -> bool {
        let retry = self.config.tick * self.config.election_ticks * HANDOVER_RETRY_TIMEOUTS;
        if self.handed_over_at.is_some_and(|at| self.now < at + retry) {
            return false;
        }
        self.handed_over_at = Some(self.now);
        self.failover_shut();
        self.actions.push(Action::Note(Notice::HandOver { to }));
        self.raft.transfer_leader(to.0);
        true
    }

    pub(super) fn propose_bytes(&mut self, data: Bytes) -> raft::Result<()> {
        let entry = Entry {
            data,
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.own.0;
        message.set_entries(vec![entry].into());
        self.raft.step(message)
    }
}
