//! A lost member is replaced, over several cores in one thread: every step of it, and what happens
//! when the leader is lost, hands over, or a node starts again in the middle.

use crate::group::{Group, place};
use plover_types::{Mode, NodeId, NodeSpec, Standing};
use replication::core::{Action, Notice};
use replication::members::ReplaceRefused;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const W: NodeId = NodeId(3);
const NEW: NodeId = NodeId(4);

fn new_replica() -> NodeSpec {
    NodeSpec {
        place: place(NEW),
        ..NodeSpec::replica(NEW.0)
    }
}

fn new_witness() -> NodeSpec {
    NodeSpec {
        place: place(NEW),
        ..NodeSpec::witness(NEW.0)
    }
}

/// A protected group whose primary is A, after B died.
fn without_b() -> Group {
    let mut group = Group::protected();
    group.crash(B);
    group.run_until("unprotected", |group| group.mode() == Mode::Unprotected);
    group
}

fn is_done(group: &Group) -> bool {
    let members = group.core(A).group().members();
    members.version() == 3 && members.standing(NEW) == Some(Standing::Voter)
}

#[test]
fn a_lost_replica_comes_back_as_another_node_and_can_take_over() {
    let mut group = without_b();
    group.replace(A, B, &new_replica()).expect("accepted");
    group.join(B, &new_replica());
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    // Protected only once it could take over.
    assert!(is_done(&group));
    let role = group.core(A).group().role().expect("accepted");
    assert!(role.valid.contains(NEW) && !role.valid.contains(B));
    for node in [W, NEW] {
        group.run_until("all know", |group| {
            group.core(node).group().members().version() == 3
        });
    }
    group.crash(A);
    group.run_until("the new one serves", |group| group.core(NEW).is_serving());
    assert_eq!(group.two_leases, 0);
}

#[test]
fn everybody_is_told_how_to_reach_the_new_one() {
    let mut group = without_b();
    group.replace(A, B, &new_replica()).expect("accepted");
    group.run_ms(100);
    let told = group.last(W, |action| match action {
        Action::Members(specs) => Some(specs.clone()),
        _ => None,
    });
    let told = told.expect("the witness is told");
    assert!(told.contains(&new_replica()));
    assert!(told.iter().all(|spec| spec.id != B), "{told:?}");
}

#[test]
fn a_learner_neither_votes_nor_leads_nor_makes_a_quorum() {
    let mut group = without_b();
    group.replace(A, B, &new_replica()).expect("accepted");
    group.fills_stall = true;
    group.join(B, &new_replica());
    group.run_ms(300);
    assert!(!group.core(NEW).has_vote());
    // The leader and a learner are no majority: the lease ends, nothing is served, nobody takes over.
    group.crash(W);
    group.run_ms(2_000);
    assert!(!group.may_transmit(A) && !group.may_transmit(NEW));
    group.restart(W);
    group.run_until("A serves again", |group| group.may_transmit(A));
    // The leader gone, the learner does not stand in for it.
    group.crash(A);
    group.run_ms(2_000);
    assert!(!group.core(NEW).is_serving() && group.campaigns(NEW) == 0);
}

#[test]
fn the_group_serves_on_all_the_time() {
    let mut group = without_b();
    group.run_until("A serves", |group| group.may_transmit(A));
    group.longest_gap_us = 0;
    group.replace(A, B, &new_replica()).expect("accepted");
    group.join(B, &new_replica());
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    // Each new list starts a new lease, which takes a round trip.
    assert!(group.longest_gap_us < 5_000, "{} us", group.longest_gap_us);
}

#[test]
fn a_lost_witness_is_replaced_and_its_successor_decides() {
    let mut group = Group::protected();
    group.crash(W);
    group.run_ms(500);
    group.replace(A, W, &new_witness()).expect("accepted");
    group.join(W, &new_witness());
    group.run_until("done", is_done);
    assert_eq!(group.mode(), Mode::Protected);
    group.crash(A);
    group.run_until("B serves", |group| group.core(B).is_serving());
    assert_eq!(group.two_leases, 0);
}

#[test]
fn a_leader_that_hands_over_in_the_middle_leaves_the_rest_to_the_next() {
    for steps in 0..12 {
        let mut group = Group::protected();
        group.crash(W);
        group.run_ms(500);
        group.replace(A, W, &new_witness()).expect("accepted");
        group.join(W, &new_witness());
        for _ in 0..steps {
            group.step();
        }
        group.fail_over(A).expect("accepted");
        group.run_until("B is primary", |group| group.core(B).is_serving());
        group.run_until("done", |group| {
            group.core(B).group().members().standing(NEW) == Some(Standing::Voter)
        });
        assert_eq!(group.two_leases, 0);
    }
}

#[test]
fn a_witness_that_restarts_at_any_moment_goes_on_where_it_was() {
    for steps in (0..400).step_by(9) {
        let mut group = without_b();
        group.replace(A, B, &new_replica()).expect("accepted");
        group.join(B, &new_replica());
        for _ in 0..steps {
            group.step();
        }
        group.crash(W);
        group.run_ms(30);
        group.restart(W);
        group.run_until("protected again", |group| group.mode() == Mode::Protected);
        assert!(is_done(&group), "after {steps} steps");
        group.run_until("the witness knows", |group| {
            group.core(W).group().members().version() == 3
        });
    }
}

