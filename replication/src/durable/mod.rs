//! The log and the vote of a node that keeps its identity across a restart: on disk before
//! anything is acknowledged.
//!
//! What lives here: opening ([`DurableLog::open`]) and appending, one synced record a request; a
//! thread that does so for the poll core ([`DurableWriter`]). What does not: what a record looks
//! like (`record`), how files are read again (`recover`), when to compact (the core).
//!
//! ```text
//! dir/lock                      held by the process that has the log open
//! dir/identity                  says that a log was once here (see `identity`)
//! dir/log-0000000000000001      records 1 to 812, the first one is a base
//! dir/log-000000000000032d      records 813 on
//! ```
//! A base record holds the state as of its number without entries, so that older files can go
//! once all their entries are compacted. Each record is written with one call and synced before
//! the next: only the very last one can be torn.

mod error;
mod record;
mod recover;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use plover_types::{LogIndex, NodeId, Term};
use raft::eraftpb::{Entry, HardState};

pub use error::DurableError;
pub use writer::{DurableWriter, SubmitError};

use crate::identity;
use crate::wire::GroupId;
use record::Item;

/// Bytes after which a new file is started. Files are removed whole once all their entries are
/// compacted, so up to this much more than the log itself stays on disk, twice over.
pub const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Whose log it is. A log of another group or node is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
}

/// The state of the group after an entry, for followers that are too far behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotState {
    /// The entry after which it was taken.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// Opaque to the log.
    pub data: Bytes,
}

/// How the snapshot changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Taken here, of entries that the log holds.
    Taken(SnapshotState),
    /// Sent by a leader: the log starts anew after it.
    Installed(SnapshotState),
}

/// What is to be on disk before `number` counts as done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PersistRequest {
    /// Names the request in [`DurableWriter::completed`]; never falls from one to the next.
    pub number: u64,
    /// Entries to append; they replace those with the same index and all that follow.
    pub entries: Vec<Entry>,
    /// Term, vote and commit, if they changed.
    pub hard_state: Option<HardState>,
    /// A new snapshot. One that was installed comes before the request's entries.
    pub snapshot: Option<SnapshotChange>,
    /// The last entry, and its term, that is no longer needed. Never past the snapshot.
    pub compacted: Option<(LogIndex, Term)>,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The entry before the first, and its term.
    pub compacted: (LogIndex, Term),
    /// The entries after `compacted`, without gaps.
    pub entries: Vec<Entry>,
    /// The latest snapshot.
    pub snapshot: Option<SnapshotState>,
    /// Bytes of a record that was being written when the process ended, and were cut off.
    pub torn_bytes: u64,
}

/// A log on disk, opened for appending.
#[derive(Debug)]
pub struct DurableLog {
    dir: PathBuf,
    owner: Owner,
    /// Held for as long as the log is open.
    _lock: File,
    file: File,
    path: PathBuf,
    /// Bytes in the current file.
    length: u64,
    next_record: u64,
    segments: VecDeque<Segment>,
    base: Base,
    buffer: BytesMut,
    /// Set by the first failed write: what is on disk is not known any more.
    broken: bool,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// The highest index of an entry in it; 0 if there is none that counts.
    index_max: u64,
}

/// The state without entries, as a base record holds it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Base {
    hard_state: HardState,
    compacted: (LogIndex, Term),
    snapshot: Option<SnapshotState>,
}

