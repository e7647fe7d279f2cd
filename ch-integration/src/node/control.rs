//! An operator's requests to a running node: a Unix socket in the state folder, for its owner only.
//! One JSON line asks, each answer is a line, the last one has `done`.
//!
//! | request | answers |
//! |---|---|
//! | `{"failover": {}}` | `{"phase": ...}` as it goes on, then `{"done": true, ...}` |
//! | `{"replace": {"lost": ID, "new": {...}}}` | `{"done": true}` |
//!
//! A refusal is `{"done": true, "refused": "why, and what to do"}`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use plover_types::NodeId;
use replication::core::{FailoverProgress, NodeSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};
use vhost_user_plover_net::EventFd;
use vhost_user_plover_net::poll::PollCommand;

use super::place;
use super::status::ANSWER_MAX;
use crate::config::{NodeKind, PeerConfig};

/// The socket's name in the state folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Bytes of a request.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// How often the core is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A failover ends by itself within this time, one way or the other: two syncs that time out, with
/// the largest timeout that makes sense.
const FAILOVER_MAX: Duration = Duration::from_secs(120);

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The primary hands its work to the backup.
    Failover {},
    /// Another node takes a lost one's place.
    Replace {
        /// The lost one's id.
        lost: u8,
        /// The other's entry in `[[group.nodes]]`.
        new: Box<PeerConfig>,
    },
}

/// Reaches the poll core.
pub(super) struct Control {
    /// Commands to it.
    pub(super) poll: Sender<PollCommand>,
    /// Rung for each command.
    pub(super) wake: Arc<EventFd>,
}

/// Starts the thread that answers requests, one after the other.
pub(super) fn serve(state_dir: &Path, control: Control) -> Result<()> {
    let path = state_dir.join(CONTROL_SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("keep others from {}", path.display()))?;
    std::thread::Builder::new()
        .name("plover-control".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = control.answer(stream) {
                    warn!("control: {error:#}");
                }
            }
        })
        .context("start the control thread")?;
    Ok(())
}

impl Control {
    fn answer(&self, mut stream: UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?.take(REQUEST_BYTES_MAX))
            .read_line(&mut line)
            .context("read a request")?;
        let done = match serde_json::from_str(&line) {
            Ok(Request::Failover {}) => {
                info!("a planned failover is asked for");
                self.fail_over(&mut stream)
            }
            Ok(Request::Replace { lost, new }) => {
                info!(lost, new = new.id, "a member is to be replaced");
                self.replace(lost, &new)
            }
            Err(error) => Ok(refused(&format!("this is no request: {error}"))),
        };
        let done = done.unwrap_or_else(|error| refused(&format!("{error:#}")));
        send(&mut stream, &done)
    }

    fn ask<T>(&self, command: PollCommand, reply: &Receiver<T>) -> Result<T> {
        self.poll
            .send(command)
            .context("the poll core has stopped")?;
        self.wake.signal();
        reply
            .recv_timeout(ANSWER_MAX)
            .context("the poll core does not answer")
    }

    fn fail_over(&self, stream: &mut UnixStream) -> Result<Value> {
        let (sender, reply) = bounded(1);
        if let Err(why) = self.ask(PollCommand::FailOver(sender), &reply)? {
            return Ok(refused(&why.to_string()));
        }
        let deadline = Instant::now() + FAILOVER_MAX;
        let mut told = None;
        while Instant::now() < deadline {
            let (sender, reply) = bounded(1);
            let status = self.ask(PollCommand::Status(sender), &reply)?;
            let progress = status.failover.context("the failover is forgotten")?;
            match progress {
                FailoverProgress::Syncing | FailoverProgress::HandingOver => {
                    if told != Some(progress) {
                        send(stream, &json!(progress))?;
                        told = Some(progress);
                    }
                }
                FailoverProgress::Done { .. } | FailoverProgress::GivenUp => {
                    let mut done = json!(progress);
                    done["done"] = json!(true);
                    return Ok(done);
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        bail!("the failover does not end; see plover status")
    }

    fn replace(&self, lost: u8, new: &PeerConfig) -> Result<Value> {
        let spec = NodeSpec {
            id: NodeId(new.id.into()),
            is_replica: new.kind == NodeKind::Replica,
            place: place::of(new),
        };
        let (sender, reply) = bounded(1);
        let command = PollCommand::ReplaceMember {
            lost: NodeId(lost.into()),
            new: spec,
            reply: sender,
        };
        Ok(match self.ask(command, &reply)? {
            Ok(()) => json!({ "done": true }),
            Err(why) => refused(&why.to_string()),
        })
    }
}

fn refused(why: &str) -> Value {
    json!({ "done": true, "refused": why })
}

fn send(stream: &mut UnixStream, answer: &Value) -> Result<()> {
    let mut line = answer.to_string();
    line.push('\n');
    stream.write_all(line.as_bytes()).context("answer")
}

/// Asks a node for something. `progress` is shown each answer before the last, which is returned.
///
/// # Errors
/// No node listens there, this user may not ask it, or it does not answer.
pub fn ask(state_dir: &Path, request: &Request, progress: impl Fn(&Value)) -> Result<Value> {
    let path = state_dir.join(CONTROL_SOCKET);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no node takes requests on {} from this user; start it with `plover node CONFIG`, or \
             be the user that runs it",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(FAILOVER_MAX + ANSWER_MAX))?;
    send(&mut stream, &serde_json::to_value(request)?)?;
    for line in BufReader::new(stream).lines() {
        let answer: Value = serde_json::from_str(&line.context("read the node's answer")?)
            .context("the node's answer is no JSON")?;
        if answer["done"] == true {
            return Ok(answer);
        }
        progress(&answer);
    }
    bail!("the node ended before it answered; see its log")
}
