//! Figures that a test proves: it runs, and what it proves is the value.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::measured::Measured;

/// Tests that count allocations on the hot path: crate, file, name.
const ALLOCATIONS: [[&str; 3]; 2] = [
    [
        "vhost-user-plover-net",
        "passthrough",
        "packets_go_both_ways_without_an_allocation_or_a_lock",
    ],
    [
        "replication",
        "allocations",
        "a_packet_allocates_nothing_and_an_entry_little",
    ],
];

/// No allocation for a packet, if the tests say so.
pub fn allocations() -> Measured {
    const NAME: &str = "datapath/per-packet/allocations";
    const UNIT: &str = "per packet";
    let commands: Result<Vec<String>> = ALLOCATIONS.iter().map(run).collect();
    match commands {
        Ok(commands) => Measured {
            commands,
            ..Measured::new(NAME, UNIT, vec![0.0])
        },
        Err(error) => Measured::failed(NAME, UNIT, format!("{error:#}")),
    }
}

/// Runs one test; returns the command line.
fn run([package, file, name]: &[&str; 3]) -> Result<String> {
    let arguments = ["test", "-p", package, "--test", file, "--", "--exact", name];
    let line = format!("cargo {}", arguments.join(" "));
    let output = Command::new("cargo")
        .args(arguments)
        .output()
        .with_context(|| format!("run {line}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that is not there any more passes, too: with nothing run.
    ensure!(
        output.status.success() && said.contains("1 passed"),
        "{line} does not pass:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(line)
}
