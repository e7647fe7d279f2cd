//! raft-rs's tests after the sections of the Raft paper, and of a `RawNode` that starts again; what
//! the other files here show is not told twice.

use raft::StateRole;
use raft::eraftpb::{Entry, MessageType};

use super::group::{ELECTION_TICKS, Group, Setup, burst, message};

/// Section 5.2: a node starts as a follower and waits a whole timeout before it asks for votes.
#[test]
fn a_node_starts_as_a_follower_and_asks_after_its_timeout() {
    for setup in [Setup::plain(3), Setup::default()] {
        let mut group = Group::new(setup);
        for id in 1..=3 {
            assert_eq!((group.state(id), group.term(id)), (StateRole::Follower, 0));
            let timeout = group.raft(id).raft.randomized_election_timeout();
            assert!(timeout > ELECTION_TICKS);
            group.tick(id, timeout - 1);
            assert!(group.wire.is_empty(), "node {id} asks too early");
            group.tick(id, 1);
            let kind = match setup.pre_votes {
                true => MessageType::MsgRequestPreVote,
                false => MessageType::MsgRequestVote,
            };
            assert_eq!(group.on_the_way(kind).len(), 2);
            group.wire.clear();
        }
    }
}

/// Section 5.2: a candidate that nobody answers asks again, in a new term.
#[test]
fn a_candidate_asks_again_in_a_new_term() {
    let mut group = Group::new(Setup::plain(3));
    group.isolate(1);
    for term in 1..4 {
        let timeout = group.raft(1).raft.randomized_election_timeout();
        group.tick(1, timeout);
        assert_eq!(
            (group.state(1), group.term(1)),
            (StateRole::Candidate, term)
        );
        assert_eq!(group.node(1).raft.raft.vote, 1);
        group.settle();
    }
}

/// Section 5.2: a leader's heartbeats say nothing but that it is there, to everyone, each interval.
#[test]
fn a_leader_is_heard_each_interval() {
    let mut group = Group::led_by_first(Setup::default());
    for _ in 0..5 {
        group.tick(1, 1);
        let beats = group.on_the_way(MessageType::MsgHeartbeat);
        let to: Vec<u64> = beats.iter().map(|beat| beat.to).collect();
        assert_eq!(to, [2, 3]);
        assert!(beats.iter().all(|beat| beat.entries.is_empty()));
        group.settle();
    }
}

/// Section 5.2: one vote a term, first come, first served.
#[test]
fn a_vote_is_given_once_a_term() {
    for (voted, asks, is_given) in [(0, 2, true), (0, 3, true), (2, 2, true), (2, 3, false)] {
        let mut group = Group::new(Setup::plain(3));
        group.give_log(1, &[], 4, 0);
        group.give_vote(1, voted);
        let mut request = message(MessageType::MsgRequestVote, asks, 1, 4);
        (request.index, request.log_term) = (1, 1);
        group.inject(request);
        let answers = group.on_the_way(MessageType::MsgRequestVoteResponse);
        assert_eq!(answers.len(), 1);
        assert_eq!(!answers[0].reject, is_given, "voted {voted}, {asks} asks");
    }
}

/// Section 5.4.1: only a log that is as good as the voter's gets a vote: by the last term, then by
/// length.
#[test]
fn only_a_log_as_good_as_the_voters_gets_a_vote() {
    // The voter's log, last term and index of the candidate's.
    let cases: [(&[u64], u64, u64, bool); 9] = [
        (&[1], 1, 1, true),
        (&[1], 1, 2, true),
        (&[1, 1], 1, 1, false),
        (&[1], 2, 1, true),
        (&[1], 2, 2, true),
        (&[1, 1], 2, 1, true),
        (&[2], 1, 1, false),
        (&[2], 1, 2, false),
        (&[2, 2], 1, 1, false),
    ];
    for (own, term, index, is_given) in cases {
        for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
            let mut group = Group::new(Setup::plain(3));
            group.give_log(1, own, 2, 0);
            let mut request = message(kind, 2, 1, 3);
            (request.index, request.log_term) = (index, term);
            group.inject(request);
            let answer = group.wire.front().expect("an answer");
            assert_eq!(
                !answer.reject, is_given,
                "{own:?} against {term} at {index}"
            );
        }
    }
}

