//! What the peers say, checked before raft-rs sees it, and what they are told.

use plover_types::NodeId;
use raft::eraftpb::{Message, MessageType};

use super::{Action, Core, Notice};
use crate::group::conf_state_of;
use crate::limits::AWAITING_PERSIST_MAX;
use crate::planted::{Bug, planted};
use crate::wire::{Body, CopyReport, Envelope, check_against_log};

impl Core {
    pub(super) fn receive(&mut self, envelope: Envelope) {
        match envelope.body {
            Body::Report(report) => self.receive_report(envelope.from, report),
            Body::Raft(message) => self.receive_raft(envelope.from, message),
        }
    }

    pub(super) fn receive_report(&mut self, from: NodeId, report: CopyReport) {
        let now = self.now;
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.spec.id == from) else {
            return;
        };
        let is_newer = peer.report.is_none_or(|(_, _, last)| {
            last.incarnation != report.incarnation || last.sequence < report.sequence
        });
        if !is_newer && !planted(Bug::StaleReport) {
            return;
        }
        let known = peer.report.map(|(_, _, last)| last.host_facts_hash);
        let differs = peer.spec.is_replica
            && self.config.host_facts_hash != 0
            && report.host_facts_hash != self.config.host_facts_hash;
        if differs && known != Some(report.host_facts_hash) {
            self.actions
                .push(Action::Note(Notice::HostsDiffer { node: from }));
        }
        peer.report = Some((now, self.ticks, report));
        self.heard_again(from, &report);
    }

    pub(super) fn receive_raft(&mut self, from: NodeId, mut message: Message) {
        if self.is_mute || self.awaiting.len() > AWAITING_PERSIST_MAX {
            self.counters.messages_refused += 1;
            return;
        }
        let kind = message.get_msg_type();
        let asks_for_vote = matches!(
            kind,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if asks_for_vote && self.now < self.votes_from && !planted(Bug::VoteAfterRestart) {
            self.counters.votes_withheld += 1;
            return;
        }
        if self.awaits_snapshot() || check_against_log(&message, &self.raft.raft.raft_log).is_err()
        {
            self.counters.messages_unfit += 1;
            return;
        }
        match kind {
            MessageType::MsgHeartbeatResponse => {
                let round = message.take_context();
                if message.term == self.raft.raft.term
                    && let Ok(round) = <[u8; 8]>::try_from(&round[..])
                {
                    let (own, members) = (self.config.own, self.group.members());
                    let is_quorum = |followers: &[NodeId]| {
                        members.has_quorum(|node| node == own || followers.contains(&node))
                    };
                    self.lease
                        .acknowledge(from, u64::from_le_bytes(round), is_quorum);
                }
            }
            MessageType::MsgSnapshot => {
                let snapshot = message.mut_snapshot();
                let Some(members) = conf_state_of(&snapshot.data) else {
                    self.counters.messages_unfit += 1;
                    return;
                };
                snapshot.mut_metadata().set_conf_state(members);
            }
            _ => {}
        }
        match kind {
            MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot
                if message.term >= self.raft.raft.term =>
            {
                self.last_heard = self.now;
            }
            _ => {}
        }
        if self.raft.step(message).is_err() {
            self.counters.messages_refused += 1;
        }
    }

    pub(super) fn send_raft(&mut self, messages: Vec<Message>) {
        if self.is_mute {
            return;
        }
        let mut round = None;
        for mut message in messages {
            if message.get_msg_type() == MessageType::MsgHeartbeat {
                let number = *round.get_or_insert_with(|| self.lease.start_round(self.now));
                message.set_context(number.to_le_bytes().to_vec().into());
            }
            let (from, to) = (self.config.own, NodeId(message.to));
            if message.get_msg_type() == MessageType::MsgSnapshot
                && let Some(peer) = self.peers.iter_mut().find(|peer| peer.spec.id == to)
            {
                peer.snapshot_sent = Some(self.now);
            }
            self.actions.push(Action::Send(Envelope {
                from,
                to,
                body: Body::Raft(message),
            }));
        }
    }

    /// raft-rs sends nothing to a follower until its snapshot is reported as arrived or lost. Ours
    /// are single messages on a network that may lose them: one that is not answered within an
    /// election timeout is lost, and the next heartbeat's answer sends another.
    pub(super) fn give_up_lost_snapshots(&mut self) {
        let timeout = self.config.tick * self.config.election_ticks;
        for peer in &mut self.peers {
            if peer
                .snapshot_sent
                .is_some_and(|sent| self.now >= sent + timeout)
            {
                peer.snapshot_sent = None;
                self.raft
                    .report_snapshot(peer.spec.id.0, raft::SnapshotStatus::Failure);
            }
        }
    }

    pub(super) fn send_reports(&mut self) {
        self.report_sequence += 1;
        self.reported = Some(self.copy);
        let report = CopyReport {
            sequence: self.report_sequence,
            incarnation: self.config.incarnation,
            generation: self.group.generation(),
            applied: self.applied,
            copy: self.copy.report(),
            delivered: self.needed_position(),
            sign: self.last_sign(),
            idle: self.idle,
            uplink_up: self.uplink_up,
            host_facts_hash: self.config.host_facts_hash,
        };
        for peer in &self.peers {
            let (from, to) = (self.config.own, peer.spec.id);
            self.actions.push(Action::Send(Envelope {
                from,
                to,
                body: Body::Report(report),
            }));
        }
    }
}
