//! `plover-perf`: measures parts of Plover, A against B in one run, and sums up soaks. Nothing is
//! asserted here: figures go to docs/performance.md with command, machine and date.

mod commit;
mod digest;
mod soak;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Benchmarks of Plover's parts.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Rows as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Page digests against a plain read of the same pages, in order and in random order.
    Digest {
        /// Memory to digest, in MiB.
        #[arg(long, default_value_t = 256)]
        memory_mib: usize,
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// Commits of three nodes in one thread: one packet an entry against a burst an entry.
    Commit {
        /// Entries to commit in each round.
        #[arg(long, default_value_t = 20_000)]
        entries: usize,
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Sums up the runs of a soak (`make soak`).
    Soak {
        /// The soak's folder.
        folder: PathBuf,
    },
}

/// One measured figure.
#[derive(Clone, Debug, serde::Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    /// Lowest and highest of the rounds.
    spread: (f64, f64),
}

impl Row {
    /// The median of samples.
    fn median(name: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        Self {
            name: name.into(),
            value: at(samples.len() / 2),
            unit,
            spread: (at(0), at(samples.len().saturating_sub(1))),
        }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let rows = match cli.command {
        Command::Digest { memory_mib, rounds } => digest::run(memory_mib, rounds),
        Command::Commit { entries, rounds } => commit::run(entries, rounds)?,
        Command::Soak { folder } => soak::run(&folder)?,
    };
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    for row in rows {
        println!(
            "{:<58} {:>10.2} {:<8} ({:.2} to {:.2})",
            row.name, row.value, row.unit, row.spread.0, row.spread.1
        );
    }
    Ok(())
}
