//! Each scenario over its kept corpus and some thousands of seeded mutations of it: what a fuzzer
//! once found stays found.

use std::time::{Duration, Instant};

use plover_net_fuzz::SCENARIOS;
use plover_net_fuzz::stable::{Mutator, corpus_folder, read_corpus};

const SEED: u64 = 20_261_122;
/// Mutations of each scenario; fewer where the time is up before, on a slow machine.
const MUTATIONS: usize = 20_000;
const SECONDS_MAX: u64 = 5;

fn replay(name: &str) {
    let scenario = SCENARIOS
        .iter()
        .find(|s| s.name == name)
        .expect("it is listed");
    let corpus = read_corpus(&corpus_folder(name)).expect("it can be read");
    assert!(!corpus.is_empty(), "the corpus of {name} is gone");
    corpus.iter().for_each(|input| (scenario.run)(input));
    let end = Instant::now() + Duration::from_secs(SECONDS_MAX);
    let mut mutator = Mutator::new(SEED, corpus);
    for _ in 0..MUTATIONS {
        (scenario.run)(&mutator.next_input());
        if Instant::now() > end {
            break;
        }
    }
}

#[test]
fn ring() {
    replay("ring");
}

#[test]
fn control() {
    replay("control");
}

#[test]
fn offload() {
    replay("offload");
}

#[test]
fn entry() {
    replay("entry");
}

#[test]
fn frame() {
    replay("frame");
}

#[test]
fn every_scenario_is_replayed_here() {
    let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(names, ["ring", "control", "offload", "entry", "frame"]);
}
