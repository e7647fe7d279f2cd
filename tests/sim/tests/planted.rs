//! Does the simulation bite? Each planted bug must be found within a bounded number of seeds.

#![cfg(feature = "planted-bugs")]

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use plover_sim::{Options, Violation, run};
use replication::planted::{Bug, plant};

/// Seeds within which each bug must be found.
const SEEDS_MAX: u64 = 3_000;

/// The first seed that finds the bug, and what it finds.
fn find(bug: Bug) -> Option<(u64, Violation)> {
    plant(Some(bug));
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let violation = run(Options::of_seed(seed)).violation?;
        Some((seed, violation))
    });
    plant(None);
    found
}

#[test]
fn every_planted_bug_is_found() {
    // Bugs may end in an assertion of raft-rs or of ours, which is to be counted, not printed.
    std::panic::set_hook(Box::new(|_| {}));
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(4) {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = find(*bug);
                    println!("{bug:?}: {found:?}");
                    rows.lock().expect("no row fails").push((*bug, found));
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let mut rows = rows.into_inner().expect("no row fails");
    rows.sort_by_key(|(bug, _)| Bug::ALL.iter().position(|other| other == bug));
    let mut table = String::from("| bug | seeds needed | checker |\n|---|---|---|\n");
    for (bug, found) in &rows {
        let (seeds, checker) = match found {
            Some((seed, violation)) => ((seed + 1).to_string(), violation.checker()),
            None => (format!("not in {SEEDS_MAX}"), "none".into()),
        };
        let _ = writeln!(table, "| `{bug:?}` | {seeds} | {checker} |");
    }
    println!("{table}");
    assert!(rows.iter().all(|(_, found)| found.is_some()), "{table}");
}

#[test]
fn with_the_feature_and_nothing_planted_nothing_is_found() {
    for seed in 0..100 {
        assert_eq!(run(Options::of_seed(seed)).violation, None, "seed {seed}");
    }
}
