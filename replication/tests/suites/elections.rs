//! raft-rs's scenarios on elections: who wins, who steps down, who disturbs whom.

use raft::StateRole;
use raft::eraftpb::MessageType;

use super::group::{ELECTION_TICKS, Group, Setup, message};

fn both() -> [Setup; 2] {
    let plain = Setup::plain(3);
    let pre_votes = true;
    [plain, Setup { pre_votes, ..plain }]
}

#[test]
fn a_majority_elects_and_less_does_not() {
    for nodes in [3, 5] {
        for lost in 0..=nodes / 2 + 1 {
            for setup in both() {
                let mut group = Group::new(Setup { nodes, ..setup });
                (0..lost).for_each(|n| group.isolate(nodes - n));
                group.campaign(1);
                group.settle();
                let wins = lost <= nodes / 2;
                assert_eq!(
                    group.state(1) == StateRole::Leader,
                    wins,
                    "{lost} of {nodes}"
                );
                if !wins && setup.pre_votes {
                    assert_eq!(group.term(1), 0, "a pre-vote that fails costs no term");
                }
            }
        }
    }
}

#[test]
fn every_node_can_lead_in_its_turn() {
    for setup in both() {
        let mut group = Group::new(setup);
        for (round, id) in (1..=3).cycle().take(9).enumerate() {
            group.campaign(id);
            group.settle();
            assert_eq!((group.leader(), group.term(id)), (id, round as u64 + 1));
            let followers = (1..=3).filter(|other| *other != id);
            for other in followers {
                assert_eq!(group.state(other), StateRole::Follower);
            }
        }
    }
}

/// Some hold entries of a leader that is gone, some a vote for another: the first to be elected
/// overwrites what was never committed.
#[test]
fn a_leader_overwrites_newer_entries_that_were_never_committed() {
    for setup in both() {
        let mut group = Group::new(Setup { nodes: 5, ..setup });
        group.give_log(1, &[1], 1, 0);
        group.give_log(2, &[1], 1, 0);
        group.give_log(3, &[2], 2, 0);
        group.give_log(4, &[], 2, 0);
        group.give_log(5, &[], 2, 0);
        [3, 4, 5].iter().for_each(|id| group.give_vote(*id, 3));
        // It is behind in terms, so that it may need a second try.
        group.campaign(1);
        group.settle();
        if group.leader() != 1 {
            group.campaign(1);
            group.settle();
        }
        assert_eq!((group.leader(), group.term(1)), (1, 3));
        for id in 1..=5 {
            assert_eq!(group.node(id).terms(), [1, 3], "node {id}");
        }
    }
}

#[test]
fn a_vote_is_given_from_any_state_to_a_higher_term() {
    for state in [StateRole::Follower, StateRole::Candidate, StateRole::Leader] {
        let mut group = Group::new(Setup::plain(3));
        match state {
            StateRole::Follower => {}
            StateRole::Candidate => {
                group.isolate(1);
                group.campaign(1);
                group.mend();
            }
            _ => {
                group.isolate(3);
                group.campaign(1);
                group.settle();
                group.mend();
            }
        }
        group.wire.clear();
        assert_eq!(group.state(1), state);
        let term = group.term(1) + 1;
        let mut request = message(MessageType::MsgRequestVote, 2, 1, term);
        (request.index, request.log_term) = (9, 1);
        group.inject(request);
        assert_eq!((group.state(1), group.term(1)), (StateRole::Follower, term));
        assert_eq!(group.node(1).raft.raft.vote, 2);
        let answers = group.on_the_way(MessageType::MsgRequestVoteResponse);
        assert!(answers.len() == 1 && !answers[0].reject);
    }
}

#[test]
fn a_pre_vote_changes_nothing_in_the_one_that_gives_it() {
    let mut group = Group::led_by_first(Setup {
        checks_quorum: false,
        ..Setup::default()
    });
    let mut request = message(MessageType::MsgRequestPreVote, 3, 2, 5);
    (request.index, request.log_term) = (9, 4);
    group.inject(request);
    let answers = group.on_the_way(MessageType::MsgRequestPreVoteResponse);
    assert!(answers.len() == 1 && !answers[0].reject);
    assert_eq!((group.term(2), group.node(2).raft.raft.vote), (1, 1));
}

