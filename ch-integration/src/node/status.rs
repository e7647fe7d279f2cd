//! `plover status`: a Unix socket in the state folder that answers each connection with one JSON
//! line.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Sender, bounded};
use hasher::control::AttachReport;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::warn;
use vhost_user_plover_net::EventFd;
use vhost_user_plover_net::poll::PollCommand;

use crate::config::NodeConfig;
use crate::host_facts::HostFacts;

/// The socket's name in the state folder.
pub const STATUS_SOCKET: &str = "status.sock";

/// How long the poll core, or a reader, may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What is known of VMM and hasher.
#[derive(Clone, Debug, Default, Serialize)]
struct Facts {
    vmm_pid: Option<u32>,
    vmm_version: Option<String>,
    hasher_pid: Option<u32>,
    tracker: Option<String>,
    tracker_reason: Option<String>,
    vcpu_time_ms: u64,
    facts: Option<HostFacts>,
}

/// A node's own facts, kept by the driver, read by the status thread.
pub struct NodeFacts {
    name: String,
    id: u8,
    group: String,
    /// Nodes of the group.
    nodes: usize,
    /// Security was switched off.
    is_insecure: bool,
    facts: Mutex<Facts>,
}

impl NodeFacts {
    /// Of a node that has started nothing yet.
    pub fn new(config: &NodeConfig) -> Self {
        Self {
            name: config.name.clone(),
            id: config.id,
            group: config.group.name.clone(),
            nodes: config.group.nodes.len(),
            is_insecure: !config.is_secured() && !config.is_alone(),
            facts: Mutex::default(),
        }
    }

    /// What this host must have in common with the other replica's.
    pub fn set_host(&self, host: HostFacts) {
        self.change(|facts| facts.facts = Some(host));
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        // Plain values: a panic elsewhere cannot have left them half changed.
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A VMM was launched.
    pub fn set_vmm(&self, pid: u32, version: &str) {
        self.change(|facts| {
            facts.vmm_pid = Some(pid);
            facts.vmm_version = Some(version.to_owned());
        });
    }

    /// A hasher was started.
    pub fn set_hasher(&self, pid: u32) {
        self.change(|facts| facts.hasher_pid = Some(pid));
    }

    /// Guest memory was attached.
    pub fn set_tracker(&self, report: &AttachReport) {
        self.change(|facts| {
            facts.tracker = Some(report.tracker.clone());
            facts.tracker_reason.clone_from(&report.reason);
        });
    }

    /// CPU time of the vCPUs so far.
    pub fn set_vcpu_time(&self, used: Duration) {
        let millis = u64::try_from(used.as_millis()).unwrap_or(u64::MAX);
        self.change(|facts| facts.vcpu_time_ms = millis);
    }
}

/// How a node of a group answers.
pub(super) struct NodeStatus {
    /// What the driver knows.
    pub(super) facts: Arc<NodeFacts>,
    /// The poll core, which knows the rest.
    pub(super) poll: Sender<PollCommand>,
    /// Rung for each command.
    pub(super) wake: Arc<EventFd>,
}

impl NodeStatus {
    /// The whole status.
    pub(super) fn answer(&self) -> Result<Value> {
        let (reply, status) = bounded(1);
        self.poll
            .send(PollCommand::Status(reply))
            .context("the poll core has stopped")?;
        self.wake.signal();
        let status = status
            .recv_timeout(ANSWER_MAX)
            .context("the poll core does not answer")?;
        let host = self
            .facts
            .facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(json!({
            "name": self.facts.name,
            "id": self.facts.id,
            "group": self.facts.group,
            "nodes": self.facts.nodes,
            "is_insecure": self.facts.is_insecure,
            "host": host,
            "status": status,
        }))
    }
}

/// Starts the thread that gives each who connects one `answer`.
pub(super) fn serve(
    state_dir: &Path,
    answer: impl Fn() -> Result<Value> + Send + 'static,
) -> Result<()> {
    let path = state_dir.join(STATUS_SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::thread::Builder::new()
        .name("plover-status".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer().and_then(|answer| send(stream, &answer)) {
                    warn!("status: {error:#}");
                }
            }
        })
        .context("start the status thread")?;
    Ok(())
}

fn send(mut stream: UnixStream, answer: &Value) -> Result<()> {
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let mut line = answer.to_string();
    line.push('\n');
    stream.write_all(line.as_bytes()).context("answer")
}

/// Asks a node for its status.
///
/// # Errors
/// No node listens there, or it does not answer.
pub fn ask(state_dir: &Path) -> Result<Value> {
    let path = state_dir.join(STATUS_SOCKET);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no node answers on {}; start it with `plover node CONFIG`",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(2 * ANSWER_MAX))?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("read the node's answer")?;
    serde_json::from_str(&text).context("the node's answer is no JSON")
}
