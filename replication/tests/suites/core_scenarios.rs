//! Scenarios of the suites that our core drives itself, through `Core::step`.

use plover_types::Mode;
use replication::core::Event;

use super::cores::{A, B, Cores, ELECTION_TICKS, WITNESS};

/// Long enough for every node's timeout, several times.
const LONG: u32 = ELECTION_TICKS * 6;

#[test]
fn the_first_replica_is_elected_and_serves_under_a_lease() {
    let mut cores = Cores::serving();
    assert_eq!(cores.transmitting(), [A]);
    assert!(cores.propose(A, 1) && !cores.propose(B, 1) && !cores.propose(WITNESS, 1));
    cores.settle();
    let applied = cores.core(A).applied();
    cores.ticks(&[A, B, WITNESS], 1);
    assert!(
        [B, WITNESS]
            .iter()
            .all(|id| cores.core(*id).applied() == applied)
    );
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(
        (cores.term(A), cores.transmitting()),
        (1, vec![A]),
        "and for good"
    );
}

#[test]
fn a_primary_that_hears_nobody_stops_transmitting_before_anyone_else_can() {
    let mut cores = Cores::serving();
    cores.isolate(A);
    // `ticks` asserts after each that at most one transmits; at the end the old one knows.
    cores.ticks(&[A, B, WITNESS], LONG);
    assert!(
        cores.transmitting().is_empty(),
        "the backup's copy is not valid yet"
    );
    assert!(!cores.core(A).is_serving());
    cores.mend();
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(
        cores.transmitting(),
        [A],
        "it leads again, for it alone has a copy"
    );
}

#[test]
fn a_primary_that_is_heard_and_hears_nobody_stops_as_well() {
    let mut cores = Cores::serving();
    cores.cut_way(B, A);
    cores.cut_way(WITNESS, A);
    cores.ticks(&[A, B, WITNESS], LONG);
    assert!(!cores.core(A).is_serving() && cores.transmitting().is_empty());
}

#[test]
fn one_that_does_not_hear_the_leader_disturbs_nobody() {
    for deaf in [B, WITNESS] {
        let mut cores = Cores::serving();
        cores.cut_way(A, deaf);
        cores.ticks(&[A, B, WITNESS], LONG);
        assert_eq!(
            (cores.term(A), cores.transmitting()),
            (1, vec![A]),
            "deaf: {deaf}"
        );
        cores.mend();
        cores.ticks(&[A, B, WITNESS], LONG);
        assert_eq!((cores.term(deaf), cores.transmitting()), (1, vec![A]));
    }
}

#[test]
fn a_node_that_stood_still_and_goes_on_makes_no_election() {
    for still in [B, WITNESS] {
        let mut cores = Cores::serving();
        let others: Vec<u64> = [A, B, WITNESS]
            .into_iter()
            .filter(|id| *id != still)
            .collect();
        cores.ticks(&others, LONG);
        cores.ticks(&[A, B, WITNESS], LONG);
        assert_eq!((cores.term(A), cores.transmitting()), (1, vec![A]));
    }
}

#[test]
fn a_primary_that_stood_still_does_not_transmit_when_it_goes_on() {
    let mut cores = Cores::serving();
    // It sees and hears nothing meanwhile.
    cores.isolate(A);
    cores.ticks(&[B, WITNESS], LONG);
    // Time went on for it as well: its lease is over before it takes its first tick.
    assert!(cores.core(A).is_serving() && !cores.core(A).may_transmit(cores.now));
    cores.mend();
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(cores.transmitting(), [A], "the one with a copy leads again");
    assert!(cores.term(A) > 1);
}

#[test]
fn a_witness_that_is_elected_hands_over_to_the_replica_with_a_copy() {
    let mut cores = Cores::serving();
    cores.cut_way(A, B);
    cores.cut_way(B, A);
    // Both replicas' words reach the witness alone; the primary keeps its quorum.
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(cores.transmitting(), [A]);
    cores.mend();
    // Only the witness notices that time passes: it is elected.
    cores.isolate(A);
    cores.ticks(&[WITNESS], LONG);
    cores.mend();
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(cores.transmitting(), [A]);
    let role = *cores.core(WITNESS).group().role().expect("a role");
    assert_eq!((role.primary.0, role.mode), (A, Mode::Unprotected));
}

#[test]
fn the_witness_says_nothing_that_is_not_on_its_disk() {
    let mut cores = Cores::serving();
    cores.isolate(B);
    cores.ticks(&[A, WITNESS], 2);
    cores.disk_is_slow = true;
    let applied = cores.core(A).applied();
    assert!(cores.propose(A, 1));
    cores.settle();
    assert!(!cores.unwritten.is_empty());
    assert_eq!(cores.core(A).applied(), applied, "nobody else holds it");
    cores.write();
    cores.settle();
    assert!(cores.core(A).applied() > applied);
}

#[test]
fn several_bursts_wait_for_the_witness_disk_in_order() {
    let mut cores = Cores::serving();
    cores.isolate(B);
    cores.ticks(&[A, WITNESS], 2);
    cores.disk_is_slow = true;
    let before = cores.core(A).applied().0;
    for number in 0..4 {
        assert!(cores.propose(A, number));
        cores.settle();
    }
    assert!(cores.unwritten.len() >= 4);
    // One write at a time commits one burst at a time.
    let mut seen = Vec::new();
    while let Some(number) = cores.unwritten.pop_front() {
        cores.step(WITNESS, Event::Persisted(number));
        cores.settle();
        seen.push(cores.core(A).applied().0 - before);
    }
    assert!(seen.is_sorted() && seen.last() == Some(&4), "{seen:?}");
    assert!(seen.contains(&1) && seen.contains(&2), "{seen:?}");
}

#[test]
fn a_witness_whose_disk_failed_votes_no_more_and_the_others_go_on() {
    let mut cores = Cores::serving();
    cores.step(WITNESS, Event::PersistFailed);
    cores.ticks(&[A, B, WITNESS], LONG);
    assert_eq!(cores.transmitting(), [A]);
    cores.isolate(B);
    cores.ticks(&[A, B, WITNESS], LONG);
    assert!(cores.transmitting().is_empty(), "one of three is no quorum");
}
