//! Seeds through the simulated group: some that are always the same, some that are new each time.

use plover_sim::{Batch, Options, fresh_seed, run};

const FIXED: u64 = 800;
const FRESH: u64 = 300;

/// `PLOVER_SIM_SEEDS` raises the number of fresh seeds; `make sim SEED=n` runs one with its trace.
fn fresh_count() -> u64 {
    let text = std::env::var("PLOVER_SIM_SEEDS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(FRESH)
}

#[test]
fn what_must_always_hold_holds_under_faults_and_every_step_is_interrupted() {
    let (fresh, count) = (fresh_seed(), fresh_count());
    println!("seeds 0 to {}, {fresh} to {}", FIXED - 1, fresh + count - 1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let batch = Batch::run(&[0..FIXED, fresh..fresh + count], threads.min(4));
    println!("{batch}{}", batch.coverage);
    assert_eq!(batch.failures, []);
    assert!(Batch::median(&batch.events) >= 1_000, "too little happens");
    assert!(Batch::median(&batch.syncs) >= 5, "too few syncs");
    assert!(Batch::median(&batch.faults) >= 2, "too few faults");
    assert!(batch.survived * 2 > batch.seeds, "most groups survive");
    assert_eq!(batch.coverage.missing(), [""; 0], "not gone through");
}

fn calm(seed: u64, nodes: usize) -> plover_sim::Outcome {
    let ended = run(Options {
        nodes,
        with_faults: false,
        ..Options::of_seed(seed)
    });
    assert_eq!(ended.violation, None, "seed {seed}");
    ended.outcome
}

#[test]
fn without_faults_the_first_primary_stays_and_syncs_go_on() {
    for seed in 0..20 {
        let outcome = calm(seed, 3);
        assert_eq!(outcome.roles, 2, "seed {seed}: boot, then protected");
        assert!(outcome.syncs > 15, "seed {seed}: {outcome:?}");
        assert!(outcome.answers > 500, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_replica_alone_serves_all_input_in_order_and_needs_no_sync() {
    for seed in 0..20 {
        let outcome = calm(seed, 1);
        assert_eq!((outcome.roles, outcome.syncs), (1, 0), "seed {seed}");
        assert!(outcome.answers > 500, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn one_seed_always_does_the_same() {
    for seed in [3, 42] {
        let [one, other] = [(); 2].map(|()| {
            run(Options {
                trace: true,
                ..Options::of_seed(seed)
            })
        });
        assert_eq!(one.trace, other.trace);
        assert_eq!(one.outcome, other.outcome);
    }
}
