//! Commits over a wire that loses frames and on which they travel for a while. Without loss, with
//! 1 % and with 5 %, in turn; with all three nodes, and with one follower dead: then the other's
//! acknowledgement is always needed, and each loss shows.

use std::time::Duration;

use anyhow::Result;
use dpdk_config::Eal;

use super::SEED;
use super::commits::latencies;
use super::member::{Kind, Security};
use super::samples::Samples;
use super::turns::{Group, Guests};
use super::wire::{Condition, Layout, Wire};
use crate::measured::Measured;
use crate::stats;

/// How long a frame travels.
const DELAY: Duration = Duration::from_micros(25);
/// There and back, in microseconds; what the nodes take is not in it.
const ROUND_TRIP_US: f64 = 50.0;
/// Frames lost, in per cent.
pub const PERCENT: [u32; 3] = [0, 1, 5];
const ELECTION_TICKS: u32 = 15;

/// With all nodes, and with a quorum.
pub const NODES_ALIVE: [(usize, &str); 2] = [(3, "three-nodes"), (2, "two-nodes")];

/// Measures all of it.
pub fn run(eal: &Eal, is_quick: bool) -> Result<Vec<Measured>> {
    let (rounds, commits) = if is_quick { (5, 1_000) } else { (9, 3_000) };
    let mut samples = Samples::default();
    for (number, (alive, name)) in NODES_ALIVE.into_iter().enumerate() {
        let wire = Wire::open(eal, name, Layout::one_thread(number), SEED)?;
        let kind = Kind {
            name: "loss",
            election_ticks: ELECTION_TICKS,
            security: Security::default(),
        };
        let mut group = Group::start(wire, &kind, Guests::First)?;
        group.members[alive..].fill_with(|| None);
        for _ in 0..rounds {
            round(&mut group, name, commits, &mut samples)?;
        }
    }
    Ok(samples.rows())
}

/// Each loss once.
fn round(group: &mut Group, name: &str, commits: usize, samples: &mut Samples) -> Result<()> {
    let mut unharmed_us = f64::NAN;
    for percent in PERCENT {
        group.wire.set(Condition {
            delay: DELAY,
            loss: f64::from(percent) / 100.0,
        });
        let latencies = latencies(group, 1, commits)?;
        let of = |share| stats::share(&latencies, share).unwrap_or(f64::NAN) * 1e6;
        let (median, p99) = (of(0.5), of(0.99));
        let prefix = format!("replication/loss/{name}/{percent}-percent");
        samples.add(format!("{prefix}/median"), "us", median);
        samples.add(format!("{prefix}/p99"), "us", p99);
        if percent == 0 {
            unharmed_us = median;
            continue;
        }
        samples.add(
            format!("{prefix}/median-ratio"),
            "ratio",
            median / unharmed_us,
        );
        let excess_ms = (p99 - 3.0 * ROUND_TRIP_US) / 1e3;
        samples.add(
            format!("{prefix}/p99-beyond-three-round-trips"),
            "ms",
            excess_ms,
        );
    }
    Ok(())
}
