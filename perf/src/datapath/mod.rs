//! The packet path against DPDK's own, A against B in one run.
//!
//! All pairs of a scenario live at once, each of a backend and a frontend on the same two cores.
//! All but one are stopped (SIGSTOP); the one that runs is sampled for a moment, then the next:
//!
//! ```text
//!   probe | A runs | probe | B runs | probe | C runs | probe | A runs | …
//! ```
//!
//! So what drifts on the machine drifts for all of them, and the probe of the cores' distance has
//! the cores to itself. The frontend counts, in all pairs the same program.

pub mod alternate;
mod contestant;
mod extras;
mod scenario;
mod uplinks;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::alternate::{Effort, Kept, Rounds, ratios};
use self::contestant::{Contestant, Pair, Place};
pub use self::scenario::Direction;
use self::scenario::Scenario;
pub use self::uplinks::{Uplink, run as run_uplinks};
use crate::hugepages::Hugepages;
use crate::measured::Measured;
use crate::placement;
use crate::testpmd::{self, MEMORY_MIB};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fewer and shorter samples.
    pub quick: bool,
    /// Only this direction.
    pub direction: Option<Direction>,
    /// Only this frame size.
    pub frame_bytes: Option<usize>,
    /// The two cores; none: the nearest.
    pub cores: Option<(usize, usize)>,
    /// The baseline and itself, nothing of ours.
    pub selftest_only: bool,
    /// How long to wait, for each scenario, for cores that are near to each other.
    pub patience: Duration,
    /// Round trips of the cores that runs before this one have seen, in ns.
    pub known_round_trips_ns: Vec<f64>,
}

const SMALLEST_BYTES: usize = 64;
const FRAME_BYTES: [usize; 3] = [SMALLEST_BYTES, 512, 1500];
/// Where the baseline is held against itself in each run.
const SELFTEST: Scenario = Scenario {
    direction: Direction::GuestToHost,
    frame_bytes: SMALLEST_BYTES,
};
/// Hugepage memory of one of our backends, and DPDK's overhead for each process.
const MARGIN_MIB: usize = 16;

/// Measures, and tells how it goes on standard error. `done` gets the figures of each scenario as
/// soon as they are there.
pub fn run(options: &Options, mut done: impl FnMut(Vec<Measured>) -> Result<()>) -> Result<()> {
    testpmd::check_installed()?;
    let cores = placement::choose_cores(options.cores)?;
    for scenario in scenarios(options) {
        eprintln!("{} …", scenario.name());
        let contestants = contestants(options, scenario);
        let hugepages_mib = contestants.len() * 2 * (MEMORY_MIB + MARGIN_MIB);
        let _hugepages = Hugepages::reserve(hugepages_mib)?;
        let kept = measure(scenario, &contestants, cores, options)?;
        done(kept)?;
    }
    Ok(())
}

/// Who takes part in a scenario, the baseline first.
fn contestants(options: &Options, scenario: Scenario) -> Vec<Contestant> {
    let mut all = vec![Contestant::Testpmd];
    if scenario == SELFTEST {
        all.push(Contestant::TestpmdAgain);
    }
    if options.selftest_only {
        all.resize(2, Contestant::TestpmdAgain);
        return all;
    }
    all.push(Contestant::Passthrough);
    if scenario.frame_bytes == SMALLEST_BYTES {
        all.push(Contestant::PassthroughUnlogged);
    }
    all.push(Contestant::Sequenced { nodes: 1 });
    if scenario == extras::SCENARIO {
        all.push(Contestant::SequencedUncounted);
    }
    all.push(Contestant::Sequenced { nodes: 3 });
    all
}

fn scenarios(options: &Options) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for direction in Direction::ALL {
        for frame_bytes in FRAME_BYTES {
            let is_wanted = options.direction.is_none_or(|only| only == direction)
                && options.frame_bytes.is_none_or(|only| only == frame_bytes);
            if is_wanted {
                scenarios.push(Scenario {
                    direction,
                    frame_bytes,
                });
            }
        }
    }
    scenarios
}

fn effort(options: &Options) -> Effort {
    let (starts, rounds, window_ms) = if options.quick {
        (1, 3, 120)
    } else {
        (2, 5, 250)
    };
    Effort {
        starts,
        rounds,
        window: Duration::from_millis(window_ms),
        patience: options.patience,
    }
}

fn measure(
    scenario: Scenario,
    contestants: &[Contestant],
    cores: (usize, usize),
    options: &Options,
) -> Result<Vec<Measured>> {
    let effort = effort(options);
    let known_ns = &options.known_round_trips_ns;
    let mut rounds = Rounds::new(contestants.len(), cores, effort, known_ns)?;
    let mut entrants: Vec<Entrant> = contestants.iter().map(|one| Entrant::new(*one)).collect();
    for start in 0..effort.starts {
        let mut pairs = start_all(scenario, &mut entrants, cores, start % 2 == 1)?;
        let first = start * effort.rounds;
        for round in first..first + effort.rounds {
            for (at, entrant) in entrants.iter_mut().enumerate() {
                entrant.attempt(&mut pairs[at], |pair| {
                    rounds.measure(at, round, |window| pair.sample(window))
                })?;
            }
        }
        if start == 0 && scenario == extras::SCENARIO {
            extras::count(&mut entrants, &mut pairs)?;
        }
        // The next start finds the cores and the memory free.
        drop(pairs);
    }
    let failures = entrants.iter().map(|entrant| entrant.failure.clone());
    let kept = rounds.select(failures.collect())?;
    Ok(figures(scenario, &entrants, &kept))
}

/// A backend in a scenario, over all starts.
struct Entrant {
    contestant: Contestant,
    /// What was counted of it beside its rate.
    extras: Vec<Measured>,
    commands: Vec<String>,
    /// Why it is out.
    failure: Option<String>,
}

