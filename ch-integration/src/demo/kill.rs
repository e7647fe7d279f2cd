//! The kill: when it falls, and doing it.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::events::EventKind;
use super::history::{JsonLines, KILLS_FILE, Kill, now_ns};
use super::interrupt::Interrupt;
use super::live::GroupView;
use super::network::{Host, Network};

/// How long the step of a plan is waited for; syncs come several times a second.
const STEP_WAIT: Duration = Duration::from_secs(15);
/// How often the events are looked at while a step is waited for. Steps last a millisecond or
/// less; busy looking would take a core from the nodes.
const STEP_LOOK: Duration = Duration::from_micros(100);

/// How far into the load the kill falls: drawn by the seed, uniform over its middle.
pub fn moment(seed: u64, load_seconds: u64) -> Duration {
    let load_us = load_seconds.saturating_mul(1_000_000);
    let mut random = StdRng::seed_from_u64(seed);
    Duration::from_micros(random.random_range(load_us / 5..load_us * 7 / 10))
}

/// Waits until a replica enters `step`. `false`: it never came.
pub fn wait_for_step(view: &mut GroupView, step: &str, interrupt: &Interrupt) -> Result<bool> {
    let armed_ns = now_ns();
    let deadline = Instant::now() + STEP_WAIT;
    while Instant::now() < deadline {
        let entered = view.update()?.into_iter().any(|(_, event)| {
            event.t_ns >= armed_ns
                && matches!(&event.kind, EventKind::Step { step: entered, .. } if entered == step)
        });
        if entered {
            return Ok(true);
        }
        interrupt.check()?;
        std::thread::sleep(STEP_LOOK);
    }
    Ok(false)
}

/// SIGKILL to everything on a host at once, then its cables out.
pub fn kill_host(network: &Network, host: Host, step: Option<String>) -> Result<Kill> {
    let t_ns = now_ns();
    let processes = network.host(host).kill_all()?;
    network.cut_off(host)?;
    Ok(Kill {
        t_ns,
        node: host.name().to_owned(),
        what: "host".to_owned(),
        step,
        processes,
    })
}

/// Writes the run's kill.
pub fn record(run_dir: &Path, kill: &Kill) -> Result<()> {
    let file = JsonLines::create(&run_dir.join(KILLS_FILE))?;
    file.write(kill)?;
    file.flush()
}

/// Ends a child of ours and reaps it.
pub fn end_child(child: &mut Child) -> Result<()> {
    // It may have ended by itself: nothing to kill then.
    let _ = child.kill();
    child.wait().map(|_| ()).context("reap a process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_repeat_by_seed_and_spread_over_the_load() {
        let moments: Vec<_> = (0..100).map(|seed| moment(seed, 20)).collect();
        assert_eq!(moments[7], moment(7, 20));
        let (early, late) = (Duration::from_secs(4), Duration::from_secs(14));
        assert!(moments.iter().all(|moment| (early..late).contains(moment)));
        let first_half = moments
            .iter()
            .filter(|m| **m < Duration::from_secs(9))
            .count();
        assert!(
            (30..70).contains(&first_half),
            "{first_half} of 100 in the first half"
        );
    }
}
