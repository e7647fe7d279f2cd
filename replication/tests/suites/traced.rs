//! Runs whose events are checked against the published trace specification, see docs/testing.md.
//! With `PLOVER_TRACE_DIR` each leaves its events there.

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::group::{Group, Setup};

fn keep(group: &Group, name: &str) {
    let trace = group.trace.as_ref().expect("it was written down");
    assert!(trace.events > 50, "{} events", trace.events);
    if let Some(dir) = std::env::var_os("PLOVER_TRACE_DIR") {
        let path = PathBuf::from(dir).join(format!("{name}.ndjson"));
        std::fs::write(path, &trace.lines).expect("write the trace");
    }
}

fn traced(pre_votes: bool) -> Group {
    let mut group = Group::new(Setup {
        pre_votes,
        ..Setup::plain(3)
    });
    group.start_trace();
    group
}

#[test]
fn an_election_and_some_entries() {
    let mut group = traced(false);
    group.campaign(1);
    group.settle();
    for number in 0..4 {
        group.propose(1, number).expect("it leads");
        group.settle();
    }
    group.tick(1, 1);
    group.settle();
    group.is_level(5);
    keep(&group, "entries");
}

#[test]
fn a_leader_that_was_cut_off_and_its_entries_that_are_replaced() {
    for pre_votes in [false, true] {
        let mut group = traced(pre_votes);
        group.campaign(1);
        group.settle();
        group.isolate(1);
        group.propose(1, 1).expect("it leads");
        group.propose(1, 2).expect("it leads");
        group.campaign(2);
        group.settle();
        group.propose(2, 3).expect("it leads");
        group.settle();
        group.mend();
        group.tick(2, 1);
        group.settle();
        group.tick(2, 1);
        group.settle();
        group.is_level(3);
        keep(
            &group,
            if pre_votes {
                "replaced-prevote"
            } else {
                "replaced"
            },
        );
    }
}

#[test]
fn a_leader_that_hands_over_and_a_node_that_starts_again() {
    let mut group = traced(false);
    group.campaign(1);
    group.settle();
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.raft(1).transfer_leader(3);
    group.ready(1);
    group.settle();
    assert_eq!(group.leader(), 3);
    group.restart(1);
    group.propose(3, 2).expect("it leads");
    group.settle();
    group.tick(3, 1);
    group.settle();
    group.is_level(4);
    keep(&group, "handover-restart");
}

/// Whatever a seed draws: campaigns, entries, heartbeats, losses, restarts.
#[test]
fn what_seeds_draw() {
    for seed in 1..=6 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut group = traced(seed % 2 == 0);
        group.campaign(1);
        group.settle();
        for number in 0..14 {
            let id = random.random_range(1..=3);
            match random.random_range(0..10) {
                0 | 1 => group.campaign(id),
                2 => group.isolate(id),
                3 => group.mend(),
                4 => group.restart(id),
                _ => {
                    let leader = group.leader();
                    if leader != 0 {
                        let _ = group.propose(leader, number);
                        group.tick(leader, 1);
                    }
                }
            }
            if random.random_range(0..3) > 0 {
                group.settle();
            }
        }
        group.check();
        keep(&group, &format!("seed-{seed}"));
    }
}
