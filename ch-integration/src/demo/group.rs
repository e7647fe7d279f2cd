//! A group of three nodes that runs on this machine: started, watched, killed, judged, removed.
//! What happens to it, and when, is for [`super::run()`] and the end-to-end tests to say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plover_keys::PublicIdentity;

use super::check::Report;
use super::client::{self, Client, ClientOptions};
use super::counter;
use super::guest::{GUEST_IP, GUEST_PORT};
use super::history::{CLIENT_FILE, JsonLines, Kill, RUN_FILE, RunRecord};
use super::interrupt::Interrupt;
use super::kill;
use super::leftovers::{self, RUNS_DIR};
use super::live::GroupView;
use super::network::{Host, Network};
use super::node_config::{GroupPlan, ram_dir};
use super::options::{DemoOptions, DemoVmm, Guest, KillPlan, Service, Setting, hardware_kvm};
use super::say;
use crate::keygen;

/// Until the group must be protected: two boots under emulation, and a fill over all memory.
const PROTECTED_WAIT: Duration = Duration::from_secs(180);
/// Until the guest must answer after that; on a software KVM it boots for 16 to 60 s alone, and for
/// longer on a busy machine.
const ANSWER_WAIT: Duration = Duration::from_secs(180);
/// One try of a sign of life.
const PING_WAIT: Duration = Duration::from_millis(500);
/// How often a line is shown.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(1);
/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Connections of redis-benchmark.
const BENCHMARK_CONNECTIONS: &str = "4";
/// Bytes of a node's log that are shown when it ended by itself.
const LOG_TAIL_BYTES: usize = 3000;

/// A group under way. Dropping it ends every process and removes every namespace of it.
pub struct Group {
    /// Records, logs and configuration.
    pub run_dir: PathBuf,
    /// What the nodes' events say.
    pub view: GroupView,
    /// Ctrl-C.
    pub(super) interrupt: Interrupt,
    /// When it was started.
    pub(super) started: Instant,
    pub(super) guest: Guest,
    options: DemoOptions,
    vmm: DemoVmm,
    nodes: Vec<(Host, Child)>,
    /// Hosts that were killed.
    killed: BTreeSet<Host>,
    /// Last: the processes inside go before their namespaces.
    pub network: Network,
}

impl Group {
    /// Starts the three nodes.
    pub fn start(options: &DemoOptions) -> Result<Self> {
        leftovers::clean()?;
        options.check()?;
        let interrupt = Interrupt::watch()?;
        let vmm = options.chosen_vmm()?;
        let guest = options.chosen_guest(vmm)?;
        let network = Network::create()?;
        let run_dir = match &options.run_dir {
            Some(dir) => std::path::absolute(dir).context("make the run's folder absolute")?,
            None => Path::new(RUNS_DIR).join(&network.run_name),
        };
        let by = match vmm {
            DemoVmm::CloudHypervisor => "KVM",
            DemoVmm::Qemu if hardware_kvm() => "KVM",
            DemoVmm::Qemu => "TCG, no usable KVM here",
        };
        say(&format!(
            "VMM {} ({by}); guest: {}",
            vmm.name(),
            guest.image.description
        ));
        say(&format!("records and logs: {}", run_dir.display()));
        let mut group = Self {
            view: GroupView::new(&run_dir),
            run_dir,
            interrupt,
            started: Instant::now(),
            guest,
            options: options.clone(),
            vmm,
            nodes: Vec::new(),
            killed: BTreeSet::new(),
            network,
        };
        if let KillPlan::Step { step, .. } = &options.kills {
            group.options.settings.push(Setting::die_at(step));
        }
        group.configure_nodes()?;
        for host in Host::ALL {
            group.start_node(host)?;
        }
        Ok(group)
    }

    fn configure_nodes(&self) -> Result<()> {
        if Host::ALL.iter().any(|host| self.state_dir(*host).exists()) {
            bail!(
                "{} holds an earlier run: name another --run-dir",
                self.run_dir.display()
            );
        }
        let public_keys = self.make_keys()?;
        let plan = GroupPlan {
            run_name: &self.network.run_name,
            run_dir: &self.run_dir,
            vmm: self.vmm,
            guest: &self.guest,
            detection_ms: self.options.detection_ms,
            public_keys: &public_keys,
            settings: &self.options.settings,
        };
        for host in Host::ALL {
            let state_dir = self.state_dir(host);
            fs::create_dir_all(&state_dir).context("create a node's folder")?;
            if host.is_replica() {
                let ram = ram_dir(&self.network.run_name, host);
                fs::create_dir_all(&ram).with_context(|| format!("create {}", ram.display()))?;
            }
            fs::write(self.config_path(host), plan.config_of(host))
                .context("write a node's configuration")?;
        }
        Ok(())
    }

