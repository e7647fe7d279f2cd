//! Failovers over several cores in one thread: planned ones, a witness that is elected, a node that
//! stood still, and the time that detection takes.

use crate::group::{Group, place};
use plover_types::{Mode, NodeId, NodeSpec};
use replication::core::{FailoverProgress, FailoverRefused};
use replication::limits::{ELECTION_TICKS_MIN, election_ticks};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const W: NodeId = NodeId(3);

#[test]
fn work_is_handed_over_after_one_more_sync_and_without_a_timeout() {
    let mut group = Group::protected();
    group.run_ms(300);
    let syncs = group.core(A).group().last_end();
    assert_eq!(group.fail_over(A), Ok(B));
    assert_eq!(group.fail_over(A), Err(FailoverRefused::UnderWay));
    group.run_until("B is primary", |group| group.may_transmit(B));
    assert!(
        group.core(B).group().last_end() > syncs,
        "nothing was synced"
    );
    group.run_until("A knows", |group| {
        group.core(A).failover() != Some(FailoverProgress::HandingOver)
    });
    let Some(FailoverProgress::Done {
        to,
        without_service_us,
        ..
    }) = group.core(A).failover()
    else {
        panic!("{:?}", group.core(A).failover());
    };
    // Virtual time: a few messages, a tick until A knows, and no election timeout (150 ms here).
    assert!(
        to == B && without_service_us < 20_000,
        "{without_service_us} us"
    );
    assert_eq!(
        group.campaigns(B) + group.campaigns(W),
        1,
        "only when asked to"
    );
    assert_eq!(group.core(B).counters().failovers, 0);
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    assert_eq!(group.two_leases, 0);
}

#[test]
fn work_is_not_handed_over_without_a_backup_that_runs() {
    let mut group = Group::protected();
    assert_eq!(group.fail_over(B), Err(FailoverRefused::NotPrimary(A)));
    group.crash(B);
    group.run_until("unprotected", |group| group.mode() == Mode::Unprotected);
    assert_eq!(group.fail_over(A), Err(FailoverRefused::NotProtected));
}

#[test]
fn a_backup_that_dies_at_any_moment_of_a_planned_failover_leaves_the_primary_serving() {
    for steps in 0..60 {
        let mut group = Group::protected();
        group.run_ms(300);
        group.fail_over(A).expect("asked for");
        for _ in 0..steps {
            group.step();
        }
        if group
            .core(A)
            .failover()
            .is_some_and(|progress| matches!(progress, FailoverProgress::Done { .. }))
        {
            break;
        }
        group.crash(B);
        group.run_until("A serves", |group| {
            group.mode_of(A) == Mode::Unprotected && group.may_transmit(A)
        });
        assert_eq!(group.core(A).failover(), Some(FailoverProgress::GivenUp));
        assert_eq!(group.two_leases, 0, "after {steps} steps");
    }
}

#[test]
fn a_witness_that_is_elected_hands_over() {
    let mut group = Group::protected();
    // B hears nothing for a moment, so that the witness is the first to ask.
    group.part(B, true);
    group.crash(A);
    group.run_ms(120);
    group.part(B, false);
    group.run_until("B serves", |group| group.core(B).is_serving());
    assert!(!group.core(W).is_serving());
    assert_eq!(group.two_leases, 0);
}

#[test]
fn a_primary_that_stood_still_for_five_seconds_does_no_harm() {
    let mut group = Group::protected();
    group.freeze(A, true);
    group.run_until("B serves", |group| group.may_transmit(B));
    group.run_ms(5_000);
    group.freeze(A, false);
    group.run_until("A follows", |group| group.core(A).leader().0 == Some(B));
    assert!(!group.may_transmit(A));
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    assert_eq!(group.two_leases, 0);
    // It was alive all the time, and that is counted.
    assert_eq!(group.core(B).counters().failovers, 1);
    assert_eq!(group.core(B).counters().false_failovers, 1);
}

#[test]
fn a_primary_that_died_is_no_false_failover() {
    let mut group = Group::protected();
    group.crash(A);
    group.run_until("B serves", |group| group.may_transmit(B));
    group.run_ms(1_000);
    let counters = group.core(B).counters();
    assert_eq!((counters.failovers, counters.false_failovers), (1, 0));
}

#[test]
fn a_backup_or_a_witness_that_stood_still_disturbs_nobody() {
    for node in [B, W] {
        let mut group = Group::protected();
        group.freeze(node, true);
        group.run_ms(5_000);
        group.freeze(node, false);
        group.run_ms(1_000);
        assert_eq!(group.core(A).leader().0, Some(A));
        group.run_until("protected", |group| group.mode() == Mode::Protected);
        assert_eq!(group.two_leases, 0);
    }
}

/// The bound of docs/lease.md, with the election timeout of 15 ticks of 10 ms: 15 and 2 of grace, and
/// 3 for the replica listed second.
#[test]
fn a_dead_primary_is_noticed_within_the_bound() {
    for phase_ms in 0..30 {
        let mut group = Group::protected();
        group.run_ms(200 + phase_ms);
        group.crash(A);
        group.run_until("B asks", |group| group.campaigns(B) > 0);
        let took = group.heard_to_campaign_us(B);
        assert!((170_000..=200_200).contains(&took), "{took} us");
    }
}

#[test]
fn a_detection_time_is_in_ticks_and_has_a_least() {
    let ms = std::time::Duration::from_millis;
    assert_eq!(election_ticks(ms(100), ms(5)), Some(15));
    assert_eq!(election_ticks(ms(30), ms(1)), Some(25));
    assert_eq!(election_ticks(ms(15), ms(1)), Some(ELECTION_TICKS_MIN));
    assert_eq!(election_ticks(ms(14), ms(1)), None);
    assert_eq!(election_ticks(ms(100), ms(0)), None);
}

#[test]
fn a_newcomer_of_a_handed_over_group_is_filled_by_the_new_primary() {
    let mut group = Group::protected();
    group.fail_over(A).expect("asked for");
    group.run_until("B is primary", |group| group.may_transmit(B));
    group.crash(A);
    group.run_until("unprotected", |group| group.mode() == Mode::Unprotected);
    group.run_ms(500);
    let new = NodeSpec {
        place: place(NodeId(4)),
        ..NodeSpec::replica(4)
    };
    group.replace(B, A, &new).expect("accepted");
    group.join(A, &new);
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    assert_eq!(group.two_leases, 0);
}
