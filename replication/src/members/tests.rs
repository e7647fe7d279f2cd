use proptest::prelude::*;

use super::*;

const LOST: NodeId = NodeId(2);

fn three() -> Members {
    Members::of(&[
        NodeSpec::replica(1),
        NodeSpec::replica(2),
        NodeSpec::witness(3),
    ])
}

fn applied(members: &Members, entry: Option<MembersEntry>) -> Members {
    let mut next = members.clone();
    assert!(next.apply(&entry.expect("the step exists")));
    next
}

/// The four lists of a replacement of node 2 by node 4.
fn steps() -> [Members; 4] {
    let first = three();
    let entry = first.replaced(LOST, &NodeSpec::replica(4)).ok();
    let learner = applied(&first, entry);
    let joint = applied(&learner, learner.promoted());
    let last = applied(&joint, joint.left_joint());
    [first, learner, joint, last]
}

fn can_decide(members: &Members, nodes: &[u64]) -> bool {
    members.has_quorum(|node| nodes.contains(&node.0))
}

#[test]
fn a_lost_replica_is_replaced_in_three_entries() {
    let [_, learner, joint, last] = steps();
    let ids = |members: &Members| members.conf_state();
    assert_eq!(ids(&learner).voters, [1, 2, 3]);
    assert_eq!(ids(&learner).learners, [4]);
    assert_eq!(ids(&joint).voters, [1, 4, 3]);
    assert_eq!(ids(&joint).voters_outgoing, [1, 2, 3]);
    assert_eq!(ids(&last).voters, [1, 4, 3]);
    assert!(ids(&last).voters_outgoing.is_empty() && ids(&last).learners.is_empty());
    assert_eq!(last.version(), 3);
    assert!(last.is_gone(LOST) && last.standing(LOST).is_none());
}

#[test]
fn the_lost_one_is_not_talked_to_from_the_first_entry_on() {
    for members in &steps()[1..] {
        assert!(members.is_gone(LOST));
        let reachable: Vec<_> = members.reachable().map(|member| member.spec.id.0).collect();
        assert_eq!(reachable, [1, 4, 3]);
    }
}

#[test]
fn a_learner_decides_nothing_and_a_joint_list_needs_both_majorities() {
    let [first, learner, joint, last] = steps();
    assert!(can_decide(&first, &[1, 3]) && !can_decide(&first, &[1]));
    assert!(can_decide(&learner, &[1, 3]) && !can_decide(&learner, &[1, 4]));
    assert!(can_decide(&joint, &[1, 3]));
    // A majority of the new voters only, and of the old ones only.
    assert!(!can_decide(&joint, &[1, 4]) && !can_decide(&joint, &[1, 2]));
    assert!(can_decide(&joint, &[1, 2, 4]));
    assert!(can_decide(&last, &[4, 3]) && !can_decide(&last, &[1, 2]));
}

