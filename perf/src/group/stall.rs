//! A peer that stands still while input comes as fast as it can: what the log takes in memory, and
//! whether anything that was acknowledged is lost. The peer is the backup; later it goes on, is
//! filled anew, and takes over from a primary that dies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dpdk_config::Eal;
use plover_types::LogIndex;

use super::member::{Kind, Member, Security};
use super::turns::{Group, Guests};
use super::wire::{Layout, Wire};
use super::{PACKET_BYTES, SEED};
use crate::interrupt;
use crate::measured::Measured;

const BURST_PACKETS: usize = 32;
const ELECTION_TICKS: u32 = 10;
/// Turns between two looks at the clock and at memory.
const TURNS_BETWEEN_LOOKS: usize = 1000;
/// As the poll core's longest.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);
/// Input before the peer stands still.
const WARM_UP: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Default)]
struct Seen {
    /// Number of the next burst.
    next: u64,
    /// Bursts that the guest was given.
    delivered: u64,
    /// Bursts that came out of order, twice or not at all.
    disordered: u64,
    /// Times that the log took no more.
    refused: u64,
    log_bytes_max: usize,
    resident_bytes_max: u64,
}

/// Stalls the peer for 60 s, or for 5.
pub fn run(eal: &Eal, is_quick: bool) -> Result<Vec<Measured>> {
    let stall = Duration::from_secs(if is_quick { 5 } else { 60 });
    let wire = Wire::open(eal, "wire", Layout::one_thread(0), SEED)?;
    let kind = Kind {
        name: "stall",
        election_ticks: ELECTION_TICKS,
        security: Security::default(),
    };
    let mut group = Group::start(wire, &kind, Guests::Both)?;
    let resident_before = resident_bytes()?;
    let mut seen = Seen::default();
    offer_for(&mut group, WARM_UP, &mut seen)?;
    seen = Seen {
        next: seen.next,
        delivered: seen.delivered,
        ..Seen::default()
    };
    let first = seen.next;
    let peer = group.members[1].take();
    offer_for(&mut group, stall, &mut seen)?;
    let during = seen.next - first;
    group.members[1] = peer;
    let lost = settle(&mut group, &mut seen)?;
    let row = |name: &str, unit, value| {
        Measured::new(
            format!("replication/stalled-peer/{name}"),
            unit,
            vec![value],
        )
    };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let growth = seen.resident_bytes_max as f64 - resident_before as f64;
    Ok(vec![
        row("log-max", "MiB", mib(seen.log_bytes_max as f64)),
        row("resident-growth", "MiB", mib(growth.max(0.0))),
        row("acknowledged-lost", "bursts", lost as f64),
        row(
            "acknowledged",
            "Mpackets",
            (during * BURST_PACKETS as u64) as f64 / 1e6,
        ),
        row("refused", "turns", seen.refused as f64),
    ])
}

/// Input at each turn.
fn offer_for(group: &mut Group, time: Duration, seen: &mut Seen) -> Result<()> {
    let end = Instant::now() + time;
    let mut offer = None;
    let mut last_sync = Instant::now();
    while Instant::now() < end {
        interrupt::check()?;
        if last_sync.elapsed() >= SYNC_INTERVAL && group.is_protected() {
            last_sync = Instant::now();
            group.want_sync()?;
        }
        for _ in 0..TURNS_BETWEEN_LOOKS {
            if offer.is_none() {
                offer = Some(group.burst(BURST_PACKETS, PACKET_BYTES, seen.next)?);
                seen.next += 1;
            }
            group.round(&mut offer)?;
            seen.refused += u64::from(offer.is_some());
            deliver(group.member(0)?, seen);
        }
        seen.look(group)?;
    }
    if offer.is_some() {
        // It was never taken, so nothing is owed for it.
        seen.next -= 1;
    }
    Ok(())
}

/// Gives the primary's guest its input and looks at the numbers.
fn deliver(first: &mut Member, seen: &mut Seen) {
    first
        .node_mut()
        .core_mut()
        .deliver_runs(|position, packets| {
            if position.packet == 0 {
                let number = packets[0].bytes.first_chunk().copied();
                seen.disordered +=
                    u64::from(number.map(u64::from_le_bytes) != Some(seen.delivered));
                seen.delivered += 1;
            }
            packets.len()
        });
}

impl Seen {
    fn look(&mut self, group: &Group) -> Result<()> {
        for member in group.members.iter().flatten() {
            let bytes = member.node().core().log_bytes();
            self.log_bytes_max = self.log_bytes_max.max(bytes);
        }
        self.resident_bytes_max = self.resident_bytes_max.max(resident_bytes()?);
        Ok(())
    }
}

/// The peer goes on and is filled; then the primary dies and the peer must have all of it. Returns
/// how many bursts that were acknowledged are missing.
fn settle(group: &mut Group, seen: &mut Seen) -> Result<u64> {
    let end = Instant::now() + PATIENCE;
    while seen.delivered < seen.next && Instant::now() < end {
        group.round(&mut None)?;
        deliver(group.member(0)?, seen);
    }
    let missing = seen.next - seen.delivered + seen.disordered;
    let last = group.applied();
    group
        .run_until(PATIENCE, |group| {
            group.is_protected() && applied(group, 1) >= last
        })
        .context("the peer does not catch up")?;
    group.members[0] = None;
    group
        .watch(PATIENCE, |group| {
            let peer = group.members[1].as_ref();
            peer.is_some_and(|peer| peer.node().core().may_transmit(peer.node().now()))
        })
        .context("the peer does not take over")?;
    ensure!(
        applied(group, 1) >= last,
        "the new primary has not applied what was acknowledged"
    );
    Ok(missing)
}

fn applied(group: &Group, number: usize) -> LogIndex {
    let member = group.members[number].as_ref();
    member.map_or(LogIndex(0), |member| member.node().core().applied())
}

fn resident_bytes() -> Result<u64> {
    const PAGE_BYTES: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").context("read own memory")?;
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|field| field.parse().ok())
        .context("own memory in /proc/self/statm")?;
    Ok(pages * PAGE_BYTES)
}
