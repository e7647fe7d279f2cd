//! A disk that takes its time: etcd's scripts on asynchronous storage writes and raft-rs's tests of
//! asynchronous Readys, over our order of actions (what depends on the disk leaves after it).

use raft::StateRole;
use raft::eraftpb::MessageType;

use super::group::{ELECTION_TICKS, Group, Setup, message};

fn slow(group: &mut Group, ids: &[u64]) {
    for id in ids {
        group.nodes.get_mut(id).expect("a node").is_slow = true;
    }
}

#[test]
fn script_async_storage_writes() {
    let mut group = Group::led_by_first(Setup::plain(3));
    slow(&mut group, &[1, 2, 3]);
    // Two entries are under way to every disk before the first is written anywhere.
    group.propose(1, 1).expect("it leads");
    group.deliver(&[2, 3]);
    group.propose(1, 2).expect("it leads");
    group.deliver(&[2, 3]);
    assert!((1..=3).all(|id| group.unwritten(id) >= 2 && group.last(id) == 3));
    assert_eq!(group.on_the_way(MessageType::MsgAppendResponse).len(), 0);
    assert_eq!(group.committed(1), 1);
    // The followers' disks are a majority: the leader need not wait for its own.
    group.write(2, 1);
    group.write(3, 1);
    group.deliver(&[1]);
    assert_eq!(group.committed(1), 2, "the first entry, not the second");
    group.write(2, 1);
    group.write(3, 1);
    group.deliver(&[1]);
    assert_eq!((group.committed(1), group.node(1).applied), (3, 1));
    // What it has not written itself it does not apply: it would not know it after a restart.
    for _ in 0..20 {
        (1..=3).for_each(|id| group.write(id, 1));
        group.settle();
    }
    group.is_level(3);
}

/// What an older leader sent is written after it was replaced in memory: the word of the disk must
/// not be taken for the newer entry.
#[test]
fn script_async_storage_writes_append_aba_race() {
    let mut group = Group::new(Setup::plain(7));
    group.campaign(2);
    group.settle();
    slow(&mut group, &[1]);
    group.propose(2, 1).expect("it leads");
    group.deliver(&[1]);
    group.lose_to(&[2, 3, 4, 5, 6, 7]);
    assert_eq!((group.last(1), group.unwritten(1)), (2, 1));

    // Another leader puts its own entry in the same place.
    group.isolate(2);
    group.campaign(3);
    group.deliver(&[4, 5, 6]);
    group.deliver(&[3]);
    assert_eq!(group.state(3), StateRole::Leader);
    group.deliver(&[1]);
    assert_eq!(group.node(1).terms(), [1, 2]);
    let waiting = group.unwritten(1);
    assert!(waiting >= 2);
    // The old entry is on disk: nobody is told of it, and it is not what is in memory.
    group.lose_to(&[3]);
    group.write(1, 1);
    assert!(
        group
            .on_the_way(MessageType::MsgAppendResponse)
            .iter()
            .all(|m| m.to != 3)
    );
    assert_eq!(group.node(1).raft.raft.raft_log.persisted, 1);
    assert_eq!(group.node(1).terms(), [1, 2]);
    // A restart now finds the old one; what was answered is still true.
    group.write(1, waiting);
    assert_eq!(group.node(1).raft.raft.raft_log.persisted, 2);
    group.mend();
    slow(&mut group, &[]);
    group.nodes.get_mut(&1).expect("a node").is_slow = false;
    group.settle();
    group.tick(3, 1);
    group.settle();
    assert_eq!(group.node(2).terms(), [1, 2]);
}

