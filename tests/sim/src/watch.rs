//! What is checked as it passes: messages and applied entries.

use plover_types::limits::QUEUE_PAIRS_MAX;
use plover_types::{LogIndex, RoleEntry};
use raft::eraftpb::MessageType;
use replication::epoch::LocalCopy;
use replication::wire::{Body, Envelope};

use crate::violation::Violation;
use crate::world::World;

impl World {
    /// Votes and acknowledgements, as they are handed out to be sent.
    pub(crate) fn watch_message(
        &mut self,
        host: usize,
        envelope: &Envelope,
    ) -> Result<(), Violation> {
        let Body::Raft(message) = &envelope.body else {
            return Ok(());
        };
        let node = envelope.from;
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.trace(host, || {
                    format!("votes for node {} in term {}", envelope.to, message.term)
                });
                self.checker.votes(node, message.term, envelope.to)?;
            }
            // Whoever asks has voted for itself.
            MessageType::MsgRequestVote => {
                self.trace(host, || {
                    format!("asks node {} for term {}", envelope.to, message.term)
                });
                self.checker.votes(node, message.term, node)?;
            }
            MessageType::MsgAppendResponse if !message.reject => {
                let index = LogIndex(message.index);
                let it = &self.hosts[host];
                if it.disk.as_ref().is_some_and(|disk| disk.last() < index) {
                    return Err(Violation::NotDurable { node, index });
                }
            }
            MessageType::MsgSnapshot => {
                self.trace(host, || format!("sends node {} a snapshot", envelope.to));
            }
            MessageType::MsgTimeoutNow => {
                self.trace(host, || format!("has node {} take over", envelope.to));
            }
            _ => {}
        }
        Ok(())
    }

    /// A role was committed: the copy that it relies on alone is one that runs, or will.
    pub(crate) fn watch_role(&self, role: &RoleEntry) -> Result<(), Violation> {
        let node = role.primary;
        let Some(host) = self.index_of(node) else {
            return Ok(());
        };
        let core = self.hosts[host].core.as_ref();
        let is_invalid = core.is_some_and(|core| matches!(core.copy(), LocalCopy::Loading { .. }));
        if role.valid.len() == 1 && is_invalid {
            return Err(Violation::GaveUpBoth { node });
        }
        Ok(())
    }

    /// A copy was given up: its input is no longer in the log, or another role applies to it. Wrong
    /// if the group counts on it.
    pub(crate) fn given_up(&self, host: usize) -> Result<(), Violation> {
        let node = self.hosts[host].id();
        let counts = |role: &RoleEntry| role.valid.contains(node);
        if self.checker.newest_role().is_some_and(counts) {
            return Err(Violation::GivenUp { node });
        }
        Ok(())
    }

    /// What the node has been told by the others, and whether its copy missed something.
    pub(crate) fn watch_reports(&mut self, host: usize) -> Result<(), Violation> {
        let it = &self.hosts[host];
        let Some(core) = &it.core else { return Ok(()) };
        if core.counters().input_missed > 0 {
            self.given_up(host)?;
        }
        for (from, _, report) in core.reports() {
            let (life, number) = (report.incarnation, report.sequence);
            self.checker.reported(it.spec.id, from, life, number)?;
        }
        Ok(())
    }

    /// Entries that the node applied since the last look: the same on every node.
    pub(crate) fn watch_log(&mut self, host: usize) -> Result<(), Violation> {
        let it = &mut self.hosts[host];
        let Some(core) = &it.core else { return Ok(()) };
        let applied = core.applied();
        if applied <= it.applied_seen {
            return Ok(());
        }
        self.checker.state(it.spec.id, applied, core.group())?;
        let mut found = false;
        for index in it.applied_seen.0 + 1..=applied.0 {
            // What was compacted at once was looked at on another node.
            if let Some((term, data)) = core.log_entry(LogIndex(index)) {
                found = true;
                self.checker
                    .applied(it.spec.id, LogIndex(index), term.0, &data)?;
            }
        }
        if !found && it.applied_seen.0 > 0 {
            self.outcome.coverage.decided("snapshot installed");
        }
        it.applied_seen = applied;
        Ok(())
    }
}

/// A message's name in the coverage table.
pub(crate) fn kind_name(kind: MessageType) -> &'static str {
    match kind {
        MessageType::MsgAppend => "append",
        MessageType::MsgAppendResponse => "append's answer",
        MessageType::MsgHeartbeat => "heartbeat",
        MessageType::MsgHeartbeatResponse => "heartbeat's answer",
        MessageType::MsgRequestPreVote => "pre-vote asked",
        MessageType::MsgRequestPreVoteResponse => "pre-vote answered",
        MessageType::MsgRequestVote => "vote asked",
        MessageType::MsgRequestVoteResponse => "vote answered",
        MessageType::MsgSnapshot => "snapshot",
        MessageType::MsgTimeoutNow => "timeout now",
        _ => "other",
    }
}

/// The queue pair that an uplink would choose for a packet.
pub(crate) fn pair_of(number: u64) -> u8 {
    (number % u64::from(QUEUE_PAIRS_MAX)) as u8
}

/// The client's number for a packet.
pub(crate) fn packet_number(packet: &[u8]) -> u64 {
    packet
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