#[test]
fn any_two_quorums_of_lists_that_follow_each_other_share_a_node() {
    let steps = steps();
    for pair in steps.windows(2) {
        for left in 0u64..32 {
            for right in 0u64..32 {
                let decides = |members: &Members, bits: u64| {
                    members.has_quorum(|node| bits & (1 << node.0) != 0)
                };
                if decides(&pair[0], left) && decides(&pair[1], right) {
                    assert_ne!(left & right, 0, "{left:b} and {right:b}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_follow_is_ignored() {
    let [first, learner, joint, last] = steps();
    let entry_of = |members: &Members| members.0.clone();
    for (from, to) in [
        (&first, &joint),
        (&first, &last),
        (&learner, &last),
        (&learner, &first),
        (&joint, &learner),
        (&last, &joint),
        (&last, &last),
    ] {
        let mut members: Members = from.clone();
        assert!(!members.apply(&entry_of(to)));
        assert_eq!(members, *from);
    }
}

#[test]
fn a_replacement_that_makes_no_sense_is_refused_by_name() {
    let [first, _, joint, last] = steps();
    let refused = |members: &Members, lost: u64, new: NodeSpec| {
        members.replaced(NodeId(lost), &new).unwrap_err()
    };
    let replica = NodeSpec::replica;
    assert_eq!(
        refused(&first, 7, replica(4)),
        ReplaceRefused::NotMember(NodeId(7))
    );
    assert_eq!(
        refused(&first, 2, replica(1)),
        ReplaceRefused::IdUsed(NodeId(1))
    );
    assert_eq!(
        refused(&first, 2, replica(64)),
        ReplaceRefused::IdUsed(NodeId(64))
    );
    assert!(matches!(
        refused(&first, 2, NodeSpec::witness(4)),
        ReplaceRefused::Kind { .. }
    ));
    assert!(matches!(
        refused(&first, 3, replica(4)),
        ReplaceRefused::Kind { .. }
    ));
    assert_eq!(
        refused(&joint, 3, NodeSpec::witness(5)),
        ReplaceRefused::UnderWay
    );
    // Never under the old identity.
    assert_eq!(refused(&last, 4, replica(2)), ReplaceRefused::IdUsed(LOST));
    let mut far = replica(5);
    far.place = Bytes::from(vec![0; PLACE_BYTES_MAX + 1]);
    assert!(matches!(refused(&first, 2, far), ReplaceRefused::Place(_)));
}

#[test]
fn a_learner_that_does_not_come_is_itself_replaced() {
    let [_, learner, ..] = steps();
    let entry = learner.replaced(LOST, &NodeSpec::replica(5)).ok();
    let again = applied(&learner, entry);
    assert_eq!(again.conf_state().learners, [5]);
    assert_eq!(again.conf_state().voters, [1, 2, 3]);
    assert!(again.is_gone(NodeId(4)));
}

/// What raft-rs makes of the steps, starting from `before`.
fn in_raft(before: &ConfState, members: &Members) -> ConfState {
    let mut tracker = raft::ProgressTracker::new(1);
    let apply = |tracker: &mut raft::ProgressTracker, change: &ConfChangeV2| {
        let (conf, changes) = if change.leave_joint() {
            raft::Changer::new(tracker).leave_joint()
        } else if let Some(auto) = change.enter_joint() {
            raft::Changer::new(tracker).enter_joint(auto, &change.changes)
        } else {
            raft::Changer::new(tracker).simple(&change.changes)
        }
        .expect("raft-rs takes it");
        tracker.apply_conf(conf, changes, 1);
    };
    let known: Vec<_> = before
        .voters
        .iter()
        .map(|id| NodeSpec::replica(*id))
        .collect();
    if !known.is_empty() {
        for change in Members::of(&known).conf_changes(&ConfState::default()) {
            apply(&mut tracker, &change);
        }
    }
    for change in members.conf_changes(before) {
        apply(&mut tracker, &change);
    }
    let mut state = tracker.conf().to_conf_state();
    state.voters.sort_unstable();
    state.voters_outgoing.sort_unstable();
    state
}

#[test]
fn raft_rs_gets_to_each_list_from_the_one_before_and_from_nothing() {
    let sorted = |mut state: ConfState| {
        state.voters.sort_unstable();
        state.voters_outgoing.sort_unstable();
        state
    };
    let [first, learner, joint, last] = steps();
    for members in [&first, &learner, &joint, &last] {
        let found = in_raft(&ConfState::default(), members);
        assert_eq!(found, sorted(members.conf_state()));
    }
    assert_eq!(
        in_raft(&first.conf_state(), &learner),
        sorted(learner.conf_state())
    );
}

#[test]
fn a_node_that_joins_takes_the_first_list_that_it_reads() {
    for members in steps() {
        let mut joins = Members::default();
        assert!(joins.apply(&members.0));
        assert_eq!(joins, members);
    }
    let mut alone = three().0;
    for member in &mut alone.members {
        member.standing = Standing::Leaving;
    }
    assert!(!Members::default().apply(&alone));
}

proptest! {
    #[test]
    fn a_list_survives_its_byte_form(step in 0usize..4, cut in 1usize..40) {
        let members = steps()[step].clone();
        let mut out = BytesMut::new();
        members.encode(&mut out);
        let bytes = out.freeze();
        prop_assert_eq!(Members::decode(&bytes), Some(members));
        prop_assert_eq!(Members::decode(&bytes.slice(..bytes.len() - cut)), None);
    }
}
