//! Runs seeds of the simulation: many, or one with its trace.

use std::process::ExitCode;

use clap::Parser;
use plover_sim::{Batch, Options, fresh_seed, run};

/// Runs seeds of the simulation of a replica group.
#[derive(Parser)]
struct Arguments {
    /// Runs this seed alone and prints what happens.
    #[arg(long, conflicts_with_all = ["count", "from"])]
    seed: Option<u64>,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// The first of them; drawn from the time if it is not given.
    #[arg(long)]
    from: Option<u64>,
    /// On so many threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Prints what the runs went through.
    #[arg(long)]
    coverage: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => replay(seed),
        None => batch(&arguments),
    }
}

fn replay(seed: u64) -> ExitCode {
    let ended = run(Options {
        trace: true,
        ..Options::of_seed(seed)
    });
    for line in &ended.trace {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} events, {} syncs, {} faults",
        ended.outcome.events, ended.outcome.syncs, ended.outcome.faults
    );
    match ended.violation {
        Some(violation) => {
            println!("VIOLATION: {violation:?}");
            ExitCode::FAILURE
        }
        None => {
            println!("nothing that must not happen did");
            ExitCode::SUCCESS
        }
    }
}

fn batch(arguments: &Arguments) -> ExitCode {
    let first = arguments.from.unwrap_or_else(fresh_seed);
    println!("seeds {first} to {}", first + arguments.count.max(1) - 1);
    let seeds = first..first + arguments.count;
    let batch = Batch::run(std::slice::from_ref(&seeds), arguments.threads);
    print!("{batch}");
    if arguments.coverage {
        print!("{}", batch.coverage);
    }
    let missing = batch.coverage.missing();
    if !missing.is_empty() {
        println!("not gone through: {missing:#?}");
    }
    if batch.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
