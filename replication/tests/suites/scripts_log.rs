//! etcd's scripts on the log and what a leader believes of its followers'.

use raft::ProgressState;

use super::group::{Group, Setup};

fn propose(group: &mut Group, id: u64, numbers: std::ops::Range<u32>) {
    for number in numbers {
        group.propose(id, number).expect("the leader takes it");
    }
}

#[test]
fn script_heartbeat_resp_recovers_from_probing() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.raft(1).report_unreachable(2);
    assert_eq!(group.progress(1, 2).state, ProgressState::Probe);
    // A heartbeat there and back ends the pause; the state changes with the next entry only, which
    // goes out at once. (etcd's library sends an empty append at the heartbeat's answer.)
    group
        .raft(1)
        .raft
        .mut_prs()
        .get_mut(2)
        .expect("a member")
        .pause();
    group.tick(1, 1);
    group.settle();
    assert!(!group.progress(1, 2).is_paused());
    propose(&mut group, 1, 1..2);
    group.settle();
    assert_eq!(group.progress(1, 2).state, ProgressState::Replicate);
    group.is_level(2);
}

#[test]
fn script_lagging_commit() {
    let mut group = Group::led_by_first(Setup::plain(3));
    propose(&mut group, 1, 1..3);
    // Both others hold the entries; that they are committed is lost on the way to node 3.
    group.deliver(&[2, 3]);
    group.deliver(&[1]);
    group.lose_to(&[3]);
    group.settle_among(&[1, 2]);
    assert_eq!((group.committed(2), group.committed(3)), (3, 1));
    assert_eq!(group.last(3), 3);
    // The next heartbeat carries it.
    group.tick(1, 1);
    group.deliver(&[3]);
    assert_eq!(group.committed(3), 3);
    group.settle();
    group.is_level(3);
}

/// The seven logs of the paper's figure 7. The first node is elected and brings the others in line.
#[test]
fn script_probe_and_replicate() {
    let logs: [&[u64]; 7] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 7, 7, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    let mut group = Group::new(Setup::plain(7));
    for (id, terms) in (1..).zip(logs) {
        group.give_log(id, terms, 7, 1);
    }
    group.campaign(1);
    group.settle_among(&[1, 2, 3, 6, 7]);
    assert_eq!((group.leader(), group.term(1)), (1, 8));
    group.settle();
    let mut settled = logs[0].to_vec();
    settled.push(8);
    for id in 1..=7 {
        assert_eq!(group.node(id).terms(), settled, "node {id}");
        assert_eq!(group.committed(id), 11);
    }
    for id in 2..=7 {
        assert_eq!(group.progress(1, id).state, ProgressState::Replicate);
        assert_eq!(group.progress(1, id).matched, 11);
    }
}

#[test]
fn script_replicate_pause() {
    let mut group = Group::led_by_first(Setup {
        in_flight: 3,
        ..Setup::plain(3)
    });
    propose(&mut group, 1, 1..4);
    assert!(group.progress(1, 2).is_paused() && group.progress(1, 3).is_paused());
    group.lose_to(&[3]);
    group.settle_among(&[1, 2]);
    assert!(!group.progress(1, 2).is_paused());
    assert_eq!(group.committed(1), 4);

    // Node 3 gets nothing more, however much is proposed.
    propose(&mut group, 1, 4..7);
    assert!(
        group.wire.iter().all(|message| message.to != 3),
        "the window to it is full"
    );
    group.settle_among(&[1, 2]);
    assert_eq!((group.committed(1), group.last(3)), (7, 1));

    // A heartbeat there and back opens it by one message, which tells where the gap begins.
    group.tick(1, 1);
    group.settle();
    assert_eq!(group.progress(1, 3).state, ProgressState::Replicate);
    group.tick(1, 1);
    group.settle();
    group.is_level(7);
}

#[test]
fn script_slow_follower_after_compaction() {
    let mut group = Group::led_by_first(Setup {
        in_flight: 2,
        ..Setup::plain(3)
    });
    propose(&mut group, 1, 1..4);
    group.settle();
    propose(&mut group, 1, 4..8);
    group.lose_to(&[3]);
    group.settle_among(&[1, 2]);
    assert!(group.progress(1, 3).is_paused());
    assert_eq!(group.last(3), 4);
    // What it would need is gone.
    group.compact(1);
    group.tick(1, 1);
    group.settle();
    assert_eq!(
        group.node(3).log().compacted().0.0,
        8,
        "it was given a snapshot"
    );
    propose(&mut group, 1, 8..9);
    group.settle();
    assert_eq!(group.progress(1, 3).state, ProgressState::Replicate);
    assert_eq!((group.committed(3), group.last(3)), (9, 9));
}

#[test]
fn script_snapshot_succeed_via_app_resp() {
    let mut group = Group::new(Setup::plain(3));
    group.isolate(3);
    group.campaign(1);
    group.settle();
    group.compact(1);
    group.mend();
    group.tick(1, 1);
    // It says that it has nothing, and the leader finds that it needs a snapshot.
    group.until_snapshot(1, &[3]);
    assert_eq!(group.progress(1, 3).state, ProgressState::Snapshot);
    assert_eq!(group.progress(1, 3).pending_snapshot, 1);
    // The snapshot is the whole log; the answer to it is all that the leader hears. (It probes
    // then until the next entry, which goes out at once.)
    group.settle();
    assert_ne!(group.progress(1, 3).state, ProgressState::Snapshot);
    assert_eq!((group.progress(1, 3).matched, group.committed(3)), (1, 1));
    propose(&mut group, 1, 1..2);
    group.settle();
    assert_eq!(group.progress(1, 3).state, ProgressState::Replicate);
    assert_eq!((group.last(3), group.committed(3)), (2, 2));
}

/// The snapshot on its way is older than the one that the leader holds by then.
#[test]
fn script_snapshot_succeed_via_app_resp_behind() {
    let mut group = Group::new(Setup::plain(3));
    group.isolate(3);
    group.campaign(1);
    group.settle();
    group.compact(1);
    group.mend();
    group.tick(1, 1);
    group.until_snapshot(1, &[3]);
    // Meanwhile the log goes on, and what follows the snapshot is dropped as well.
    propose(&mut group, 1, 1..4);
    group.settle_among(&[1, 2]);
    group.compact(1);
    group.settle();
    group.tick(1, 1);
    group.settle();
    assert_eq!(group.node(3).log().compacted().0.0, 4, "a second snapshot");
    assert_ne!(group.progress(1, 3).state, ProgressState::Snapshot);
    assert_eq!((group.progress(1, 3).matched, group.committed(3)), (4, 4));
}
