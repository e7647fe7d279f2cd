//! A node's identity file: it says that a node with this id has taken part in the group, so that
//! one which lost its log is not taken for one that never had any.
//!
//! A node that votes, forgets, and votes again breaks the group's promise. A replica with its log
//! in memory forgets all when its process ends; so it may start once under its id, and never
//! again. A node with a durable log may start again, with that log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::durable::Owner;

const FILE_NAME: &str = "identity";

/// Why a node may not start under its id.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The node took part before, and what it promised then is gone.
    #[error(
        "this node has taken part in its group before ({path} says so) and has lost its log since: \
         it may have voted or acknowledged what it no longer knows, so it must come back under a \
         new id: leave this folder as it is, and bring another node in with `plover replace`; see \
         docs/operations.md, \"A host that is lost\""
    )]
    LogLost {
        /// The identity file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {what} the identity file {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The identity file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Claims the id of a node that keeps its log in memory: once in the life of `dir`. When it
/// returns, the claim is on disk.
///
/// # Errors
/// The id was claimed before, or the claim cannot be written.
pub fn claim_in_memory(dir: &Path, owner: Owner) -> Result<(), IdentityError> {
    std::fs::create_dir_all(dir).map_err(|source| failed("create the folder of", dir, source))?;
    match write(dir, owner, "memory") {
        Err(IdentityError::Io { source, path, .. })
            if source.kind() == io::ErrorKind::AlreadyExists =>
        {
            Err(IdentityError::LogLost { path })
        }
        result => result,
    }
}

/// Notes that there is a durable log in `dir` now.
pub(crate) fn note_durable(dir: &Path, owner: Owner) -> Result<(), IdentityError> {
    match write(dir, owner, "durable") {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Ok(())
        }
        result => result,
    }
}

/// Fails if a node has started from `dir` before: a log should be there, and none is.
pub(crate) fn refuse_if_claimed(dir: &Path) -> Result<(), IdentityError> {
    let path = dir.join(FILE_NAME);
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(IdentityError::LogLost { path }),
        Err(source) => Err(failed("look for", dir, source)),
    }
}

fn write(dir: &Path, owner: Owner, log: &str) -> Result<(), IdentityError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(dir.join(FILE_NAME))
        .map_err(|source| failed("create", dir, source))?;
    let text = format!(
        "plover identity 1\ngroup {:016x}\nnode {}\nlog {log}\n",
        owner.group.0, owner.node
    );
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(|source| failed("write", dir, source))
}

fn failed(what: &'static str, dir: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io {
        what,
        path: dir.join(FILE_NAME),
        source,
    }
}

#[cfg(test)]
mod tests {
    use plover_types::NodeId;

    use super::*;
    use crate::durable::{DurableError, DurableLog};
    use crate::wire::GroupId;

    const OWNER: Owner = Owner {
        group: GroupId(7),
        node: NodeId(2),
    };

    #[test]
    fn a_node_with_its_log_in_memory_starts_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        claim_in_memory(&state, OWNER).unwrap();
        let refused = claim_in_memory(&state, OWNER).unwrap_err();
        assert!(matches!(refused, IdentityError::LogLost { .. }));
        let text = refused.to_string();
        assert!(
            text.contains("new id") && text.contains("plover replace"),
            "{text}"
        );
    }

    #[test]
    fn a_durable_log_is_not_started_where_one_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        claim_in_memory(dir.path(), OWNER).unwrap();
        let refused = DurableLog::open(dir.path(), OWNER).unwrap_err();
        assert!(matches!(
            refused,
            DurableError::Identity(IdentityError::LogLost { .. })
        ));
    }

    #[test]
    fn a_durable_log_whose_files_were_removed_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        drop(DurableLog::open(dir.path(), OWNER).unwrap());
        drop(DurableLog::open(dir.path(), OWNER).unwrap());
        std::fs::remove_file(dir.path().join("log-0000000000000001")).unwrap();
        assert!(DurableLog::open(dir.path(), OWNER).is_err());
        assert!(claim_in_memory(dir.path(), OWNER).is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            claim_in_memory(&file, OWNER),
            Err(IdentityError::Io { .. })
        ));
    }
}
