//! Messages between the three nodes, and their byte form.
//!
//! What lives here: the envelope, encoding, and the two checks that stand between a peer's bytes
//! and raft-rs: [`decode`] (is it a well-formed message of this group?) and [`check_against_log`]
//! (does it fit this node's log?). What does not: frames (see `transport`), any decision.
//!
//! All integers are little endian.
//!
//! | field | bytes |
//! |---|---|
//! | version ([`limits::WIRE_VERSION`]) | 1 |
//! | kind | 1 |
//! | group | 8 |
//! | from, to | 8, 8 |
//! | body, by kind: see `raft_body` and `report` | rest |
//!
//! Version rule: any change of the layout raises the version; nodes of different versions refuse
//! each other's messages and say so.

mod error;
mod fields;
pub mod limits;
mod log_check;
mod raft_body;
mod report;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use plover_types::NodeId;
use raft::eraftpb::Message;

pub use error::{EncodeError, WireError};
pub use log_check::{LogBounds, check_against_log};
pub use report::{CopyReport, CopyState};

use fields::Fields;
use limits::{MESSAGE_BYTES_MAX, WIRE_VERSION};

/// Names a group on the wire: a hash of its name. It keeps groups that share a network apart; it
/// is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId(pub u64);

impl GroupId {
    /// The id of the group of this name (64-bit FNV-1a).
    #[must_use]
    pub fn of(name: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        Self(name.bytes().fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        }))
    }
}

/// A message on its way from one node to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Who sends it.
    pub from: NodeId,
    /// Who gets it.
    pub to: NodeId,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// For raft-rs.
    Raft(Message),
    /// What the sender's copy is doing.
    Report(CopyReport),
}

/// Appends the byte form of a message to `out`. On an error `out` is as before.
///
/// # Errors
/// The message is of a kind that nodes do not send each other, or larger than
/// [`MESSAGE_BYTES_MAX`].
pub fn encode(envelope: &Envelope, group: GroupId, out: &mut BytesMut) -> Result<(), EncodeError> {
    let start = out.len();
    let result = encode_unbounded(envelope, group, out).and_then(|()| match out.len() - start {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(EncodeError::Long {
            part: "message",
            bytes,
        }),
        _ => Ok(()),
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_unbounded(
    envelope: &Envelope,
    group: GroupId,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let kind = match &envelope.body {
        Body::Raft(message) => raft_body::kind_of(message.get_msg_type())?,
        Body::Report(_) => report::KIND,
    };
    out.put_u8(WIRE_VERSION);
    out.put_u8(kind);
    out.put_u64_le(group.0);
    out.put_u64_le(envelope.from.0);
    out.put_u64_le(envelope.to.0);
    match &envelope.body {
        Body::Raft(message) => raft_body::encode(message, out),
        Body::Report(report) => {
            report::encode(report, out);
            Ok(())
        }
    }
}

/// Checks and reads a message from a peer. Entry and snapshot data share `bytes`.
///
/// `own` is this node; `known` says whether a node is in the group. What comes out still has to
/// pass [`check_against_log`] before raft-rs may see it.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn decode(
    bytes: Bytes,
    group: GroupId,
    own: NodeId,
    known: impl Fn(NodeId) -> bool,
) -> Result<Envelope, WireError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(WireError::Long(bytes.len()));
    }
    let mut fields = Fields::new(bytes);
    let version = fields.u8()?;
    if version != WIRE_VERSION {
        return Err(WireError::Version(version));
    }
    let kind = fields.u8()?;
    let sender_group = fields.u64()?;
    if sender_group != group.0 {
        return Err(WireError::Group(sender_group));
    }
    let from = NodeId(fields.u64()?);
    let to = NodeId(fields.u64()?);
    if from == own || !known(from) {
        return Err(WireError::From(from));
    }
    if to != own {
        return Err(WireError::To(to));
    }
    let body = if kind == report::KIND {
        Body::Report(report::decode(&mut fields)?)
    } else {
        let mut message = raft_body::decode(kind, &mut fields)?;
        message.from = from.0;
        message.to = to.0;
        Body::Raft(message)
    };
    fields.finish()?;
    Ok(Envelope { from, to, body })
}
