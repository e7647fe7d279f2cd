//! `plover-perf card`: a DPDK port as a guest's card, as `plover node` with replication off runs
//! it, for measurement: every frame of the port goes to the guest, whatever its address, since the
//! software ports that packets come from can't be told one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use dpdk_config::{Eal, EalConfig, HugePages, Mempool, Port, PortConfig};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use vhost_user_plover_net::passthrough::{PassthroughConfig, PassthroughCore, PassthroughSetup};
use vhost_user_plover_net::{
    CardConfig, EventFd, NicConfig, VhostUserServer, WrittenPages, channel,
};

/// Packet buffers, as many as the testpmd that it is held against has.
const MBUFS: u32 = 8191;
const MBUF_CACHE: u32 = 256;
const DATA_ROOM_BYTES: u16 = 2048;

/// A card for measurement.
#[derive(Debug, Args)]
pub struct CardArguments {
    /// The vhost-user socket to listen on.
    #[arg(long)]
    socket: PathBuf,
    /// The port, as DPDK writes a software device: `net_null0`, `net_ring0`.
    #[arg(long)]
    uplink: String,
    /// The core that polls.
    #[arg(long)]
    core: usize,
    /// The core for everything else.
    #[arg(long)]
    control_core: usize,
    /// Does not log the pages that it writes, to measure what that costs.
    #[arg(long)]
    no_page_log: bool,
    /// DPDK's memory, in hugepages.
    #[arg(long, default_value_t = 128)]
    memory_mib: u32,
}

/// Serves until SIGTERM.
pub fn run(arguments: CardArguments) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("note a signal")?;
    }
    let eal = Eal::init(&EalConfig {
        huge_pages: HugePages::On,
        memory_mib: arguments.memory_mib,
        main_core: Some(arguments.control_core),
        ..EalConfig::default()
    })
    .context("start DPDK")?;
    let pool = Mempool::new(&eal, "uplink", MBUFS, MBUF_CACHE, DATA_ROOM_BYTES)?;
    let uplink = Port::open(&eal, &PortConfig::vdev(arguments.uplink), &pool)?;
    let written_pages = arguments
        .no_page_log
        .then(WrittenPages::off)
        .transpose()
        .context("make a log that is off")?;
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(drop),
        written_pages: written_pages.map(Arc::new),
        // As `plover node` offers it.
        card: CardConfig {
            offloads: true,
            ..CardConfig::default()
        },
    })?;
    let server = VhostUserServer::start(&arguments.socket, control)?;
    // Nobody asks it anything, but without a sender it would end.
    let (_commands, receiver) = crossbeam_channel::unbounded();
    let core = PassthroughCore::new(PassthroughSetup {
        config: PassthroughConfig {
            is_busy: true,
            idle_sleep: Duration::from_micros(100),
            station: None,
            frame_bytes_max: uplink.frame_bytes_max(),
        },
        eal,
        uplink,
        pool,
        nic,
        commands: receiver,
        wake: Arc::new(EventFd::new()?),
    });
    let polling = std::thread::spawn(move || {
        bind(arguments.core)?;
        core.run(&stop);
        Ok(())
    });
    let ended = polling.join();
    server.stop();
    ended.map_err(|_| anyhow!("the poll core stopped by a panic"))?
}

fn bind(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("bind to core {core}"))
}
