//! The leader on one core, both followers on another, `net_memif` between them: what a commit takes
//! where it has to cross between cores. Samples are kept where the cores were near to each other
//! before and after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dpdk_config::Eal;
use tempfile::TempDir;

use super::address::NODES;
use super::commits::latencies;
use super::member::{Kind, Security};
use super::turns::{Group, Guests};
use super::wire::{Layout, Wire};
use super::{PACKET_BYTES, SEED};
use crate::backend;
use crate::datapath::alternate::{Effort, Kept, Rounds};
use crate::measured::Measured;
use crate::stats;

const ELECTION_TICKS: u32 = 15;
const COMMITS: usize = 5_000;
/// How long to wait for cores that are near to each other.
const NEAR_PATIENCE: Duration = Duration::from_secs(10);
/// Entries: packets in each.
const ENTRIES: [usize; 2] = [1, 32];
/// What is taken of the latencies of a sample.
const SHARES: [(&str, f64); 2] = [("median", 0.5), ("p99", 0.99)];

/// Measures it.
pub fn run(eal: &Eal, cores: (usize, usize), is_quick: bool) -> Result<Vec<Measured>> {
    let folder = tempfile::tempdir().context("make a folder for the cables' sockets")?;
    let kind = Kind {
        name: "two-cores",
        election_ticks: ELECTION_TICKS,
        security: Security::default(),
    };
    let [near, far] = layouts(&folder);
    // The serving ends first.
    let near = Wire::open(eal, "near", near, SEED)?;
    let far = Wire::open(eal, "far", far, SEED)?;
    let mut leader = Group::of(near, &kind, &[0])?;
    let mut followers = Group::of(far, &kind, &[1, 2])?;
    let mut beside = |work: &mut dyn FnMut(&mut Group) -> Result<()>| {
        beside(eal, cores, &mut leader, &mut followers, work)
    };
    beside(&mut |group| group.serve(Guests::First))?;
    let effort = Effort {
        starts: 1,
        rounds: if is_quick { 5 } else { 9 },
        window: Duration::ZERO,
        patience: NEAR_PATIENCE,
    };
    let mut samples = Rounds::new(ENTRIES.len() * SHARES.len(), cores, effort, &[])?;
    for round in 0..effort.rounds {
        for (at, packets) in ENTRIES.into_iter().enumerate() {
            for (share_at, (_, share)) in SHARES.into_iter().enumerate() {
                samples.measure(at * SHARES.len() + share_at, round, |_| {
                    let mut value = None;
                    beside(&mut |group| {
                        value = stats::share(&latencies(group, packets, COMMITS)?, share);
                        Ok(())
                    })?;
                    value.context("no commits")
                })?;
            }
        }
    }
    let kept = samples.select(vec![None; ENTRIES.len() * SHARES.len()])?;
    Ok(rows(&kept))
}

fn rows(kept: &Kept) -> Vec<Measured> {
    let names = ENTRIES.into_iter().flat_map(|packets| {
        SHARES.map(|(what, _)| format!("replication/two-cores/{packets}x{PACKET_BYTES}/{what}"))
    });
    names
        .zip(&kept.series)
        .map(|(name, series)| match series {
            Ok(series) => {
                let us = series.values().map(|seconds| seconds * 1e6).collect();
                let mut row = Measured::new(name, "us", us);
                row.placement = Some(kept.placement);
                row
            }
            Err(reason) => Measured::failed(name, "us", reason),
        })
        .collect()
}

/// Runs `work` with the leader on the first core while the followers poll on the second.
fn beside(
    eal: &Eal,
    cores: (usize, usize),
    leader: &mut Group,
    followers: &mut Group,
    work: &mut dyn FnMut(&mut Group) -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let polling = scope.spawn(|| -> Result<()> {
            backend::pin(Some(cores.1))?;
            let _registered = eal.register_thread().context("register with EAL")?;
            while !stop.load(Ordering::Relaxed) {
                followers.round(&mut None)?;
            }
            Ok(())
        });
        let done = work(leader);
        stop.store(true, Ordering::Relaxed);
        let polled = polling.join();
        polled.map_err(|_| anyhow!("the followers' thread panicked"))??;
        done
    })
}

/// A cable from the leader to each follower, and rings between these.
fn layouts(folder: &TempDir) -> [Layout; 2] {
    let cable = |number: usize, role: &str| {
        let socket = folder.path().join(format!("cable{}", number / 2));
        format!(
            "net_memif{number},role={role},id={},socket={},socket-abstract=no",
            number / 2,
            socket.display()
        )
    };
    let mut near = [[None; NODES]; NODES];
    (near[0][1], near[0][2]) = (Some(0), Some(1));
    let mut far = [[None; NODES]; NODES];
    (far[1][0], far[2][0], far[1][2], far[2][1]) = (Some(0), Some(1), Some(3), Some(2));
    [
        Layout {
            devices: vec![cable(0, "server"), cable(2, "server")],
            inlets: [vec![0, 1], vec![], vec![]],
            routes: near,
        },
        Layout {
            devices: vec![
                cable(1, "client"),
                cable(3, "client"),
                "net_ring1".to_owned(),
                "net_ring2".to_owned(),
            ],
            inlets: [vec![], vec![0, 2], vec![1, 3]],
            routes: far,
        },
    ]
}
