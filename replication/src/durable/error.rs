//! What can go wrong with a log on disk, and what an operator does then.

use std::io;
use std::path::{Path, PathBuf};

use plover_types::NodeId;

use super::Owner;
use crate::identity::IdentityError;

/// Why a durable log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// A file operation failed: the disk is full or broken, or the folder is not writable.
    #[error("cannot {what} {path} of the durable log")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed.
    #[error(
        "the durable log {path} takes no more writes since one failed: free or repair the disk, \
         then restart this node"
    )]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the log open.
    #[error("the durable log is in use by another process (lock {path}): stop that one first")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Bytes that were synced have changed.
    #[error(
        "the durable log {path} is damaged at byte {offset}: {what}. This node may have voted or \
         acknowledged what the file no longer says, so it must not take part again: keep it \
         stopped (the other two nodes go on), check the disk, and bring another node in with \
         `plover replace`; see docs/operations.md, \"A host that is lost\""
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Another version of the file's form.
    #[error(
        "the durable log {path} has version {version}: start the release that wrote it, this one \
         cannot read it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
    /// The log belongs to another node or group.
    #[error(
        "the durable log {path} belongs to node {found} of group {found_group:#018x}, not to node \
         {own}: check `state_dir` in the configuration"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Of which group.
        found_group: u64,
        /// This node.
        own: NodeId,
    },
    /// The identity file could not be used, or says that the log is lost.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The writing thread is gone.
    #[error("the thread that writes the durable log has ended")]
    Stopped,
    /// The writing thread could not be started.
    #[error("cannot start the thread that writes the durable log")]
    Thread(#[source] io::Error),
}

impl DurableError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            offset,
            what: what.into(),
        }
    }

    pub(super) fn owner(path: &Path, found: Owner, own: Owner) -> Self {
        Self::Owner {
            path: path.to_owned(),
            found: found.node,
            found_group: found.group.0,
            own: own.node,
        }
    }
}
