//! What clients see while hosts die, wires are cut and processes stand still could have come from one
//! server that never failed.
//!
//! `PLOVER_LINEAR_BOOTS`: groups that are started, each with the plan of a seed, from `PLOVER_SEED`
//! on. `PLOVER_LINEAR_FAULTS`: faults of each before its last. A seed repeats the plan and what the
//! clients ask for, not the moment to the microsecond.

use anyhow::{Result, ensure};
use plover_tests::e2e;
use plover_tests::linear::faults::Plan;
use plover_tests::linear::run::{Outcome, run};

#[test]
fn a_primary_that_stands_still_is_fenced_and_its_heirs_host_dies() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let outcome = run(&Plan::short())?;
    println!("{outcome:?}");
    ensure!(outcome.moved == 2 && outcome.unknown == 0);
    Ok(())
}

#[test]
fn a_group_under_faults_that_seeds_draw_is_linearizable() -> Result<()> {
    let boots = e2e::number_of("PLOVER_LINEAR_BOOTS", 0);
    if boots == 0 {
        eprintln!("only with PLOVER_LINEAR_BOOTS, as in `make soak`");
        return Ok(());
    }
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let first = e2e::number_of("PLOVER_SEED", 1);
    let passing = usize::try_from(e2e::number_of("PLOVER_LINEAR_FAULTS", 4))?;
    let mut all = Outcome::default();
    let mut failed = Vec::new();
    for seed in first..first + boots {
        match run(&Plan::draw(seed, passing)) {
            Ok(outcome) => {
                println!("seed {seed}: {outcome:?}");
                all.faults += outcome.faults;
                all.moved += outcome.moved;
                all.operations += outcome.operations;
                all.unknown += outcome.unknown;
            }
            Err(error) => {
                println!("seed {seed} FAILED: {error:#}");
                failed.push(seed);
            }
        }
    }
    println!(
        "seeds {first} to {}: {all:?}, failed: {failed:?}",
        first + boots - 1
    );
    ensure!(failed.is_empty(), "seeds {failed:?} failed");
    Ok(())
}
