//! What raft-rs does with a message that contradicts its log, and that the check refuses it; and
//! that what passes both checks never makes raft-rs panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use plover_types::LogIndex;
use proptest::prelude::*;
use raft::eraftpb::{Entry, HardState, MessageType};
use raft::{Config, RawNode, StateRole};

use super::tests::{OWN, data, decoded, encoded, entry, message};
use super::*;
use crate::storage::LogStorage;

type Node = RawNode<LogStorage>;

fn config() -> Config {
    Config {
        id: OWN.0,
        election_tick: 10,
        heartbeat_tick: 1,
        check_quorum: true,
        pre_vote: true,
        max_size_per_msg: limits::APPEND_BYTES_MAX,
        max_inflight_msgs: 8,
        ..Config::default()
    }
}

/// A follower at term 5 with entries 1 to 10, 8 of them committed and, from 5 on, of term 3.
fn follower() -> Node {
    let mut log = LogStorage::new(&[NodeId(1), NodeId(2), NodeId(3)]);
    let entries: Vec<_> = (1..=10)
        .map(|index| entry(index, if index < 5 { 2 } else { 3 }))
        .collect();
    log.append(&entries).unwrap();
    log.set_hard_state(HardState {
        term: 5,
        vote: 0,
        commit: 8,
        ..HardState::default()
    });
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&config(), log, &logger).unwrap();
    settle(&mut node);
    node
}

/// Handles what a node has ready, as a driver that stores at once.
fn settle(node: &mut Node) {
    while node.has_ready() {
        let mut ready = node.ready();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            node.mut_store().apply_snapshot(&snapshot).unwrap();
        }
        node.mut_store().append(&ready.take_entries()).unwrap();
        if let Some(hard_state) = ready.hs() {
            let hard_state = hard_state.clone();
            node.mut_store().set_hard_state(hard_state);
        }
        let light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.mut_store().set_commit(LogIndex(commit));
        }
        node.advance_apply();
    }
}

/// As [`settle`], for a driver whose disk has not answered yet. Returns what it is asked for last.
fn settle_without_disk(node: &mut Node) -> u64 {
    let mut number = 0;
    while node.has_ready() {
        let mut ready = node.ready();
        number = ready.number();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            node.mut_store().apply_snapshot(&snapshot).unwrap();
        }
        node.mut_store().append(&ready.take_entries()).unwrap();
        if let Some(hard_state) = ready.hs() {
            let hard_state = hard_state.clone();
            node.mut_store().set_hard_state(hard_state);
        }
        node.advance_append_async(ready);
    }
    number
}

/// The disk answers.
fn disk_is_done(node: &mut Node, number: u64) {
    node.on_persist_ready(number);
    settle(node);
}

fn answer(node: &mut Node, kind: MessageType) {
    let mut vote = message(kind);
    vote.term = match kind {
        MessageType::MsgRequestPreVoteResponse => node.raft.term + 1,
        _ => node.raft.term,
    };
    node.step(vote).unwrap();
    settle(node);
}

fn leader() -> Node {
    let mut node = follower();
    node.campaign().unwrap();
    settle(&mut node);
    answer(&mut node, MessageType::MsgRequestPreVoteResponse);
    answer(&mut node, MessageType::MsgRequestVoteResponse);
    assert_eq!(node.raft.state, StateRole::Leader);
    node
}

fn is_refused(node: &Node, message: &Message) -> bool {
    check_against_log(message, &node.raft.raft_log).is_err()
}

fn makes_raft_panic(node: &mut Node, message: Message) -> bool {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _ = node.step(message);
        settle(node);
    }));
    result.is_err()
}

/// The check refuses what raft-rs panics at.
fn assert_caught(mut node: Node, message: &Message) {
    assert!(is_refused(&node, message), "{message:?} passes");
    assert!(
        makes_raft_panic(&mut node, message.clone()),
        "{message:?} is harmless"
    );
}

