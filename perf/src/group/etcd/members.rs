//! Three members of an etcd cluster on loopback, as long as this lives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::interrupt;
use crate::process::Process;

const MEMBERS: usize = 3;
/// A tmpfs wherever glibc runs.
const TMPFS: &str = "/dev/shm";
const PATIENCE: Duration = Duration::from_secs(20);
/// More than its metrics have.
const METRICS_BYTES_MAX: u64 = 4 << 20;

/// The members.
pub struct Members {
    processes: Vec<Process>,
    clients: Vec<String>,
    leader: usize,
    _data: TempDir,
}

impl Members {
    /// Starts them and waits for a leader.
    pub fn start() -> Result<Self> {
        let data = tempfile::tempdir_in(TMPFS).context("make a folder in a tmpfs")?;
        let ports = free_ports(2 * MEMBERS)?;
        let (peers, clients) = ports.split_at(MEMBERS);
        let names: Vec<String> = (0..MEMBERS).map(|member| format!("m{member}")).collect();
        let cluster: Vec<String> = names
            .iter()
            .zip(peers)
            .map(|(name, peer)| format!("{name}=http://{peer}"))
            .collect();
        let start = |member: usize| {
            let arguments = arguments(
                &names[member],
                &data.path().join(&names[member]),
                &peers[member],
                &clients[member],
                &cluster.join(","),
            );
            Process::start("etcd", &arguments)
                .context("etcd is not installed (apt-get install etcd-server, or `make perf`)")
        };
        let processes = (0..MEMBERS).map(start).collect::<Result<_>>()?;
        let mut members = Self {
            processes,
            clients: clients.to_vec(),
            leader: 0,
            _data: data,
        };
        members.leader = members.find_leader()?;
        Ok(members)
    }

    /// Where the leader takes clients.
    pub fn leader(&self) -> Result<&str> {
        let leader = self.clients.get(self.leader);
        leader.map(String::as_str).context("no leader")
    }

    /// How they were started.
    pub fn commands(&self) -> Vec<String> {
        let commands = self.processes.iter().map(Process::command);
        commands.map(str::to_owned).collect()
    }

    fn find_leader(&self) -> Result<usize> {
        let end = Instant::now() + PATIENCE;
        loop {
            let leads = |client: &String| {
                let text = metrics(client).unwrap_or_default();
                text.lines().any(|line| line == "etcd_server_is_leader 1")
            };
            if let Some(leader) = self.clients.iter().position(leads) {
                return Ok(leader);
            }
            ensure!(
                Instant::now() < end,
                "etcd has no leader after {} s",
                PATIENCE.as_secs()
            );
            interrupt::sleep(Duration::from_millis(50))?;
        }
    }
}

fn arguments(name: &str, data: &Path, peer: &str, client: &str, cluster: &str) -> Vec<String> {
    [
        ("name", name),
        ("data-dir", &data.display().to_string()),
        ("listen-peer-urls", &format!("http://{peer}")),
        ("initial-advertise-peer-urls", &format!("http://{peer}")),
        ("listen-client-urls", &format!("http://{client}")),
        ("advertise-client-urls", &format!("http://{client}")),
        ("initial-cluster", cluster),
        ("initial-cluster-state", "new"),
        ("logger", "zap"),
        ("log-level", "error"),
    ]
    .map(|(option, value)| format!("--{option}={value}"))
    .into()
}

/// Ports that nobody listens on now.
fn free_ports(count: usize) -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("find free ports")?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect()
}

/// What a member tells of itself.
fn metrics(client: &str) -> Result<String> {
    let mut stream = TcpStream::connect(client)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.take(METRICS_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
