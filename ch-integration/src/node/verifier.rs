//! Debugging: at each sync point both nodes wait, their VMs paused, until a verifier (a test) has
//! compared the whole RAM of both, byte by byte. The verifier listens on a Unix socket and answers
//! each line with a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use plover_types::SyncId;
use serde_json::json;

/// How long a verifier may take to compare.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Says that this node's VM stands still at `sync`, and waits until it may go on.
pub fn wait(socket: &Path, node: u8, sync: SyncId, ram: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect to the verifier")?;
    stream
        .set_read_timeout(Some(ANSWER_MAX))
        .context("bound the verifier's answer")?;
    let mut line = json!({ "node": node, "sync": sync, "ram": ram }).to_string();
    line.push('\n');
    stream
        .write_all(line.as_bytes())
        .context("tell the verifier")?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("wait for the verifier")?;
    Ok(())
}
