//! The verifier of `debug.verifier_socket`: at each sync point both nodes wait here, their VMs
//! paused, until the whole memory of both was compared.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::memory::{self, Difference};

/// A node that waits.
#[derive(Debug, Deserialize)]
struct Arrival {
    node: u64,
    sync: u64,
    ram: PathBuf,
}

/// Both nodes of one sync, their VMs paused until this is dropped.
pub struct SyncPoint {
    /// The sync.
    pub sync: u64,
    /// The files of guest memory, by node id.
    pub ram: HashMap<u64, PathBuf>,
    waiting: Vec<UnixStream>,
}

/// Listens for the nodes.
pub struct Verifier {
    listener: UnixListener,
    /// Nodes whose peer has not arrived.
    alone: HashMap<u64, (Arrival, UnixStream)>,
}

impl Verifier {
    /// Listens on `socket`.
    pub fn listen(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).context("listen for the nodes")?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            alone: HashMap::new(),
        })
    }

    /// Waits until both nodes have arrived with the same sync.
    pub fn next(&mut self, longest: Duration) -> Result<SyncPoint> {
        let deadline = Instant::now() + longest;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Some(point) = self.arrived(stream)? {
                        return Ok(point);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        bail!("no sync came; alone: {:?}", self.alone.values());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).context("wait for the nodes"),
            }
        }
    }

    fn arrived(&mut self, stream: UnixStream) -> Result<Option<SyncPoint>> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut line = String::new();
        BufReader::new(&stream)
            .read_line(&mut line)
            .context("hear which node it is")?;
        let arrival: Arrival = serde_json::from_str(&line).context("parse a node's line")?;
        let Some((other, other_stream)) = self.alone.remove(&arrival.sync) else {
            self.alone.insert(arrival.sync, (arrival, stream));
            return Ok(None);
        };
        ensure!(
            other.node != arrival.node,
            "node {} came twice",
            arrival.node
        );
        Ok(Some(SyncPoint {
            sync: arrival.sync,
            ram: [(other.node, other.ram), (arrival.node, arrival.ram)].into(),
            waiting: vec![other_stream, stream],
        }))
    }
}

impl SyncPoint {
    /// Compares the whole memory of both.
    pub fn compare(&self) -> Result<Difference> {
        let paths: Vec<&PathBuf> = self.ram.values().collect();
        memory::compare(paths[0], paths[1])
    }
}

impl Drop for SyncPoint {
    fn drop(&mut self) {
        for stream in &mut self.waiting {
            // A node that died meanwhile waits no more.
            let _ = stream.write_all(b"go on\n");
        }
    }
}
