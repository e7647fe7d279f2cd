//! The kill: when it falls, and doing it.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::events::{EventKind, NodeEvent};
use super::group::Group;
use super::history::{EVENTS_FILE, JsonLines, KILLS_FILE, Kill, now_ns, read_lines};
use super::network::{Host, Network};

/// How long the step of a plan is waited for; syncs come several times a second.
const STEP_WAIT: Duration = Duration::from_secs(15);
/// How often it is looked whether the armed node has died.
const STEP_LOOK: Duration = Duration::from_millis(1);
/// Makes a node die at its `debug.die_at_step`, once it is in the node's folder.
const ARMED_FILE: &str = "armed";
/// Steps that only the backup takes.
const BACKUP_STEPS: [&str; 6] = ["stage", "verify", "staged", "commit", "apply", "load"];

/// How far into the load the kill falls: drawn by the seed, uniform over its middle.
pub fn moment(seed: u64, load_seconds: u64) -> Duration {
    let load_us = load_seconds.saturating_mul(1_000_000);
    let mut random = StdRng::seed_from_u64(seed);
    Duration::from_micros(random.random_range(load_us / 5..load_us * 7 / 10))
}

/// The replica that a plan's step is taken by: the primary, unless only the backup takes it.
pub fn victim_of(step: &str, primary: Host) -> Host {
    match (BACKUP_STEPS.contains(&step), primary) {
        (true, Host::A) => Host::B,
        (true, _) => Host::A,
        (false, primary) => primary,
    }
}

/// Lets a host die as it enters `step`: the node itself sends the signals, so that nothing comes
/// between. `None`: the step never came.
pub fn kill_in_step(group: &mut Group, host: Host, step: &str) -> Result<Option<Kill>> {
    let armed = group.state_dir(host).join(ARMED_FILE);
    std::fs::write(&armed, "").with_context(|| format!("create {}", armed.display()))?;
    let deadline = Instant::now() + STEP_WAIT;
    while !group.has_ended(host)? {
        if Instant::now() > deadline {
            std::fs::remove_file(&armed).with_context(|| format!("remove {}", armed.display()))?;
            return Ok(None);
        }
        group.interrupt.check()?;
        std::thread::sleep(STEP_LOOK);
    }
    let mut kill = kill_host(&group.network, host)?;
    let events: Vec<NodeEvent> = read_lines(&group.state_dir(host).join(EVENTS_FILE))?;
    let entered = events.iter().rfind(
        |event| matches!(&event.kind, EventKind::Step { step: entered, .. } if entered == step),
    );
    kill.t_ns = entered.map_or(kill.t_ns, |event| event.t_ns);
    kill.step = Some(step.to_owned());
    // The node, its VMM and its hasher, which were gone by then.
    kill.processes += 3;
    group.note_killed(&kill, host)?;
    Ok(Some(kill))
}

/// SIGKILL to everything on a host at once, then its cables out.
pub fn kill_host(network: &Network, host: Host) -> Result<Kill> {
    let t_ns = now_ns();
    let processes = network.host(host).kill_all()?;
    network.cut_off(host)?;
    Ok(Kill {
        t_ns,
        node: host.name().to_owned(),
        what: "host".to_owned(),
        step: None,
        processes,
    })
}

/// Adds a kill to the run's.
pub fn record(run_dir: &Path, kill: &Kill) -> Result<()> {
    let file = JsonLines::append(&run_dir.join(KILLS_FILE))?;
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
    fn a_step_of_the_backup_kills_the_backup() {
        assert_eq!(victim_of("load", Host::A), Host::B);
        assert_eq!(victim_of("stage", Host::B), Host::A);
        assert_eq!(victim_of("blocks", Host::B), Host::B);
    }

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
