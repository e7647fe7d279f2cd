//! What a leader drops of its log, and what it keeps for a copy that the group counts on.

use plover_types::{Mode, NodeId, Offload, PacketBurstBuilder, SyncId};
use replication::epoch::LocalCopy;
use replication::limits::{APPENDS_IN_FLIGHT_MAX, COMPACT_ENTRIES};

use crate::group::Group;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// So many entries of input.
fn input(group: &mut Group, entries: u64) {
    for _ in 0..entries {
        let mut builder = PacketBurstBuilder::new();
        builder.push(0, Offload::PLAIN, &[7; 60]).expect("valid");
        let burst = builder.finish().expect("not empty");
        assert!(group.input(A, burst));
        group.step();
    }
}

fn last_sync(group: &Group, of: NodeId) -> Option<SyncId> {
    group.core(of).group().last_end().map(|(sync, _)| sync)
}

fn compacted(group: &Group) -> u64 {
    group.core(A).compacted().map_or(0, |(index, _)| index.0)
}

#[test]
fn a_copy_whose_acknowledgements_were_lost_is_not_voided_by_a_snapshot() {
    let mut group = Group::protected();
    let before = last_sync(&group, A);
    input(&mut group, COMPACT_ENTRIES);
    // B has what follows too, and A does not know. (It sends no more than the window.)
    group.raft_lost = vec![(B, A)];
    input(&mut group, APPENDS_IN_FLIGHT_MAX as u64 / 2);
    group.want_sync(A);
    group.run_until("staged", |group| {
        matches!(group.core(B).copy(), LocalCopy::Staged { .. })
    });
    // The end of the sync does not reach B, either.
    group.raft_lost.push((A, B));
    group.run_until("ended", |group| last_sync(group, A) != before);
    group.raft_lost.clear();
    let sync = last_sync(&group, A);
    group.run_until("loaded", |group| {
        let copy = *group.core(B).copy();
        assert_ne!(copy, LocalCopy::Void);
        copy == LocalCopy::Running { loaded: sync }
    });
    assert_eq!(group.mode(), Mode::Protected);
    // Now that B acknowledges, the log is short again.
    input(&mut group, 2 * COMPACT_ENTRIES);
    assert!(sync.is_some_and(|sync| compacted(&group) + COMPACT_ENTRIES >= sync.0.0));
}

#[test]
fn a_node_that_acknowledges_nothing_does_not_keep_the_log_once_the_role_leaves_it_out() {
    let mut group = Group::protected();
    group.part(B, true);
    group.run_until("unprotected", |group| group.mode() == Mode::Unprotected);
    input(&mut group, 4 * COMPACT_ENTRIES);
    let applied = group.core(A).applied().0;
    assert!(compacted(&group) + 2 * COMPACT_ENTRIES >= applied);
}
