//! `plover-perf`: measures parts of Plover, A against B in one run, holds what it finds against
//! what is promised, and sums up soaks.

mod backend;
mod card;
mod check;
mod commit;
mod datapath;
mod digest;
mod figure;
mod group;
mod hugepages;
mod interrupt;
mod machine;
mod measured;
mod placement;
mod plot;
mod process;
mod promises;
mod proofs;
mod results;
mod run;
mod secure;
mod soak;
mod stats;
mod steps;
mod syscalls;
mod table;
mod testpmd;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::measured::Measured;

/// Benchmarks of Plover's parts.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures all parts, or one, and writes target/perf/results.json.
    Run(run::RunArguments),
    /// Exits non-zero when a promise does not hold or a row is missing.
    Check(run::CheckArguments),
    /// Draws the data path's results.
    Plot {
        /// The file of results.
        #[arg(long, default_value = "target/perf/results.json")]
        results: PathBuf,
        /// The SVG to write.
        #[arg(default_value = "docs/perf-datapath.svg")]
        svg: PathBuf,
    },
    /// A DPDK port as a guest's card, for measurement.
    Card(card::CardArguments),
    /// The sequenced path behind a vhost-user socket, for a frontend of another process.
    Backend(backend::BackendArguments),
    /// A group of real nodes with real frames, for measurement; tells figures as lines of JSON.
    Group(group::GroupArguments),
    /// Prints what is promised, as in perf/SPEC.md.
    Promises,
    /// Page digests against a plain read of the same pages, in order and in random order.
    Digest {
        /// Memory to digest, in MiB.
        #[arg(long, default_value_t = digest::MEMORY_MIB)]
        memory_mib: usize,
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = digest::ROUNDS)]
        rounds: usize,
    },
    /// Commits of three nodes in one thread: one packet an entry against a burst an entry.
    Commit {
        /// Entries to commit in each round.
        #[arg(long, default_value_t = commit::ENTRIES)]
        entries: usize,
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = commit::ROUNDS)]
        rounds: usize,
    },
    /// What authentication and encryption cost: datagrams, handshakes, the hashers' link.
    Secure {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = secure::ROUNDS)]
        rounds: usize,
    },
    /// Sums up the runs of a soak (`make soak`).
    Soak {
        /// The soak's folder.
        folder: PathBuf,
    },
}

fn main() -> Result<()> {
    let rows: Vec<Measured> = match Cli::parse().command {
        Command::Run(arguments) => return run::run(&arguments),
        Command::Check(arguments) => return run::check(&arguments),
        Command::Plot { results, svg } => return run::plot(&results, &svg),
        Command::Card(arguments) => return card::run(arguments),
        Command::Backend(arguments) => return backend::run(&arguments),
        Command::Group(arguments) => return group::run(&arguments),
        Command::Promises => {
            print!("{}", promises::table());
            return Ok(());
        }
        Command::Digest { memory_mib, rounds } => digest::run(memory_mib, rounds),
        Command::Commit { entries, rounds } => commit::run(entries, rounds)?,
        Command::Secure { rounds } => secure::run(rounds)?,
        Command::Soak { folder } => soak::run(&folder)?,
    };
    table::print_measured(&rows);
    Ok(())
}
