//! Raft messages: which kinds nodes send each other, and the byte form of each.
//!
//! | kind | message | body after term u64 |
//! |---|---|---|
//! | 1 | append | log term, index, commit, count u16, then per entry: term u64, length u32, data |
//! | 2 | append response | index, commit, reject u8, reject hint, log term, request snapshot |
//! | 3 | heartbeat | commit, context |
//! | 4 | heartbeat response | commit, context |
//! | 5, 7 | vote, pre-vote request | index, log term, commit, commit term, priority i64, context |
//! | 6, 8 | vote, pre-vote response | reject u8, commit, commit term |
//! | 9 | snapshot | index, term, length u32, data |
//! | 10 | timeout now | nothing |
//!
//! A context is a length u8 and bytes. An entry's index is not sent: entries follow the append's
//! `index` without a gap, so a gap cannot be written down. Whether an entry changes the membership
//! follows from its data, and the members of a snapshot are in its data: what raft-rs is told of
//! them is made from those, not sent.

use bytes::{BufMut, BytesMut};
use plover_types::LogEntry;
use plover_types::limits::ENTRY_BYTES_MAX;
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};

use super::fields::Fields;
use super::limits::{APPEND_ENTRIES_MAX, CONTEXT_BYTES_MAX, SNAPSHOT_BYTES_MAX};
use super::{EncodeError, WireError};
use crate::storage::entry_type_of;

const KINDS: [(u8, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgHeartbeat),
    (4, MessageType::MsgHeartbeatResponse),
    (5, MessageType::MsgRequestVote),
    (6, MessageType::MsgRequestVoteResponse),
    (7, MessageType::MsgRequestPreVote),
    (8, MessageType::MsgRequestPreVoteResponse),
    (9, MessageType::MsgSnapshot),
    (10, MessageType::MsgTimeoutNow),
];

/// The kind byte of a message, if nodes send it to each other.
pub(super) fn kind_of(message: MessageType) -> Result<u8, EncodeError> {
    KINDS
        .iter()
        .find(|(_, known)| *known == message)
        .map(|(kind, _)| *kind)
        .ok_or(EncodeError::Refused(name_of(message)))
}

/// The name of a kind of message, for errors and counters.
pub(super) fn name_of(message: MessageType) -> &'static str {
    match message {
        MessageType::MsgHup => "hup",
        MessageType::MsgBeat => "beat",
        MessageType::MsgPropose => "propose",
        MessageType::MsgAppend => "append",
        MessageType::MsgAppendResponse => "append response",
        MessageType::MsgRequestVote => "vote request",
        MessageType::MsgRequestVoteResponse => "vote response",
        MessageType::MsgSnapshot => "snapshot",
        MessageType::MsgHeartbeat => "heartbeat",
        MessageType::MsgHeartbeatResponse => "heartbeat response",
        MessageType::MsgUnreachable => "unreachable",
        MessageType::MsgSnapStatus => "snapshot status",
        MessageType::MsgCheckQuorum => "check quorum",
        MessageType::MsgTransferLeader => "transfer leader",
        MessageType::MsgTimeoutNow => "timeout now",
        MessageType::MsgReadIndex => "read index",
        MessageType::MsgReadIndexResp => "read index response",
        MessageType::MsgRequestPreVote => "pre-vote request",
        MessageType::MsgRequestPreVoteResponse => "pre-vote response",
    }
}

pub(super) fn encode(message: &Message, out: &mut BytesMut) -> Result<(), EncodeError> {
    out.put_u64_le(message.term);
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            out.put_u64_le(message.log_term);
            out.put_u64_le(message.index);
            out.put_u64_le(message.commit);
            encode_entries(message, out)?;
        }
        MessageType::MsgAppendResponse => {
            out.put_u64_le(message.index);
            out.put_u64_le(message.commit);
            out.put_u8(message.reject.into());
            out.put_u64_le(message.reject_hint);
            out.put_u64_le(message.log_term);
            out.put_u64_le(message.request_snapshot);
        }
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => {
            out.put_u64_le(message.commit);
            encode_context(message, out)?;
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            out.put_u64_le(message.index);
            out.put_u64_le(message.log_term);
            out.put_u64_le(message.commit);
            out.put_u64_le(message.commit_term);
            out.put_i64_le(message.priority);
            encode_context(message, out)?;
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            out.put_u8(message.reject.into());
            out.put_u64_le(message.commit);
            out.put_u64_le(message.commit_term);
        }
        MessageType::MsgSnapshot => encode_snapshot(message.get_snapshot(), out)?,
        MessageType::MsgTimeoutNow => {}
        other => return Err(EncodeError::Refused(name_of(other))),
    }
    Ok(())
}

fn encode_entries(message: &Message, out: &mut BytesMut) -> Result<(), EncodeError> {
    let count = u16::try_from(message.entries.len())
        .ok()
        .filter(|count| usize::from(*count) <= APPEND_ENTRIES_MAX)
        .ok_or(EncodeError::Field("entry count"))?;
    out.put_u16_le(count);
    let mut index = message.index;
    for entry in &message.entries {
        index += 1;
        if entry.index != index
            || entry.get_entry_type() != entry_type_of(&entry.data)
            || !entry.context.is_empty()
        {
            return Err(EncodeError::Field("entries"));
        }
        out.put_u64_le(entry.term);
        let length: u32 = bounded_length("entry", entry.data.len(), ENTRY_BYTES_MAX)?;
        out.put_u32_le(length);
        out.put_slice(&entry.data);
    }
    Ok(())
}

