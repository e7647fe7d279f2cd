//! From the first request for votes after the primary's death until the backup serves: its role
//! entry is committed and applied, its lease holds, and what its copy had sent before may leave.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dpdk_config::Eal;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use replication::core::Notice;
use replication::output_rule::HoldQueue;

use super::member::{Kind, Member, Security};
use super::samples::Samples;
use super::turns::{Group, Guests};
use super::wire::{Layout, Wire};
use super::{PACKET_BYTES, SEED};
use crate::measured::Measured;

/// How often the primary dies.
const KILLS: usize = 25;
/// Ticks of 10 ms without a leader: detection as by default.
const ELECTION_TICKS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// The primary dies between so many commits and twice as many.
const COMMITS_BEFORE: usize = 20_000;
/// Commits between two syncs.
const SYNC_EVERY: usize = 5_000;

/// Measures it.
pub fn run(eal: &Eal) -> Result<Vec<Measured>> {
    let mut wire = Wire::open(eal, "wire", Layout::one_thread(0), SEED)?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut samples = Samples::default();
    for _ in 0..KILLS {
        let kind = Kind {
            name: "election",
            election_ticks: ELECTION_TICKS,
            security: Security::default(),
        };
        let mut group = Group::start(wire, &kind, Guests::Both)?;
        load(
            &mut group,
            COMMITS_BEFORE + random.random_range(0..COMMITS_BEFORE),
        )?;
        kill(&mut group, &mut samples)?;
        wire = group.wire;
    }
    Ok(samples.rows())
}

/// Commits and syncs, as under load.
fn load(group: &mut Group, commits: usize) -> Result<()> {
    let mut offer = None;
    for number in 0..commits {
        if offer.is_none() {
            offer = Some(group.burst(1, PACKET_BYTES, number as u64)?);
        }
        if number.is_multiple_of(SYNC_EVERY) {
            group.want_sync()?;
        }
        group.round(&mut offer)?;
        group.deliver();
    }
    Ok(())
}

fn kill(group: &mut Group, samples: &mut Samples) -> Result<()> {
    // What the backup's copy has sent and nobody has seen.
    let mut hold = HoldQueue::default();
    hold.push(());
    for member in group.members.iter_mut().flatten() {
        member.take_notes();
    }
    let killed = Instant::now();
    group.members[0] = None;
    let mut campaign = None;
    let served = group.watch(PATIENCE, |group| {
        for member in group.members.iter_mut().flatten() {
            campaign = campaign.or_else(|| first_campaign(member));
        }
        group.members[1]
            .as_ref()
            .is_some_and(|backup| serves(backup, &mut hold))
    });
    let served = served.context("the backup does not serve")?;
    let campaign = campaign.context("nobody asked for votes")?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    samples.add("replication/election/serving", "ms", ms(served - campaign));
    samples.add(
        "replication/election/detection",
        "ms",
        ms(campaign - killed),
    );
    Ok(())
}

fn first_campaign(member: &mut Member) -> Option<Instant> {
    let notes = member.take_notes().into_iter();
    notes
        .filter(|(_, notice)| matches!(notice, Notice::Campaign { .. }))
        .map(|(at, _)| at)
        .next()
}

/// Whether output that was held leaves now, as the poll core decides it.
fn serves(backup: &Member, hold: &mut HoldQueue<()>) -> bool {
    let core = backup.node().core();
    if !core.may_transmit(backup.node().now()) {
        return false;
    }
    hold.set_policy(core.output_policy(hold.has_closed()));
    hold.pop_agreed().is_some()
}
