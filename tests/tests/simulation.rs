//! Thousands of seeds through the simulated group, and planted bugs that it must find.

use plover_tests::sim::{Options, Outcome, Sabotage, Violation, run};

fn options(seed: u64) -> Options {
    let trace = std::env::var_os("PLOVER_SIM_TRACE").is_some();
    Options {
        seed,
        nodes: 3,
        with_faults: true,
        sabotage: Sabotage::None,
        trace,
    }
}

/// `PLOVER_SIM_SEEDS` raises the number of seeds of each test; `PLOVER_SIM_SEED` runs one, and
/// `PLOVER_SIM_TRACE` shows what happens in it.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = number("PLOVER_SIM_SEED") {
        return seed..seed + 1;
    }
    first..first + number("PLOVER_SIM_SEEDS").unwrap_or(500)
}

fn run_seeds(first: u64) {
    let mut total = Outcome::default();
    let mut survived = 0;
    let count = seeds(first).count();
    for seed in seeds(first) {
        match run(options(seed)) {
            Ok(outcome) => {
                total.answers += outcome.answers;
                total.syncs += outcome.syncs;
                total.roles += outcome.roles;
                survived += usize::from(outcome.survived);
            }
            Err(violation) => {
                panic!("seed {seed}: {violation:?} (again with PLOVER_SIM_SEED={seed})")
            }
        }
    }
    println!("{count} seeds: {total:?}, a valid copy left in {survived}");
    assert!(total.answers > 100 * count, "the client saw almost nothing");
    assert!(survived * 2 > count, "most groups should survive");
}

#[test]
fn what_must_always_hold_holds_under_faults_first_quarter() {
    run_seeds(0);
}

#[test]
fn what_must_always_hold_holds_under_faults_second_quarter() {
    run_seeds(1_000_000);
}

#[test]
fn what_must_always_hold_holds_under_faults_third_quarter() {
    run_seeds(2_000_000);
}

#[test]
fn what_must_always_hold_holds_under_faults_last_quarter() {
    run_seeds(3_000_000);
}

#[test]
fn without_faults_the_first_primary_stays_and_syncs_go_on() {
    for seed in 0..20 {
        let outcome = run(Options {
            with_faults: false,
            ..options(seed)
        })
        .expect("no violation");
        assert_eq!(outcome.roles, 2, "seed {seed}: boot, then protected");
        assert!(outcome.syncs > 50, "seed {seed}: {outcome:?}");
        assert!(outcome.answers > 1000, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_replica_alone_serves_all_input_in_order_and_needs_no_sync() {
    for seed in 0..20 {
        let outcome = run(Options {
            with_faults: false,
            nodes: 1,
            ..options(seed)
        })
        .expect("no violation");
        assert_eq!((outcome.roles, outcome.syncs), (1, 0), "seed {seed}");
        // Without messages from peers the client is only served between ticks.
        assert!(outcome.answers > 800, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn one_seed_always_does_the_same() {
    assert_eq!(run(options(42)), run(options(42)));
}

fn find(sabotage: Sabotage, expected: impl Fn(&Violation) -> bool) {
    let found = (0..400).find_map(|seed| {
        run(Options {
            sabotage,
            ..options(seed)
        })
        .err()
    });
    assert!(
        found.as_ref().is_some_and(expected),
        "{sabotage:?} went unnoticed: {found:?}"
    );
}

#[test]
fn output_released_before_its_sync_ended_is_noticed() {
    find(Sabotage::ReleaseAtClose, |v| {
        matches!(v, Violation::LostAnswer { .. })
    });
}

#[test]
fn transmitting_without_a_lease_is_noticed() {
    find(Sabotage::IgnoreLease, |v| {
        matches!(
            v,
            Violation::TwoPrimaries(..) | Violation::LostAnswer { .. }
        )
    });
}

#[test]
fn a_backup_that_breaks_its_promise_is_noticed() {
    find(Sabotage::ResumeStaged, |v| {
        matches!(v, Violation::Differs { .. } | Violation::Order { .. })
    });
}

#[test]
fn a_backup_that_goes_on_from_its_own_position_is_noticed() {
    find(Sabotage::KeepPosition, |v| {
        matches!(v, Violation::Order { .. })
    });
}
