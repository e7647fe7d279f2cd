//! A host is killed under load: nothing acknowledged is lost, no connection breaks.
//!
//! `PLOVER_E2E_KILLS`: kills at moments that seeds draw. `PLOVER_E2E_STEPS`: steps of a sync, with
//! commas, that a kill falls inside of, each as after `plover demo --kills step=`.

use anyhow::{Context, Result, ensure};
use ch_integration::demo::check::{Records, Report};
use ch_integration::demo::events::EventKind;
use ch_integration::demo::{self, DemoOptions, KillPlan};
use plover_tests::e2e;

/// The primary dies in two of its own, and while the backup loads; the backup while it loads.
/// `make soak` has all.
const STEPS: &str = "pause,blocks,load@primary,load";
const LOAD_SECONDS: u64 = 5;

fn kill_under_load(kills: KillPlan, seed: u64) -> Result<(Report, Records)> {
    let options = DemoOptions {
        kills,
        seed,
        load_seconds: LOAD_SECONDS,
        node_binary: Some(demo::group::beside("plover")?),
        ..DemoOptions::default()
    };
    let outcome = demo::run(&options)?;
    let report = outcome.report.context("the run has no report")?;
    ensure!(
        outcome.ok,
        "seed {seed}, records in {}: {report:#?}",
        outcome.run_dir.display()
    );
    ensure!(report.lost == 0 && report.broken_connections == 0 && report.outages.len() == 1);
    Ok((report, Records::load(&outcome.run_dir)?))
}

#[test]
fn a_kill_of_the_primary_at_any_moment_loses_nothing() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    for seed in 1..=e2e::number_of("PLOVER_E2E_KILLS", 3) {
        let (report, _) = kill_under_load(KillPlan::Time, seed)?;
        ensure!(report.outages[0].survivor.is_some(), "nobody took over");
    }
    Ok(())
}

#[test]
fn a_kill_inside_a_step_of_a_sync_loses_nothing() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let steps = std::env::var("PLOVER_E2E_STEPS").unwrap_or_else(|_| STEPS.to_owned());
    for (seed, step) in (100..).zip(steps.split(',')) {
        let plan = format!("step={step}").parse().map_err(anyhow::Error::msg)?;
        let (report, records) = kill_under_load(plan, seed)?;
        let outage = &report.outages[0];
        let trigger = outage.trigger.as_deref();
        ensure!(
            trigger.is_some() && trigger == step.split('@').next(),
            "the kill missed step {step}"
        );
        let killed = &outage.node;
        let (primary, mode) = last_role(&records, killed).context("the survivors know no role")?;
        ensure!(
            mode == "unprotected",
            "one copy is left, and the group says {mode}"
        );
        ensure!(primary != *killed, "the dead host is primary");
        eprintln!(
            "step {step}: host {killed} killed, {:?}; {primary} serves on after {:?} us",
            outage.inside, outage.gap_us
        );
    }
    Ok(())
}

/// Name of the primary and mode of the newest role that the survivors applied.
fn last_role(records: &Records, killed: &str) -> Option<(String, String)> {
    let survivors = records.nodes.iter().filter(|(name, _)| *name != killed);
    survivors
        .flat_map(|(_, events)| events)
        .filter_map(|event| match &event.kind {
            EventKind::Role {
                generation,
                primary,
                mode,
                ..
            } => {
                let primary = demo::network::Host::from_id((*primary)?)?;
                Some((*generation, primary.name().to_owned(), mode.clone()))
            }
            _ => None,
        })
        .max()
        .map(|(_, primary, mode)| (primary, mode))
}