    /// A new key for each node, beside its configuration.
    fn make_keys(&self) -> Result<BTreeMap<Host, PublicIdentity>> {
        fs::create_dir_all(&self.run_dir).context("create the run's folder")?;
        let make = |host: Host| {
            let file = self.run_dir.join(format!("{}.key", host.name()));
            Ok((host, keygen::create(&file)?.public_key))
        };
        Host::ALL.into_iter().map(make).collect()
    }

    /// Starts a node, or starts it again with the configuration that it had.
    pub fn start_node(&mut self, host: Host) -> Result<()> {
        let binary = self
            .options
            .node_binary
            .clone()
            .map_or_else(|| beside("plover"), Ok)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.state_dir(host).join("node.log"))
            .context("open a node's log")?;
        let errors = log.try_clone().context("share a node's log")?;
        let mut command = Command::new(binary);
        command.arg("node").arg(self.config_path(host));
        command.stdout(log).stderr(errors);
        let child = self.network.host(host).spawn(&mut command)?;
        self.nodes.retain(|(other, _)| *other != host);
        self.nodes.push((host, child));
        self.killed.remove(&host);
        Ok(())
    }

    /// A node's folder: its log, votes, sockets and events.
    pub fn state_dir(&self, host: Host) -> PathBuf {
        self.run_dir.join(host.name())
    }

    /// A node's configuration.
    pub fn config_path(&self, host: Host) -> PathBuf {
        self.run_dir.join(format!("{}.toml", host.name()))
    }

    /// Process id of `plover node`.
    pub fn node_pid(&self, host: Host) -> Option<u32> {
        let (_, child) = self.nodes.iter().find(|(node, _)| *node == host)?;
        Some(child.id())
    }

    /// Waits until two copies stand for the VM and it answers.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        self.wait("the group is protected", PROTECTED_WAIT, |group| {
            Ok(group.view.protected)
        })?;
        self.wait("the guest answers", ANSWER_WAIT, |group| {
            let (server, service) = (group.server()?, group.guest.service);
            let answer = group.network.client().enter(move || match service {
                Service::Redis => client::ping(server, PING_WAIT),
                Service::Counter => counter::ping(server, PING_WAIT),
            })?;
            Ok(answer.is_ok())
        })?;
        say(&format!(
            "protected and serving after {} s",
            self.started.elapsed().as_secs()
        ));
        Ok(())
    }

    /// Waits until `done`; an error after `longest`, or when a node ends that was not killed.
    pub fn wait(
        &mut self,
        what: &str,
        longest: Duration,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + longest;
        let mut line_due = Instant::now() + LINE_EVERY;
        loop {
            self.view.update()?;
            if done(self)? {
                return Ok(());
            }
            self.check_nodes()?;
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!(
                    "waited too long until {what}: {}; the nodes' logs are {}/*/node.log",
                    self.view.line(),
                    self.run_dir.display()
                );
            }
            if Instant::now() > line_due {
                let seconds = self.started.elapsed().as_secs();
                say(&format!(
                    "{seconds:>3} s  until {what}: {}",
                    self.view.line()
                ));
                line_due += LINE_EVERY;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// No node may end by itself.
    pub fn check_nodes(&mut self) -> Result<()> {
        for (host, child) in &mut self.nodes {
            if self.killed.contains(host) {
                continue;
            }
            if let Some(status) = child.try_wait().context("look at a node")? {
                let log = self.run_dir.join(host.name()).join("node.log");
                bail!("node {} ended: {status}\n{}", host.name(), tail_of(&log));
            }
        }
        Ok(())
    }

    /// Whether the node's process has ended.
    pub(super) fn has_ended(&mut self, host: Host) -> Result<bool> {
        let node = self.nodes.iter_mut().find(|(node, _)| *node == host);
        let (_, child) = node.context("no such node")?;
        Ok(child.try_wait().context("look at a node")?.is_some())
    }

    /// SIGKILL to everything on a host at once, then its cables out; written down.
    pub fn kill_host(&mut self, host: Host) -> Result<Kill> {
        let kill = kill::kill_host(&self.network, host)?;
        self.note_killed(&kill, host)?;
        Ok(kill)
    }

    /// A host was killed: it may be gone now.
    pub(super) fn note_killed(&mut self, kill: &Kill, host: Host) -> Result<()> {
        kill::record(&self.run_dir, kill)?;
        self.expect_end(host)
    }

    /// SIGKILL to a node, and to what it started, without touching its cables. Not written down.
    pub fn kill_node(&mut self, host: Host) -> Result<()> {
        self.network.host(host).kill_all()?;
        self.expect_end(host)
    }

    fn expect_end(&mut self, host: Host) -> Result<()> {
        self.killed.insert(host);
        for (node, child) in &mut self.nodes {
            if *node == host {
                kill::end_child(child)?;
            }
        }
        Ok(())
    }

    /// Connects the checking client, and lets it write.
    pub fn start_client(&self) -> Result<Client> {
        let options = ClientOptions {
            server: self.server()?,
            connections: self.options.clients,
            depth: self.options.depth,
            rate: self.options.rate,
            seed: self.options.seed,
        };
        let history = Arc::new(JsonLines::create(&self.run_dir.join(CLIENT_FILE))?);
        let entrance = self.network.client().entrance();
        Ok(match self.guest.service {
            Service::Redis => Client::start(&options, &entrance, history),
            Service::Counter => counter::start(&options, &entrance, history),
        })
    }

    /// The guest's address and port.
    pub fn server(&self) -> Result<SocketAddr> {
        let text = match self.guest.service {
            Service::Redis => format!("{GUEST_IP}:{GUEST_PORT}"),
            Service::Counter => counter::COUNTER_SERVER.to_owned(),
        };
        text.parse().context("the guest's address")
    }

    /// Starts `redis-benchmark` as load in the background, if the guest is redis.
    pub fn start_benchmark(&self) -> Result<Option<Child>> {
        if self.options.no_benchmark || self.guest.service == Service::Counter {
            return Ok(None);
        }
        let output = File::create(self.run_dir.join("redis-benchmark.txt"))
            .context("create redis-benchmark's output")?;
        let errors = output
            .try_clone()
            .context("share redis-benchmark's output")?;
        let port = GUEST_PORT.to_string();
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", GUEST_IP, "-p", &port, "-l", "-q"]);
        command.args(["-c", BENCHMARK_CONNECTIONS, "-t", "set,get"]);
        command.args(["-d", "64", "-r", "1000"]);
        command.stdout(output).stderr(errors);
        self.network.client().spawn(&mut command).map(Some)
    }

    /// Writes down what the run was. `failure`: what keeps it from being a good one.
    pub fn write_record(&self, failure: Option<String>) -> Result<()> {
        let record = RunRecord {
            seed: self.options.seed,
            vmm: self.vmm.name().to_owned(),
            kvm: self.vmm == DemoVmm::CloudHypervisor || hardware_kvm(),
            guest: self.guest.image.description.clone(),
            connections: self.options.clients,
            detection_ms: u64::from(self.options.detection_ms),
            client_retransmits: self.client_retransmits(),
            benchmark_failed: failure,
        };
        let text = serde_json::to_vec_pretty(&record).context("encode the run's record")?;
        fs::write(self.run_dir.join(RUN_FILE), text).context("write the run's record")
    }

    /// TCP segments that the client's side sent again.
    fn client_retransmits(&self) -> Option<u64> {
        let read = || fs::read_to_string("/proc/thread-self/net/snmp");
        let text = self.network.client().enter(read).ok()?.ok()?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let column = lines
            .next()?
            .split_whitespace()
            .position(|name| name == "RetransSegs")?;
        lines.next()?.split_whitespace().nth(column)?.parse().ok()
    }

    /// Lets the checker, a process of its own, judge the records.
    pub fn check(&self) -> Result<Report> {
        let binary = self
            .options
            .check_binary
            .clone()
            .map_or_else(|| beside("plover-check"), Ok)?;
        let output = Command::new(&binary)
            .arg(&self.run_dir)
            .arg("--json")
            .output()
            .with_context(|| format!("run {}", binary.display()))?;
        if output.status.code() == Some(2) {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::write(self.run_dir.join("report.json"), &output.stdout).context("keep the report")?;
        let report: Report =
            serde_json::from_slice(&output.stdout).context("read the checker's report")?;
        if report.ok != output.status.success() {
            bail!(
                "the checker's report and its exit code disagree: {}",
                output.status
            );
        }
        Ok(report)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (_, child) in &mut self.nodes {
            if let Err(error) = kill::end_child(child) {
                eprintln!("plover demo: {error:#}");
            }
        }
        // The VMMs and hashers that the nodes started, before their memory goes.
        for host in Host::ALL {
            if let Err(error) = self.network.host(host).kill_all() {
                eprintln!("plover demo: {error:#}");
            }
            let ram = ram_dir(&self.network.run_name, host);
            if ram.exists() && fs::remove_dir_all(&ram).is_err() {
                eprintln!("plover demo: {} is left behind", ram.display());
            }
        }
    }
}

/// A program of ours: beside the running one, or one folder up (tests run from `deps`).
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not beside {}: cargo build --bins", own.display()))
}

fn tail_of(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    format!(
        "end of {}:\n{}",
        log.display(),
        String::from_utf8_lossy(&bytes[start..])
    )
}
