//! The driver of a target where cargo-fuzz can't run: replays a corpus, then mutates it for a
//! while. It gets no feedback on coverage, so what it finds is found by volume; what it keeps is
//! what failed.

mod crash;
mod mutate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub use self::mutate::Mutator;
use crate::{SCENARIOS, Scenario};

const USAGE: &str = "usage: [--seconds N] [--seed N] [FILE OR FOLDER]...
Without files the kept corpus is replayed and mutated.";
/// Between two lines of progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

struct Options {
    seconds: u64,
    seed: u64,
    paths: Vec<PathBuf>,
}

/// Runs the target `name` with the process's arguments.
#[must_use]
pub fn main(name: &str) -> ExitCode {
    let Some(scenario) = SCENARIOS.iter().find(|s| s.name == name) else {
        eprintln!("no scenario {name}");
        return ExitCode::FAILURE;
    };
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    match run(scenario, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        seconds: 0,
        seed: 1,
        paths: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => options.seconds = arguments.next()?.parse().ok()?,
            "--seed" => options.seed = arguments.next()?.parse().ok()?,
            flag if flag.starts_with('-') => return None,
            path => options.paths.push(path.into()),
        }
    }
    Some(options)
}

fn run(scenario: &Scenario, options: &Options) -> std::io::Result<()> {
    let mut paths = options.paths.clone();
    if paths.is_empty() {
        paths.push(corpus_folder(scenario.name));
    }
    let mut corpus = Vec::new();
    for path in &paths {
        corpus.extend(read_corpus(path)?);
    }
    let guard = crash::Guard::new(scenario.name)?;
    let started = Instant::now();
    let execute = |input: &[u8]| guard.watching(input, || (scenario.run)(input));
    corpus.iter().for_each(|input| execute(input));
    println!("{}: {} inputs replayed", scenario.name, corpus.len());

    let end = started + Duration::from_secs(options.seconds);
    let mut mutator = Mutator::new(options.seed, corpus);
    let (mut runs, mut next_report) = (0_u64, started + REPORT_INTERVAL);
    while Instant::now() < end {
        execute(&mutator.next_input());
        runs += 1;
        if Instant::now() > next_report {
            next_report += REPORT_INTERVAL;
            report(scenario.name, runs, started);
        }
    }
    report(scenario.name, runs, started);
    Ok(())
}

fn report(name: &str, runs: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{name}: {runs} mutations in {seconds:.0} s");
}

/// Where the corpus of `name` is kept.
#[must_use]
pub fn corpus_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name)
}

/// The files of a folder in order of their names, or the one file.
///
/// # Errors
/// Something there can't be read.
pub fn read_corpus(path: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    if !path.is_dir() {
        return Ok(vec![std::fs::read(path)?]);
    }
    let mut files = std::fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    files.iter().map(std::fs::read).collect()
}
