//! etcd's scripts on elections: campaign, checkquorum, prevote, prevote_checkquorum, single_node.

use raft::StateRole;
use raft::eraftpb::MessageType;

use super::group::{ELECTION_TICKS, Group, Setup};

#[test]
fn script_campaign() {
    let mut group = Group::new(Setup::plain(3));
    group.campaign(1);
    assert_eq!(group.state(1), StateRole::Candidate);
    assert_eq!(group.on_the_way(MessageType::MsgRequestVote).len(), 2);
    group.settle();
    assert_eq!(group.state(1), StateRole::Leader);
    for id in 1..=3 {
        assert_eq!((group.term(id), group.node(id).raft.raft.leader_id), (1, 1));
    }
    group.is_level(1);
    assert_eq!(group.node(3).terms(), [1], "its first entry is empty");
}

#[test]
fn script_checkquorum() {
    let mut group = Group::led_by_first(Setup {
        pre_votes: false,
        ..Setup::default()
    });
    // Nobody gives a vote while it hears the leader.
    group.campaign(2);
    group.settle_among(&[1, 3]);
    assert_eq!((group.term(1), group.term(3)), (1, 1));
    assert_eq!(group.state(1), StateRole::Leader);
    group.lose_to(&[2]);

    // The leader hears nobody for a whole timeout, and steps down by itself. The first is still
    // counted as active, for what it said before.
    group.tick(1, ELECTION_TICKS);
    assert_eq!(group.state(1), StateRole::Leader);
    group.tick(1, ELECTION_TICKS);
    assert_eq!((group.state(1), group.term(1)), (StateRole::Follower, 1));
    assert_eq!(group.node(1).raft.raft.leader_id, 0);

    // Its late heartbeats bring the one of the higher term to light, and with it the term.
    group.settle();
    assert_eq!(group.term(1), 2);

    // The one that did not tick still keeps its promise to the old leader: the other's vote is
    // enough.
    group.campaign(2);
    group.deliver(&[3]);
    assert_eq!(
        group.term(3),
        1,
        "within the lease a vote is not even looked at"
    );
    group.settle();
    assert_eq!((group.leader(), group.term(3)), (2, 3));
    group.is_level(2);
}

#[test]
fn script_prevote() {
    let mut group = Group::led_by_first(Setup {
        checks_quorum: false,
        ..Setup::default()
    });
    // Node 3 misses an entry.
    group.propose(1, 1).expect("the leader takes it");
    group.lose_to(&[3]);
    group.settle_among(&[1, 2]);

    // Asking with an old log costs nobody a term.
    group.campaign(3);
    assert_eq!(group.state(3), StateRole::PreCandidate);
    group.settle_among(&[1, 2, 3]);
    assert_eq!((1..=3).map(|id| group.term(id)).max(), Some(1));
    assert_eq!(group.state(3), StateRole::Follower);
    assert_eq!(group.leader(), 1);

    // With a log as good as the others' it wins, first the pre-vote, then the vote.
    group.campaign(2);
    assert_eq!(
        (group.state(2), group.term(2)),
        (StateRole::PreCandidate, 1)
    );
    group.settle();
    assert_eq!((group.leader(), group.term(2)), (2, 2));
    group.is_level(3);
}

#[test]
fn script_prevote_checkquorum() {
    let mut group = Group::led_by_first(Setup::default());
    // Both others heard the leader of late: no pre-vote, although the log is as good.
    group.campaign(2);
    group.settle();
    assert_eq!((group.leader(), group.term(3)), (1, 1));

    // One that does not hear the leader any more may give its pre-vote; two make a majority.
    group.isolate(1);
    group.tick(3, ELECTION_TICKS);
    group.campaign(2);
    group.settle();
    assert_eq!((group.state(2), group.term(2)), (StateRole::Leader, 2));

    // A node that forgot nothing and has an old log is refused even then.
    group.mend();
    group.tick(2, 1);
    group.settle();
    group.propose(2, 1).expect("the leader takes it");
    group.lose_to(&[1]);
    group.settle_among(&[2, 3]);
    group.isolate(2);
    group.tick(3, ELECTION_TICKS);
    group.campaign(1);
    group.settle();
    assert_ne!(group.state(1), StateRole::Leader);
    assert_eq!((group.term(1), group.term(3)), (2, 2));
}

#[test]
fn script_single_node() {
    let mut group = Group::new(Setup::plain(1));
    group.campaign(1);
    assert_eq!((group.leader(), group.term(1)), (1, 1));
    assert!(group.wire.is_empty(), "there is nobody to ask");
    group.is_level(1);
    group.propose(1, 1).expect("it leads");
    group.is_level(2);
}
