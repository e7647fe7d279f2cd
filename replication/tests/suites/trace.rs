//! What a group did, event by event, in the form that the published trace specification of
//! etcd-io/raft reads (`Traceetcdraft.tla`). raft-rs has no hooks for it, so events are told from a
//! node's state before and after each step, and from what it sends.
//!
//! Where raft-rs does in one step what that library says to itself by messages (its own vote, its own
//! entries once they are written), those messages are told as well.

use std::fmt::Write as _;

use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};
use replication::storage::LogStorage;

/// A node's state, as far as the specification has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub role: StateRole,
    pub term: u64,
    vote: u64,
    pub commit: u64,
    last: u64,
}

impl Seen {
    pub fn of(raft: &RawNode<LogStorage>) -> Self {
        let raft = &raft.raft;
        Self {
            role: raft.state,
            term: raft.term,
            vote: raft.vote,
            commit: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
        }
    }

    fn role_name(&self) -> &'static str {
        match self.role {
            // The specification knows no pre-votes: they change no state of its.
            StateRole::Follower | StateRole::PreCandidate => "StateFollower",
            StateRole::Candidate => "StateCandidate",
            StateRole::Leader => "StateLeader",
        }
    }
}

/// The events so far, as JSON lines.
#[derive(Default)]
pub struct Trace {
    pub lines: String,
    pub events: usize,
    /// What nodes have still to hear from themselves: node, kind, term, index.
    to_self: Vec<(u64, &'static str, u64, u64)>,
}

impl Trace {
    fn write(&mut self, name: &str, node: u64, seen: &Seen, message: &str) {
        let _ = writeln!(
            self.lines,
            r#"{{"tag":"trace","event":{{"name":"{name}","nid":"{node}","state":{{"term":{},"vote":"{}","commit":{}}},"role":"{}","log":{},"conf":[["1","2","3"],[]]{message}}}}}"#,
            seen.term,
            seen.vote,
            seen.commit,
            seen.role_name(),
            seen.last,
        );
        self.events += 1;
    }

    pub fn starts(&mut self, node: u64, raft: &RawNode<LogStorage>) {
        self.to_self.retain(|(own, ..)| *own != node);
        self.write("InitState", node, &Seen::of(raft), "");
    }

    /// A message was taken: `before` is the receiver's state then.
    pub fn receives(&mut self, message: &Message, before: &Seen, after: &RawNode<LogStorage>) {
        let is_answered = after.raft.msgs.iter().any(|sent| sent.to == message.from);
        let kind = message.get_msg_type();
        // As good as lost: of an older term, or a vote that is not looked at.
        let is_ignored =
            message.term < before.term || kind == MessageType::MsgRequestVote && !is_answered;
        let name = match kind {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => "ReceiveAppendEntriesRequest",
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                "ReceiveAppendEntriesResponse"
            }
            MessageType::MsgRequestVote => "ReceiveRequestVoteRequest",
            MessageType::MsgRequestVoteResponse => "ReceiveRequestVoteResponse",
            _ => return,
        };
        if !is_ignored {
            self.write(name, message.to, before, &told(message));
        }
    }

    /// A node took a step: what became of it, and what it sends.
    pub fn steps(&mut self, node: u64, before: &Seen, raft: &RawNode<LogStorage>) {
        let after = Seen::of(raft);
        let newly = |role| after.role == role && (before.role, before.term) != (role, after.term);
        if newly(StateRole::Candidate) || newly(StateRole::Leader) && before.term < after.term {
            let candidate = Seen {
                role: StateRole::Candidate,
                ..*before
            };
            let candidate = Seen {
                term: after.term,
                vote: node,
                ..candidate
            };
            self.write("BecomeCandidate", node, &candidate, "");
            self.says_to_itself(node, "MsgVoteResp", &candidate);
        }
        let is_leader = newly(StateRole::Leader);
        if is_leader {
            let elected = Seen {
                last: after.last - 1,
                ..after
            };
            self.write("BecomeLeader", node, &elected, "");
        }
        if after.role == StateRole::Leader {
            let grown = if is_leader {
                1
            } else {
                after.last - before.last
            };
            for _ in 0..grown {
                self.write("Replicate", node, &after, "");
            }
            if grown > 0 {
                let appended = Seen {
                    commit: before.commit,
                    ..after
                };
                self.says_to_itself(node, "MsgAppResp", &appended);
            }
            if after.commit > before.commit {
                self.write("Commit", node, &after, "");
            }
        }
        for message in &raft.raft.msgs {
            let name = match message.get_msg_type() {
                MessageType::MsgAppend | MessageType::MsgHeartbeat => "SendAppendEntriesRequest",
                MessageType::MsgRequestVote => "SendRequestVoteRequest",
                _ => continue,
            };
            self.write(name, node, &after, &told(message));
        }
    }

    fn says_to_itself(&mut self, node: u64, kind: &'static str, seen: &Seen) {
        let name = match kind {
            "MsgVoteResp" => "SendRequestVoteResponse",
            _ => "SendAppendEntriesResponse",
        };
        let message = told_to_itself(node, kind, seen.term, seen.last);
        self.write(name, node, seen, &message);
        self.to_self.push((node, kind, seen.term, seen.last));
    }

    /// All that a node had to write is written, and what it said leaves: to itself as well.
    pub fn is_written(&mut self, node: u64, seen: &Seen) {
        self.write("Ready", node, seen, "");
        let (own, others) = std::mem::take(&mut self.to_self)
            .into_iter()
            .partition::<Vec<_>, _>(|(to, ..)| *to == node);
        self.to_self = others;
        for (_, kind, term, index) in own {
            let name = match kind {
                "MsgVoteResp" => "ReceiveRequestVoteResponse",
                _ => "ReceiveAppendEntriesResponse",
            };
            if term == seen.term {
                let message = told_to_itself(node, kind, term, index);
                self.write(name, node, seen, &message);
            }
        }
    }
}

fn told(message: &Message) -> String {
    let (kind, log_term) = match message.get_msg_type() {
        MessageType::MsgAppend => ("MsgApp", message.log_term),
        MessageType::MsgHeartbeat => ("MsgHeartbeat", 0),
        MessageType::MsgAppendResponse => ("MsgAppResp", 0),
        MessageType::MsgHeartbeatResponse => ("MsgHeartbeatResp", 0),
        MessageType::MsgRequestVote => ("MsgVote", message.log_term),
        _ => ("MsgVoteResp", 0),
    };
    let entries = message.entries.len() as u64;
    // What is committed beyond the message's last entry means nothing to its receiver; the
    // specification has it cut off.
    let commit = match message.get_msg_type() {
        MessageType::MsgAppend => message.commit.min(message.index + entries),
        _ => message.commit,
    };
    format!(
        r#","msg":{{"type":"{kind}","term":{},"from":"{}","to":"{}","entries":{entries},"logTerm":{log_term},"index":{},"commit":{commit},"vote":"0","reject":{},"rejectHint":0}}"#,
        message.term, message.from, message.to, message.index, message.reject,
    )
}

fn told_to_itself(node: u64, kind: &str, term: u64, index: u64) -> String {
    format!(
        r#","msg":{{"type":"{kind}","term":{term},"from":"{node}","to":"{node}","entries":0,"logTerm":0,"index":{index},"commit":0,"vote":"0","reject":false,"rejectHint":0}}"#
    )
}
