//! The events that a node writes while it runs, as the demo and the checker read them.
//! Unknown events and fields are passed over; a field that is missing has its default.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One event of a node, with its time (CLOCK_MONOTONIC).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct NodeEvent {
    /// When it happened.
    pub t_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened on a node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A role entry was applied.
    Role {
        /// The role's generation.
        #[serde(default)]
        generation: u64,
        /// Node id of the primary; `None`: nobody.
        #[serde(default)]
        primary: Option<u64>,
        /// `protected` or `unprotected`.
        #[serde(default)]
        mode: String,
        /// Ids of the nodes with a valid copy.
        #[serde(default)]
        valid: Vec<u64>,
    },
    /// This node knows a new Raft leader.
    Leader {
        /// Its term.
        #[serde(default)]
        term: u64,
        /// Its node id.
        #[serde(default)]
        leader: u64,
    },
    /// This node began to campaign.
    Campaign {
        /// The term it asks for.
        #[serde(default)]
        term: u64,
        /// When it last heard of the leader before.
        #[serde(default)]
        last_heartbeat_t_ns: Option<u64>,
    },
    /// The uplink is open: this node serves.
    Serving,
    /// First packet released since it serves.
    FirstRelease,
    /// A sync entered a step.
    Step {
        /// The sync.
        sync: u64,
        /// The step's name.
        step: String,
    },
    /// A sync ended or was aborted.
    Sync(SyncRecord),
    /// Anything else.
    #[serde(other)]
    Other,
}

/// How one sync went, as one node saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncRecord {
    /// Log index of its `SyncBegin`.
    pub sync: u64,
    /// `delta`, or `fill`: over all memory.
    pub kind: String,
    /// `ended` or `aborted`.
    pub result: String,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// Pages written here.
    pub written_own: u64,
    /// Pages written by the peer.
    pub written_peer: u64,
    /// Pages written on either side.
    pub union: u64,
    /// Pages that differ.
    pub divergent: u64,
    /// Pages that differ and that only the rotating slice found.
    pub untracked: u64,
    /// Was the union all memory?
    pub all_memory: bool,
    /// Bytes that this node's hasher sent.
    pub bytes_sent: u64,
    /// Bytes of all pages in the union.
    pub bytes_dirty: u64,
    /// How long the copy here was paused.
    pub pause_us: u64,
    /// Packets held when it ended.
    pub held: u64,
}

/// Reads the events of a file as they are written.
pub struct EventTail {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
}

impl EventTail {
    /// Follows a file that need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            offset: 0,
            partial: Vec::new(),
        }
    }

    /// Events whose lines are complete by now. A line that doesn't parse is passed over:
    /// the checker, which reads the whole file, reports it.
    pub fn poll(&mut self) -> Result<Vec<NodeEvent>> {
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(Vec::new());
        };
        if file.metadata().is_ok_and(|file| file.len() < self.offset) {
            // Another node's, on the same host.
            self.offset = 0;
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))
            .context("seek in the events")?;
        let read = file
            .read_to_end(&mut self.partial)
            .context("read the events")?;
        self.offset += u64::try_from(read).unwrap_or(0);
        let whole = self
            .partial
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        Ok(lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::parse_lines;
    use std::io::Write;

    #[test]
    fn events_are_read_with_unknown_kinds_and_fields_passed_over() {
        let text = br#"{"t_ns":1,"event":"role","generation":2,"primary":1,"mode":"protected","valid":[1,2],"new":1}
{"t_ns":2,"event":"serving"}
{"t_ns":3,"event":"something_new","x":{}}
{"t_ns":4,"event":"sync","sync":7,"kind":"delta","result":"ended","union":3,"divergent":1,"reason":null}
"#;
        let events: Vec<NodeEvent> = parse_lines(text).unwrap();
        assert_eq!(events.len(), 4);
        assert!(matches!(
            &events[0].kind,
            EventKind::Role {
                primary: Some(1),
                ..
            }
        ));
        assert_eq!(events[1].kind, EventKind::Serving);
        assert_eq!(events[2].kind, EventKind::Other);
        assert!(matches!(&events[3].kind, EventKind::Sync(sync) if sync.divergent == 1));
    }

    #[test]
    fn a_tail_waits_for_the_rest_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut tail = EventTail::new(&path);
        assert!(tail.poll().unwrap().is_empty(), "the file is not there yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"t_ns\":1,\"event\":\"serving\"}\n{\"t_ns\":2,\"ev")
            .unwrap();
        assert_eq!(tail.poll().unwrap().len(), 1);
        file.write_all(b"ent\":\"serving\"}\n").unwrap();
        assert_eq!(tail.poll().unwrap()[0].t_ns, 2);
    }
}
