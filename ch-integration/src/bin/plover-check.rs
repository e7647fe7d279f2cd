//! `plover-check DIR`: computes the table of a demo run from the files it left behind.

use std::path::PathBuf;
use std::process::ExitCode;

use ch_integration::demo::check::{Records, check};
use ch_integration::demo::table::Table;
use clap::Parser;

/// Checks what a run of `plover demo` recorded. Exit code 0: nothing was lost, no connection
/// broke; 1: something did; 2: the records can't be read.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The run's folder.
    dir: PathBuf,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = match Records::load(&arguments.dir) {
        Ok(records) => check(&records),
        Err(error) => {
            eprintln!("plover-check: {error:#}");
            return ExitCode::from(2);
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("plover-check: {error}");
                return ExitCode::from(2);
            }
        }
    } else {
        print!("{}", Table(&report));
    }
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}
