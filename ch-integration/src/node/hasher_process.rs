//! The hasher as the node's child: started, connected to, started again when it dies.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hasher::client::Client;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use plover_keys::PublicIdentity;
use tracing::info;

use crate::config::PeerConfig;

/// A call to the hasher that takes longer counts as a dead hasher.
const CALL_MAX: Duration = Duration::from_secs(5);

/// How to start the hasher.
#[derive(Clone, Debug)]
pub struct HasherSetup {
    /// The binary.
    pub binary: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Where it listens for its peer.
    pub listen: SocketAddr,
    /// Where its peer listens.
    pub peer: SocketAddr,
    /// The file with this node's secret key, and the peer's public one; none where security is
    /// switched off.
    pub keys: Option<(PathBuf, PublicIdentity)>,
    /// This node.
    pub node_id: u8,
    /// Threads that digest.
    pub threads: u32,
    /// Debugging: pages of the rotating slice, at most.
    pub slice_pages_max: Option<u32>,
}

impl HasherSetup {
    /// Makes another replica the peer. Returns whether that changes anything. Where security is on,
    /// one without a key stays a stranger.
    pub fn follow(&mut self, replica: &PeerConfig) -> bool {
        let before = (self.peer, self.keys.as_ref().map(|keys| keys.1));
        self.peer = replica.hasher.unwrap_or(self.peer);
        if let (Some((_, public)), Some(of_replica)) = (&mut self.keys, replica.public_key) {
            *public = of_replica;
        }
        before != (self.peer, self.keys.as_ref().map(|keys| keys.1))
    }
}

/// Waits until the hasher listens, or has ended.
fn await_socket(child: &mut Child, socket: &Path) -> Result<()> {
    let deadline = Instant::now() + CALL_MAX;
    while !socket.exists() {
        if let Some(status) = child.try_wait().context("look at the hasher")? {
            anyhow::bail!("the hasher ended at its start: {status}; its message is above");
        }
        if Instant::now() > deadline {
            anyhow::bail!("the hasher does not listen on {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A running hasher.
pub struct HasherProcess {
    child: Child,
    /// The connection to it.
    pub client: Client,
}

impl HasherProcess {
    /// Starts the process and connects. Call it from a thread that lives as long as the node: the
    /// process is killed when that thread ends.
    pub fn start(setup: &HasherSetup) -> Result<Self> {
        // A socket that an earlier process left behind would be connected to too early.
        let _ = std::fs::remove_file(&setup.socket);
        let mut command = Command::new(&setup.binary);
        command
            .arg("--socket")
            .arg(&setup.socket)
            .args(["--listen", &setup.listen.to_string()])
            .args(["--peer", &setup.peer.to_string()])
            .args(["--node-id", &setup.node_id.to_string()])
            .args(["--threads", &setup.threads.to_string()]);
        match &setup.keys {
            Some((file, peer)) => command
                .arg("--key-file")
                .arg(file)
                .args(["--peer-key", &peer.to_string()]),
            None => command.arg("--insecure"),
        };
        if let Some(pages) = setup.slice_pages_max {
            command.args(["--slice-pages-max", &pages.to_string()]);
        }
        // SAFETY: only prctl is called between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command.spawn().with_context(|| {
            format!(
                "start {}; build it with `cargo build`",
                setup.binary.display()
            )
        })?;
        match await_socket(&mut child, &setup.socket)
            .and_then(|()| Ok(Client::connect(&setup.socket, CALL_MAX)?))
        {
            Ok(client) => {
                info!(pid = child.id(), "hasher started");
                Ok(Self { child, client })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context("connect to the hasher"))
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended.
    pub fn has_exited(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for HasherProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use plover_keys::Identity;

    use super::*;
    use crate::config::NodeKind;

    fn replica(address: &str, key: Option<u8>) -> PeerConfig {
        PeerConfig {
            id: 4,
            kind: NodeKind::Replica,
            address: Some("10.9.0.4:7401".parse().unwrap()),
            public_key: key.map(|byte| *Identity::from_secret([byte; 32]).public()),
            hasher: Some(address.parse().unwrap()),
        }
    }

    #[test]
    fn a_new_replica_brings_its_address_and_its_key() {
        let first = replica("10.9.1.2:7400", Some(2));
        let mut setup = HasherSetup {
            binary: PathBuf::new(),
            socket: PathBuf::new(),
            listen: "10.9.1.1:7400".parse().unwrap(),
            peer: first.hasher.unwrap(),
            keys: first.public_key.map(|public| ("a.key".into(), public)),
            node_id: 1,
            threads: 1,
            slice_pages_max: None,
        };
        assert!(!setup.follow(&first));
        let other_key = replica("10.9.1.2:7400", Some(4));
        assert!(setup.follow(&other_key) && !setup.follow(&other_key));
        assert_eq!(setup.keys.as_ref().map(|keys| keys.1), other_key.public_key);
        assert!(setup.follow(&replica("10.9.1.4:7400", None)));
        assert_eq!(setup.keys.map(|keys| keys.1), other_key.public_key);
    }
}
