//! One run of the demo, from an empty machine to the table.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::check::Report;
use super::client::{self, Client, ClientOptions};
use super::counter;
use super::guest::{GUEST_IP, GUEST_PORT};
use super::history::{CLIENT_FILE, JsonLines, RUN_FILE, RunRecord};
use super::interrupt::Interrupt;
use super::kill;
use super::leftovers::{self, RUNS_DIR};
use super::live::GroupView;
use super::network::{Host, Network};
use super::node_config::{GroupPlan, ram_dir};
use super::options::{DemoOptions, DemoVmm, Guest, KillPlan, Service, hardware_kvm};
use super::table::Table;

/// Until the group must be protected: two boots under emulation, and a fill over all memory.
const PROTECTED_WAIT: Duration = Duration::from_secs(180);
/// Until the guest must answer after that.
const ANSWER_WAIT: Duration = Duration::from_secs(90);
/// One try of a sign of life.
const PING_WAIT: Duration = Duration::from_millis(500);
/// How often a line is shown.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Connections of redis-benchmark.
const BENCHMARK_CONNECTIONS: &str = "4";
/// Bytes of a node's log that are shown when it ended by itself.
const LOG_TAIL_BYTES: usize = 3000;

/// How a run went.
#[derive(Clone, Debug)]
pub struct DemoOutcome {
    /// Its records, logs and configuration.
    pub run_dir: PathBuf,
    /// What the checker said; `None` after `--clean`.
    pub report: Option<Report>,
    /// Nothing was lost and nothing broke.
    pub ok: bool,
}

/// Runs the demo and removes what it started, however it ends.
pub fn run(options: &DemoOptions) -> Result<DemoOutcome> {
    leftovers::clean()?;
    if options.clean {
        return Ok(DemoOutcome {
            run_dir: PathBuf::new(),
            report: None,
            ok: true,
        });
    }
    options.check()?;
    let interrupt = Interrupt::watch()?;
    let vmm = options.chosen_vmm()?;
    let guest = options.chosen_guest(vmm)?;
    let mut run = Run::start(options, interrupt, vmm, guest)?;
    run.wait_until_serving()?;
    let loaded = run.load_and_kill();
    // Records are worth most when something went wrong.
    run.write_record(&loaded)?;
    loaded?;
    let report = run.check()?;
    if options.keep {
        run.linger()?;
    }
    Ok(DemoOutcome {
        run_dir: run.run_dir.clone(),
        ok: report.ok,
        report: Some(report),
    })
}

/// A run under way. Dropping it ends every process and removes every namespace of it.
struct Run<'a> {
    options: &'a DemoOptions,
    interrupt: Interrupt,
    vmm: DemoVmm,
    guest: Guest,
    run_dir: PathBuf,
    view: GroupView,
    nodes: Vec<(Host, Child)>,
    benchmark: Option<Child>,
    benchmark_failed: Option<String>,
    started: Instant,
    /// Last: the processes inside go before their namespaces.
    network: Network,
}

impl<'a> Run<'a> {
    fn start(
        options: &'a DemoOptions,
        interrupt: Interrupt,
        vmm: DemoVmm,
        guest: Guest,
    ) -> Result<Self> {
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
        let view = GroupView::new(&run_dir);
        let mut run = Self {
            options,
            interrupt,
            vmm,
            guest,
            run_dir,
            view,
            nodes: Vec::new(),
            benchmark: None,
            benchmark_failed: None,
            started: Instant::now(),
            network,
        };
        run.start_nodes()?;
        Ok(run)
    }

