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
    let steps = tell_steps(pair);
    let row = |step: &&str| {
        let name = format!("datapath/cycles/{}/{step}", contestant.name());
        let cost = match &steps {
            Ok(steps) => steps
                .iter()
                .find(|cost| cost.step == *step)
                .and_then(|cost| cost.cycles_per_packet)
                .ok_or_else(|| "no packet took this step".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        };
        match cost {
            Ok(cycles) => Measured::new(name, "cycles", vec![cycles]),
            Err(reason) => Measured::failed(name, "cycles", reason),
        }
    };
    steps::STEPS.iter().map(row).collect()
}

fn tell_steps(pair: Pair) -> Result<Vec<steps::StepCost>> {
    let output = pair.finish()?;
    steps::parse(&output).with_context(|| format!("the backend told no steps:\n{output}"))
}
