//! What a run leaves behind as JSON lines: the client's history, the kills, the run itself.
//! Written by the demo, read by the checker. Times are CLOCK_MONOTONIC in nanoseconds.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};
use nix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// File of the client's history in a run's folder.
pub const CLIENT_FILE: &str = "client.jsonl";
/// File of the kills in a run's folder.
pub const KILLS_FILE: &str = "kills.jsonl";
/// What the run was, one JSON object.
pub const RUN_FILE: &str = "run.json";
/// Events of one node, in the node's folder.
pub const EVENTS_FILE: &str = "events.jsonl";

/// One line of the client's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ClientEvent {
    /// A write: sent, and acknowledged at its first reply (`None`: never).
    Write {
        /// When its first byte was sent.
        t_ns: u64,
        /// When its reply had arrived.
        acked_ns: Option<u64>,
        /// The connection.
        conn: u32,
        /// Number of the write on its connection.
        seq: u64,
        /// What was written.
        value: String,
    },
    /// What the read-back found over the same connection.
    Read {
        /// When the reply had arrived.
        t_ns: u64,
        /// The connection.
        conn: u32,
        /// Number of the write whose key was read.
        seq: u64,
        /// What the server holds; `None`: nothing.
        value: Option<String>,
    },
    /// A request of the UDP counter: counted, and the count in its reply.
    Count {
        /// When it was sent.
        t_ns: u64,
        /// When its reply had arrived; `None`: given up, sent anew as another request.
        acked_ns: Option<u64>,
        /// The client.
        conn: u32,
        /// Number of the request.
        seq: u64,
        /// The guest's counter in the reply.
        counter: Option<u64>,
    },
    /// A connection that ended or was refused; it does nothing more.
    Broken {
        /// When it was noticed.
        t_ns: u64,
        /// The connection.
        conn: u32,
        /// What happened.
        error: String,
    },
    /// The read-back of a connection is complete.
    Done {
        /// When.
        t_ns: u64,
        /// The connection.
        conn: u32,
    },
}

/// A kill of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Right before the first SIGKILL.
    pub t_ns: u64,
    /// Name of the host.
    pub node: String,
    /// What was killed: `host` is VMM, backend and hasher together.
    pub what: String,
    /// The sync step that triggered it; `None`: the clock did.
    pub step: Option<String>,
    /// Processes that were hit.
    #[serde(default)]
    pub processes: usize,
}

/// What a run was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// Seed of the kill's moment and of the values written.
    pub seed: u64,
    /// The VMM.
    pub vmm: String,
    /// Is the guest run by KVM?
    pub kvm: bool,
    /// The guest.
    pub guest: String,
    /// Connections of the checking client.
    pub connections: u32,
    /// The detection time that was configured, in milliseconds.
    pub detection_ms: u64,
    /// TCP segments that the client's kernel sent again, over the whole run.
    pub client_retransmits: Option<u64>,
    /// Why `redis-benchmark`, the background load, ended before it was told to.
    pub benchmark_failed: Option<String>,
}

/// The clock of every record.
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// A JSON-lines file that several threads write to.
pub struct JsonLines {
    out: Mutex<BufWriter<File>>,
}

impl JsonLines {
    /// Creates the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self::over(file))
    }

    /// Opens the file to add to what it has.
    pub fn append(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        Ok(Self::over(file))
    }

    fn over(file: File) -> Self {
        Self {
            out: Mutex::new(BufWriter::with_capacity(1 << 16, file)),
        }
    }

    /// Adds a line, buffered.
    pub fn write(&self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).context("encode a record")?;
        line.push(b'\n');
        self.lock()?.write_all(&line).context("write a record")
    }

    /// Hands what is buffered to the file.
    pub fn flush(&self) -> Result<()> {
        self.lock()?.flush().context("flush the records")
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, BufWriter<File>>> {
        self.out
            .lock()
            .map_err(|_| anyhow!("a thread that wrote records panicked"))
    }
}

/// Reads a JSON-lines file. A last line without its newline is torn (its writer was killed)
/// and is left out; any other line that doesn't parse is an error.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    parse_lines(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// Parses whole lines, see [`read_lines`].
pub fn parse_lines<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>> {
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let mut records = Vec::new();
    for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(error) => bail!("line {}: {error}", index + 1),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_a_bad_line_is_an_error() {
        let torn = b"{\"t_ns\":1,\"node\":\"a\",\"what\":\"host\",\"step\":null}\n{\"t_ns\":2,\"no";
        let kills: Vec<Kill> = parse_lines(torn).unwrap();
        assert_eq!(kills.len(), 1);
        let error = parse_lines::<Kill>(b"{\"t_ns\":\n{}\n").unwrap_err();
        assert!(error.to_string().starts_with("line 1:"), "{error}");
    }

    #[test]
    fn a_record_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CLIENT_FILE);
        let record = ClientEvent::Write {
            t_ns: 1,
            acked_ns: Some(2),
            conn: 3,
            seq: 4,
            value: "5".to_owned(),
        };
        let file = JsonLines::create(&path).unwrap();
        file.write(&record).unwrap();
        file.flush().unwrap();
        assert_eq!(read_lines::<ClientEvent>(&path).unwrap(), vec![record]);
    }

    #[test]
    fn the_clock_goes_forward() {
        let first = now_ns();
        assert!(first > 0 && now_ns() >= first);
    }
}
