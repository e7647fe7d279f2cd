//! What is counted of our backends beside their rate, once in a run: the system calls of the poll
//! core for each packet, and the cycles of each step.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Entrant;
use super::contestant::{Contestant, Pair};
use super::scenario::{Direction, Scenario};
use crate::measured::Measured;
use crate::steps;

/// Where it is counted: packets go both ways, as many as can be.
pub const SCENARIO: Scenario = Scenario {
    direction: Direction::Forward,
    frame_bytes: 64,
};
const WINDOW: Duration = Duration::from_millis(500);

/// Counts, and ends the processes that tell their steps only then. After the samples of a start.
/// What can't be counted is a row without a value, and takes no rate along.
pub fn count(entrants: &mut [Entrant], pairs: &mut [Option<Pair>]) -> Result<()> {
    for (entrant, slot) in entrants.iter_mut().zip(pairs) {
        let mut rows = Vec::new();
        if let Some(names) = rows_of_calls(entrant.contestant) {
            entrant.attempt(slot, |pair| {
                rows = system_calls(names, pair);
                pair.pause()
            })?;
        }
        if matches!(entrant.contestant, Contestant::Sequenced { .. })
            && let Some(pair) = slot.take()
        {
            rows.extend(step_costs(entrant.contestant, pair));
        }
        crate::interrupt::check()?;
        for row in &mut rows {
            row.commands.clone_from(&entrant.commands);
        }
        entrant.extras = rows;
    }
    Ok(())
}

/// A lock that has to wait makes a system call, and is among them.
fn rows_of_calls(contestant: Contestant) -> Option<&'static [&'static str]> {
    match contestant {
        Contestant::Passthrough => Some(&["system-calls/passthrough"]),
        Contestant::Sequenced { nodes: 1 } => Some(&["system-calls/sequenced", "locks"]),
        _ => None,
    }
}

fn system_calls(names: &[&str], pair: &mut Pair) -> Vec<Measured> {
    let calls = pair.system_calls(WINDOW);
    let row = |name: &&str| {
        let name = format!("datapath/per-packet/{name}");
        match &calls {
            Ok(calls) => Measured::new(name, "per packet", vec![*calls]),
            Err(error) => Measured::failed(name, "per packet", format!("{error:#}")),
        }
    };
    names.iter().map(row).collect()
}

fn step_costs(contestant: Contestant, pair: Pair) -> Vec<Measured> {
    let told = tell_steps(pair).map_err(|error| format!("{error:#}"));
    let row = |step: &str, cycles: Result<Option<f64>, &String>| {
        let name = format!("datapath/cycles/{}/{step}", contestant.name());
        match cycles {
            Ok(Some(cycles)) => Measured::new(name, "cycles", vec![cycles]),
            Ok(None) => Measured::failed(name, "cycles", "no packet took this step"),
            Err(reason) => Measured::failed(name, "cycles", reason),
        }
    };
    let mut rows: Vec<Measured> = steps::STEPS
        .iter()
        .map(|step| row(step, told.as_ref().map(|told| told.cycles_per_packet(step))))
        .collect();
    if contestant != (Contestant::Sequenced { nodes: 1 }) {
        rows.push(row("followers", told.as_ref().map(steps::Told::followers)));
    }
    rows
}

fn tell_steps(pair: Pair) -> Result<steps::Told> {
    let output = pair.finish()?;
    steps::Told::parse(&output).with_context(|| format!("the backend told no steps:\n{output}"))
}