/// Section 5.3: a leader brings logs of every kind in line with its own (figure 7).
#[test]
fn a_leader_brings_every_log_in_line() {
    let leader: &[u64] = &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for follower in followers {
        let mut group = Group::new(Setup::plain(3));
        group.give_log(1, leader, 8, 10);
        group.give_log(2, follower, 7, 0);
        group.give_log(3, &[], 7, 0);
        // The third one's vote is enough: the second may have more of an older leader's.
        group.campaign(1);
        group.settle();
        assert_eq!(group.leader(), 1);
        group.tick(1, 1);
        group.settle();
        let mut expected = leader.to_vec();
        expected.push(9);
        assert_eq!(group.node(2).terms(), expected, "{follower:?}");
        assert_eq!(group.node(3).terms(), expected);
    }
}

/// Section 5.3: a follower writes first and answers then, and learns later what is committed.
#[test]
fn a_follower_learns_what_is_committed_with_the_next_message() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.deliver(&[2, 3]);
    assert_eq!((group.last(2), group.committed(2)), (2, 1));
    group.deliver(&[1]);
    assert_eq!(group.committed(1), 2);
    // Nothing follows, so an empty append says so at once.
    let appends = group.on_the_way(MessageType::MsgAppend);
    assert!(appends.len() == 2 && appends.iter().all(|append| append.entries.is_empty()));
    group.deliver(&[2, 3]);
    assert_eq!((group.committed(2), group.committed(3)), (2, 2));
}

#[test]
fn a_node_starts_again_where_its_disk_was() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.propose(1, 2).expect("it leads");
    group.settle();
    for id in [3, 1] {
        let before = (
            group.term(id),
            group.node(id).raft.raft.vote,
            group.last(id),
        );
        group.restart(id);
        let after = (
            group.term(id),
            group.node(id).raft.raft.vote,
            group.last(id),
        );
        assert_eq!((before, group.state(id)), (after, StateRole::Follower));
        group.ready(id);
        assert_eq!(
            group.node(id).applied,
            3,
            "what is committed is applied anew"
        );
    }
}

#[test]
fn a_node_starts_again_from_its_snapshot_and_applies_what_follows() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.compact(2);
    group.propose(1, 2).expect("it leads");
    group.settle();
    group.restart(2);
    assert_eq!(group.node(2).applied, 2);
    group.ready(2);
    assert_eq!(group.node(2).applied, 3);
    group.settle();
    group.is_level(3);
}

#[test]
fn a_restart_in_the_middle_of_everything_keeps_the_promises() {
    // Each node in turn, after each message of an election and a few entries.
    for victim in 1..=3 {
        for at in 0..40 {
            let mut group = Group::new(Setup::plain(3));
            group.campaign(1);
            let mut delivered = 0;
            while let Some(next) = group.wire.pop_front() {
                group.inject(next);
                delivered += 1;
                if delivered == at {
                    group.restart(victim);
                }
                if group.state(1) == StateRole::Leader && group.last(1) < 4 {
                    group.propose(1, delivered).expect("it leads");
                }
            }
            group.campaign(2);
            group.settle();
            group.tick(2, 1);
            group.settle();
            assert_eq!(group.leader(), 2, "victim {victim} at {at}");
            group.is_level(group.last(2));
        }
    }
}

#[test]
fn what_a_stranger_appends_is_refused_before_the_log_sees_it() {
    let mut group = Group::led_by_first(Setup::plain(3));
    let mut lie = message(MessageType::MsgAppend, 3, 2, 1);
    (lie.index, lie.log_term, lie.commit) = (9, 1, 9);
    lie.set_entries(
        vec![Entry {
            index: 10,
            term: 1,
            data: burst(1),
            ..Entry::default()
        }]
        .into(),
    );
    group.inject(lie);
    group.settle();
    group.is_level(1);
}
