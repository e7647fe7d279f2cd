//! What a run is like: what the caller asks for, and what the seed draws.

use rand::Rng;
use rand::rngs::SmallRng;
use replication::plan::OnBackupLoss;

use crate::coverage::SyncSide;
use crate::step::{Interruption, Step};

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Nodes of the group: 3, or 1.
    pub nodes: usize,
    /// Whether anything fails.
    pub with_faults: bool,
    /// Records what happens, for a seed that failed.
    pub trace: bool,
}

impl Options {
    /// A group of three nodes, with faults.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            nodes: 3,
            with_faults: true,
            trace: false,
        }
    }
}

/// A fault that waits for a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    pub(crate) side: SyncSide,
    pub(crate) step: Step,
    pub(crate) by: Interruption,
    /// Not before.
    pub(crate) from_us: u64,
}

/// What the seed draws for the whole run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Replicas keep their log on disk, too, and come back under their id.
    pub(crate) replicas_durable: bool,
    pub(crate) on_backup_loss: OnBackupLoss,
    /// The second replica's host is not like the first one's.
    pub(crate) unequal_hosts: bool,
    /// One in so many chances to ask for a sync is taken.
    pub(crate) sync_rarity: u32,
    /// Longest time between two bursts of the client, µs.
    pub(crate) client_gap_max_us: u64,
    /// Longest time between two faults, µs.
    pub(crate) fault_gap_max_us: u64,
    pub(crate) faults_until_us: u64,
    pub(crate) aims: Vec<Aim>,
}

/// Before it the group has time to elect and to boot.
pub(crate) const FAULTS_FROM_US: u64 = 500_000;

impl Settings {
    pub(crate) fn draw(options: &Options, random: &mut SmallRng) -> Self {
        let faults_until_us = random.random_range(1_000_000..2_400_000);
        Self {
            replicas_durable: random.random_ratio(2, 3),
            on_backup_loss: if random.random_ratio(1, 8) {
                OnBackupLoss::Stall
            } else {
                OnBackupLoss::Continue
            },
            unequal_hosts: options.with_faults && random.random_ratio(1, 24),
            sync_rarity: random.random_range(2..8),
            client_gap_max_us: random.random_range(5_000..24_000),
            fault_gap_max_us: random.random_range(150_000..700_000),
            faults_until_us,
            aims: aims(options.seed, faults_until_us, random),
        }
    }
}

/// Each seed aims at other steps: seeds in a row go through all of them.
fn aims(seed: u64, faults_until_us: u64, random: &mut SmallRng) -> Vec<Aim> {
    let cells: Vec<_> = Step::interruptible().collect();
    let mut aims: Vec<Aim> = (0..3u64)
        .map(|number| {
            let at = seed.wrapping_mul(3).wrapping_add(number) % cells.len() as u64;
            let (side, step, by) = cells[at as usize];
            Aim {
                side,
                step,
                by,
                from_us: random.random_range(FAULTS_FROM_US..faults_until_us),
            }
        })
        .collect();
    aims.sort_by_key(|aim| aim.from_us);
    aims
}
