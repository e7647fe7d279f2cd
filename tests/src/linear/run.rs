//! One group's life under a plan of faults, its clients' history, and the judgement.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ch_integration::demo::DemoOptions;
use ch_integration::demo::history::JsonLines;
use ch_integration::demo::network::Host;

use super::checker::{Verdict, check};
use super::faults::{Expected, Fault, Plan, Process, Whom};
use super::history::Operation;
use super::inflict;
use super::recorder::{Load, Recorded, Recorder};
use crate::e2e::{self, Cluster};

/// Clients whose history is judged.
const CLIENTS: u32 = 6;
/// Their longest pause between two requests: a load that leaves two cores some room.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Connections that write every key once and read all back at the end, and their rate.
const WRITERS: u32 = 2;
const WRITER_RATE: u32 = 50;
/// What shows that all goes on.
const ANSWERS: u64 = 60;
const SYNCS: usize = 3;
/// What a node says when it may send no more.
const SHUT: &str = "not serving: the uplink is shut";
/// File of the history in the run's folder.
pub const HISTORY_FILE: &str = "history.jsonl";

/// How a plan went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Faults inflicted.
    pub faults: usize,
    /// Of those, after which the other replica was primary.
    pub moved: usize,
    /// Requests in the judged history.
    pub operations: usize,
    /// Of those, with unknown outcome.
    pub unknown: usize,
}

/// Runs a plan.
///
/// # Errors
/// Something was lost, answered as no single server would, or did not come out as expected. The
/// seed and the records' folder are named.
pub fn run(plan: &Plan) -> Result<Outcome> {
    let seed = plan.seed;
    let options = DemoOptions {
        seed,
        clients: WRITERS,
        rate: Some(WRITER_RATE),
        ..e2e::options(&[])?
    };
    let mut cluster = Cluster::start_with(&options)?;
    let folder = cluster.group.run_dir.clone();
    live(&mut cluster, plan)
        .with_context(|| format!("seed {seed}, records in {}", folder.display()))
}

fn live(cluster: &mut Cluster, plan: &Plan) -> Result<Outcome> {
    let load = Load {
        server: cluster.group.server()?,
        clients: CLIENTS,
        pause_max: PAUSE_MAX,
        seed: plan.seed,
    };
    let clients = Recorder::start(&load, &cluster.group.network.client().entrance());
    let mut outcome = Outcome::default();
    let lived = suffer_all(cluster, plan, &clients, &mut outcome);
    let recorded = clients.finish()?;
    keep(cluster, &recorded.operations)?;
    // What the clients saw says more than how the run ended.
    judge(&recorded)?;
    lived?;
    cluster.finish()?;
    outcome.operations = recorded.operations.len();
    let is_unknown = |operation: &&Operation| operation.returned_ns() == u64::MAX;
    outcome.unknown = recorded.operations.iter().filter(is_unknown).count();
    Ok(outcome)
}

fn suffer_all(
    cluster: &mut Cluster,
    plan: &Plan,
    clients: &Recorder,
    outcome: &mut Outcome,
) -> Result<()> {
    for (number, (quiet, fault)) in plan.faults.iter().enumerate() {
        std::thread::sleep(*quiet);
        let (seed, number) = (plan.seed, number + 1);
        eprintln!("*** seed {seed}, fault {number}: {fault} ***");
        let started = Instant::now();
        let moved =
            suffer(cluster, fault, clients).with_context(|| format!("fault {number}: {fault}"))?;
        outcome.faults += 1;
        outcome.moved += usize::from(moved);
        println!(
            "seed {seed} fault {number}: {fault}; primary {} ({:?} expected); well after {} ms",
            if moved { "moved" } else { "stayed" },
            fault.expected(),
            started.elapsed().as_millis()
        );
    }
    Ok(())
}

/// Inflicts a fault and waits until all is as well as it can be. Whether the primary moved.
fn suffer(cluster: &mut Cluster, fault: &Fault, clients: &Recorder) -> Result<bool> {
    let (primary, _) = cluster.roles()?;
    let (undo, lasts) = inflict::begin(cluster, fault)?;
    let fence = Fence::of(cluster, fault, primary)?;
    std::thread::sleep(lasts);
    inflict::end(cluster, undo)?;
    if fault.expected() == Expected::Moves {
        cluster.wait("the other replica is primary", |cluster| {
            Ok(cluster.roles()?.0 != primary)
        })?;
    }
    let answered = clients.answered();
    cluster.wait(&format!("{ANSWERS} more answers"), |_| {
        Ok(clients.answered() >= answered + ANSWERS)
    })?;
    if fault.is_final() {
        cluster.wait("unprotected", |cluster| Ok(!cluster.group.view.protected))?;
    } else {
        // The loss of a backup may become known only now, so more than once.
        for _ in 0..SYNCS {
            cluster.wait("protected", |cluster| Ok(cluster.group.view.protected))?;
            cluster.wait_for_syncs(1)?;
        }
    }
    let moved = cluster.roles()?.0 != primary;
    match (fault.expected(), moved) {
        (Expected::Stays, true) => bail!("the primary moved"),
        (Expected::Moves, false) => bail!("the primary did not move"),
        _ => {}
    }
    if moved && let Some(fence) = fence {
        fence.check(cluster)?;
    }
    Ok(moved)
}

/// A primary whose node stands still: nothing may leave it afterwards.
struct Fence {
    host: Host,
    frames: u64,
    shut: usize,
}

impl Fence {
    /// Looks at a primary that a fault has just made stand still.
    fn of(cluster: &Cluster, fault: &Fault, host: Host) -> Result<Option<Self>> {
        let stands_still = matches!(
            fault,
            Fault::Stop {
                whom: Whom::Primary,
                process: Process::Node,
                ..
            }
        );
        if !stands_still {
            return Ok(None);
        }
        let frames = cluster.frames_sent(host)?;
        ensure!(frames > 0, "the count of frames counts nothing");
        Ok(Some(Self {
            host,
            frames,
            shut: cluster.log_count(host, SHUT)?,
        }))
    }

    /// The other replica is primary: nothing left here since, and the node says that it shut its
    /// uplink.
    fn check(&self, cluster: &Cluster) -> Result<()> {
        let late = cluster.frames_sent(self.host)? - self.frames;
        ensure!(late == 0, "a fenced primary sent {late} frames");
        let shut = cluster.log_count(self.host, SHUT)?;
        ensure!(shut > self.shut, "a fenced primary does not say so");
        println!("the old primary sent nothing after it stood still, and says so");
        Ok(())
    }
}

/// Keeps the history: it can be judged again.
fn keep(cluster: &Cluster, operations: &[Operation]) -> Result<()> {
    let file = JsonLines::create(&cluster.group.run_dir.join(HISTORY_FILE))?;
    for operation in operations {
        file.write(operation)?;
    }
    file.flush()
}

fn judge(recorded: &Recorded) -> Result<()> {
    let started = Instant::now();
    match check(&recorded.operations) {
        Verdict::Linearizable => {}
        Verdict::Undecided(key) => bail!("the history of {key} could not be judged"),
        Verdict::Violation(violation) => bail!("not linearizable: {violation:#?}"),
    }
    println!(
        "{} requests are linearizable, judged in {} ms",
        recorded.operations.len(),
        started.elapsed().as_millis()
    );
    ensure!(
        recorded.broken.is_empty(),
        "connections broke: {:?}",
        recorded.broken
    );
    Ok(())
}
