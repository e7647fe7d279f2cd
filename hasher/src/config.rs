//! What the service is told at its start, checked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use plover_keys::PublicIdentity;
use plover_types::NodeId;

use crate::error::ServiceError;
use crate::limits::{SLICE_DIVISOR, SLICE_PAGES_MAX, THREADS_MAX};
use crate::secure::LinkKeys;

/// Compares and equalizes the memory of one VM with its copy on another host. Started and driven
/// by `plover node`; one process per host and VM.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "plover-hasher", version)]
pub struct Config {
    /// Control socket that the node connects to.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Address to listen on for the peer hasher.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Address that the peer hasher listens on.
    #[arg(long, value_name = "IP:PORT")]
    pub peer: SocketAddr,
    /// This node's id, from 1.
    #[arg(long, value_name = "N", value_parser = node_id)]
    pub node_id: NodeId,
    /// File with this node's secret key, made by `plover keygen`.
    #[arg(long, value_name = "FILE", requires = "peer_key")]
    pub key_file: Option<PathBuf>,
    /// The peer's public key: who has another one is not let in.
    #[arg(long, value_name = "KEY", requires = "key_file")]
    pub peer_key: Option<PublicIdentity>,
    /// Neither authenticates nor encrypts the link to the peer.
    #[arg(long, conflicts_with = "key_file")]
    pub insecure: bool,
    /// Threads that digest; by default half of the cores that this process may use.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// One in so many pages thought untouched is checked in each round.
    #[arg(long, value_name = "N", default_value_t = SLICE_DIVISOR)]
    pub slice_divisor: u64,
    /// At most so many pages thought untouched are checked in each round.
    #[arg(long, value_name = "N", default_value_t = SLICE_PAGES_MAX)]
    pub slice_pages_max: u64,
}

fn node_id(text: &str) -> Result<NodeId, String> {
    match text.parse() {
        Ok(id @ 1..=63) => Ok(NodeId(id)),
        _ => Err("a node id is a number from 1 to 63".to_owned()),
    }
}

impl Config {
    /// Checks what the parser cannot.
    ///
    /// # Errors
    /// Names the argument and what is wrong with it.
    pub fn check(&self) -> Result<(), ServiceError> {
        let bad = |argument, reason: String| Err(ServiceError::Config { argument, reason });
        if self.listen == self.peer {
            return bad("--peer", format!("{} is our own address", self.peer));
        }
        if self.listen.is_ipv4() != self.peer.is_ipv4() {
            return bad(
                "--peer",
                "one of --listen and --peer is IPv4, the other IPv6".to_owned(),
            );
        }
        if self.peer.ip().is_unspecified() || self.peer.port() == 0 {
            return bad("--peer", format!("{} is no host and port", self.peer));
        }
        if self
            .threads
            .is_some_and(|threads| threads.get() > THREADS_MAX)
        {
            return bad("--threads", format!("at most {THREADS_MAX}"));
        }
        if self.slice_divisor == 0 || self.slice_pages_max == 0 {
            return bad(
                "--slice-divisor, --slice-pages-max",
                "0 would check nothing".to_owned(),
            );
        }
        Ok(())
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// Says what is wrong with the file, or that there is none and it was not asked for.
    pub fn keys(&self) -> Result<Option<LinkKeys>, ServiceError> {
        match (&self.key_file, &self.peer_key) {
            (Some(file), Some(peer)) => Ok(Some(LinkKeys::new(&plover_keys::read(file)?, peer)?)),
            _ if self.insecure => Ok(None),
            _ => Err(ServiceError::Config {
                argument: "--key-file, --peer-key",
                reason: "are missing; without them anybody who reaches the link can read and \
                         change the guest's memory, which --insecure allows"
                    .to_owned(),
            }),
        }
    }

    /// Threads that digest.
    #[must_use]
    pub fn threads(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        self.threads
            .map_or_else(half, NonZeroUsize::get)
            .clamp(1, THREADS_MAX)
    }

    /// Pages of the slice for a guest with so many pages.
    #[must_use]
    pub fn slice_pages(&self, guest_pages: u64) -> u64 {
        guest_pages
            .div_ceil(self.slice_divisor)
            .min(self.slice_pages_max)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(extra: &[&str]) -> Result<Config, String> {
        let base = [
            "plover-hasher",
            "--socket",
            "/tmp/s",
            "--listen",
            "127.0.0.1:1",
            "--insecure",
        ];
        let config = Config::try_parse_from(base.iter().chain(extra)).map_err(|e| e.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn good_arguments_are_taken() {
        let config = parse(&["--peer", "127.0.0.1:2", "--node-id", "3"]).expect("good");
        assert_eq!(config.node_id, NodeId(3));
        assert!(config.threads() >= 1);
        assert_eq!(config.slice_pages(65_536), 1024);
        assert_eq!(config.slice_pages(1 << 26), SLICE_PAGES_MAX);
        assert_eq!(config.slice_pages(1), 1);
    }

    #[test]
    fn bad_arguments_are_named() {
        let bad: [(&[&str], &str); 7] = [
            (&["--node-id", "1"], "--peer"),
            (&["--peer", "127.0.0.1:2"], "--node-id"),
            (&["--peer", "127.0.0.1:2", "--node-id", "0"], "node id"),
            (&["--peer", "nowhere", "--node-id", "1"], "--peer"),
            (&["--peer", "127.0.0.1:1", "--node-id", "1"], "own address"),
            (
                &["--peer", "127.0.0.1:2", "--node-id", "1", "--threads", "0"],
                "--threads",
            ),
            (
                &[
                    "--peer",
                    "127.0.0.1:2",
                    "--node-id",
                    "1",
                    "--slice-divisor",
                    "0",
                ],
                "slice",
            ),
        ];
        for (arguments, named) in bad {
            let error = parse(arguments).expect_err("bad");
            assert!(error.contains(named), "{arguments:?}: {error}");
        }
    }
}
