//! What can go wrong on the control side. Faults of a running ring are `ring::RingFault`.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::control::mailbox::MailboxError;
use crate::event_fd::EventFdError;
use crate::ring::{RingFault, RingId};

/// The server can't start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The socket can't be made.
    #[error("can't listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread can't be started.
    #[error("can't start the {thread} thread")]
    Thread {
        /// Which.
        thread: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The eventfd that stops the server can't be made.
    #[error("can't make an eventfd")]
    EventFd(#[source] io::Error),
}

/// What the VMM asked for and was refused. The connection is dropped and the next one served.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Not a power of two, or beyond the limit.
    #[error("a {ring} ring of {size} descriptors")]
    RingSize {
        /// Which ring.
        ring: RingId,
        /// Descriptors asked for.
        size: u16,
    },
    /// Started, or addressed, before its size, addresses and kick fd are known.
    #[error("the {0} ring was started before it was set up")]
    RingNotSetUp(RingId),
    /// Size or addresses changed while it runs.
    #[error("the {0} ring was changed while it is started")]
    RingChangedWhileStarted(RingId),
    /// It is not where guest memory is, or not aligned.
    #[error("the {ring} ring can't be found in guest memory")]
    RingPlace {
        /// Which ring.
        ring: RingId,
        /// What is wrong.
        source: RingFault,
    },
    /// A kick or call fd that is no eventfd.
    #[error("the {what} fd of the {ring} ring is refused")]
    Fd {
        /// Which ring.
        ring: RingId,
        /// Kick or call.
        what: &'static str,
        /// What is wrong.
        source: EventFdError,
    },
    /// Touching memory behind the end of its file would kill us.
    #[error(
        "the memory region at guest address {address:#x} ends at byte {end} of a file of {file} bytes"
    )]
    RegionPastFileEnd {
        /// Guest physical address of the region.
        address: u64,
        /// Where the region ends in the file.
        end: u64,
        /// Bytes in the file.
        file: u64,
    },
    /// A region that is not backed by a file, or whose file can't be looked at.
    #[error("the file of the memory region at guest address {address:#x} can't be looked at")]
    RegionFile {
        /// Guest physical address of the region.
        address: u64,
        /// Why.
        source: io::Error,
    },
    /// Pages of the guest would not be pages of ours.
    #[error("the memory region at guest address {address:#x} does not start and end with a page")]
    RegionNotPages {
        /// Guest physical address of the region.
        address: u64,
    },
    /// The bitmap of written pages would be absurd.
    #[error("guest memory reaches up to {end:#x}")]
    MemoryTooHigh {
        /// First address behind it.
        end: u64,
    },
    /// Touching the log behind the end of its file would kill us.
    #[error("the log of writes ends at byte {end} of a file of {file} bytes")]
    LogPastFileEnd {
        /// Where the log ends in the file.
        end: u64,
        /// Bytes in the file.
        file: u64,
    },
    /// More regions than one message carries.
    #[error("too many memory regions")]
    TooManyRegions,
    /// The bitmap of written pages can't be made or grown.
    #[error("the bitmap of written pages can't be made for memory up to {end:#x}")]
    WrittenPages {
        /// First address behind guest memory.
        end: u64,
        /// Why.
        source: io::Error,
    },
    /// The poll core is stuck or gone.
    #[error("can't reach the poll core")]
    Core(#[from] MailboxError),
}
