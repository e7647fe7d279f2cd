//! Reads a durable log again: what was synced is there, a torn last record is cut off, anything
//! else that is wrong is refused.
//!
//! Torn or damaged? Each record is synced before the next is written, so only the last one can be
//! torn; and a file only grows, so what a tear left unwritten is missing or reads as zeros, by
//! whole sectors. Bytes that are wrong in any other way were changed after they were synced. One
//! case cannot be told apart: damage inside the last record when that also holds a whole sector
//! of zeros; it is taken for a tear.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use plover_types::{LogIndex, Term};
use raft::eraftpb::Entry;

use super::record::{self, BODY_BYTES_MAX, HEADER_BYTES, Header, OwnedItem};
use super::{DurableError, Owner, Recovered, Segment};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

const PREFIX: &str = "log-";

pub(super) fn segment_path(dir: &Path, first_record: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{first_record:016x}"))
}

/// The log's files, oldest first, each with the number of its first record.
pub(super) fn segment_paths(dir: &Path) -> Result<Vec<(u64, PathBuf)>, DurableError> {
    let failed = |source| DurableError::io("list", dir, source);
    let mut paths = Vec::new();
    for item in std::fs::read_dir(dir).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        if let Some(number) = number {
            paths.push((number, path));
        }
    }
    paths.sort();
    Ok(paths)
}

/// What the files say.
pub(super) struct Found {
    pub(super) recovered: Recovered,
    /// Empty if the only file was torn in its first record.
    pub(super) segments: Vec<Segment>,
    pub(super) next_record: u64,
    /// Bytes of the last file that count.
    pub(super) length: u64,
}

pub(super) fn read(paths: &[(u64, PathBuf)], owner: Owner) -> Result<Found, DurableError> {
    let mut found = Found {
        recovered: Recovered::default(),
        segments: Vec::new(),
        next_record: paths[0].0,
        length: 0,
    };
    let mut replay = Replay::default();
    for (at, (first_record, path)) in paths.iter().enumerate() {
        if *first_record != found.next_record {
            let what = format!(
                "records {} to {first_record} are missing",
                found.next_record
            );
            return Err(DurableError::damaged(path, 0, what));
        }
        let bytes = std::fs::read(path).map_err(|e| DurableError::io("read", path, e))?;
        let is_last = at + 1 == paths.len();
        read_segment(
            path,
            &Bytes::from(bytes),
            is_last,
            owner,
            &mut found,
            &mut replay,
        )?;
    }
    let (_, last_path) = &paths[paths.len() - 1];
    found.recovered = replay.finish(last_path, found.recovered.torn_bytes)?;
    Ok(found)
}

fn read_segment(
    path: &Path,
    bytes: &Bytes,
    is_last: bool,
    owner: Owner,
    found: &mut Found,
    replay: &mut Replay,
) -> Result<(), DurableError> {
    let mut index_max = 0;
    let mut at = 0;
    while at < bytes.len() {
        let body = match read_record(path, bytes, at, found.next_record)? {
            Some(body) => body,
            None if is_last => break,
            None => {
                let what = "a record is cut off, but later files follow";
                return Err(DurableError::damaged(path, at as u64, what));
            }
        };
        let damaged = |what: &str| DurableError::damaged(path, at as u64, what);
        let items = record::decode(body.clone()).map_err(damaged)?;
        if at == 0 {
            match items.first() {
                Some(OwnedItem::Owner(found)) if *found == owner => {}
                Some(OwnedItem::Owner(found)) => {
                    return Err(DurableError::owner(path, *found, owner));
                }
                _ => return Err(damaged("the first record does not say whose log it is")),
            }
        }
        for item in items {
            if let OwnedItem::SnapshotInstalled(_) = item {
                index_max = 0;
                for segment in &mut found.segments {
                    segment.index_max = 0;
                }
            }
            index_max = index_max.max(replay.apply(item));
        }
        found.next_record += 1;
        at += HEADER_BYTES + body.len();
    }
    let torn = bytes.len() - at;
    found.recovered.torn_bytes = torn as u64;
    if at == 0 {
        // Not even the base record is whole: this file was being started when the process ended.
        return std::fs::remove_file(path).map_err(|e| DurableError::io("remove", path, e));
    }
    if torn > 0 {
        cut(path, at as u64)?;
    }
    found.length = at as u64;
    found.segments.push(Segment {
        path: path.to_owned(),
        index_max,
    });
    Ok(())
}

fn cut(path: &Path, length: u64) -> Result<(), DurableError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(length).and_then(|()| file.sync_all()))
        .map_err(|source| DurableError::io("cut the torn record off", path, source))
}

