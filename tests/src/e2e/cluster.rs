//! A group under load, as scenarios handle it: ask it, hurt it, wait for what it does, judge it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ch_integration::demo::check::Report;
use ch_integration::demo::client::Client;
use ch_integration::demo::events::{EventKind, NodeEvent, SyncRecord};
use ch_integration::demo::group::{Group, beside};
use ch_integration::demo::history::{EVENTS_FILE, read_lines};
use ch_integration::demo::network::Host;
use ch_integration::demo::{DemoOptions, KillPlan};
use ch_integration::node::status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What a scenario waits for comes within this time, or not at all.
const WAIT: Duration = Duration::from_secs(60);
/// Writes per second and connection: a load that leaves two cores some room.
const RATE: u32 = 100;

/// A process of a host that can be killed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// The VMM.
    Vmm,
    /// The hasher.
    Hasher,
}

/// A group, its clients, and what they did so far.
pub struct Cluster {
    /// The group.
    pub group: Group,
    client: Option<Client>,
}

/// Options of a run without a kill, with these lines in each replica's configuration.
pub fn options(settings: &[&str]) -> Result<DemoOptions> {
    let settings = settings
        .iter()
        .map(|line| line.parse().map_err(anyhow::Error::msg));
    Ok(DemoOptions {
        kills: KillPlan::None,
        rate: Some(RATE),
        no_benchmark: true,
        settings: settings.collect::<Result<_>>()?,
        ..DemoOptions::default()
    })
}

impl Cluster {
    /// Starts a group, waits until it is protected and serving, and lets the clients write.
    pub fn start(settings: &[&str]) -> Result<Self> {
        Self::start_with(&options(settings)?)
    }

    /// As [`Self::start`], with options of the caller's.
    pub fn start_with(options: &DemoOptions) -> Result<Self> {
        let mut group = Group::start(options)?;
        group.wait_until_serving()?;
        let client = Some(group.start_client()?);
        Ok(Self { group, client })
    }

    /// The primary, and the other replica.
    pub fn roles(&mut self) -> Result<(Host, Host)> {
        self.group.view.update()?;
        let primary = self.group.view.primary.context("no role names a primary")?;
        Ok((primary, primary.peer()))
    }

    /// What a node says of itself.
    pub fn status(&self, host: Host) -> Result<Value> {
        status::ask(&self.group.state_dir(host))
    }

    /// A number in a node's status, by its path as `/status/path/delivered`.
    pub fn number(&self, host: Host, path: &str) -> Result<u64> {
        let status = self.status(host)?;
        let value = status.pointer(path).and_then(Value::as_u64);
        value.with_context(|| format!("the status of node {} has no {path}", host.name()))
    }

    /// Exit code of `plover status`.
    pub fn status_exit_code(&self, host: Host) -> Result<Option<i32>> {
        let mut command = std::process::Command::new(beside("plover")?);
        let output = command
            .arg("status")
            .arg(self.group.config_path(host))
            .output()?;
        Ok(output.status.code())
    }

    /// Process id of a node's child, as the node tells it.
    pub fn pid(&self, host: Host, child: Child) -> Result<Pid> {
        let path = match child {
            Child::Vmm => "/host/vmm_pid",
            Child::Hasher => "/host/hasher_pid",
        };
        Ok(Pid::from_raw(i32::try_from(self.number(host, path)?)?))
    }

    /// SIGKILL to one child of a node.
    pub fn kill_child(&self, host: Host, child: Child) -> Result<()> {
        self.signal_child(host, child, Signal::SIGKILL).map(drop)
    }

    /// A signal to one child of a node. Its process id.
    pub fn signal_child(&self, host: Host, child: Child, signal: Signal) -> Result<Pid> {
        let pid = self.pid(host, child)?;
        eprintln!(
            "*** {signal} to the {child:?} of host {}, pid {pid} ***",
            host.name()
        );
        kill(pid, signal).context("signal a child of a node")?;
        Ok(pid)
    }

    /// A signal to a node's own process.
    pub fn signal_node(&self, host: Host, signal: Signal) -> Result<()> {
        let pid = self
            .group
            .node_pid(host)
            .context("the node was not started")?;
        eprintln!("*** {signal} to node {} ***", host.name());
        kill(Pid::from_raw(i32::try_from(pid)?), signal).context("signal a node")
    }