#[test]
fn of_two_candidates_the_one_that_lags_gives_way() {
    let mut group = Group::new(Setup::plain(3));
    group.cut(1, 3);
    group.campaign(1);
    group.campaign(3);
    group.settle();
    // Node 2 voted for the first; the third stays a candidate, for nobody tells it otherwise.
    assert_eq!(
        (group.state(1), group.state(3)),
        (StateRole::Leader, StateRole::Candidate)
    );
    group.mend();
    group.propose(1, 1).expect("it leads");
    group.lose_to(&[3]);
    group.settle();
    // In a higher term it makes the leader step down, and still does not win.
    group.campaign(3);
    group.settle();
    assert_eq!(group.term(1), 2);
    assert_ne!(group.state(3), StateRole::Leader);
    group.campaign(1);
    group.settle();
    assert_eq!(group.leader(), 1);
    group.is_level(3);
}

#[test]
fn with_pre_votes_the_one_that_lags_disturbs_nobody() {
    let mut group = Group::new(Setup {
        checks_quorum: false,
        ..Setup::default()
    });
    group.cut(1, 3);
    group.campaign(1);
    group.campaign(3);
    group.settle();
    assert_eq!((group.leader(), group.term(1)), (1, 1));
    group.mend();
    group.propose(1, 1).expect("it leads");
    group.lose_to(&[3]);
    group.settle();
    group.campaign(3);
    group.settle();
    assert_eq!((group.leader(), group.term(1)), (1, 1));
    group.tick(1, 1);
    group.settle();
    group.is_level(2);
}

#[test]
fn a_candidate_gives_way_to_a_leader_of_its_own_term() {
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend] {
        let mut group = Group::new(Setup::plain(3));
        group.cut(1, 3);
        group.campaign(1);
        group.campaign(3);
        group.settle();
        assert_eq!((group.state(3), group.term(3)), (StateRole::Candidate, 1));
        group.mend();
        group.inject(message(kind, 1, 3, 1));
        group.settle();
        assert_eq!(
            (group.state(3), group.node(3).raft.raft.leader_id),
            (StateRole::Follower, 1)
        );
    }
}

#[test]
fn every_state_steps_down_before_a_higher_term() {
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend] {
        for id in 1..=2 {
            let mut group = Group::led_by_first(Setup::plain(3));
            if id == 2 {
                group.isolate(2);
                group.campaign(2);
                group.mend();
            }
            group.inject(message(kind, 3, id, 9));
            assert_eq!((group.state(id), group.term(id)), (StateRole::Follower, 9));
            assert_eq!(group.node(id).raft.raft.leader_id, 3);
        }
    }
}

#[test]
fn a_leader_with_an_active_quorum_stays_however_long() {
    let mut group = Group::led_by_first(Setup::default());
    for _ in 0..ELECTION_TICKS * 5 {
        group.tick(1, 1);
        group.settle();
    }
    assert_eq!((group.leader(), group.term(1)), (1, 1));
}

#[test]
fn a_leader_without_a_quorum_steps_down_by_itself() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(1);
    group.tick(1, ELECTION_TICKS * 2);
    assert_eq!((group.state(1), group.term(1)), (StateRole::Follower, 1));
    assert!(group.propose(1, 1).is_err(), "it takes no input any more");
}

#[test]
fn votes_are_refused_within_the_lease_and_given_after_it() {
    let mut group = Group::led_by_first(Setup {
        pre_votes: false,
        ..Setup::default()
    });
    group.campaign(3);
    group.settle_among(&[2]);
    assert_eq!((group.term(2), group.node(2).raft.raft.vote), (1, 1));
    group.lose_to(&[1]);
    // Its own time over, node 2 votes; the old leader learns of it by the next message.
    group.tick(2, ELECTION_TICKS);
    group.campaign(3);
    group.settle();
    assert_eq!(group.leader(), 3);
}

/// A candidate of a higher term that nobody votes for must not be stuck: what the leader hears from
/// it makes the leader step down, and one election later all are together.
#[test]
fn a_candidate_of_a_higher_term_is_freed() {
    let mut group = Group::led_by_first(Setup {
        pre_votes: false,
        ..Setup::default()
    });
    group.isolate(1);
    group.campaign(3);
    group.settle();
    group.campaign(3);
    group.settle();
    assert_eq!(
        (group.state(3), group.term(3), group.term(2)),
        (StateRole::Candidate, 3, 1)
    );
    group.mend();
    group.tick(1, 1);
    group.settle();
    assert_eq!((group.state(1), group.term(1)), (StateRole::Follower, 3));
    group.tick(2, ELECTION_TICKS);
    group.campaign(3);
    group.settle();
    assert_eq!(group.leader(), 3);
    assert!((1..=3).all(|id| group.term(id) == group.term(3)));
}

