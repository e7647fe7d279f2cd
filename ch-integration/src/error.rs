//! What can go wrong on the VMM side. A variant names what was tried.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::refuse::Refusal;
use crate::vmm::{ExitReason, VmmKind};

/// An error of the VMM side.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The VMM's executable is not there.
    #[error("no {name} found ({looked}); {fix}")]
    BinaryMissing {
        /// What was looked for.
        name: String,
        /// Where.
        looked: String,
        /// What to do about it.
        fix: String,
    },
    /// Starting the VMM's process failed.
    #[error("starting {binary:?}")]
    Start {
        /// The executable.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration asks for something that can't be protected.
    #[error("refused: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// The file that guest memory lives in could not be made.
    #[error("{action} guest memory file {path:?}")]
    RamFile {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system of the guest's memory file has too little room.
    #[error(
        "{path:?} has room for {free_mib} MiB, guest memory needs {needed_mib} MiB; free some, or \
         set vmm.ram_path to a larger tmpfs"
    )]
    RamFileNoRoom {
        /// The file.
        path: PathBuf,
        /// MiB free there.
        free_mib: u64,
        /// MiB needed.
        needed_mib: u64,
    },
    /// The VMM did not answer in time: it counts as hung.
    #[error("{what}: no answer within {after_ms} ms")]
    Timeout {
        /// The call.
        what: String,
        /// How long we waited.
        after_ms: u64,
    },
    /// The VMM has exited.
    #[error("{what}: the VMM has exited ({reason})")]
    Exited {
        /// The call during which it was noticed.
        what: String,
        /// How it exited.
        reason: ExitReason,
    },
    /// The VMM answered with an error.
    #[error("{what}: {message}")]
    Answered {
        /// The call.
        what: String,
        /// The VMM's own words.
        message: String,
    },
    /// The VMM answered with something that its API does not allow.
    #[error("{what}: malformed answer: {detail}")]
    Malformed {
        /// The call.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// A read or write failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The call does not fit what the VMM was told before.
    #[error("{what} is not possible: the guest is {state}")]
    WrongState {
        /// The call.
        what: &'static str,
        /// What the guest is.
        state: &'static str,
    },
    /// A captured state is not one that this VMM can load.
    #[error("captured state: {0}")]
    State(#[from] crate::state_blob::StateBlobError),
    /// A captured state comes from the other VMM.
    #[error("captured state is of {found}, this VMM is {own}")]
    StateKind {
        /// The kind that the state names.
        found: VmmKind,
        /// The kind of this VMM.
        own: VmmKind,
    },
}

impl VmmError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    pub(crate) fn timeout(what: impl Into<String>, after: Duration) -> Self {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self::Timeout {
            what: what.into(),
            after_ms,
        }
    }

    pub(crate) fn malformed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Malformed {
            what: what.into(),
            detail: detail.into(),
        }
    }
}

fn list(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
