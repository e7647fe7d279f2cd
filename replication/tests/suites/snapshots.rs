//! raft-rs's scenarios on snapshots.

use plover_types::{LogIndex, Term};
use raft::eraftpb::MessageType;
use raft::{ProgressState, SnapshotStatus};

use super::group::{Group, Setup, message, snapshot};

/// A group whose third node lacks what the leader no longer has; the snapshot is on its way.
fn one_needs_a_snapshot() -> Group {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.isolate(3);
    for number in 0..5 {
        group.propose(1, number).expect("it leads");
    }
    group.settle();
    group.compact(1);
    group.mend();
    group.tick(1, 1);
    group.until_snapshot(1, &[2, 3]);
    assert_eq!(group.progress(1, 3).state, ProgressState::Snapshot);
    assert_eq!(group.progress(1, 3).pending_snapshot, 6);
    group
}

#[test]
fn while_a_snapshot_is_on_its_way_nothing_else_is_sent() {
    let mut group = one_needs_a_snapshot();
    group.lose_to(&[3]);
    group.propose(1, 9).expect("it leads");
    group.settle_among(&[1, 2]);
    let appends = group.on_the_way(MessageType::MsgAppend);
    assert!(appends.iter().all(|append| append.to != 3));
}

#[test]
fn a_lost_snapshot_is_sent_again_once_it_is_reported() {
    let mut group = one_needs_a_snapshot();
    group.lose_to(&[3]);
    group.tick(1, 3);
    group.settle();
    assert_eq!(group.last(3), 1, "by itself raft-rs waits for ever");
    // Our core reports it lost after an election timeout.
    group.raft(1).report_snapshot(3, SnapshotStatus::Failure);
    assert_eq!(group.progress(1, 3).state, ProgressState::Probe);
    group.tick(1, 1);
    group.settle();
    assert_eq!((group.last(3), group.committed(3)), (6, 6));
}

#[test]
fn a_snapshot_that_arrived_is_followed_by_entries() {
    let mut group = one_needs_a_snapshot();
    group.propose(1, 9).expect("it leads");
    group.settle();
    assert_eq!(group.progress(1, 3).pending_snapshot, 0);
    assert_eq!((group.last(3), group.committed(3)), (7, 7));
    assert_eq!(group.node(3).log().compacted().0, LogIndex(6));
}

#[test]
fn an_append_that_catches_up_ends_the_wait_for_a_snapshot() {
    let mut group = one_needs_a_snapshot();
    group.lose_to(&[3]);
    // It got the entries from elsewhere: from the other follower, had that led meanwhile.
    let mut answer = message(MessageType::MsgAppendResponse, 3, 1, 1);
    answer.index = 6;
    group.inject(answer);
    assert_ne!(group.progress(1, 3).state, ProgressState::Snapshot);
}

#[test]
fn a_follower_keeps_no_entry_of_before_a_snapshot() {
    let mut group = one_needs_a_snapshot();
    group.settle();
    let log = group.node(3).log();
    assert_eq!(log.compacted(), (LogIndex(6), Term(1)));
    assert!((1..=6).all(|index| log.entry(LogIndex(index)).is_none()));
    assert_eq!(log.term_of(LogIndex(6)), Some(Term(1)));
    group.restart(3);
    assert_eq!((group.last(3), group.node(3).applied), (6, 6));
}

#[test]
fn a_snapshot_that_is_not_newer_than_what_is_committed_is_ignored() {
    for index in [1, 3] {
        let mut group = Group::led_by_first(Setup::plain(3));
        group.propose(1, 1).expect("it leads");
        group.propose(1, 2).expect("it leads");
        group.settle();
        let mut old = message(MessageType::MsgSnapshot, 1, 2, 1);
        old.set_snapshot(snapshot(LogIndex(index), Term(1)));
        group.inject(old);
        assert_eq!((group.last(2), group.node(2).terms().len()), (3, 3));
        group.settle();
        group.is_level(3);
    }
}

/// What the snapshot stands for is in the log already: it only says what is committed.
#[test]
fn a_snapshot_of_what_the_log_holds_moves_the_commit_index_only() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.deliver(&[2]);
    assert_eq!((group.last(2), group.committed(2)), (2, 1));
    let mut known = message(MessageType::MsgSnapshot, 1, 2, 1);
    known.set_snapshot(snapshot(LogIndex(2), Term(1)));
    group.inject(known);
    assert_eq!((group.committed(2), group.node(2).terms().len()), (2, 2));
}

#[test]
fn a_snapshot_of_the_past_is_kept_out_and_a_leader_is_given_none() {
    let mut group = Group::led_by_first(Setup::plain(3));
    let mut stranger = message(MessageType::MsgSnapshot, 3, 1, 1);
    stranger.set_snapshot(snapshot(LogIndex(9), Term(1)));
    group.inject(stranger);
    assert_eq!((group.leader(), group.last(1)), (1, 1));
}

#[test]
fn without_a_snapshot_to_give_the_leader_waits() {
    // Entries are gone only when there is one, so a follower is never asked to wait for ever: the
    // log refuses to drop them.
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.settle();
    assert!(group.raft(1).mut_store().compact(LogIndex(2)).is_err());
}

#[test]
fn after_a_snapshot_the_third_can_lead() {
    let mut group = one_needs_a_snapshot();
    group.settle();
    group.tick(1, 1);
    group.settle();
    group.isolate(1);
    group.campaign(3);
    group.settle();
    assert_eq!(group.leader(), 3);
    group.propose(3, 9).expect("it leads");
    group.settle();
    group.mend();
    group.tick(3, 1);
    group.settle();
    assert!((1..=3).all(|id| group.committed(id) == 8));
}
