//! raft-rs's scenarios on replication: what commits, what is replaced, how a log is brought in line.

use raft::eraftpb::{Entry, MessageType};
use raft::{ProgressState, StateRole};

use super::group::{ELECTION_TICKS, Group, Setup, burst, message};

#[test]
fn what_a_majority_holds_is_committed_and_less_is_not() {
    for nodes in [1, 3, 5] {
        for lost in 0..nodes {
            let mut group = Group::led_by_first(Setup::plain(nodes));
            (0..lost).for_each(|n| group.isolate(nodes - n));
            group.propose(1, 1).expect("it leads");
            group.settle();
            let commits = lost <= (nodes - 1) / 2;
            assert_eq!(group.committed(1) == 2, commits, "{lost} of {nodes} lost");
        }
    }
}

#[test]
fn entries_of_several_leaders_reach_all() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.campaign(2);
    group.settle();
    group.propose(2, 2).expect("it leads");
    group.settle();
    group.is_level(4);
    assert_eq!(group.node(3).terms(), [1, 1, 2, 2]);
}

/// The paper's figure 8: entries of an older term commit only with one of the leader's own.
#[test]
fn entries_of_an_older_term_wait_for_one_of_the_leaders_own() {
    let mut group = Group::led_by_first(Setup::plain(5));
    [3, 4, 5].iter().for_each(|id| group.cut(1, *id));
    group.propose(1, 1).expect("it leads");
    group.propose(1, 2).expect("it leads");
    group.settle();
    assert_eq!(group.committed(1), 1);
    group.mend();
    // The new leader holds them; its own first entry does not get through.
    [1, 3, 4, 5].iter().for_each(|id| group.cut(2, *id));
    group.raft(2).campaign().expect("a campaign");
    group.mend();
    group.ready(2);
    group.deliver(&[1, 3, 4, 5]);
    group.deliver(&[2]);
    assert_eq!(group.state(2), StateRole::Leader);
    let own = group.last(2);
    // Followers hold all but its own entry.
    group.lose_to(&[1, 3, 4, 5]);
    for id in [1, 3, 4] {
        let mut append = message(MessageType::MsgAppend, 2, id, 2);
        append.set_entries(
            (2..own)
                .map(|index| group.node(2).log().entry(plover_types::LogIndex(index)))
                .map(|entry| entry.expect("it holds it").clone())
                .collect::<Vec<Entry>>()
                .into(),
        );
        (append.index, append.log_term, append.commit) = (1, 1, 1);
        group.inject(append);
    }
    group.deliver(&[2]);
    assert_eq!(group.progress(2, 3).matched, own - 1);
    assert_eq!(
        group.committed(2),
        1,
        "a majority holds them, and that is not enough"
    );
    group.tick(2, 1);
    group.settle();
    group.is_level(own);
}

#[test]
fn a_new_leader_commits_older_entries_with_its_first() {
    let mut group = Group::led_by_first(Setup::plain(5));
    [3, 4, 5].iter().for_each(|id| group.cut(1, *id));
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.mend();
    group.campaign(2);
    group.settle();
    assert_eq!(group.leader(), 2);
    group.tick(2, 1);
    group.settle();
    group.is_level(3);
}

#[test]
fn messages_of_an_old_leader_change_nothing() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.campaign(2);
    group.settle();
    group.campaign(1);
    group.settle();
    let mut old = message(MessageType::MsgAppend, 2, 1, 2);
    (old.index, old.log_term) = (2, 2);
    old.set_entries(
        vec![Entry {
            index: 3,
            term: 2,
            data: burst(9),
            ..Entry::default()
        }]
        .into(),
    );
    group.inject(old);
    group.settle();
    assert_eq!((group.leader(), group.term(1)), (1, 3));
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.is_level(4);
}

#[test]
fn an_append_is_taken_when_what_comes_before_it_matches() {
    // Index and term before it, entries from there, and the last entry afterwards; None: refused.
    let cases: [(u64, u64, &[u64], Option<u64>); 7] = [
        (2, 3, &[], None),
        (3, 3, &[], None),
        (1, 1, &[], Some(2)),
        (0, 0, &[2], Some(1)),
        (2, 2, &[2, 2], Some(4)),
        (2, 2, &[2], Some(3)),
        (1, 1, &[2], Some(2)),
    ];
    for (index, term, terms, last) in cases {
        let mut group = Group::new(Setup::plain(3));
        group.give_log(1, &[1, 2], 2, 0);
        let mut append = message(MessageType::MsgAppend, 2, 1, 3);
        (append.index, append.log_term, append.commit) = (index, term, 0);
        let entries = (index + 1..).zip(terms).map(|(index, term)| Entry {
            index,
            term: *term,
            data: burst(index as u32),
            ..Entry::default()
        });
        append.set_entries(entries.collect::<Vec<_>>().into());
        group.inject(append);
        let answers = group.on_the_way(MessageType::MsgAppendResponse);
        assert_eq!(answers.len(), 1, "{index} {term}");
        assert_eq!(answers[0].reject, last.is_none(), "{index} {term}");
        assert_eq!(group.last(1), last.unwrap_or(2), "{index} {term}");
    }
}

