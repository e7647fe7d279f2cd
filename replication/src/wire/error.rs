//! Why a message is not sent on, or not believed.

use plover_types::{EntryError, NodeId};

/// Why bytes from a peer are not a message, or a message does not fit this node's log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// The message ends before its body does.
    #[error("message ends at byte {have}, its body needs {need}")]
    Short {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Bytes follow the body.
    #[error("message has {0} bytes after its body")]
    Trailing(usize),
    /// The message is longer than any message may be.
    #[error("message of {0} bytes")]
    Long(usize),
    /// Another version of the byte form.
    #[error("message of wire version {0}")]
    Version(u8),
    /// A kind that this version does not know.
    #[error("message of unknown kind {0}")]
    Kind(u8),
    /// A kind of Raft message that nodes do not send each other.
    #[error("Raft message {0} is not taken from peers")]
    Refused(&'static str),
    /// The message belongs to another group.
    #[error("message of another group ({0:#018x})")]
    Group(u64),
    /// The message is for another node.
    #[error("message for node {0}")]
    To(NodeId),
    /// The message comes from a node that is not a peer.
    #[error("message from node {0}, which is no peer")]
    From(NodeId),
    /// A field holds a value outside its range.
    #[error("message field {field} holds {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// An entry's data is no log entry.
    #[error("entry {index} of an append")]
    Entry {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The message contradicts this node's log; raft-rs would stop at it, or believe it.
    #[error("{message}: {field} {value} is outside the log ({bound_name} {bound})")]
    Log {
        /// Kind of message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// Which bound of the log it breaks.
        bound_name: &'static str,
        /// That bound.
        bound: u64,
    },
}

/// Why a message of our own cannot be sent. Each is counted; none is expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// A kind of Raft message that nodes do not send each other, such as a forwarded proposal.
    #[error("Raft message {0} is not sent to peers")]
    Refused(&'static str),
    /// A part is larger than its bound.
    #[error("{part} of {bytes} bytes is larger than a message may hold")]
    Long {
        /// Name of the part.
        part: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A field holds what the byte form cannot carry.
    #[error("field {0} holds what a message cannot carry")]
    Field(&'static str),
}