fn encode_context(message: &Message, out: &mut BytesMut) -> Result<(), EncodeError> {
    let length: u8 = bounded_length("context", message.context.len(), CONTEXT_BYTES_MAX)?;
    out.put_u8(length);
    out.put_slice(&message.context);
    Ok(())
}

fn encode_snapshot(snapshot: &Snapshot, out: &mut BytesMut) -> Result<(), EncodeError> {
    let metadata = snapshot.get_metadata();
    out.put_u64_le(metadata.index);
    out.put_u64_le(metadata.term);
    let length: u32 = bounded_length("snapshot", snapshot.data.len(), SNAPSHOT_BYTES_MAX)?;
    out.put_u32_le(length);
    out.put_slice(&snapshot.data);
    Ok(())
}

fn bounded_length<T: TryFrom<usize>>(
    part: &'static str,
    bytes: usize,
    bytes_max: usize,
) -> Result<T, EncodeError> {
    Some(bytes)
        .filter(|bytes| *bytes <= bytes_max)
        .and_then(|bytes| T::try_from(bytes).ok())
        .ok_or(EncodeError::Long { part, bytes })
}

pub(super) fn decode(kind: u8, fields: &mut Fields) -> Result<Message, WireError> {
    let message_type = KINDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map(|(_, message_type)| *message_type)
        .ok_or(WireError::Kind(kind))?;
    let mut message = Message::default();
    message.set_msg_type(message_type);
    // Term 0 would make raft-rs take it for a message of this node's own.
    message.term = fields.positive("term")?;
    match message_type {
        MessageType::MsgAppend => decode_append(&mut message, fields)?,
        MessageType::MsgAppendResponse => decode_append_response(&mut message, fields)?,
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => {
            message.commit = fields.bounded("commit")?;
            decode_context(&mut message, fields)?;
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            message.index = fields.bounded("index")?;
            message.log_term = fields.bounded("log term")?;
            message.commit = fields.bounded("commit")?;
            message.commit_term = fields.bounded("commit term")?;
            message.priority = fields.i64()?;
            decode_context(&mut message, fields)?;
            check_position(&message)?;
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            message.reject = fields.flag("reject")?;
            message.commit = fields.bounded("commit")?;
            message.commit_term = fields.bounded("commit term")?;
        }
        MessageType::MsgSnapshot => decode_snapshot(&mut message, fields)?,
        MessageType::MsgTimeoutNow => {}
        other => return Err(WireError::Refused(name_of(other))),
    }
    Ok(message)
}

/// Index 0 stands before the log and has term 0; every other entry has a term. raft-rs takes
/// term 0 for a match anywhere past the log's end.
fn check_position(message: &Message) -> Result<(), WireError> {
    let field = "log term";
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return Err(WireError::Field {
            field,
            value: message.log_term,
        });
    }
    Ok(())
}

fn decode_append(message: &mut Message, fields: &mut Fields) -> Result<(), WireError> {
    message.log_term = fields.bounded("log term")?;
    message.index = fields.bounded("index")?;
    message.commit = fields.bounded("commit")?;
    check_position(message)?;
    let count = usize::from(fields.u16()?);
    if count > APPEND_ENTRIES_MAX {
        return Err(WireError::Field {
            field: "entry count",
            value: count as u64,
        });
    }
    let mut entries = Vec::with_capacity(count);
    let mut term_min = message.log_term.max(1);
    for number in 1..=count as u64 {
        let entry = decode_entry(message.index + number, fields)?;
        if !(term_min..=message.term).contains(&entry.term) {
            return Err(WireError::Field {
                field: "entry term",
                value: entry.term,
            });
        }
        term_min = entry.term;
        entries.push(entry);
    }
    message.set_entries(entries.into());
    Ok(())
}

fn decode_entry(index: u64, fields: &mut Fields) -> Result<Entry, WireError> {
    let term = fields.positive("entry term")?;
    let length = fields.u32()? as usize;
    let mut entry = Entry {
        index,
        term,
        data: fields.slice(length)?,
        ..Entry::default()
    };
    entry.set_entry_type(entry_type_of(&entry.data));
    // A new leader's first entry is empty. Any other is checked here: once it is in the log, all
    // nodes have to apply it.
    if !entry.data.is_empty() {
        LogEntry::decode(&entry.data).map_err(|source| WireError::Entry { index, source })?;
    }
    Ok(entry)
}

fn decode_append_response(message: &mut Message, fields: &mut Fields) -> Result<(), WireError> {
    message.index = fields.bounded("index")?;
    message.commit = fields.bounded("commit")?;
    message.reject = fields.flag("reject")?;
    message.reject_hint = fields.bounded("reject hint")?;
    message.log_term = fields.bounded("log term")?;
    message.request_snapshot = fields.bounded("request snapshot")?;
    Ok(())
}

fn decode_context(message: &mut Message, fields: &mut Fields) -> Result<(), WireError> {
    let length = usize::from(fields.u8()?);
    if length > CONTEXT_BYTES_MAX {
        return Err(WireError::Field {
            field: "context length",
            value: length as u64,
        });
    }
    message.context = fields.slice(length)?;
    Ok(())
}

fn decode_snapshot(message: &mut Message, fields: &mut Fields) -> Result<(), WireError> {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = fields.positive("snapshot index")?;
    metadata.term = fields.positive("snapshot term")?;
    if metadata.term > message.term {
        return Err(WireError::Field {
            field: "snapshot term",
            value: metadata.term,
        });
    }
    let length = fields.u32()? as usize;
    if length > SNAPSHOT_BYTES_MAX {
        return Err(WireError::Field {
            field: "snapshot length",
            value: length as u64,
        });
    }
    snapshot.data = fields.slice(length)?;
    message.set_snapshot(snapshot);
    Ok(())
}