#[test]
fn a_follower_commits_what_it_is_told_up_to_what_matches() {
    // Last matching entry, what the leader committed, what is committed then.
    for (matching, told, expected) in [(1, 1, 1), (1, 3, 1), (2, 2, 2), (2, 9, 2)] {
        let mut group = Group::new(Setup::plain(3));
        group.give_log(1, &[1, 1], 1, 0);
        let mut append = message(MessageType::MsgAppend, 2, 1, 2);
        (append.index, append.log_term, append.commit) = (matching, 1, told);
        group.inject(append);
        assert_eq!(group.committed(1), expected, "{matching} {told}");
    }
}

#[test]
fn a_heartbeat_never_takes_a_commit_back() {
    let mut group = Group::new(Setup::plain(3));
    group.give_log(1, &[1, 1, 1], 1, 2);
    for (told, expected) in [(3, 3), (1, 3)] {
        let mut heartbeat = message(MessageType::MsgHeartbeat, 2, 1, 2);
        heartbeat.commit = told;
        group.inject(heartbeat);
        assert_eq!(group.committed(1), expected);
    }
    // Beyond its log it is not let in: raft-rs would stop.
    let mut lie = message(MessageType::MsgHeartbeat, 2, 1, 2);
    lie.commit = 4;
    group.inject(lie);
    assert_eq!((group.unfit, group.committed(1)), (1, 3));
}

#[test]
fn an_answered_heartbeat_brings_a_lagging_follower_its_entries() {
    let mut group = Group::led_by_first(Setup::plain(3));
    for number in 1..4 {
        group.propose(1, number).expect("it leads");
    }
    group.lose_to(&[3]);
    group.settle_among(&[1, 2]);
    group.tick(1, 1);
    group.settle();
    group.is_level(4);
    assert_eq!(group.progress(1, 3).state, ProgressState::Replicate);
}

/// A follower with a long tail of an old term is found in a few round trips, not one entry at a
/// time: it says where its term begins.
#[test]
fn a_long_wrong_tail_is_found_in_a_few_messages() {
    let mut group = Group::new(Setup::plain(3));
    let mut good = vec![1; 10];
    good.extend([5; 90]);
    let mut wrong = vec![1; 10];
    wrong.extend([3; 90]);
    group.give_log(1, &good, 5, 10);
    group.give_log(2, &good, 5, 10);
    group.give_log(3, &wrong, 5, 10);
    group.campaign(1);
    group.settle_among(&[1, 2]);
    let mut refused = 0;
    for _ in 0..20 {
        group.deliver(&[3]);
        let answers = group.on_the_way(MessageType::MsgAppendResponse);
        refused += answers.iter().filter(|answer| answer.reject).count();
        group.deliver(&[1]);
    }
    group.settle();
    assert_eq!(group.node(3).terms().len(), 101);
    assert!((1..=3).contains(&refused), "{refused} messages refused");
}

#[test]
fn messages_in_any_order_and_twice_end_in_the_same_log() {
    let mut group = Group::led_by_first(Setup::plain(3));
    for number in 1..10 {
        group.propose(1, number).expect("it leads");
    }
    let messages: Vec<_> = group.wire.drain(..).collect();
    group.wire.extend(messages.iter().rev().cloned());
    group.wire.extend(messages);
    group.settle();
    group.tick(1, 1);
    group.settle();
    group.is_level(10);
}

#[test]
fn a_follower_takes_no_input_and_forwards_none_over_the_wire() {
    let mut group = Group::led_by_first(Setup::plain(3));
    // raft-rs would forward it: our wire does not know the kind, and the core proposes only when
    // it leads.
    let mut entry = message(MessageType::MsgPropose, 2, 1, 0);
    entry.set_entries(vec![Entry::default()].into());
    let envelope = replication::wire::Envelope {
        from: plover_types::NodeId(2),
        to: plover_types::NodeId(1),
        body: replication::wire::Body::Raft(entry),
    };
    let group_id = replication::wire::GroupId(7);
    let mut bytes = bytes::BytesMut::new();
    assert!(replication::wire::encode(&envelope, group_id, &mut bytes).is_err());
    group.settle();
    group.is_level(1);
}

#[test]
fn a_cut_off_leaders_entries_are_replaced_when_it_returns() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(1);
    for number in 1..4 {
        group
            .propose(1, number)
            .expect("it still believes that it leads");
    }
    group.tick(2, ELECTION_TICKS * 2);
    group.tick(3, ELECTION_TICKS);
    group.tick(2, ELECTION_TICKS * 2);
    group.settle();
    assert_eq!(group.leader(), 2);
    group.propose(2, 9).expect("it leads");
    group.settle();
    group.mend();
    group.tick(2, 2);
    group.settle();
    assert_eq!(group.state(1), StateRole::Follower);
    group.is_level(3);
}
