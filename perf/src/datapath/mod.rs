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

mod alternate;
mod contestant;
mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::alternate::{Effort, Kept, alternate, ratios};
use self::contestant::{Contestant, Pair, Place};
pub use self::scenario::Direction;
use self::scenario::Scenario;
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
}

const FRAME_BYTES: [usize; 3] = [64, 512, 1500];
/// Hugepage memory of one of our backends, and DPDK's overhead for each process.
const MARGIN_MIB: usize = 16;

/// Measures, and tells how it goes on standard error. `done` gets the figures of each scenario as
/// soon as they are there.
pub fn run(options: &Options, mut done: impl FnMut(Vec<Measured>) -> Result<()>) -> Result<()> {
    testpmd::check_installed()?;
    let cores = placement::choose_cores(options.cores)?;
    let contestants = contestants(options);
    let hugepages_mib = contestants.len() * 2 * (MEMORY_MIB + MARGIN_MIB);
    let _hugepages = Hugepages::reserve(hugepages_mib)?;
    for scenario in scenarios(options) {
        eprintln!("{} …", scenario.name());
        let kept = measure(scenario, &contestants, cores, options)?;
        done(kept)?;
    }
    Ok(())
}

fn contestants(options: &Options) -> Vec<Contestant> {
    if options.selftest_only {
        return vec![Contestant::Testpmd, Contestant::TestpmdAgain];
    }
    vec![
        Contestant::Testpmd,
        Contestant::Passthrough,
        Contestant::Sequenced { nodes: 1 },
        Contestant::Sequenced { nodes: 3 },
    ]
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

fn effort(quick: bool) -> Effort {
    let (rounds, window_ms) = if quick { (3, 120) } else { (9, 250) };
    Effort {
        rounds,
        window: Duration::from_millis(window_ms),
    }
}

fn measure(
    scenario: Scenario,
    contestants: &[Contestant],
    cores: (usize, usize),
    options: &Options,
) -> Result<Vec<Measured>> {
    let folder = tempfile::Builder::new()
        .prefix("plover-perf-")
        .tempdir()
        .context("make a folder for sockets")?;
    let place = Place {
        cores,
        folder: folder.path(),
        executables: &executables()?,
    };
    let mut pairs: Vec<Result<Pair, String>> = Vec::new();
    for contestant in contestants {
        crate::interrupt::check()?;
        let pair = contestant.start(scenario, &place);
        pairs.push(pair.map_err(|error| format!("{error:#}")));
    }
    if let Some(Err(reason)) = pairs.first() {
        anyhow::bail!("the baseline does not run: {reason}");
    }
    let commands: Vec<Vec<String>> = pairs
        .iter()
        .map(|pair| {
            pair.as_ref()
                .map_or_else(|_| Vec::new(), |p| p.commands().to_vec())
        })
        .collect();
    let kept = alternate(&mut pairs, cores, effort(options.quick))?;
    Ok(figures(scenario, contestants, &commands, &kept))
}

fn executables() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find own executable")?;
    let folder = own.parent().context("find own folder")?;
    ensure!(folder.is_dir(), "{} is gone", folder.display());
    Ok(folder.to_owned())
}

/// Which ratio is told of a contestant: its name, and against whom.
fn ratio_of(contestant: Contestant) -> Option<(&'static str, Contestant)> {
    match contestant {
        Contestant::TestpmdAgain => Some(("selftest", Contestant::Testpmd)),
        Contestant::Passthrough => Some(("passthrough-of-testpmd", Contestant::Testpmd)),
        Contestant::Sequenced { nodes: 1 } => {
            Some(("sequenced-of-passthrough", Contestant::Passthrough))
        }
        Contestant::Testpmd | Contestant::Sequenced { .. } => None,
    }
}

/// Rates of all, and the ratios.
fn figures(
    scenario: Scenario,
    contestants: &[Contestant],
    commands: &[Vec<String>],
    kept: &Kept,
) -> Vec<Measured> {
    let name = |what: &str| format!("datapath/{what}/{}", scenario.name());
    let mut figures = Vec::new();
    for (at, contestant) in contestants.iter().enumerate() {
        let series = kept.series[at].as_ref();
        if *contestant != Contestant::TestpmdAgain {
            let rate = series.map(|series| series.values().copied().collect());
            let own = commands[at].clone();
            figures.push(figure(name(contestant.name()), "Mpps", rate, own, kept));
        }
        let Some((what, other)) = ratio_of(*contestant) else {
            continue;
        };
        let Some(base) = contestants.iter().position(|base| *base == other) else {
            continue;
        };
        let ratio = series.and_then(|own| Ok(ratios(own, kept.series[base].as_ref()?)));
        let both = [commands[at].clone(), commands[base].clone()].concat();
        figures.push(figure(name(what), "ratio", ratio, both, kept));
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
    Measured {
        commands,
        placement: Some(kept.placement),
        ..measured
    }
}
