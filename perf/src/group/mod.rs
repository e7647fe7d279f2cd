//! The replicated log as the product runs it: real nodes, real frames, DPDK ports between them.
//!
//! Each scenario is a process of its own (`plover-perf group SCENARIO`), pinned to its core, so
//! that DPDK is started once in it; it tells its figures as lines of JSON.

mod address;
mod commits;
mod copy;
mod election;
mod etcd;
pub mod loss;
mod member;
pub mod parent;
mod raft_rs;
mod samples;
mod stall;
mod stopwatch;
mod turns;
mod two_cores;
mod wire;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use dpdk_config::{Eal, EalConfig, HugePages};
use serde::{Deserialize, Serialize};

use crate::hugepages::Hugepages;
use crate::interrupt;
use crate::measured::Measured;
use crate::placement::Placement;

/// Bytes of each packet.
const PACKET_BYTES: usize = 64;
/// What losses are drawn from.
const SEED: u64 = 0x506c_6f76_6572;
/// DPDK's memory.
const MEMORY_MIB: u32 = 64;

/// What takes turns with each other: ours with encryption and without, and raft-rs.
pub const SYSTEMS: [&str; 3] = ["encrypted", "plain", "raft-rs"];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// What a commit costs and how long it takes.
    Commits,
    /// Commits over a wire that loses frames.
    Loss,
    /// A primary that dies.
    Election,
    /// A peer that stands still.
    Stall,
    /// The leader on one core, the followers on another.
    TwoCores,
    /// The same commits through etcd.
    Etcd,
}

/// What `plover-perf group` is told.
#[derive(Clone, Debug, Args)]
pub struct GroupArguments {
    /// What to measure.
    scenario: Scenario,
    /// Fewer and shorter samples.
    #[arg(long)]
    quick: bool,
    /// The core to run on, and one more where two are needed.
    #[arg(long, value_parser = crate::run::parse_cores, default_value = "0,1")]
    cores: (usize, usize),
    /// Ordinary memory instead of hugepages.
    #[arg(long)]
    no_huge_pages: bool,
}

/// A figure as a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its samples.
    pub samples: Vec<f64>,
    /// What to know about it; why there is no value, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How near to each other the cores were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Command lines of other programs that it was measured with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

impl Scenario {
    /// Whether a figure is one of its.
    pub fn tells(self, figure: &str) -> bool {
        let of = |parts: &[&str]| {
            let parts = parts.iter();
            parts
                .map(|part| format!("replication/{part}/"))
                .any(|prefix| figure.starts_with(&prefix))
        };
        match self {
            Self::Commits => {
                let mut systems = SYSTEMS.iter();
                of(&["leader-cpu", "step"])
                    || systems.any(|system| {
                        of(&[
                            &format!("one-outstanding/{system}"),
                            &format!("pipelined/{system}"),
                        ])
                    })
            }
            Self::Loss => of(&["loss"]),
            Self::Election => of(&["election"]),
            Self::Stall => of(&["stalled-peer"]),
            Self::TwoCores => of(&["two-cores"]),
            Self::Etcd => of(&["one-outstanding/etcd", "pipelined/etcd"]),
        }
    }
}

/// Measures, and tells the figures.
pub fn run(arguments: &GroupArguments) -> Result<()> {
    interrupt::install()?;
    let rows = match arguments.scenario {
        Scenario::Etcd => etcd::run(arguments.cores, arguments.quick)?,
        scenario => over_ports(scenario, arguments)?,
    };
    for row in rows {
        println!("{}", serde_json::to_string(&told(row))?);
    }
    print!("{}", parent::DONE);
    Ok(())
}

fn over_ports(scenario: Scenario, arguments: &GroupArguments) -> Result<Vec<Measured>> {
    let _hugepages = (!arguments.no_huge_pages)
        .then(|| Hugepages::reserve(MEMORY_MIB as usize))
        .transpose()?;
    let eal = Eal::init(&EalConfig {
        huge_pages: if arguments.no_huge_pages {
            HugePages::Off
        } else {
            HugePages::On
        },
        memory_mib: MEMORY_MIB,
        main_core: Some(arguments.cores.0),
        file_prefix: Some(format!("plover-group-{}", std::process::id())),
        pci: false,
    })
    .context("start DPDK")?;
    let _registered = eal.register_thread().context("register with EAL")?;
    let is_quick = arguments.quick;
    match scenario {
        Scenario::Commits => commits::run(&eal, commits::Effort::new(is_quick)),
        Scenario::Loss => loss::run(&eal, is_quick),
        Scenario::Election => election::run(&eal),
        Scenario::Stall => stall::run(&eal, is_quick),
        Scenario::TwoCores => two_cores::run(&eal, arguments.cores, is_quick),
        Scenario::Etcd => etcd::run(arguments.cores, is_quick),
    }
}

fn told(row: Measured) -> Told {
    Told {
        name: row.name,
        samples: row.samples,
        reason: row.reason,
        placement: row.placement,
        commands: row.commands,
    }
}