/// The body of the record at `at`; none if the record is torn.
fn read_record(
    path: &Path,
    bytes: &Bytes,
    at: usize,
    number: u64,
) -> Result<Option<Bytes>, DurableError> {
    let damaged = |what: &str| Err(DurableError::damaged(path, at as u64, what));
    let Some(header_bytes) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let body_start = at + HEADER_BYTES;
    let Some(header) = Header::read(header_bytes) else {
        let sector_end = body_start.next_multiple_of(SECTOR_BYTES).min(bytes.len());
        return match is_torn(bytes, at, sector_end) && !has_record(&bytes[at + 1..]) {
            true => Ok(None),
            false => damaged("a record's header does not match its checksum"),
        };
    };
    if header.version != record::VERSION {
        return Err(DurableError::Version {
            path: path.to_owned(),
            version: header.version,
        });
    }
    if header.number != number {
        return damaged(&format!(
            "record {} follows record {}",
            header.number,
            number - 1
        ));
    }
    if header.body_bytes > BODY_BYTES_MAX {
        return damaged("a record longer than any that is written");
    }
    let body_end = body_start + header.body_bytes;
    if body_end > bytes.len() {
        return Ok(None);
    }
    let body = bytes.slice(body_start..body_end);
    if crc32fast::hash(&body) != header.body_crc {
        return match is_torn(bytes, body_start, body_end) && !has_record(&bytes[body_start..]) {
            true => Ok(None),
            false => damaged("a record's body does not match its checksum"),
        };
    }
    Ok(Some(body))
}

/// Whether one of the sectors that these bytes lie in was never written. A record starts and ends
/// with bytes that are not zero, so only whole sectors inside its data can look like that.
fn is_torn(bytes: &[u8], start: usize, end: usize) -> bool {
    let mut at = start;
    while at < end {
        let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
        if bytes[at..next].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = next;
    }
    false
}

/// Whether a record starts anywhere in these bytes: then what is before it was synced once.
fn has_record(bytes: &[u8]) -> bool {
    bytes
        .windows(HEADER_BYTES)
        .filter_map(<[u8]>::first_chunk)
        .any(|window| Header::read(window).is_some())
}

/// The log as the records build it up.
#[derive(Default)]
struct Replay {
    state: Recovered,
}

impl Replay {
    /// Applies one change. Returns the highest index of an entry in it, or 0.
    fn apply(&mut self, item: OwnedItem) -> u64 {
        let state = &mut self.state;
        match item {
            OwnedItem::Owner(_) => {}
            OwnedItem::HardState(hard_state) => state.hard_state = hard_state,
            OwnedItem::Entries(entries) => return self.append(entries),
            OwnedItem::SnapshotTaken(snapshot) => state.snapshot = Some(snapshot),
            OwnedItem::SnapshotInstalled(snapshot) => {
                state.entries.clear();
                state.compacted = (snapshot.index, snapshot.term);
                state.snapshot = Some(snapshot);
            }
            OwnedItem::Compacted(index, term) => {
                state.compacted = state.compacted.max((index, term));
            }
        }
        0
    }

    /// A gap is no damage yet: the entries before it may be in files that were removed, if a
    /// later record says that they are compacted.
    fn append(&mut self, entries: Vec<Entry>) -> u64 {
        let kept = &mut self.state.entries;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return 0;
        };
        let (first, index_max) = (first.index, last.index);
        let start = kept.first().map_or(first, |entry| entry.index);
        if first < start || first > start + kept.len() as u64 {
            kept.clear();
        } else {
            // The range was just checked, and the entries are in memory.
            kept.truncate(usize::try_from(first - start).unwrap_or(usize::MAX));
        }
        kept.extend(entries);
        index_max
    }

    fn finish(self, path: &Path, torn_bytes: u64) -> Result<Recovered, DurableError> {
        let mut state = self.state;
        state.torn_bytes = torn_bytes;
        let (LogIndex(compacted), Term(compacted_term)) = state.compacted;
        state.entries.retain(|entry| entry.index > compacted);
        let damaged = |what: String| Err(DurableError::damaged(path, 0, what));
        if let Some(first) = state.entries.first()
            && first.index != compacted + 1
        {
            return damaged(format!(
                "entries {} to {} are missing",
                compacted + 1,
                first.index - 1
            ));
        }
        let last = compacted + state.entries.len() as u64;
        let last_term = state
            .entries
            .last()
            .map_or(compacted_term, |entry| entry.term);
        // Raft finds the commit index again by itself: it may have been written later than a
        // compaction, or ahead of the entries of a record that was torn.
        let hard_state = &mut state.hard_state;
        hard_state.commit = hard_state.commit.max(compacted).min(last);
        if hard_state.term < last_term {
            return damaged(format!(
                "term {} with an entry of term {last_term}",
                hard_state.term
            ));
        }
        Ok(state)
    }
}