#[test]
fn a_vote_leaves_when_it_is_on_disk_and_is_kept_by_a_restart() {
    let mut group = Group::new(Setup::plain(3));
    slow(&mut group, &[3]);
    group.campaign(1);
    group.deliver(&[3]);
    assert!(
        group
            .on_the_way(MessageType::MsgRequestVoteResponse)
            .is_empty()
    );
    // Before it is written nothing of it remains.
    group.restart(3);
    assert_eq!((group.term(3), group.node(3).raft.raft.vote), (0, 0));
    group.campaign(1);
    group.deliver(&[3]);
    group.write(3, 5);
    assert_eq!(
        group.on_the_way(MessageType::MsgRequestVoteResponse).len(),
        1
    );
    let term = group.term(3);
    group.restart(3);
    assert_eq!((group.term(3), group.node(3).raft.raft.vote), (term, 1));
    // And another candidate of that term gets none.
    group.inject(message(MessageType::MsgRequestVote, 2, 3, term));
    group.write(3, 5);
    let answers = group.on_the_way(MessageType::MsgRequestVoteResponse);
    assert!(answers.iter().any(|answer| answer.to == 2 && answer.reject));
}

#[test]
fn a_candidate_counts_its_own_vote_only_when_it_is_on_disk() {
    let mut group = Group::new(Setup::plain(3));
    slow(&mut group, &[1]);
    group.campaign(1);
    assert!(
        group.on_the_way(MessageType::MsgRequestVote).is_empty(),
        "a request says that it voted for itself"
    );
    group.write(1, 1);
    assert_eq!(group.on_the_way(MessageType::MsgRequestVote).len(), 2);
    group.settle();
    assert_eq!(group.leader(), 1);
}

#[test]
fn a_leader_that_is_elected_with_a_slow_disk_commits_by_the_others() {
    let mut group = Group::new(Setup::plain(3));
    slow(&mut group, &[1]);
    group.campaign(1);
    group.write(1, 1);
    group.settle();
    group.propose(1, 1).expect("it leads");
    group.settle();
    assert!(group.unwritten(1) > 0);
    assert_eq!((group.committed(1), group.committed(2)), (2, 2));
    group.write(1, 10);
    group.settle();
    group.is_level(2);
}

#[test]
fn a_follower_acknowledges_what_is_on_disk_and_a_restart_keeps_it() {
    let mut group = Group::led_by_first(Setup::plain(3));
    slow(&mut group, &[2]);
    group.isolate(3);
    group.propose(1, 1).expect("it leads");
    group.propose(1, 2).expect("it leads");
    group.deliver(&[2]);
    group.write(2, 1);
    group.settle();
    // One of the two was written: that one counts, and only that.
    assert_eq!(group.committed(1), 2);
    group.restart(2);
    assert_eq!(group.last(2), 2);
    group.nodes.get_mut(&2).expect("a node").is_slow = false;
    group.mend();
    group.tick(1, 2);
    group.settle();
    group.is_level(3);
}

#[test]
fn a_leader_that_restarts_with_unwritten_entries_loses_only_what_nobody_was_told() {
    let mut group = Group::led_by_first(Setup::plain(3));
    slow(&mut group, &[1]);
    group.isolate(1);
    group.propose(1, 1).expect("it leads");
    group.restart(1);
    assert_eq!(group.last(1), 1);
    group.nodes.get_mut(&1).expect("a node").is_slow = false;
    group.mend();
    group.tick(2, ELECTION_TICKS * 2);
    group.settle();
    assert_eq!(group.leader(), 2);
    group.propose(2, 2).expect("it leads");
    group.settle();
    group.is_level(3);
}

#[test]
fn several_snapshots_and_entries_wait_for_the_disk_in_their_order() {
    let mut group = Group::new(Setup::plain(3));
    group.isolate(3);
    group.campaign(1);
    group.settle();
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.compact(1);
    slow(&mut group, &[3]);
    group.mend();
    group.tick(1, 1);
    group.settle();
    // What it says before the snapshot waits for the disk as well.
    while group.last(3) < 2 {
        assert!(group.unwritten(3) > 0);
        group.write(3, 1);
        group.settle();
    }
    assert!(group.unwritten(3) > 0, "the snapshot is in memory");
    assert_eq!(group.progress(1, 3).matched, 0, "and not acknowledged");
    group.write(3, 10);
    group.settle();
    group.write(3, 10);
    group.settle();
    assert_eq!(group.progress(1, 3).matched, 2);
    group.propose(1, 2).expect("it leads");
    group.settle();
    group.write(3, 10);
    group.settle();
    assert_eq!((group.last(3), group.node(3).applied), (3, 3));
}
