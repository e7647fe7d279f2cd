//! raft-rs's scenarios on flow control: what may be under way to a follower, and uncommitted.

use raft::ProgressState;
use raft::eraftpb::MessageType;

use super::group::{ELECTION_TICKS, Group, Setup};

fn appends_to(group: &Group, id: u64) -> usize {
    let appends = group.on_the_way(MessageType::MsgAppend);
    appends.iter().filter(|append| append.to == id).count()
}

fn with_window(in_flight: usize) -> Group {
    Group::led_by_first(Setup {
        in_flight,
        ..Setup::plain(3)
    })
}

#[test]
fn a_full_window_sends_nothing_more() {
    let mut group = with_window(4);
    for number in 0..4 {
        group.propose(1, number).expect("it leads");
        assert_eq!(appends_to(&group, 2), number as usize + 1);
    }
    for number in 4..8 {
        group.propose(1, number).expect("the log still takes it");
        assert_eq!(appends_to(&group, 2), 4);
    }
}

#[test]
fn an_answer_moves_the_window_on_and_an_old_one_does_not() {
    let mut group = with_window(4);
    for number in 0..8 {
        group.propose(1, number).expect("it leads");
    }
    // Node 2 answers them one by one; the first answer comes twice.
    group.deliver(&[2]);
    let answers: Vec<_> = group.wire.iter().filter(|m| m.to == 1).cloned().collect();
    group.wire.clear();
    assert_eq!(answers.len(), 4);
    group.inject(answers[0].clone());
    let sent = appends_to(&group, 2);
    assert!(sent >= 1, "there is room for more");
    group.inject(answers[0].clone());
    assert_eq!(appends_to(&group, 2), sent, "the same answer makes no room");
}

#[test]
fn an_answered_heartbeat_frees_one_place_of_a_full_window() {
    let mut group = with_window(4);
    for number in 0..8 {
        group.propose(1, number).expect("it leads");
    }
    group.wire.clear();
    for _ in 0..3 {
        group.tick(1, 1);
        group.deliver(&[2, 3]);
        group.deliver(&[1]);
        assert_eq!(appends_to(&group, 2), 1, "one, and no more");
        group.wire.clear();
    }
}

#[test]
fn a_probe_is_one_message_until_it_is_answered() {
    let mut group = with_window(256);
    group.raft(1).report_unreachable(2);
    assert_eq!(group.progress(1, 2).state, ProgressState::Probe);
    for number in 0..5 {
        group.propose(1, number).expect("it leads");
    }
    assert_eq!(appends_to(&group, 2), 1);
    assert!(appends_to(&group, 3) > 1, "the other one is not meant");
    group.settle();
    assert_eq!(group.progress(1, 2).state, ProgressState::Replicate);
    group.is_level(6);
}

#[test]
fn in_replication_the_next_entry_does_not_wait_for_the_last() {
    let mut group = with_window(256);
    for number in 0..5 {
        group.propose(1, number).expect("it leads");
    }
    assert_eq!(
        (group.progress(1, 2).matched, group.progress(1, 2).next_idx),
        (1, 7)
    );
    group.settle();
    group.is_level(6);
}

#[test]
fn a_follower_that_was_cut_off_catches_up_in_messages_of_bounded_size() {
    let mut group = Group::led_by_first(Setup {
        append_bytes: 300,
        ..Setup::plain(3)
    });
    group.isolate(3);
    for number in 0..20 {
        group.propose(1, number).expect("it leads");
    }
    group.settle();
    group.mend();
    group.tick(1, 1);
    let mut largest = 0;
    for _ in 0..40 {
        let appends = group.on_the_way(MessageType::MsgAppend);
        let entries = appends.iter().map(|append| append.entries.len());
        largest = largest.max(entries.max().unwrap_or(0));
        group.deliver(&[3]);
        group.deliver(&[1]);
    }
    group.settle();
    group.is_level(21);
    assert!((1..=4).contains(&largest), "{largest} entries in a message");
}

#[test]
fn beyond_the_bound_of_uncommitted_bytes_input_is_refused_until_some_commits() {
    let mut group = Group::led_by_first(Setup {
        append_bytes: 300,
        uncommitted_bytes: 500,
        ..Setup::plain(3)
    });
    group.isolate(2);
    group.isolate(3);
    let taken = (0..100)
        .take_while(|number| group.propose(1, *number).is_ok())
        .count();
    assert!((1..20).contains(&taken), "{taken}");
    let last = group.last(1);
    assert!(group.propose(1, 0).is_err());
    assert_eq!(group.last(1), last, "nothing of it is in the log");
    group.mend();
    group.tick(1, 2);
    group.settle();
    group.propose(1, 0).expect("there is room again");
    group.settle();
    group.is_level(last + 1);
}

#[test]
fn a_new_leader_counts_uncommitted_bytes_from_nothing() {
    let mut group = Group::led_by_first(Setup {
        append_bytes: 300,
        uncommitted_bytes: 500,
        ..Setup::default()
    });
    group.isolate(3);
    group.cut(1, 2);
    let refused = (0..100).any(|number| group.propose(1, number).is_err());
    assert!(refused, "the account is full");
    // It loses its lead with a full account, and wins it again.
    group.tick(1, ELECTION_TICKS * 2);
    group.settle();
    group.mend();
    group.tick(2, ELECTION_TICKS);
    group.tick(3, ELECTION_TICKS);
    group.campaign(1);
    group.settle();
    let leader = group.leader();
    assert_eq!(leader, 1);
    group.propose(1, 1).expect("the account is empty");
    group.settle();
    group.is_level(group.last(1));
}
