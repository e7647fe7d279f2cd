//! Does a message fit this node's log? raft-rs 0.7 trusts its peers: some messages that
//! contradict the log make it panic, others make it believe that a follower holds what it does
//! not. They are refused here.
//!
//! What an honest peer can send passes, except for messages so late that raft-rs would ignore
//! them anyway. Every refusal has a test in `hostile_tests` that shows what raft-rs does without.

use plover_types::{LogIndex, Term};
use raft::eraftpb::{Message, MessageType};
use raft::{RaftLog, Storage};

use super::WireError;
use super::limits::{APPEND_ENTRIES_MAX, INDEX_AND_TERM_MAX};
use super::raft_body::name_of;

/// What the checks need to know of a log, entries that are not yet stored included.
pub trait LogBounds {
    /// Index of the first entry that is still there.
    fn first_index(&self) -> LogIndex;
    /// Index of the last entry, stored or not.
    fn last_index(&self) -> LogIndex;
    /// Index of the last entry known to be stored.
    fn persisted(&self) -> LogIndex;
    /// Index of the last entry known to be committed.
    fn committed(&self) -> LogIndex;
    /// Index of the last entry that raft-rs was told is applied.
    fn applied(&self) -> LogIndex;
    /// Term of an entry, or of the one before the first.
    fn term(&self, index: LogIndex) -> Option<Term>;
}

impl<S: Storage> LogBounds for RaftLog<S> {
    fn first_index(&self) -> LogIndex {
        LogIndex(RaftLog::first_index(self))
    }

    fn last_index(&self) -> LogIndex {
        LogIndex(RaftLog::last_index(self))
    }

    fn persisted(&self) -> LogIndex {
        LogIndex(self.persisted)
    }

    fn committed(&self) -> LogIndex {
        LogIndex(self.committed)
    }

    fn applied(&self) -> LogIndex {
        LogIndex(self.applied)
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        let known = RaftLog::first_index(self) - 1..=RaftLog::last_index(self);
        if !known.contains(&index.0) {
            return None;
        }
        RaftLog::term(self, index.0).ok().map(Term)
    }
}

/// Refuses what makes raft-rs panic or believe something that is not so.
///
/// # Errors
/// Names the field and the bound of the log that it breaks.
pub fn check_against_log(message: &Message, log: &impl LogBounds) -> Result<(), WireError> {
    let kind = message.get_msg_type();
    if message.term == 0 || message.term >= INDEX_AND_TERM_MAX {
        return Err(WireError::Field {
            field: "term",
            value: message.term,
        });
    }
    match kind {
        MessageType::MsgAppend => check_append(message, log),
        MessageType::MsgAppendResponse => {
            // Past the log's end: raft-rs would count entries yet to be proposed as replicated.
            let last = log.last_index().0;
            at_most(message, "index", message.index, "last", last)?;
            at_most(
                message,
                "request snapshot",
                message.request_snapshot,
                "last",
                last,
            )?;
            at_most(
                message,
                "reject hint",
                message.reject_hint,
                "largest",
                INDEX_AND_TERM_MAX,
            )
        }
        // commit_to() stops the process if the entry is not there.
        MessageType::MsgHeartbeat => at_most(
            message,
            "commit",
            message.commit,
            "last",
            log.last_index().0,
        ),
        MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote => Ok(()),
        // A candidate reads all entries after the applied one. They are gone while a received
        // snapshot is stored but not applied yet.
        MessageType::MsgTimeoutNow => {
            let first = log.first_index().0;
            at_most(
                message,
                "first entry",
                first,
                "after applied",
                log.applied().0 + 1,
            )
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            check_vote(message, log)
        }
        MessageType::MsgSnapshot => check_snapshot(message, log),
        other => Err(WireError::Refused(name_of(other))),
    }
}

fn check_append(message: &Message, log: &impl LogBounds) -> Result<(), WireError> {
    at_most(
        message,
        "index",
        message.index,
        "largest",
        INDEX_AND_TERM_MAX,
    )?;
    at_most(
        message,
        "entry count",
        message.entries.len() as u64,
        "largest",
        APPEND_ENTRIES_MAX as u64,
    )?;
    // raft-rs takes log term 0 for a match past the end, appends behind a gap and panics.
    if message.log_term == 0 {
        at_most(message, "index", message.index, "empty log", 0)?;
    }
    // A leader has every entry that was committed in terms before its own. If it contradicts one,
    // one of the two logs is broken. A leader that was replaced may; raft-rs tells it so.
    let committed = log.committed();
    if log
        .term(log.last_index())
        .is_some_and(|last| message.term < last.0)
    {
        return Ok(());
    }
    let entries = message
        .entries
        .iter()
        .map(|entry| (entry.index, entry.term));
    for (index, term) in std::iter::once((message.index, message.log_term)).chain(entries) {
        if index > committed.0 {
            break;
        }
        let own = log.term(LogIndex(index));
        if own.is_some_and(|own| own != Term(term)) {
            return Err(outside(
                message,
                "committed entry's term",
                term,
                "committed",
                committed.0,
            ));
        }
    }
    Ok(())
}

/// A vote is asked for once the whole log is stored; an answer before that was not asked for, and
/// raft-rs asserts it when the answer makes this node the leader.
fn check_vote(message: &Message, log: &impl LogBounds) -> Result<(), WireError> {
    let (last, persisted) = (log.last_index().0, log.persisted().0);
    if !message.reject && last != persisted {
        return Err(outside(
            message,
            "granted before last",
            last,
            "persisted",
            persisted,
        ));
    }
    Ok(())
}

fn check_snapshot(message: &Message, log: &impl LogBounds) -> Result<(), WireError> {
    let metadata = message.get_snapshot().get_metadata();
    let (index, term) = (metadata.index, metadata.term);
    at_most(
        message,
        "snapshot index",
        index,
        "largest",
        INDEX_AND_TERM_MAX,
    )?;
    if index == 0 || term == 0 {
        return Err(outside(
            message,
            "snapshot term",
            term,
            "snapshot index",
            index,
        ));
    }
    let committed = log.committed();
    if index <= committed.0
        && log
            .term(LogIndex(index))
            .is_some_and(|own| own != Term(term))
    {
        return Err(outside(
            message,
            "snapshot term",
            term,
            "committed",
            committed.0,
        ));
    }
    Ok(())
}

fn at_most(
    message: &Message,
    field: &'static str,
    value: u64,
    bound_name: &'static str,
    bound: u64,
) -> Result<(), WireError> {
    if value <= bound {
        return Ok(());
    }
    Err(outside(message, field, value, bound_name, bound))
}

fn outside(
    message: &Message,
    field: &'static str,
    value: u64,
    bound_name: &'static str,
    bound: u64,
) -> WireError {
    WireError::Log {
        message: name_of(message.get_msg_type()),
        field,
        value,
        bound_name,
        bound,
    }
}