    fn start_nodes(&mut self) -> Result<()> {
        let binary = self
            .options
            .node_binary
            .clone()
            .map_or_else(|| beside("plover"), Ok)?;
        let plan = GroupPlan {
            run_name: &self.network.run_name,
            run_dir: &self.run_dir,
            vmm: self.vmm,
            guest: &self.guest,
            election_timeout_ms: self.options.election_timeout_ms,
            settings: &self.options.settings,
        };
        for host in Host::ALL {
            let state_dir = plan.state_dir(host);
            if state_dir.exists() {
                bail!(
                    "{} holds an earlier run: name another --run-dir",
                    self.run_dir.display()
                );
            }
            fs::create_dir_all(&state_dir).context("create a node's folder")?;
            if host.is_replica() {
                let ram = ram_dir(&self.network.run_name, host);
                fs::create_dir_all(&ram).with_context(|| format!("create {}", ram.display()))?;
            }
            let config = self.run_dir.join(format!("{}.toml", host.name()));
            fs::write(&config, plan.config_of(host)).context("write a node's configuration")?;
            let log = File::create(state_dir.join("node.log")).context("create a node's log")?;
            let errors = log.try_clone().context("share a node's log")?;
            let mut command = Command::new(&binary);
            command.arg("node").arg(&config).stdout(log).stderr(errors);
            let child = self.network.host(host).spawn(&mut command)?;
            self.nodes.push((host, child));
        }
        Ok(())
    }