    /// Waits until `done`. What is waited for, and how long it took, is shown.
    pub fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            self.group.view.update()?;
            if done(self)? {
                break;
            }
            self.group.check_nodes()?;
            let line = self.group.view.line();
            ensure!(
                start.elapsed() < WAIT,
                "waited too long until {what}: {line}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{:>6} ms until {what}", start.elapsed().as_millis());
        Ok(())
    }

    /// Waits until two copies stand for the VM, by a role of a generation above `generation`.
    pub fn wait_protected_since(&mut self, generation: u64) -> Result<()> {
        self.wait("protected again", |cluster| {
            let view = &cluster.group.view;
            Ok(view.protected && view.generation > generation)
        })
    }

    /// Generation of the newest role.
    pub fn generation(&mut self) -> Result<u64> {
        self.group.view.update()?;
        Ok(self.group.view.generation)
    }

    /// Waits until so many more syncs have ended.
    pub fn wait_for_syncs(&mut self, count: usize) -> Result<()> {
        let ended = |cluster: &mut Self| -> Result<usize> {
            let (primary, _) = cluster.roles()?;
            Ok(cluster
                .syncs(primary)?
                .iter()
                .filter(|sync| sync.result == "ended")
                .count())
        };
        let before = ended(self)?;
        self.wait(&format!("{count} more syncs"), |cluster| {
            Ok(ended(cluster)? >= before + count)
        })
    }

    /// Waits until so many more requests were acknowledged.
    pub fn wait_for_answers(&mut self, count: u64) -> Result<()> {
        let before = self.acknowledged();
        self.wait(&format!("{count} more answers"), |cluster| {
            Ok(cluster.acknowledged() >= before + count)
        })
    }

    /// Requests acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.client.as_ref().map_or(0, |client| {
            client.counters().acknowledged.load(Ordering::Relaxed)
        })
    }

    /// A node's events so far.
    pub fn events(&self, host: Host) -> Result<Vec<NodeEvent>> {
        read_lines(&self.group.state_dir(host).join(EVENTS_FILE))
    }

    /// A node's syncs so far, fills left out.
    pub fn syncs(&self, host: Host) -> Result<Vec<SyncRecord>> {
        let events = self.events(host)?.into_iter();
        Ok(events
            .filter_map(|event| match event.kind {
                EventKind::Sync(sync) if sync.kind != "fill" => Some(sync),
                _ => None,
            })
            .collect())
    }

    /// A file in a node's folder.
    #[must_use]
    pub fn file(&self, host: Host, name: &str) -> PathBuf {
        self.group.state_dir(host).join(name)
    }

    /// Whether a node's log has this text.
    pub fn log_has(&self, host: Host, text: &str) -> Result<bool> {
        Ok(fs::read_to_string(self.file(host, "node.log"))?.contains(text))
    }

    /// How often a node's log has this text.
    pub fn log_count(&self, host: Host, text: &str) -> Result<usize> {
        Ok(fs::read_to_string(self.file(host, "node.log"))?
            .matches(text)
            .count())
    }

    /// Frames that a host's node has put on its uplink, as the host's kernel counts them.
    pub fn frames_sent(&self, host: Host) -> Result<u64> {
        let namespace = self.group.network.host(host).name();
        let arguments = ["-n", namespace, "-s", "-j", "link", "show", "dev", "dtap0"];
        let output = std::process::Command::new("ip").args(arguments).output()?;
        let links: Value = serde_json::from_slice(&output.stdout)?;
        let received = links.pointer("/0/stats64/rx/packets");
        let received = received.and_then(Value::as_u64);
        received.context("ip does not tell what the tap received")
    }

    /// Stops the load and reads everything back; the checker's report. An error if anything
    /// acknowledged was lost or a connection broke.
    pub fn finish(&mut self) -> Result<Report> {
        let client = self.client.take().context("the load was stopped already")?;
        client.finish()?;
        self.group.write_record(None)?;
        let report = self.group.check()?;
        eprintln!(
            "{} acknowledged, {} lost, {} of {} connections broken; {} syncs, {} aborted; records: {}",
            report.acknowledged,
            report.lost,
            report.broken_connections,
            report.connections,
            report.syncs.ended,
            report.syncs.aborted,
            self.group.run_dir.display()
        );
        if !report.ok {
            bail!("something was lost or broke: {report:#?}");
        }
        Ok(report)
    }
}

/// The middle value; 0 of nothing.
#[must_use]
pub fn median(values: impl IntoIterator<Item = u64>) -> u64 {
    let values = values.into_iter().collect();
    ch_integration::demo::check::median(values).unwrap_or_default()
}
