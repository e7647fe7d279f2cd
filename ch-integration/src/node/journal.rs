//! What happened, as JSON lines in `events.jsonl` of the node's state folder: one write a line, so
//! that a node which is killed leaves whole lines. Times are CLOCK_MONOTONIC, in nanoseconds.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hasher::stats::RoundStats;
use nix::time::{ClockId, clock_gettime};
use plover_types::{SyncId, SyncKind};
use serde_json::{Value, json};
use tracing::warn;

/// The file of the events, in the state folder.
pub const EVENTS_FILE: &str = "events.jsonl";

/// The journal of a node.
pub struct Journal {
    file: File,
    has_failed: bool,
}

/// How a sync went.
pub struct SyncSummary<'a> {
    /// Its name.
    pub sync: SyncId,
    /// What it started from.
    pub kind: SyncKind,
    /// None if it ended; else why it was given up.
    pub aborted: Option<&'a str>,
    /// What the hasher says.
    pub stats: &'a RoundStats,
    /// How long the copy here was paused.
    pub pause: Duration,
    /// How long pausing the VMM, capturing and loading its state took.
    pub vmm: Duration,
    /// Packets held at the pause.
    pub held: usize,
}

impl Journal {
    /// Opens the journal, to append.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(EVENTS_FILE);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            file,
            has_failed: false,
        })
    }

    /// Writes an event that happened at `at`.
    pub fn write(&mut self, at: Instant, event: &str, mut fields: Value) {
        fields["t_ns"] = json!(monotonic_ns(at));
        fields["event"] = json!(event);
        let mut line = fields.to_string();
        line.push('\n');
        if let Err(error) = self.file.write_all(line.as_bytes())
            && !self.has_failed
        {
            // The journal is for people; the VM is not stopped for it.
            self.has_failed = true;
            warn!(%error, "events are not written any more");
        }
    }

    /// A sync entered a step.
    pub fn step(&mut self, sync: SyncId, step: &str) {
        self.write(
            Instant::now(),
            "step",
            json!({ "sync": sync, "step": step }),
        );
    }

    /// A sync is over.
    pub fn sync(&mut self, summary: &SyncSummary<'_>) {
        let stats = summary.stats;
        let fields = json!({
            "sync": summary.sync,
            "kind": summary.kind,
            "result": if summary.aborted.is_some() { "aborted" } else { "ended" },
            "reason": summary.aborted,
            "written_own": stats.written_own_pages,
            "written_peer": stats.written_peer_pages,
            // What either side wrote; the rotating slice is compared on top of it.
            "union": stats.union_pages.saturating_sub(stats.slice_pages),
            "slice": stats.slice_pages,
            "divergent": stats.divergent_pages,
            "untracked": stats.untracked_pages,
            "differing_bytes": stats.differing_bytes,
            "bytes_sent": stats.wire_sent_bytes,
            "bytes_dirty": stats.dirty_bytes,
            "bytes_dirty_primary": stats.primary_dirty_bytes,
            "all_memory": stats.all_memory,
            "pause_us": micros(summary.pause),
            "vmm_us": micros(summary.vmm),
            "held": summary.held,
            "times": stats.times,
        });
        self.write(Instant::now(), "sync", fields);
    }
}

/// `at` on CLOCK_MONOTONIC, which all processes of a host share.
pub fn monotonic_ns(at: Instant) -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let at = now.saturating_sub(at.elapsed());
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
