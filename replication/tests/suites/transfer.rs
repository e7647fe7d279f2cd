//! raft-rs's scenarios on handing leadership over. Ours begins at the leader (`Plan::HandOver`); a
//! follower's request is none of our messages.

use raft::StateRole;
use raft::eraftpb::MessageType;

use super::group::{ELECTION_TICKS, Group, Setup};

fn hand_over(group: &mut Group, from: u64, to: u64) {
    group.raft(from).transfer_leader(to);
    group.ready(from);
    group.settle();
}

#[test]
fn to_one_that_is_up_to_date_and_back() {
    for setup in [Setup::plain(3), Setup::default()] {
        let mut group = Group::led_by_first(setup);
        hand_over(&mut group, 1, 2);
        assert_eq!(
            (group.leader(), group.term(2)),
            (2, 2),
            "no lease is waited for"
        );
        group.propose(2, 1).expect("it leads");
        group.settle();
        hand_over(&mut group, 2, 1);
        assert_eq!(group.leader(), 1);
        group.is_level(4);
    }
}

#[test]
fn one_that_lags_is_given_what_it_lacks_first() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.mend();
    hand_over(&mut group, 1, 3);
    assert_eq!(group.leader(), 3);
    group.is_level(3);
}

#[test]
fn one_that_needs_a_snapshot_leads_after_it() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.compact(1);
    group.mend();
    hand_over(&mut group, 1, 3);
    // The snapshot's answer brings it to the last entry, and the request to campaign follows.
    if group.leader() != 3 {
        group.tick(1, 1);
        group.settle();
    }
    assert_eq!(group.leader(), 3);
    assert!((1..=3).all(|id| group.committed(id) == 3));
}

#[test]
fn to_itself_or_to_a_stranger_nothing_happens() {
    let mut group = Group::led_by_first(Setup::default());
    hand_over(&mut group, 1, 1);
    hand_over(&mut group, 1, 9);
    assert_eq!((group.leader(), group.term(1)), (1, 1));
    assert_eq!(group.node(1).raft.raft.lead_transferee, None);
    group.propose(1, 1).expect("it still takes input");
}

#[test]
fn meanwhile_no_input_is_taken_and_a_timeout_ends_it() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    hand_over(&mut group, 1, 3);
    assert!(group.propose(1, 1).is_err());
    for _ in 0..ELECTION_TICKS {
        group.tick(1, 1);
        group.settle();
    }
    assert_eq!(
        (group.leader(), group.node(1).raft.raft.lead_transferee),
        (1, None)
    );
    group.propose(1, 1).expect("it takes input again");
}

#[test]
fn a_higher_term_ends_it() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.isolate(3);
    hand_over(&mut group, 1, 3);
    group.campaign(2);
    group.settle();
    assert_eq!((group.leader(), group.state(1)), (2, StateRole::Follower));
    assert_eq!(group.node(1).raft.raft.lead_transferee, None);
}

#[test]
fn another_wish_replaces_the_first_and_the_same_does_not_prolong_it() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    hand_over(&mut group, 1, 3);
    hand_over(&mut group, 1, 2);
    assert_eq!(group.leader(), 2);

    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    hand_over(&mut group, 1, 3);
    for tick in 0..ELECTION_TICKS {
        group.tick(1, 1);
        group.settle();
        if tick == ELECTION_TICKS / 2 {
            hand_over(&mut group, 1, 3);
        }
    }
    assert_eq!(group.node(1).raft.raft.lead_transferee, None);
}

#[test]
fn a_lost_request_to_campaign_leaves_the_leader_in_office() {
    let mut group = Group::led_by_first(Setup::default());
    group.raft(1).transfer_leader(2);
    group.ready(1);
    assert_eq!(group.on_the_way(MessageType::MsgTimeoutNow).len(), 1);
    group.lose_to(&[2]);
    for _ in 0..ELECTION_TICKS {
        group.tick(1, 1);
        group.settle();
    }
    assert_eq!((group.leader(), group.term(1)), (1, 1));
}

#[test]
fn a_late_request_to_campaign_cannot_hurt_the_log() {
    let mut group = Group::led_by_first(Setup::default());
    group.raft(1).transfer_leader(2);
    group.ready(1);
    let late: Vec<_> = group.wire.drain(..).collect();
    for _ in 0..ELECTION_TICKS {
        group.tick(1, 1);
        group.settle();
    }
    group.isolate(2);
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.mend();
    // It lacks the entry, and is refused; the group finds a leader that has it.
    late.into_iter().for_each(|message| group.inject(message));
    group.settle();
    assert_ne!(group.leader(), 2);
    group.campaign(1);
    group.settle();
    assert_eq!(group.leader(), 1);
    assert!((1..=3).all(|id| group.committed(id) == group.committed(1)));
}
