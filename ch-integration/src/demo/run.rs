//! One run of the demo, from an empty machine to the table.

use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::check::Report;
use super::client::Client;
use super::group::{Group, LINE_EVERY};
use super::guest::GUEST_IP;
use super::options::{DemoOptions, KillPlan};
use super::table::Table;
use super::{kill, leftovers, say};

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
    if options.clean {
        leftovers::clean()?;
        return Ok(DemoOutcome {
            run_dir: PathBuf::new(),
            report: None,
            ok: true,
        });
    }
    let mut run = Run {
        options,
        group: Group::start(options)?,
        benchmark: None,
    };
    run.group.wait_until_serving()?;
    let loaded = run.load_and_kill();
    // Records are worth most when something went wrong.
    let failure = match &loaded {
        Ok(benchmark_failed) => benchmark_failed.clone(),
        Err(error) => Some(format!("the run did not end: {error:#}")),
    };
    run.group.write_record(failure)?;
    loaded?;
    let report = run.group.check()?;
    if options.json {
        let text = serde_json::to_string_pretty(&report).context("encode the report")?;
        println!("{text}");
    } else {
        print!("{}", Table(&report));
    }
    if options.keep {
        run.linger()?;
    }
    Ok(DemoOutcome {
        run_dir: run.group.run_dir.clone(),
        ok: report.ok,
        report: Some(report),
    })
}

/// A run under way.
struct Run<'a> {
    options: &'a DemoOptions,
    benchmark: Option<Child>,
    group: Group,
}

impl Run<'_> {
    /// The load, the kill in its middle, the read-back. Returns why the benchmark ended early.
    fn load_and_kill(&mut self) -> Result<Option<String>> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs(self.options.load_seconds);
        let client = self.group.start_client()?;
        self.benchmark = self.group.start_benchmark()?;
        let kill_at = begin + kill::moment(self.options.seed, self.options.load_seconds);
        if self.options.kills != KillPlan::None {
            self.show_until(kill_at, &client)?;
            self.kill()?;
        }
        self.show_until(end, &client)?;
        let benchmark_failed = self.stop_benchmark()?;
        say("reading everything back over the same connections");
        client.finish()?;
        Ok(benchmark_failed)
    }

    fn stop_benchmark(&mut self) -> Result<Option<String>> {
        let Some(mut child) = self.benchmark.take() else {
            return Ok(None);
        };
        if let Some(status) = child.try_wait().context("look at redis-benchmark")? {
            return Ok(Some(format!("ended early: {status}")));
        }
        kill::end_child(&mut child)?;
        Ok(None)
    }

    /// Kills a host: the primary's, or where the plan's step is.
    fn kill(&mut self) -> Result<()> {
        let primary = self.group.view.primary.context("no role names a primary")?;
        let mut killed = None;
        if let KillPlan::Step { step, victim } = &self.options.kills {
            killed = kill::kill_in_step(&mut self.group, primary, *victim, step)?;
            if killed.is_none() {
                say(&format!(
                    "step {step} did not come; killing at this moment instead"
                ));
            }
        }
        let kill = match killed {
            Some(kill) => kill,
            None => self.group.kill_host(primary)?,
        };
        let inside = kill
            .step
            .as_ref()
            .map(|step| format!(" inside step {step}"))
            .unwrap_or_default();
        say(&format!(
            "*** SIGKILL to host {}{inside}: {} processes, cables out ***",
            kill.node, kill.processes
        ));
        Ok(())
    }

    /// Shows a line a second until `end`.
    fn show_until(&mut self, end: Instant, client: &Client) -> Result<()> {
        let counters = client.counters();
        let mut before = counters.acknowledged.load(Ordering::Relaxed);
        while Instant::now() < end {
            let line_due = (Instant::now() + LINE_EVERY).min(end);
            self.group.interrupt.sleep_until(line_due)?;
            self.group.view.update()?;
            self.group.check_nodes()?;
            let acknowledged = counters.acknowledged.load(Ordering::Relaxed);
            let (more, broken) = (
                acknowledged - before,
                counters.broken.load(Ordering::Relaxed),
            );
            before = acknowledged;
            let seconds = self.group.started.elapsed().as_secs();
            let mut line = format!("{seconds:>3} s  {acknowledged} acknowledged (+{more})");
            if broken > 0 {
                line.push_str(&format!(", {broken} connections BROKEN"));
            }
            say(&format!("{line} | {}", self.group.view.line()));
        }
        Ok(())
    }

    fn linger(&self) -> Result<()> {
        let name = self.group.network.client().name();
        say(&format!(
            "kept running (try: ip netns exec {name} redis-cli -h {GUEST_IP}); Ctrl-C ends it"
        ));
        while !self.group.interrupt.asked() {
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.benchmark
            && let Err(error) = kill::end_child(child)
        {
            eprintln!("plover demo: {error:#}");
        }
    }
}