fn snapshot_at(index: u64, term: u64) -> Message {
    let mut message = message(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.mut_conf_state().voters = vec![1, 2, 3];
    message
}

#[test]
fn a_heartbeat_that_commits_past_the_log_is_caught() {
    let mut heartbeat = message(MessageType::MsgHeartbeat);
    heartbeat.commit = 11;
    assert_caught(follower(), &heartbeat.clone());
    heartbeat.commit = 10;
    assert!(!is_refused(&follower(), &heartbeat));
}

#[test]
fn an_append_behind_a_gap_is_caught() {
    let mut append = message(MessageType::MsgAppend);
    append.index = 20;
    append.commit = 21;
    append.set_entries(vec![entry(21, 6)].into());
    assert_caught(follower(), &append.clone());
    append.clear_entries();
    append.commit = 20;
    assert_caught(follower(), &append);
}

#[test]
fn an_append_that_overflows_is_caught() {
    let mut append = message(MessageType::MsgAppend);
    append.index = u64::MAX;
    append.commit = u64::MAX;
    append.set_entries(vec![entry(0, 6)].into());
    assert_caught(follower(), &append);
}

#[test]
fn an_append_that_contradicts_committed_entries_is_caught() {
    let mut append = message(MessageType::MsgAppend);
    (append.index, append.log_term) = (8, 4);
    assert!(is_refused(&follower(), &append));
    append.log_term = 3;
    append.set_entries(vec![entry(9, 6)].into());
    assert!(!is_refused(&follower(), &append));
    append.index = 6;
    append.set_entries(vec![entry(7, 6)].into());
    assert!(is_refused(&follower(), &append));
    // raft-rs itself, past the entry of handle_append_entries.
    let mut node = follower();
    let reached = catch_unwind(AssertUnwindSafe(|| {
        node.raft.raft_log.maybe_append(6, 3, 8, &[entry(7, 6)])
    }));
    assert!(reached.is_err());
    // A leader that was replaced does not know better: raft-rs tells it so.
    append.term = 2;
    append.set_entries(vec![entry(7, 2)].into());
    assert!(!is_refused(&follower(), &append));
}

#[test]
fn a_message_without_a_term_is_caught() {
    let mut pre_vote = message(MessageType::MsgRequestPreVote);
    (pre_vote.index, pre_vote.log_term, pre_vote.term) = (50, 9, 0);
    assert_caught(follower(), &pre_vote);
    let mut append = message(MessageType::MsgAppend);
    append.term = 0;
    assert!(is_refused(&follower(), &append));
}

#[test]
fn a_response_past_the_leaders_log_is_caught_before_it_commits_what_nobody_has() {
    let mut response = message(MessageType::MsgAppendResponse);
    let mut node = leader();
    response.term = node.raft.term;
    response.index = 1000;
    assert!(is_refused(&node, &response));
    node.step(response.clone()).unwrap();
    settle(&mut node);
    let committed = node.raft.raft_log.committed;
    node.propose(vec![], data(1).to_vec()).unwrap();
    settle(&mut node);
    // Without the check, an entry that only this node holds is committed at once.
    assert_eq!(node.raft.raft_log.committed, committed + 1);
    response.index = node.raft.raft_log.last_index();
    assert!(!is_refused(&node, &response));
    response.request_snapshot = 1000;
    assert!(is_refused(&node, &response));
}

#[test]
fn a_reject_hint_that_overflows_is_caught() {
    let mut response = message(MessageType::MsgAppendResponse);
    let node = leader();
    let next = node.raft.prs().get(2).unwrap().next_idx;
    response.term = node.raft.term;
    (response.index, response.reject, response.reject_hint) = (next - 1, true, u64::MAX);
    assert_caught(node, &response);
}

#[test]
fn a_vote_that_was_not_asked_for_is_caught_while_entries_are_not_stored() {
    let mut node = follower();
    let mut append = message(MessageType::MsgAppend);
    (append.term, append.index, append.log_term) = (5, 10, 3);
    append.set_entries(vec![entry(11, 5)].into());
    node.step(append).unwrap();
    settle_without_disk(&mut node);
    let mut timeout_now = message(MessageType::MsgTimeoutNow);
    timeout_now.term = 5;
    node.step(timeout_now).unwrap();
    settle_without_disk(&mut node);
    assert_eq!(node.raft.state, StateRole::Candidate);
    let mut vote = message(MessageType::MsgRequestVoteResponse);
    vote.term = node.raft.term;
    assert_caught(node, &vote);
}

#[test]
fn a_handover_while_a_snapshot_is_being_stored_is_caught() {
    let mut node = follower();
    node.step(snapshot_at(50, 6)).unwrap();
    settle_without_disk(&mut node);
    assert_caught(node, &message(MessageType::MsgTimeoutNow));
    assert!(!is_refused(
        &follower(),
        &message(MessageType::MsgTimeoutNow)
    ));
}

#[test]
fn a_snapshot_without_a_term_is_caught() {
    assert_caught(follower(), &snapshot_at(50, 0));
    assert!(is_refused(&follower(), &snapshot_at(0, 3)));
    assert!(is_refused(&follower(), &snapshot_at(1 << 62 | 1, 3)));
}

#[test]
fn a_snapshot_that_contradicts_committed_entries_is_caught() {
    assert!(is_refused(&follower(), &snapshot_at(8, 4)));
    assert!(!is_refused(&follower(), &snapshot_at(8, 3)));
    assert!(!is_refused(&follower(), &snapshot_at(30, 6)));
    assert!(!is_refused(&follower(), &snapshot_at(2, 2)));
}

#[test]
fn a_snapshot_of_members_that_contradict_each_other_would_panic_and_cannot_be_written_down() {
    let mut snapshot = snapshot_at(50, 6);
    let state = snapshot.mut_snapshot().mut_metadata().mut_conf_state();
    state.learners = vec![2];
    assert!(makes_raft_panic(&mut follower(), snapshot));
}

#[test]
fn kinds_of_a_nodes_own_are_refused_by_name() {
    for (kind, name) in [
        (MessageType::MsgHup, "hup"),
        (MessageType::MsgBeat, "beat"),
        (MessageType::MsgUnreachable, "unreachable"),
        (MessageType::MsgSnapStatus, "snapshot status"),
        (MessageType::MsgCheckQuorum, "check quorum"),
        (MessageType::MsgPropose, "propose"),
        (MessageType::MsgTransferLeader, "transfer leader"),
        (MessageType::MsgReadIndex, "read index"),
        (MessageType::MsgReadIndexResp, "read index response"),
    ] {
        let refused = check_against_log(&message(kind), &follower().raft.raft_log);
        assert_eq!(refused, Err(WireError::Refused(name)));
    }
    // Two of them show why: both index entries that are not there.
    let mut empty = message(MessageType::MsgPropose);
    empty.term = 0;
    assert!(makes_raft_panic(&mut leader(), empty));
    let mut node = leader();
    let mut stored = message(MessageType::MsgAppendResponse);
    (stored.term, stored.index) = (node.raft.term, node.raft.raft_log.last_index());
    node.step(stored).unwrap();
    settle(&mut node);
    let mut read = message(MessageType::MsgReadIndex);
    read.term = 0;
    assert!(makes_raft_panic(&mut node, read));
}

/// A message around the values at which something changes, so that many pass the checks.
fn hostile() -> impl Strategy<Value = Message> {
    let kind = prop::sample::select(vec![
        MessageType::MsgAppend,
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgTimeoutNow,
    ]);
    let index = || prop_oneof![8 => 0u64..14, 1 => (1u64 << 62) - 2..(1 << 62) + 1];
    let term = || prop_oneof![8 => 0u64..9, 1 => (1u64 << 62) - 2..(1 << 62) + 1];
    let terms = prop::collection::vec(1u64..9, 0..4);
    (
        (kind, 2u64..=3, term(), term(), index(), index(), term()),
        (
            index(),
            index(),
            any::<bool>(),
            -2i64..3,
            terms,
            0usize..=16,
        ),
    )
        .prop_map(
            |((kind, from, term, log_term, index, commit, commit_term), rest)| {
                let (hint, request, reject, priority, mut terms, context) = rest;
                let mut message = message(kind);
                (message.from, message.term, message.log_term) = (from, term, log_term);
                (message.index, message.commit, message.commit_term) = (index, commit, commit_term);
                (message.reject, message.reject_hint) = (reject, hint);
                (message.priority, message.request_snapshot) = (priority, request);
                message.context = match reject {
                    true => Bytes::from_static(b"CampaignTransfer"),
                    false => Bytes::from(vec![1; context]),
                };
                terms.sort_unstable();
                let entries: Vec<Entry> =
                    (index + 1..).zip(terms).map(|(i, t)| entry(i, t)).collect();
                message.set_entries(entries.into());
                let metadata = message.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (index, log_term);
                metadata.mut_conf_state().voters = vec![1, 2, 3];
                message
            },
        )
}

#[derive(Clone, Debug)]
enum Event {
    /// With a term so far from the node's own, if given.
    Message(Box<Message>, Option<u64>),
    Tick(u8),
    Campaign,
    Propose,
    Compact,
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (hostile(), prop::option::weighted(0.7, 0u64..2))
            .prop_map(|(message, ahead)| Event::Message(Box::new(message), ahead)),
        2 => (1u8..25).prop_map(Event::Tick),
        1 => Just(Event::Campaign),
        2 => Just(Event::Propose),
        1 => Just(Event::Compact),
        4 => Just(Event::Settle),
    ]
}