impl DurableLog {
    /// Opens the log in `dir`, or starts an empty one if there never was one.
    ///
    /// # Errors
    /// The folder cannot be used, the log is open elsewhere, belongs to another node, is damaged
    /// or was removed. Each message says what to do.
    pub fn open(dir: &Path, owner: Owner) -> Result<(Self, Recovered), DurableError> {
        std::fs::create_dir_all(dir).map_err(|source| DurableError::io("create", dir, source))?;
        let lock = lock(dir)?;
        let names = recover::segment_paths(dir)?;
        if names.is_empty() {
            return Self::start(dir, owner, lock);
        }
        let found = recover::read(&names, owner)?;
        if found.segments.is_empty() {
            // Only the very first record of all can be torn like this: nothing was acknowledged.
            return Self::start(dir, owner, lock);
        }
        identity::note_durable(dir, owner)?;
        let recovered = found.recovered;
        let path = found.segments[found.segments.len() - 1].path.clone();
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| DurableError::io("open", &path, source))?;
        let log = Self {
            dir: dir.to_owned(),
            owner,
            _lock: lock,
            file,
            path,
            length: found.length,
            next_record: found.next_record,
            segments: found.segments.into(),
            base: Base {
                hard_state: recovered.hard_state.clone(),
                compacted: recovered.compacted,
                snapshot: recovered.snapshot.clone(),
            },
            buffer: BytesMut::new(),
            broken: false,
        };
        Ok((log, recovered))
    }

    fn start(dir: &Path, owner: Owner, lock: File) -> Result<(Self, Recovered), DurableError> {
        identity::refuse_if_claimed(dir)?;
        let path = recover::segment_path(dir, 1);
        let file = create(&path)?;
        let mut log = Self {
            dir: dir.to_owned(),
            owner,
            _lock: lock,
            file,
            path,
            length: 0,
            next_record: 1,
            segments: VecDeque::new(),
            base: Base::default(),
            buffer: BytesMut::new(),
            broken: false,
        };
        log.begin_segment()?;
        identity::note_durable(dir, owner)?;
        Ok((log, Recovered::default()))
    }

    /// Writes requests as one record and syncs it. When it returns, they are on disk.
    ///
    /// # Errors
    /// The write or the sync failed. From then on nothing more is written: after a failed sync
    /// nobody knows what the disk holds.
    pub fn append(&mut self, requests: &[PersistRequest]) -> Result<(), DurableError> {
        if self.broken {
            return Err(DurableError::Broken {
                path: self.path.clone(),
            });
        }
        let result = self.try_append(requests);
        self.broken = result.is_err();
        result
    }

    fn try_append(&mut self, requests: &[PersistRequest]) -> Result<(), DurableError> {
        if self.length >= SEGMENT_BYTES_MAX {
            self.path = recover::segment_path(&self.dir, self.next_record);
            self.file = create(&self.path)?;
            self.begin_segment()?;
        }
        let items = requests.iter().flat_map(items_of);
        self.write(items)?;
        for request in requests {
            self.note(request);
        }
        self.remove_compacted()
    }

    fn begin_segment(&mut self) -> Result<(), DurableError> {
        self.length = 0;
        let base = self.base.clone();
        self.write(
            [
                Some(Item::Owner(self.owner)),
                Some(Item::HardState(&base.hard_state)),
                base.snapshot.as_ref().map(Item::SnapshotTaken),
                Some(Item::Compacted(base.compacted.0, base.compacted.1)),
            ]
            .into_iter()
            .flatten(),
        )?;
        sync_dir(&self.dir)?;
        self.segments.push_back(Segment {
            path: self.path.clone(),
            index_max: 0,
        });
        Ok(())
    }

    fn write<'a>(&mut self, items: impl Iterator<Item = Item<'a>>) -> Result<(), DurableError> {
        self.buffer.clear();
        record::encode(self.next_record, items, &mut self.buffer);
        self.file
            .write_all(&self.buffer)
            .map_err(|source| DurableError::io("write to", &self.path, source))?;
        self.file
            .sync_data()
            .map_err(|source| DurableError::io("sync", &self.path, source))?;
        self.length += self.buffer.len() as u64;
        self.next_record += 1;
        Ok(())
    }

    /// Keeps what the next base record and the removal of files need.
    fn note(&mut self, request: &PersistRequest) {
        if let Some(hard_state) = &request.hard_state {
            self.base.hard_state = hard_state.clone();
        }
        match &request.snapshot {
            Some(SnapshotChange::Taken(snapshot)) => self.base.snapshot = Some(snapshot.clone()),
            Some(SnapshotChange::Installed(snapshot)) => {
                self.base.snapshot = Some(snapshot.clone());
                self.base.compacted = (snapshot.index, snapshot.term);
                for segment in &mut self.segments {
                    segment.index_max = 0;
                }
            }
            None => {}
        }
        if let (Some(last), Some(segment)) = (request.entries.last(), self.segments.back_mut()) {
            segment.index_max = segment.index_max.max(last.index);
        }
        if let Some(compacted) = request.compacted {
            self.base.compacted = self.base.compacted.max(compacted);
        }
    }

    /// Removes the oldest files that hold no entry which is still needed; never the current one.
    fn remove_compacted(&mut self) -> Result<(), DurableError> {
        let needed_from = self.base.compacted.0.0;
        while self.segments.len() > 1 && self.segments[0].index_max <= needed_from {
            if let Some(segment) = self.segments.pop_front() {
                std::fs::remove_file(&segment.path)
                    .map_err(|source| DurableError::io("remove", &segment.path, source))?;
            }
        }
        Ok(())
    }
}

fn items_of(request: &PersistRequest) -> impl Iterator<Item = Item<'_>> {
    let snapshot = request.snapshot.as_ref().map(|change| match change {
        SnapshotChange::Taken(snapshot) => Item::SnapshotTaken(snapshot),
        SnapshotChange::Installed(snapshot) => Item::SnapshotInstalled(snapshot),
    });
    let entries = (!request.entries.is_empty()).then_some(Item::Entries(&request.entries));
    let hard_state = request.hard_state.as_ref().map(Item::HardState);
    let compacted = request
        .compacted
        .map(|(index, term)| Item::Compacted(index, term));
    [snapshot, entries, hard_state, compacted]
        .into_iter()
        .flatten()
}

fn create(path: &Path) -> Result<File, DurableError> {
    // A file of this name can only be one whose first record was torn: it holds nothing.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|source| DurableError::io("create", path, source))
}

fn sync_dir(dir: &Path) -> Result<(), DurableError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| DurableError::io("sync folder", dir, source))
}

fn lock(dir: &Path) -> Result<File, DurableError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| DurableError::io("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DurableError::Locked { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(DurableError::io("lock", &path, source)),
    }
}
