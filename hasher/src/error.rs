//! What can go wrong, by component. A variant names what was tried.

use std::io;
use std::net::SocketAddr;

use plover_types::{NodeId, PageIndex, SyncId};

/// Bytes from the peer hasher that are no message, or not the one expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The frame does not start with the magic number.
    #[error(
        "frame starts with {0:#010x}, not with the hasher's magic: is it a hasher, and is \
         replication.security the same on both hosts?"
    )]
    Magic(u32),
    /// The peer speaks another version.
    #[error("peer speaks version {0} of the hasher protocol")]
    Version(u16),
    /// The kind is none that this version knows.
    #[error("frame of unknown kind {0}")]
    Kind(u16),
    /// The payload is longer than any may be.
    #[error("frame with {0} bytes of payload")]
    Long(u32),
    /// Header or payload do not have the checksum that the header names.
    #[error("frame of kind {kind} with a wrong checksum")]
    Checksum {
        /// The frame's kind.
        kind: u16,
    },
    /// The payload ends too early.
    #[error("{what} ends at byte {have}, needs {need}")]
    Short {
        /// Message being read.
        what: &'static str,
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Bytes follow the message.
    #[error("{what} is followed by {bytes} bytes")]
    Trailing {
        /// Message being read.
        what: &'static str,
        /// Bytes left over.
        bytes: usize,
    },
    /// A field holds a value that is not allowed.
    #[error("{what}: {field} holds {value}")]
    Field {
        /// Message being read.
        what: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// Another message was due.
    #[error("peer sent {got} where {want} was due")]
    Order {
        /// What came.
        got: &'static str,
        /// What should have come.
        want: &'static str,
    },
    /// The message belongs to another sync.
    #[error("peer speaks of sync {got} in sync {want}")]
    Sync {
        /// The sync it names.
        got: SyncId,
        /// The sync under way.
        want: SyncId,
    },
    /// A page that is not in the guest's memory, or not in the union.
    #[error("{what} names page {page}, which is not {not_in}")]
    Page {
        /// Message being read.
        what: &'static str,
        /// The page.
        page: PageIndex,
        /// Where it should have been.
        not_in: &'static str,
    },
    /// The two guests' memories are laid out differently.
    #[error("peer's guest has another memory layout")]
    Layout,
    /// The peer belongs to another group, or is ourselves.
    #[error("peer says group {group:?}, node {node}")]
    Identity {
        /// The group it says.
        group: String,
        /// The node it says.
        node: NodeId,
    },
}

/// Why a round failed. Whatever it is, the pages of the round are dirty again afterwards.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// No connection to the peer could be made.
    #[error("cannot connect to the peer hasher at {peer}")]
    Connect {
        /// Its address.
        peer: SocketAddr,
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// The peer took too long.
    #[error("peer hasher is silent: {0}")]
    Silent(&'static str),
    /// The connection broke.
    #[error("connection to the peer hasher broke: {doing}")]
    Link {
        /// What was under way.
        doing: &'static str,
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// The connection is not one with the peer, or what came over it was changed.
    #[error("connection to the peer hasher broke: {doing}")]
    Secure {
        /// What was under way.
        doing: &'static str,
        /// Why.
        #[source]
        source: crate::secure::SecureError,
    },
    /// The peer sent something wrong.
    #[error("peer hasher's message refused")]
    Protocol(#[from] ProtocolError),
    /// The peer gave the round up.
    #[error("peer hasher gave the round up: {reason}")]
    PeerAborted {
        /// Why, for the machine.
        code: crate::protocol::AbortCode,
        /// Why, for the log.
        reason: String,
    },
    /// The peer is already in a later sync.
    #[error("peer hasher is at sync {0}")]
    PeerAhead(SyncId),
    /// The staged memory does not have the primary's certificate, or a page its digest.
    #[error("staged memory is not the primary's: {0}")]
    Mismatch(&'static str),
    /// The node took the round back.
    #[error("the node gave the round up")]
    Aborted,
    /// The node is gone.
    #[error("the node closed its connection")]
    NodeGone,
    /// The node did not bring the device state in time.
    #[error("no device state from the node within {0:?}")]
    DeviceState(std::time::Duration),
    /// Staging failed.
    #[error("staging failed")]
    Stage(#[from] StageError),
}

impl RoundError {
    /// Whether the two memories were not what both sides thought, so that the next round must
    /// send its union whole.
    #[must_use]
    pub fn is_mismatch(&self) -> bool {
        use crate::protocol::AbortCode::Mismatch;
        matches!(
            self,
            Self::Mismatch(_) | Self::PeerAborted { code: Mismatch, .. }
        )
    }
}

/// Why a staged set cannot be written or is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The staging file could not be written, read or mapped.
    #[error("cannot {doing} the staging file")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nothing (complete) is staged.
    #[error("nothing is staged: {0}")]
    Empty(&'static str),
    /// Another sync is staged.
    #[error("sync {staged} is staged, not {wanted}")]
    OtherSync {
        /// What is staged.
        staged: SyncId,
        /// What was asked for.
        wanted: SyncId,
    },
    /// The file's content is damaged.
    #[error("staged set is damaged: {0}")]
    Damaged(&'static str),
    /// A staged record is not well formed.
    #[error("staged set holds a bad record")]
    Record(#[from] ProtocolError),
}

/// Why guest memory, a log or a tracker could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The list of regions makes no sense.
    #[error("memory regions refused: {0}")]
    Regions(String),
    /// A descriptor is missing from the message.
    #[error("no descriptor for {0}")]
    MissingFd(&'static str),
    /// A file is shorter than what should be mapped of it.
    #[error("{what} has {have} bytes, {need} are needed")]
    Short {
        /// The file.
        what: &'static str,
        /// Bytes it has.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// Mapping or examining a file failed.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The group's name is too long or empty.
    #[error("group name of {0} bytes")]
    Group(usize),
}

/// Why written pages cannot be told from outside the VMM, so that all memory is compared.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// The userfaultfd refused the features.
    #[error("kernel refuses write-protect tracking (needs Linux 6.7): {doing}")]
    Unsupported {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file under /proc could not be read.
    #[error("cannot {doing} of VMM process {pid}")]
    Proc {
        /// What was tried.
        doing: &'static str,
        /// The process.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process has ended.
    #[error("VMM process {0} has ended")]
    Gone(u32),
    /// The VMM has not mapped (all of) its memory file.
    #[error("VMM process {pid} maps {mapped} of the guest's {pages} pages")]
    NotMapped {
        /// The process.
        pid: u32,
        /// Pages that it maps.
        mapped: u64,
        /// Pages of the guest.
        pages: u64,
    },
    /// The mapping changed since the last round.
    #[error("VMM process {0} mapped its memory anew")]
    Remapped(u32),
}

/// Why the node's side of the control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket could not be reached.
    #[error("cannot connect to the hasher at {path}")]
    Connect {
        /// Its path.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Sending or receiving failed.
    #[error("cannot {doing} on the hasher's control socket")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The other side closed the socket.
    #[error("the control socket was closed")]
    Closed,
    /// The other side sent something that is no message.
    #[error("bad control message: {0}")]
    Bad(String),
    /// No answer in time.
    #[error("no answer from the hasher within {0:?}")]
    Timeout(std::time::Duration),
    /// The hasher refused the request.
    #[error("hasher refused {request}: {reason}")]
    Refused {
        /// The request.
        request: String,
        /// Why.
        reason: String,
    },
}

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// An argument is not usable.
    #[error("argument {argument}: {reason}")]
    Config {
        /// The argument's name.
        argument: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A socket could not be opened.
    #[error("cannot listen on {what}")]
    Listen {
        /// Which socket.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// This node's key file.
    #[error("the key for the link to the peer hasher")]
    KeyFile(#[from] plover_keys::KeyFileError),
    /// The TLS library.
    #[error("the key for the link to the peer hasher")]
    Secure(#[from] crate::secure::SecureError),
    /// A part of the service ended by itself: our own bug.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// The whole chain of causes in one line, for logs and for the node.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
