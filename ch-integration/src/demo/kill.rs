//! The kill: when it falls, and doing it.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::events::{EventKind, NodeEvent};
use super::group::Group;
use super::history::{EVENTS_FILE, JsonLines, KILLS_FILE, Kill, now_ns, read_lines};
use super::network::{Host, Network};
use super::options::Victim;

/// How long the step of a plan is waited for; syncs come several times a second.
const STEP_WAIT: Duration = Duration::from_secs(15);
/// How often it is looked whether the armed node has died.
const STEP_LOOK: Duration = Duration::from_millis(1);
/// Makes a node die at its `debug.die_at_step`, once it is in the node's folder.
const ARMED_FILE: &str = "armed";
/// How often the events are looked at while a step is waited for.
const EVENT_LOOK: Duration = Duration::from_micros(100);
/// Steps that only the primary takes.
const PRIMARY_STEPS: [&str; 2] = ["compare", "send"];
/// Steps that only the backup takes.
const BACKUP_STEPS: [&str; 6] = ["stage", "verify", "staged", "commit", "apply", "load"];

/// How far into the load the kill falls: drawn by the seed, uniform over its middle.
pub fn moment(seed: u64, load_seconds: u64) -> Duration {
    let load_us = load_seconds.saturating_mul(1_000_000);
    let mut random = StdRng::seed_from_u64(seed);
    Duration::from_micros(random.random_range(load_us / 5..load_us * 7 / 10))
}

/// Kills a host inside `step`. `None`: the step never came.
pub fn kill_in_step(
    group: &mut Group,
    primary: Host,
    victim: Victim,
    step: &str,
) -> Result<Option<Kill>> {
    let host = victim_of(step, victim, primary);
    let entered = match takes(host == primary, step) {
        true => let_die(group, host, step)?,
        false => kill_as_other_enters(group, host, step)?,
    };
    let Some((t_ns, processes)) = entered else {
        return Ok(None);
    };
    let mut kill = kill_host(&group.network, host)?;
    kill.t_ns = t_ns;
    kill.step = Some(step.to_owned());
    kill.processes += processes;
    group.note_killed(&kill, host)?;
    Ok(Some(kill))
}

fn takes(is_primary: bool, step: &str) -> bool {
    match is_primary {
        true => !BACKUP_STEPS.contains(&step),
        false => !PRIMARY_STEPS.contains(&step),
    }
}

fn victim_of(step: &str, victim: Victim, primary: Host) -> Host {
    let is_primary = match victim {
        Victim::Taker => takes(true, step),
        Victim::Primary => true,
        Victim::Backup => false,
    };
    if is_primary { primary } else { primary.peer() }
}

/// Lets a host die as it enters `step`, and waits for that: the node itself sends the signals, so
/// that nothing comes between. Returns when it entered the step, and how many processes died.
fn let_die(group: &mut Group, host: Host, step: &str) -> Result<Option<(u64, usize)>> {
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
    let events: Vec<NodeEvent> = read_lines(&group.state_dir(host).join(EVENTS_FILE))?;
    let entered = events.iter().rfind(|event| enters(event, step));
    // The node, its VMM and its hasher.
    Ok(entered.map(|event| (event.t_ns, 3)))
}

/// Kills a host as soon as the other replica tells that it entered `step`. Returns when, and how
/// many processes.
fn kill_as_other_enters(group: &mut Group, host: Host, step: &str) -> Result<Option<(u64, usize)>> {
    // Looked up beforehand: steps last a millisecond or less.
    let pids = group.network.host(host).pids();
    let (other, from_ns) = (host.peer(), now_ns());
    let deadline = Instant::now() + STEP_WAIT;
    while Instant::now() < deadline {
        let news = group.view.update()?;
        let entered = |(node, event): &(Host, NodeEvent)| {
            *node == other && event.t_ns >= from_ns && enters(event, step)
        };
        if news.iter().any(entered) {
            let t_ns = now_ns();
            for pid in &pids {
                // Whatever is left is killed with the rest of the host.
                let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            return Ok(Some((t_ns, pids.len())));
        }
        group.interrupt.check()?;
        std::thread::sleep(EVENT_LOOK);
    }
    Ok(None)
}

fn enters(event: &NodeEvent, step: &str) -> bool {
    matches!(&event.kind, EventKind::Step { step: entered, .. } if entered == step)
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
    fn the_victim_takes_the_step_unless_told_otherwise() {
        assert_eq!(victim_of("load", Victim::Taker, Host::A), Host::B);
        assert_eq!(victim_of("load", Victim::Primary, Host::A), Host::A);
        assert_eq!(victim_of("blocks", Victim::Taker, Host::B), Host::B);
        assert_eq!(victim_of("pause", Victim::Backup, Host::B), Host::A);
        assert!(takes(true, "pause") && takes(false, "pause"));
        assert!(!takes(true, "load") && !takes(false, "send"));
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