impl Entrant {
    fn new(contestant: Contestant) -> Self {
        Self {
            contestant,
            extras: Vec::new(),
            commands: Vec::new(),
            failure: None,
        }
    }

    /// Does something with its pair, if it has one; an error puts it out. An interruption ends all.
    fn attempt(
        &mut self,
        pair: &mut Option<Pair>,
        action: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<()> {
        let Some(running) = pair else { return Ok(()) };
        if let Err(error) = action(running) {
            crate::interrupt::check()?;
            self.failure = Some(format!("{error:#}"));
            *pair = None;
        }
        Ok(())
    }
}

/// A pair for each that is not out.
fn start_all(
    scenario: Scenario,
    entrants: &mut [Entrant],
    cores: (usize, usize),
    is_reversed: bool,
) -> Result<Vec<Option<Pair>>> {
    let folder = tempfile::Builder::new()
        .prefix("plover-perf-")
        .tempdir()
        .context("make a folder for sockets")?;
    let place = Place {
        cores,
        folder: folder.path(),
        executables: &executables()?,
    };
    let mut pairs: Vec<Option<Pair>> = entrants.iter().map(|_| None).collect();
    let mut order: Vec<usize> = (0..entrants.len()).collect();
    if is_reversed {
        order.reverse();
    }
    for at in order {
        let entrant = &mut entrants[at];
        if entrant.failure.is_some() {
            continue;
        }
        match entrant.contestant.start(scenario, &place) {
            Ok(pair) => {
                entrant.commands = pair.commands().to_vec();
                pairs[at] = Some(pair);
            }
            Err(error) => {
                crate::interrupt::check()?;
                ensure!(
                    entrant.contestant != Contestant::Testpmd,
                    "the baseline does not run: {error:#}"
                );
                entrant.failure = Some(format!("{error:#}"));
            }
        }
    }
    Ok(pairs)
}

fn executables() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find own executable")?;
    let folder = own.parent().context("find own folder")?;
    ensure!(folder.is_dir(), "{} is gone", folder.display());
    Ok(folder.to_owned())
}

/// What is told of a contestant.
enum Told {
    /// Its rate; and against another's, by this name.
    Rate(Option<(&'static str, Contestant)>),
    /// Only against another's, by this name.
    Ratio(&'static str, Contestant),
    /// Which share of its own rate another loses, by this name.
    Cost(&'static str, Contestant),
}

fn told(contestant: Contestant) -> Told {
    match contestant {
        Contestant::Testpmd | Contestant::Sequenced { nodes: 2.. } => Told::Rate(None),
        Contestant::TestpmdAgain => Told::Ratio("selftest", Contestant::Testpmd),
        Contestant::Passthrough => {
            Told::Rate(Some(("passthrough-of-testpmd", Contestant::Testpmd)))
        }
        Contestant::Sequenced { .. } => {
            Told::Rate(Some(("sequenced-of-passthrough", Contestant::Passthrough)))
        }
        Contestant::PassthroughUnlogged => {
            Told::Cost("cost/logging-writes", Contestant::Passthrough)
        }
        Contestant::SequencedUncounted => {
            Told::Cost("cost/step-counters", Contestant::Sequenced { nodes: 1 })
        }
    }
}

/// Rates, ratios, costs, and what was counted beside them.
fn figures(scenario: Scenario, entrants: &[Entrant], kept: &Kept) -> Vec<Measured> {
    let mut figures = Vec::new();
    for (at, entrant) in entrants.iter().enumerate() {
        let name = |what: &str| format!("datapath/{what}/{}", scenario.name());
        let own = kept.series[at].as_ref();
        let against = |other: Contestant, compare: fn(f64) -> f64| {
            let base = entrants.iter().position(|base| base.contestant == other);
            let base = base.unwrap_or(0);
            let samples = own.and_then(|own| {
                let ratios = ratios(own, kept.series[base].as_ref()?);
                Ok(ratios.into_iter().map(compare).collect::<Vec<f64>>())
            });
            let commands = [&entrant.commands[..], &entrants[base].commands[..]].concat();
            (samples, commands)
        };
        let ratio = |what: &str, other| {
            let (samples, commands) = against(other, |ratio| ratio);
            figure(name(what), "ratio", samples, commands, kept)
        };
        match told(entrant.contestant) {
            Told::Rate(compared) => {
                let rate = own.map(|series| series.values().copied().collect());
                let name = name(entrant.contestant.name());
                let commands = entrant.commands.clone();
                figures.push(figure(name, "Mpps", rate, commands, kept));
                figures.extend(compared.map(|(what, other)| ratio(what, other)));
            }
            Told::Ratio(what, other) => figures.push(ratio(what, other)),
            Told::Cost(what, other) => {
                // Of A/B, A without what costs: what B lacks is 1 - B/A.
                let (samples, commands) = against(other, |ratio| 1.0 - 1.0 / ratio);
                figures.push(figure(name(what), "share", samples, commands, kept));
            }
        }
        figures.extend(entrant.extras.iter().cloned());
    }
    figures
}

fn figure(
    name: String,
    unit: &'static str,
    samples: Result<Vec<f64>, &String>,
    commands: Vec<String>,
    kept: &Kept,
) -> Measured {
    let measured = match samples {
        Ok(samples) => Measured::new(name, unit, samples),
        Err(reason) => Measured::failed(name, unit, reason),
    };
    let is_far = kept.placement.class > 0;
    let far = format!(
        "the cores were {:.0} ns apart and have been nearer",
        kept.placement.round_trip_ns_min
    );
    Measured {
        commands,
        placement: Some(kept.placement),
        reason: measured.reason.or(is_far.then_some(far)),
        ..measured
    }
}
