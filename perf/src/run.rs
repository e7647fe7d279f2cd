//! `plover-perf run` and `check`: all parts, one file of results.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::datapath::{self, Direction};
use crate::figure::Figure;
use crate::machine::Machine;
use crate::measured::Measured;
use crate::promises::{self, Part, Promise};
use crate::{check, commit, digest, group, interrupt, placement, plot, proofs, results, table};

/// What to measure and where to put it.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// The data path: only this direction.
    #[arg(long)]
    direction: Option<Direction>,
    /// The data path: only frames of this size.
    #[arg(long)]
    frame_bytes: Option<usize>,
    /// These two cores, of the data path `frontend,backend`; otherwise the nearest two.
    #[arg(long, value_parser = parse_cores)]
    cores: Option<(usize, usize)>,
    /// The data path: testpmd against itself and nothing of ours.
    #[arg(long)]
    selftest: bool,
    /// The data path: only passthrough over uplinks that lead out of the process.
    #[arg(long, conflicts_with_all = ["direction", "frame_bytes", "selftest"])]
    uplinks: bool,
    /// The log: only this scenario.
    #[arg(long)]
    scenario: Option<group::Scenario>,
    /// Fewer and shorter samples.
    #[arg(long)]
    quick: bool,
    /// The data path: how long to wait, for each direction and size, for cores that are near to
    /// each other.
    #[arg(long, default_value_t = 15)]
    patience_seconds: u64,
    /// The file of results; rows that are not measured now stay in it.
    #[arg(long, default_value = "target/perf/results.json")]
    results: PathBuf,
    /// Draw the data path's figures into this SVG afterwards.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// The file of results.
    #[arg(long, default_value = "target/perf/results.json")]
    results: PathBuf,
}

/// Measures, writes the results, prints them.
pub fn run(arguments: &RunArguments) -> Result<()> {
    interrupt::install()?;
    let machine = Machine::here();
    let promises = promises::all();
    let mut fresh = Vec::new();
    let mut keep = |measured: Vec<Measured>| -> Result<()> {
        // Now, not before: hugepages are those that the measurement had.
        let rows = judge(measured, &promises, &Machine::here());
        fresh.extend(rows.iter().map(|row| row.name.clone()));
        results::merge(&arguments.results, rows)?;
        Ok(())
    };
    for part in parts(arguments.only) {
        match part {
            Part::Hasher => keep(digest::run(digest::MEMORY_MIB, digest::ROUNDS))?,
            Part::Replication => measure_replication(arguments, &mut keep)?,
            Part::Datapath => measure_datapath(arguments, &machine, &mut keep)?,
        }
    }
    let rows = results::read(&arguments.results)?;
    let (new, old): (Vec<Figure>, Vec<Figure>) =
        rows.into_iter().partition(|row| fresh.contains(&row.name));
    table::print_results(&new);
    println!(
        "{} rows in {}",
        new.len() + old.len(),
        arguments.results.display()
    );
    if let Some(path) = &arguments.plot {
        draw(path, &[new, old].concat())?;
    }
    Ok(())
}

fn measure_replication(
    arguments: &RunArguments,
    keep: &mut impl FnMut(Vec<Measured>) -> Result<()>,
) -> Result<()> {
    if arguments.scenario.is_none() {
        keep(commit::run(commit::ENTRIES, commit::ROUNDS)?)?;
    }
    let cores = placement::choose_cores(arguments.cores)?;
    group::parent::measure(arguments.scenario, arguments.quick, cores, keep)
}

fn measure_datapath(
    arguments: &RunArguments,
    machine: &Machine,
    keep: &mut impl FnMut(Vec<Measured>) -> Result<()>,
) -> Result<()> {
    let options = options(arguments, machine);
    if arguments.uplinks {
        return datapath::run_uplinks(&options, keep);
    }
    datapath::run(&options, &mut *keep)?;
    if arguments.selftest || arguments.direction.is_some() {
        return Ok(());
    }
    keep(vec![proofs::allocations()])?;
    if arguments.frame_bytes.is_none() {
        datapath::run_uplinks(&options, keep)?;
    }
    Ok(())
}

/// Fails where a promise does not hold or a row is missing.
pub fn check(arguments: &CheckArguments) -> Result<()> {
    let rows = results::read(&arguments.results)?;
    let wanted = parts(arguments.only);
    let promises: Vec<Promise> = promises::all()
        .into_iter()
        .filter(|promise| wanted.iter().any(|part| part.has(&promise.name)))
        .collect();
    let broken = check::broken(&promises, &rows);
    for failure in &broken {
        println!("{failure}");
    }
    for row in check::excused(&promises, &rows) {
        let reason = row.reason.as_deref().unwrap_or_default();
        println!("{}: reported without a value: {reason}", row.name);
    }
    println!(
        "{} of {} rows are as promised or reported",
        promises.len() - broken.len(),
        promises.len()
    );
    if !broken.is_empty() {
        bail!("{} promises do not hold", broken.len());
    }
    Ok(())
}

/// Draws results that are there already.
pub fn plot(results: &Path, path: &Path) -> Result<()> {
    draw(path, &results::read(results)?)
}

fn draw(path: &Path, rows: &[Figure]) -> Result<()> {
    std::fs::write(path, plot::datapath(rows)?)
        .with_context(|| format!("write {}", path.display()))?;
    println!("drawn: {}", path.display());
    Ok(())
}

fn parts(only: Option<Part>) -> Vec<Part> {
    only.map_or_else(|| Part::ALL.into(), |part| vec![part])
}

fn judge(measured: Vec<Measured>, promises: &[Promise], machine: &Machine) -> Vec<Figure> {
    measured
        .into_iter()
        .map(|figure| {
            let promise = promises.iter().find(|promise| promise.name == figure.name);
            Figure::judged(figure, promise, machine)
        })
        .collect()
}

fn options(arguments: &RunArguments, machine: &Machine) -> datapath::Options {
    datapath::Options {
        quick: arguments.quick,
        direction: arguments.direction,
        frame_bytes: arguments.frame_bytes,
        cores: arguments.cores,
        selftest_only: arguments.selftest,
        patience: Duration::from_secs(arguments.patience_seconds),
        known_round_trips_ns: known_round_trips(&arguments.results, machine),
    }
}

/// How near this machine's cores have been seen before. A file that is not there or not ours tells
/// nothing; that it is not ours is said when it is written.
fn known_round_trips(path: &Path, machine: &Machine) -> Vec<f64> {
    let rows = results::read(path).unwrap_or_default();
    rows.iter()
        .filter(|row| row.machine.cpu == machine.cpu && row.machine.cores == machine.cores)
        .filter_map(|row| row.placement)
        .map(|placement| (placement.round_trip_ns_min * placement.round_trip_ns_max).sqrt())
        .collect()
}

/// Two cores, as `0,1`.
pub fn parse_cores(text: &str) -> Result<(usize, usize), String> {
    let cores = text
        .split_once(',')
        .and_then(|(first, second)| Some((first.parse().ok()?, second.parse().ok()?)));
    cores.ok_or_else(|| format!("{text:?} is no pair of cores; say 0,1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_two_numbers() {
        assert_eq!(parse_cores("0,1"), Ok((0, 1)));
        for text in ["", "1", "1,", "a,b", "0,1,2", "-1,2"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }
}
