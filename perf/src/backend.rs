//! The sequenced path as a backend of its own: the real poll core behind a vhost-user socket, with
//! nobody but us to start the guest. The frontend is another process (testpmd with
//! `net_virtio_user`); there is no VMM, so there is nothing to sync.
//!
//! With one node the log has one voter. With three, this node is the only one with a copy and the
//! other two follow: input is committed by a quorum before it is delivered, and output leaves
//! unprotected, since no copy is there to be filled. All nodes take turns on one core: what is
//! reported is the cost per packet on that core, of each node, not a latency.

mod driver;
mod links;
mod report;
mod setup;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::report::Report;

pub use self::setup::pin;

/// How often the nodes are asked where they stand.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `plover-perf backend` is told.
#[derive(Clone, Debug, Args)]
pub struct BackendArguments {
    /// Nodes of the group: 1, or 3 on one core.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// The vhost-user socket to listen on.
    #[arg(long)]
    socket: PathBuf,
    /// The uplink, as DPDK's `--vdev` takes it.
    #[arg(long)]
    uplink: String,
    /// The core to poll on.
    #[arg(long)]
    core: Option<usize>,
    /// Ends after so many seconds; otherwise with SIGINT or SIGTERM.
    #[arg(long)]
    seconds: Option<u64>,
    /// Queue pairs that are offered to the guest.
    #[arg(long, default_value_t = 1)]
    queue_pairs: u8,
    /// The guest's MTU.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Memory from hugepages, in MiB.
    #[arg(long, default_value_t = 128)]
    memory_mib: u32,
    /// Ordinary memory instead of hugepages.
    #[arg(long)]
    no_huge_pages: bool,
    /// Does not time the steps.
    #[arg(long)]
    no_costs: bool,
    /// Notes pages that are written in guest memory, as under protection.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    log_writes: bool,
}

/// Runs until the time is over, then prints what was seen as lines of JSON.
pub fn run(arguments: &BackendArguments) -> Result<()> {
    if !plover_types::limits::GROUP_SIZES.contains(&arguments.nodes) {
        bail!("a group has 1 or 3 nodes, not {}", arguments.nodes);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("listen for the signal to end")?;
    }
    let parts = setup::prepare(arguments)?;
    let watchers = parts.watchers;
    let (core, poll_stop) = (arguments.core, Arc::clone(&stop));
    let (cores, eal) = (parts.cores, Arc::new(parts.eal));
    let poll_eal = Arc::clone(&eal);
    let thread = std::thread::Builder::new()
        .name("plover-poll".to_owned())
        .spawn(move || -> Result<()> {
            setup::pin(core)?;
            let _registered = poll_eal.register_thread().context("register with EAL")?;
            vhost_user_plover_net::poll::run_in_turns(cores, &poll_stop);
            Ok(())
        })
        .context("start the poll thread")?;
    let end = arguments
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        if thread.is_finished() {
            break;
        }
        for watcher in &watchers {
            watcher.serve();
        }
        report.look(&watchers);
        std::thread::sleep(LOOK_EVERY);
    }
    report.look(&watchers);
    stop.store(true, Ordering::Relaxed);
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the poll thread panicked"))??;
    drop((parts.server, eal));
    report.print()
}
