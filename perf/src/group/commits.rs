//! What a commit costs and how long it takes, with the three nodes of a group taking turns on one
//! thread and real frames between them: with encryption, without it, and raft-rs by itself, in turn.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use dpdk_config::Eal;
use plover_types::LogIndex;

use super::member::{Kind, Security};
use super::raft_rs::Stock;
use super::samples::Samples;
use super::stopwatch::Detail;
use super::turns::{Group, Guests};
use super::wire::{Layout, Wire};
use super::{PACKET_BYTES, SEED};
use crate::measured::Measured;
use crate::stats;

/// Input is given to the guest in steps of this many commits, so that the log can be cut.
const DELIVER_EVERY: usize = 16;
const ELECTION_TICKS: u32 = 15;
/// Entries: packets in each.
const ENTRIES: [usize; 2] = [1, 32];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of each kind, one after another.
    pub rounds: usize,
    /// Commits in a sample.
    pub commits: usize,
}

impl Effort {
    /// Enough for a median; less when it must be quick.
    pub fn new(is_quick: bool) -> Self {
        Self {
            rounds: if is_quick { 3 } else { 9 },
            commits: if is_quick { 5_000 } else { 40_000 },
        }
    }
}

/// Measures all of it.
pub fn run(eal: &Eal, effort: Effort) -> Result<Vec<Measured>> {
    let mut groups = Vec::new();
    let securities = Security::ALL.into_iter();
    for (number, security) in securities.enumerate() {
        let layout = Layout::one_thread(number);
        let wire = Wire::open(eal, &format!("wire{number}"), layout, SEED)?;
        let kind = Kind {
            name: "commits",
            election_ticks: ELECTION_TICKS,
            security,
        };
        groups.push((security.name(), Group::start(wire, &kind, Guests::First)?));
    }
    let mut samples = Samples::default();
    for _ in 0..effort.rounds {
        stock(effort.commits, &mut samples)?;
        for packets in ENTRIES {
            for (name, group) in &mut groups {
                let of = format!("{name}/{packets}x{PACKET_BYTES}");
                one_outstanding(group, packets, effort.commits, &of, &mut samples)?;
                pipelined(group, packets, effort.commits, &of, &mut samples)?;
            }
        }
    }
    Ok(samples.rows())
}

/// raft-rs with its own storage. Anew each time: it drops nothing from its log.
fn stock(commits: usize, samples: &mut Samples) -> Result<()> {
    for packets in ENTRIES {
        let of = format!("raft-rs/{packets}x{PACKET_BYTES}");
        let data = entry_bytes(packets);
        let latencies = Stock::start()?.latencies(&data, commits)?;
        add_latencies(&latencies, &of, samples);
        let seconds = Stock::start()?.keep_offering(&data, commits)?;
        add_rate(commits, seconds, &of, samples);
    }
    Ok(())
}

/// As many bytes as an entry of ours has.
pub fn entry_bytes(packets: usize) -> Bytes {
    vec![7; 2 + packets * (5 + PACKET_BYTES)].into()
}

/// Their median and the one that 1 % exceed.
pub fn add_latencies(latencies: &[f64], of: &str, samples: &mut Samples) {
    for (what, share) in [("median", 0.5), ("p99", 0.99)] {
        let value = stats::share(latencies, share).unwrap_or(f64::NAN);
        let name = format!("replication/one-outstanding/{of}/{what}");
        samples.add(name, "us", value * 1e6);
    }
}

/// Commits a second.
pub fn add_rate(commits: usize, time: Duration, of: &str, samples: &mut Samples) {
    let rate = commits as f64 / time.as_secs_f64() / 1e3;
    samples.add(format!("replication/pipelined/{of}"), "kcommits/s", rate);
}

fn one_outstanding(
    group: &mut Group,
    packets: usize,
    commits: usize,
    of: &str,
    samples: &mut Samples,
) -> Result<()> {
    let latencies = latencies(group, packets, commits)?;
    add_latencies(&latencies, of, samples);
    if packets == 1 {
        watch(group, Detail::Steps);
        self::latencies(group, packets, commits)?;
        add_steps(group, of, commits as f64, samples)?;
    }
    Ok(())
}

/// Seconds from the proposal of each of `commits` entries to its being applied by the leader; the
/// next one is proposed then.
pub fn latencies(group: &mut Group, packets: usize, commits: usize) -> Result<Vec<f64>> {
    let mut latencies = Vec::with_capacity(commits);
    for number in 0..commits {
        let mut offer = Some(group.burst(packets, PACKET_BYTES, number as u64)?);
        let start = Instant::now();
        let index = LogIndex(group.applied().0 + 1);
        group.round_until_applied(index, &mut offer)?;
        latencies.push(start.elapsed().as_secs_f64());
        ensure!(offer.is_none(), "the log refused a burst");
        if number % DELIVER_EVERY == 0 {
            group.deliver();
        }
    }
    Ok(latencies)
}

fn pipelined(
    group: &mut Group,
    packets: usize,
    commits: usize,
    of: &str,
    samples: &mut Samples,
) -> Result<()> {
    let time = keep_offering(group, packets, commits)?;
    add_rate(commits, time, of, samples);
    if packets > 1 {
        watch(group, Detail::Turns);
        keep_offering(group, packets, commits)?;
        let leader = group.member(0)?.spent().turns;
        let per_packet = nanoseconds(leader) / (commits * packets) as f64;
        samples.add(format!("replication/leader-cpu/{of}"), "ns", per_packet);
        watch(group, Detail::Steps);
        keep_offering(group, packets, commits)?;
        add_steps(group, of, commits as f64, samples)?;
    }
    Ok(())
}

/// How long it takes to commit entries of which one is proposed at each turn of the leader.
pub fn keep_offering(group: &mut Group, packets: usize, commits: usize) -> Result<Duration> {
    let first = group.applied().0;
    let start = Instant::now();
    let mut offer = None;
    for number in 0..commits {
        if offer.is_none() {
            offer = Some(group.burst(packets, PACKET_BYTES, number as u64)?);
        }
        group.round(&mut offer)?;
        if number % DELIVER_EVERY == 0 {
            group.deliver();
        }
        ensure!(offer.is_none(), "the log refused a burst");
    }
    group.round_until_applied(LogIndex(first + commits as u64), &mut None)?;
    Ok(start.elapsed())
}

fn watch(group: &mut Group, detail: Detail) {
    for member in group.members.iter_mut().flatten() {
        member.watch(detail);
    }
}

/// What each step took of a commit, and stops the clocks.
fn add_steps(group: &mut Group, of: &str, commits: f64, samples: &mut Samples) -> Result<()> {
    let leader = group.member(0)?.spent();
    let mut followers = Duration::ZERO;
    for number in 1..group.members.len() {
        let spent = group.member(number)?.spent();
        followers += spent.receive + spent.propose + spent.send;
    }
    for (step, time) in [
        ("receive", leader.receive),
        ("propose", leader.propose),
        ("send", leader.send),
        ("followers", followers),
    ] {
        let name = format!("replication/step/{of}/{step}");
        samples.add(name, "ns", nanoseconds(time) / commits);
    }
    watch(group, Detail::Off);
    Ok(())
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