/// One that comes back after it was cut off, with our options.
#[test]
fn one_that_was_cut_off_returns_without_an_election() {
    let mut group = Group::led_by_first(Setup::default());
    group.isolate(3);
    group.tick(3, ELECTION_TICKS * 8);
    assert_eq!(
        (group.state(3), group.term(3)),
        (StateRole::PreCandidate, 1)
    );
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.mend();
    group.tick(1, 2);
    group.settle();
    assert_eq!((group.leader(), group.term(1)), (1, 1));
    group.is_level(2);
}

#[test]
fn one_with_a_higher_term_and_pre_votes_is_taken_back() {
    // As after an update: the third once ran without pre-votes and is terms ahead.
    let mut group = Group::led_by_first(Setup::default());
    group.give_log(3, &[1], 6, 1);
    group.isolate(3);
    group.propose(1, 1).expect("it leads");
    group.settle();
    group.mend();
    group.tick(1, 1);
    group.settle();
    assert_eq!((group.state(1), group.term(1)), (StateRole::Follower, 6));
    // The first request is of the old term, and only learns of the new one.
    for _ in 0..4 {
        if group.leader() == 0 {
            group.tick(2, ELECTION_TICKS * 2);
            group.settle();
        }
    }
    let leader = group.leader();
    assert!(leader != 0 && group.term(leader) >= 6);
    group.tick(leader, 2);
    group.settle();
    assert!((1..=3).all(|id| group.committed(id) == group.committed(leader)));
}

#[test]
fn a_split_pre_vote_ends_with_a_leader() {
    let mut group = Group::led_by_first(Setup {
        checks_quorum: false,
        ..Setup::default()
    });
    group.isolate(1);
    group.campaign(2);
    group.campaign(3);
    group.settle();
    let first = group.term(2).max(group.term(3));
    assert!(first <= 2, "at most one term each");
    if group.leader() == 1 {
        // Our timeouts differ, so they do not meet again.
        group.campaign(2);
        group.settle();
    }
    assert_ne!(group.leader(), 1);
}

#[test]
fn election_timeouts_never_meet() {
    let mut group = Group::new(Setup::default());
    let mut timeouts: Vec<usize> = (1..=3)
        .map(|id| group.raft(id).raft.randomized_election_timeout())
        .collect();
    group.campaign(2);
    group.settle();
    group.campaign(3);
    group.settle();
    let again = (1..=3).map(|id| group.raft(id).raft.randomized_election_timeout());
    assert_eq!(timeouts, again.collect::<Vec<_>>(), "and they stay");
    timeouts.dedup();
    assert_eq!(timeouts.len(), 3);
}

/// A request or an answer of an election tells what is committed, to one that lags.
#[test]
fn an_election_carries_the_commit_index() {
    let mut group = Group::led_by_first(Setup::plain(3));
    group.propose(1, 1).expect("it leads");
    group.deliver(&[2, 3]);
    group.deliver(&[1]);
    group.propose(1, 2).expect("it leads");
    group.lose_to(&[2, 3]);
    assert_eq!(
        (group.committed(1), group.committed(3), group.last(3)),
        (2, 1, 2)
    );
    // It lacks the last entry, so it is refused, and told what is committed of what it holds.
    group.campaign(3);
    group.deliver(&[1]);
    group.deliver(&[3]);
    assert_eq!(
        (group.state(3) == StateRole::Leader, group.committed(3)),
        (false, 2)
    );
}

/// Nobody wins votes with a log that lacks an entry which is committed, whoever asks first.
#[test]
fn a_log_that_lacks_a_committed_entry_wins_nowhere() {
    let mut group = Group::led_by_first(Setup::plain(5));
    group.isolate(5);
    for number in 1..4 {
        group.propose(1, number).expect("it leads");
    }
    group.settle();
    group.isolate(1);
    group.mend();
    group.isolate(1);
    for _ in 0..3 {
        group.campaign(5);
        group.settle();
        assert_ne!(group.state(5), StateRole::Leader);
    }
    group.campaign(2);
    group.settle();
    assert_eq!(group.leader(), 2);
}

#[test]
fn a_leader_that_is_told_to_campaign_does_nothing() {
    for setup in both() {
        let mut group = Group::led_by_first(setup);
        group.campaign(1);
        group.settle();
        assert_eq!((group.leader(), group.term(1)), (1, 1));
    }
}