#[test]
fn a_leader_that_loses_its_majority_in_the_middle_goes_on_when_it_is_back() {
    for steps in (0..400).step_by(9) {
        let mut group = without_b();
        group.replace(A, B, &new_replica()).expect("accepted");
        group.join(B, &new_replica());
        for _ in 0..steps {
            group.step();
        }
        group.part(A, true);
        group.run_ms(700);
        assert!(
            !group.may_transmit(A),
            "after {steps} steps: no lease without a quorum"
        );
        group.part(A, false);
        group.run_until("protected again", |group| group.mode() == Mode::Protected);
        group.run_until("settled", |group| {
            let serving = [A, NEW].map(|node| group.core(node).is_serving());
            serving.contains(&true)
        });
        assert_eq!(group.two_leases, 0, "after {steps} steps");
    }
}

#[test]
fn the_replaced_node_that_comes_back_is_refused_counted_and_told_of() {
    let mut group = Group::protected();
    group.part(B, true);
    group.run_until("unprotected", |group| {
        group.core(A).group().role().expect("a role").mode == Mode::Unprotected
    });
    group.run_until("A serves", |group| group.may_transmit(A));
    group.run_ms(200);
    group.replace(A, B, &new_replica()).expect("accepted");
    group.join(B, &new_replica());
    group.run_until("protected again", |group| {
        group.mode_of(A) == Mode::Protected
    });
    let term = group.core(A).leader().1;
    group.part(B, false);
    group.run_ms(1_000);
    assert_eq!(
        group.core(A).leader(),
        (Some(A), term),
        "nobody is disturbed"
    );
    assert!(group.core(A).counters().messages_of_gone > 0);
    let told = group.last(A, |action| match action {
        Action::Note(Notice::GoneHeard { node }) => Some(*node),
        _ => None,
    });
    assert_eq!(told, Some(B));
    assert!(!group.core(B).is_serving() && !group.may_transmit(B));
}

#[test]
fn what_cannot_be_replaced_is_refused_by_name() {
    let mut group = Group::protected();
    let refused = |group: &mut Group, by, lost, new: NodeSpec| {
        group.replace(by, lost, &new).expect_err("refused")
    };
    assert_eq!(
        refused(&mut group, A, B, new_replica()),
        ReplaceRefused::Alive(B)
    );
    assert_eq!(
        refused(&mut group, A, A, new_replica()),
        ReplaceRefused::Own(A)
    );
    assert_eq!(
        refused(&mut group, B, W, new_witness()),
        ReplaceRefused::NotLeader(A)
    );
    let mut group = without_b();
    assert_eq!(
        refused(&mut group, A, B, NodeSpec::replica(3)),
        ReplaceRefused::IdUsed(W)
    );
    group.replace(A, B, &new_replica()).expect("accepted");
    group.run_ms(50);
    // Asked again: nothing changes.
    group.replace(A, B, &new_replica()).expect("accepted");
    assert_eq!(group.core(A).group().members().version(), 1);
    // The newcomer never came: another is named.
    group
        .replace(A, B, &NodeSpec::replica(5))
        .expect("accepted");
    group.run_ms(50);
    assert_eq!(group.core(A).group().members().version(), 2);
    assert!(group.core(A).is_gone(NEW));
}

#[test]
fn a_second_and_a_third_replacement_follow_the_first() {
    let mut group = without_b();
    for (lost, new) in [(2, 4), (4, 5), (5, 6)] {
        if lost != 2 {
            group.crash(NodeId(lost));
            group.run_until("unprotected", |group| group.mode() == Mode::Unprotected);
        }
        group.run_ms(500);
        let spec = NodeSpec {
            place: place(NodeId(new)),
            ..NodeSpec::replica(new)
        };
        group.replace(A, NodeId(lost), &spec).expect("accepted");
        group.join(NodeId(lost), &spec);
        group.run_until("protected again", |group| group.mode() == Mode::Protected);
    }
    assert_eq!(group.core(A).group().members().version(), 9);
}

#[test]
fn a_hand_over_that_nobody_takes_opens_the_uplink_again_only_in_a_later_term() {
    let mut group = Group::protected();
    let term = group.core(A).leader().1;
    group.fail_over(A).expect("accepted");
    group.run_until("shut", |group| {
        let is_asked =
            |action: &Action| matches!(action, Action::Note(Notice::HandOver { .. })).then_some(());
        group.last(A, is_asked).is_some()
    });
    // Whoever is asked to lead may hold that request for long, and disregards leases then.
    group.part(B, true);
    for _ in 0..10_000 {
        group.step();
        assert!(!group.may_transmit(A) || group.core(A).leader().1 > term);
    }
    group.part(B, false);
    group.run_until("served again", |group| {
        group.may_transmit(A) || group.may_transmit(B)
    });
    assert_eq!(group.two_leases, 0);
}