    /// Waits until two copies stand for the VM and it answers.
    fn wait_until_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + PROTECTED_WAIT;
        self.wait("the group is protected", deadline, |run| {
            Ok(run.view.protected)
        })?;
        let deadline = Instant::now() + ANSWER_WAIT;
        self.wait("the guest answers", deadline, |run| {
            let (server, service) = (run.server()?, run.guest.service);
            let answer = run.network.client().enter(move || match service {
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

    fn wait(
        &mut self,
        what: &str,
        deadline: Instant,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let mut line_due = Instant::now() + LINE_EVERY;
        loop {
            self.view.update()?;
            if done(self)? {
                return Ok(());
            }
            self.check_nodes(None)?;
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!(
                    "waited too long until {what}: {}; {}",
                    self.view.line(),
                    self.logs()
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
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The load, the kill in its middle, the read-back.
    fn load_and_kill(&mut self) -> Result<()> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs(self.options.load_seconds);
        let client = self.start_client()?;
        self.start_benchmark()?;
        let kill_at = begin + kill::moment(self.options.seed, self.options.load_seconds);
        let mut killed = None;
        if self.options.kills != KillPlan::None {
            self.show_until(kill_at, &client, None)?;
            killed = Some(self.kill_primary()?);
        }
        self.show_until(end, &client, killed)?;
        self.stop_benchmark()?;
        say("reading everything back over the same connections");
        client.finish()
    }

    fn start_client(&self) -> Result<Client> {
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

    fn server(&self) -> Result<SocketAddr> {
        let text = match self.guest.service {
            Service::Redis => format!("{GUEST_IP}:{GUEST_PORT}"),
            Service::Counter => counter::COUNTER_SERVER.to_owned(),
        };
        text.parse().context("the guest's address")
    }

    fn start_benchmark(&mut self) -> Result<()> {
        if self.options.no_benchmark || self.guest.service == Service::Counter {
            return Ok(());
        }
        let output = File::create(self.run_dir.join("redis-benchmark.txt"))
            .context("create redis-benchmark's output")?;
        let errors = output
            .try_clone()
            .context("share redis-benchmark's output")?;
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", GUEST_IP, "-p", &GUEST_PORT.to_string(), "-l", "-q"]);
        command.args([
            "-c",
            BENCHMARK_CONNECTIONS,
            "-t",
            "set,get",
            "-d",
            "64",
            "-r",
            "1000",
        ]);
        command.stdout(output).stderr(errors);
        self.benchmark = Some(self.network.client().spawn(&mut command)?);
        Ok(())
    }

    fn stop_benchmark(&mut self) -> Result<()> {
        let Some(mut child) = self.benchmark.take() else {
            return Ok(());
        };
        if let Some(status) = child.try_wait().context("look at redis-benchmark")? {
            self.benchmark_failed = Some(format!("ended early: {status}"));
            return Ok(());
        }
        kill::end_child(&mut child)
    }

    fn kill_primary(&mut self) -> Result<Host> {
        let mut step = None;
        if let KillPlan::Step(name) = &self.options.kills {
            if kill::wait_for_step(&mut self.view, name, &self.interrupt)? {
                step = Some(name.clone());
            } else {
                say(&format!(
                    "step {name} did not come; killing at this moment instead"
                ));
            }
        }
        let primary = self.view.primary.context("no role names a primary")?;
        let kill = kill::kill_host(&self.network, primary, step)?;
        kill::record(&self.run_dir, &kill)?;
        let host = primary.name();
        say(&format!(
            "*** SIGKILL to host {host}: {} processes, cables out ***",
            kill.processes
        ));
        if let Some((_, child)) = self.nodes.iter_mut().find(|(node, _)| *node == primary) {
            kill::end_child(child)?;
        }
        Ok(primary)
    }

    /// Shows a line a second until `end`.
    fn show_until(&mut self, end: Instant, client: &Client, killed: Option<Host>) -> Result<()> {
        let counters = client.counters();
        let mut before = counters.acknowledged.load(Ordering::Relaxed);
        while Instant::now() < end {
            let line_due = (Instant::now() + LINE_EVERY).min(end);
            self.interrupt.sleep_until(line_due)?;
            self.view.update()?;
            self.check_nodes(killed)?;
            let acknowledged = counters.acknowledged.load(Ordering::Relaxed);
            let (more, broken) = (
                acknowledged - before,
                counters.broken.load(Ordering::Relaxed),
            );
            before = acknowledged;
            let seconds = self.started.elapsed().as_secs();
            let mut line = format!("{seconds:>3} s  {acknowledged} acknowledged (+{more})");
            if broken > 0 {
                line.push_str(&format!(", {broken} connections BROKEN"));
            }
            say(&format!("{line} | {}", self.view.line()));
        }
        Ok(())
    }

    /// No node may end by itself.
    fn check_nodes(&mut self, killed: Option<Host>) -> Result<()> {
        for (host, child) in &mut self.nodes {
            if Some(*host) == killed {
                continue;
            }
            if let Some(status) = child.try_wait().context("look at a node")? {
                let log = self.run_dir.join(host.name()).join("node.log");
                bail!("node {} ended: {status}\n{}", host.name(), tail_of(&log));
            }
        }
        Ok(())
    }

    fn logs(&self) -> String {
        format!("the nodes' logs are {}/*/node.log", self.run_dir.display())
    }

    fn write_record(&self, loaded: &Result<()>) -> Result<()> {
        let record = RunRecord {
            seed: self.options.seed,
            vmm: self.vmm.name().to_owned(),
            kvm: self.vmm == DemoVmm::CloudHypervisor || hardware_kvm(),
            guest: self.guest.image.description.clone(),
            connections: self.options.clients,
            election_timeout_ms: u64::from(self.options.election_timeout_ms),
            client_retransmits: self.client_retransmits(),
            benchmark_failed: match loaded {
                Ok(()) => self.benchmark_failed.clone(),
                Err(error) => Some(format!("the run did not end: {error:#}")),
            },
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
    fn check(&self) -> Result<Report> {
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
        if self.options.json {
            println!("{}", String::from_utf8_lossy(&output.stdout).trim_end());
        } else {
            print!("{}", Table(&report));
        }
        if report.ok != output.status.success() {
            bail!(
                "the checker's report and its exit code disagree: {}",
                output.status
            );
        }
        Ok(report)
    }

    fn linger(&self) -> Result<()> {
        let name = self.network.client().name();
        say(&format!(
            "kept running (try: ip netns exec {name} redis-cli -h {GUEST_IP}); Ctrl-C ends it"
        ));
        while !self.interrupt.asked() {
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let children = self
            .nodes
            .iter_mut()
            .map(|(_, child)| child)
            .chain(&mut self.benchmark);
        for child in children {
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
fn beside(name: &str) -> Result<PathBuf> {
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

/// A line of progress, on standard error: standard output has the report alone.
fn say(line: &str) {
    eprintln!("{line}");
}