/// What passes both checks, as raft-rs gets it.
fn admitted(node: &Node, message: &Message) -> Option<Message> {
    let envelope = Envelope {
        from: NodeId(message.from),
        to: OWN,
        body: Body::Raft(message.clone()),
    };
    let Body::Raft(message) = decoded(encoded(&envelope)).ok()?.body else {
        return None;
    };
    check_against_log(&message, &node.raft.raft_log).ok()?;
    Some(message)
}

fn awaits_snapshot(node: &Node) -> bool {
    node.raft.raft_log.first_index() > node.raft.raft_log.applied + 1
}

fn compact(node: &mut Node) {
    let applied = LogIndex(node.raft.raft_log.applied);
    let log = node.mut_store();
    if let Some(term) = log.term_of(applied)
        && applied.0 > 0
    {
        log.set_snapshot_data(applied, term, Bytes::from_static(b"s"))
            .unwrap();
        log.compact(LogIndex(applied.0 - 1)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_passes_the_checks_never_makes_raft_panic(
        leads in any::<bool>(),
        slow_disk in any::<bool>(),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut node = if leads { leader() } else { follower() };
        let mut asked = 0;
        for event in events {
            match event {
                Event::Message(mut message, ahead) => {
                    message.term = ahead.map_or(message.term, |ahead| node.raft.term + ahead);
                    if let Some(message) = admitted(&node, &message) {
                        let _ = node.step(message);
                    }
                    match slow_disk {
                        true => asked = asked.max(settle_without_disk(&mut node)),
                        false => settle(&mut node),
                    }
                }
                // The core lets no time pass while a snapshot is being stored.
                Event::Tick(_) | Event::Campaign if awaits_snapshot(&node) => {}
                Event::Tick(ticks) => (0..ticks).for_each(|_| { node.tick(); }),
                Event::Campaign => { let _ = node.campaign(); }
                Event::Propose => { let _ = node.propose(vec![], data(1).to_vec()); }
                Event::Compact => {
                    disk_is_done(&mut node, asked);
                    compact(&mut node);
                }
                Event::Settle => disk_is_done(&mut node, asked),
            }
        }
        disk_is_done(&mut node, asked);
    }
}
