//! Every kind of message survives its byte form; every wrong byte is named or harmless.

use plover_types::{Certificate, Generation, LogEntry, LogIndex, Position, SyncId};
use plover_types::{EntryError, SyncKind};
use proptest::prelude::*;
use raft::eraftpb::{Entry, EntryType, MessageType};

use super::*;

pub(super) const GROUP: GroupId = GroupId(0xfeed);
pub(super) const OWN: NodeId = NodeId(1);

pub(super) fn known(node: NodeId) -> bool {
    [2, 3].contains(&node.0)
}

pub(super) fn data(generation: u64) -> Bytes {
    let entry = LogEntry::SyncBegin {
        generation: Generation(generation),
        kind: SyncKind::Delta,
    };
    entry.encode()
}

pub(super) fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        data: data(index),
        ..Entry::default()
    }
}

pub(super) fn message(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.from = 2;
    message.to = OWN.0;
    message.term = 7;
    message
}

fn append() -> Message {
    let mut message = message(MessageType::MsgAppend);
    message.log_term = 4;
    message.index = 10;
    message.commit = 9;
    let mut empty = entry(12, 6);
    empty.data = Bytes::new();
    message.set_entries(vec![entry(11, 4), empty, entry(13, 7)].into());
    message
}

fn snapshot() -> Message {
    let mut message = message(MessageType::MsgSnapshot);
    let snapshot = message.mut_snapshot();
    snapshot.data = Bytes::from_static(b"roles and positions");
    snapshot.mut_metadata().index = 20;
    snapshot.mut_metadata().term = 6;
    message
}

fn every_kind() -> Vec<Message> {
    let mut response = message(MessageType::MsgAppendResponse);
    (response.index, response.commit, response.reject) = (9, 8, true);
    (
        response.reject_hint,
        response.log_term,
        response.request_snapshot,
    ) = (7, 3, 2);
    let mut all = vec![
        append(),
        response,
        snapshot(),
        message(MessageType::MsgTimeoutNow),
    ];
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgHeartbeatResponse] {
        let mut heartbeat = message(kind);
        heartbeat.commit = 5;
        heartbeat.context = Bytes::from_static(&[9; 16]);
        all.push(heartbeat);
    }
    for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
        let mut request = message(kind);
        (request.index, request.log_term) = (12, 6);
        (request.commit, request.commit_term, request.priority) = (11, 5, -3);
        request.context = Bytes::from_static(b"CampaignTransfer");
        all.push(request);
    }
    for kind in [
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVoteResponse,
    ] {
        let mut response = message(kind);
        (response.reject, response.commit, response.commit_term) = (true, 11, 5);
        all.push(response);
    }
    all
}

fn report(copy: CopyState) -> CopyReport {
    CopyReport {
        sequence: 3,
        incarnation: u64::MAX,
        generation: Generation(4),
        applied: LogIndex(99),
        copy,
        delivered: Position {
            index: LogIndex(98),
            packet: 31,
        },
        sign: Position {
            index: LogIndex(97),
            packet: 2,
        },
        idle: true,
        uplink_up: false,
        host_facts_hash: 0xdead_beef,
    }
}

fn every_copy_state() -> Vec<CopyState> {
    let sync = SyncId(LogIndex(50));
    vec![
        CopyState::None,
        CopyState::Ready,
        CopyState::Running,
        CopyState::Syncing { sync },
        CopyState::Staged {
            sync,
            certificate: Certificate([5; 16]),
        },
        CopyState::Loading { sync },
        CopyState::Loaded { sync },
        CopyState::Failed { sync },
        CopyState::Void,
    ]
}

fn envelope(body: Body) -> Envelope {
    Envelope {
        from: NodeId(2),
        to: OWN,
        body,
    }
}

fn every_envelope() -> Vec<Envelope> {
    let raft = every_kind().into_iter().map(Body::Raft);
    let reports = every_copy_state()
        .into_iter()
        .map(|copy| Body::Report(report(copy)));
    raft.chain(reports).map(envelope).collect()
}

pub(super) fn encoded(envelope: &Envelope) -> Bytes {
    let mut out = BytesMut::new();
    encode(envelope, GROUP, &mut out).unwrap();
    out.freeze()
}

pub(super) fn decoded(bytes: impl Into<Bytes>) -> Result<Envelope, WireError> {
    decode(bytes.into(), GROUP, OWN, known)
}

/// Encodes a message, changes it on the way, and decodes it.
fn tampered(message: Message, change: impl FnOnce(&mut Vec<u8>)) -> Result<Envelope, WireError> {
    let mut bytes = encoded(&envelope(Body::Raft(message))).to_vec();
    change(&mut bytes);
    decoded(bytes)
}

fn set_u64(at: usize, value: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
}

const TERM_AT: usize = limits::MESSAGE_HEADER_BYTES;
const BODY_AT: usize = TERM_AT + 8;

#[test]
fn every_message_survives_its_byte_form() {
    for envelope in every_envelope() {
        let bytes = encoded(&envelope);
        assert_eq!(decoded(bytes.clone()).as_ref(), Ok(&envelope));
        for length in 0..bytes.len() {
            let short = decoded(bytes.slice(..length));
            assert!(
                matches!(short, Err(WireError::Short { .. })),
                "{envelope:?} at {length}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decoded(longer), Err(WireError::Trailing(1)));
    }
}

#[test]
fn every_changed_byte_is_refused_or_reads_back_as_it_is() {
    for envelope in every_envelope() {
        let good = encoded(&envelope);
        for at in 0..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = good.to_vec();
                bytes[at] ^= flip;
                if let Ok(changed) = decoded(bytes.clone()) {
                    assert_eq!(encoded(&changed), bytes, "{envelope:?} at {at}");
                }
            }
        }
    }
}

#[test]
fn entry_and_snapshot_data_share_the_message() {
    for (sent, at) in [
        (append(), BODY_AT + 26 + limits::ENTRY_HEADER_BYTES),
        (snapshot(), BODY_AT + 20),
    ] {
        let bytes = encoded(&envelope(Body::Raft(sent)));
        let Body::Raft(got) = decoded(bytes.clone()).unwrap().body else {
            panic!("not a Raft message");
        };
        let data = got
            .entries
            .first()
            .map_or(&got.get_snapshot().data, |entry| &entry.data);
        assert_eq!(data.as_ptr(), bytes[at..].as_ptr());
    }
}

#[test]
fn kinds_that_nodes_do_not_send_are_refused_by_name() {
    let refused = [
        (MessageType::MsgHup, "hup"),
        (MessageType::MsgBeat, "beat"),
        (MessageType::MsgPropose, "propose"),
        (MessageType::MsgUnreachable, "unreachable"),
        (MessageType::MsgSnapStatus, "snapshot status"),
        (MessageType::MsgCheckQuorum, "check quorum"),
        (MessageType::MsgTransferLeader, "transfer leader"),
        (MessageType::MsgReadIndex, "read index"),
        (MessageType::MsgReadIndexResp, "read index response"),
    ];
    for (kind, name) in refused {
        let mut out = BytesMut::from(&b"before"[..]);
        let result = encode(&envelope(Body::Raft(message(kind))), GROUP, &mut out);
        assert_eq!(result, Err(EncodeError::Refused(name)));
        assert_eq!(out, &b"before"[..]);
    }
    for kind in (0..=255).filter(|kind| !(1..=10).contains(kind) && *kind != report::KIND) {
        let unknown = tampered(append(), |bytes| bytes[1] = kind);
        assert_eq!(unknown, Err(WireError::Kind(kind)));
    }
}

#[test]
fn strangers_other_groups_and_other_versions_are_refused() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| tampered(append(), change).unwrap_err();
    assert_eq!(refused(&|bytes| bytes[0] = 1), WireError::Version(1));
    assert_eq!(refused(&|bytes| bytes[2] = 0xee), WireError::Group(0xfeee));
    assert_eq!(refused(&|bytes| bytes[10] = 9), WireError::From(NodeId(9)));
    assert_eq!(refused(&|bytes| bytes[10] = 1), WireError::From(OWN));
    assert_eq!(refused(&|bytes| bytes[18] = 3), WireError::To(NodeId(3)));
    assert_eq!(
        decoded(vec![0; limits::MESSAGE_BYTES_MAX + 1]),
        Err(WireError::Long(limits::MESSAGE_BYTES_MAX + 1))
    );
}

fn field_of(result: Result<Envelope, WireError>) -> &'static str {
    match result {
        Err(WireError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn terms_and_indexes_outside_their_range_are_refused() {
    let largest = limits::INDEX_AND_TERM_MAX;
    assert_eq!(field_of(tampered(append(), set_u64(TERM_AT, 0))), "term");
    assert_eq!(
        field_of(tampered(append(), set_u64(TERM_AT, largest))),
        "term"
    );
    assert_eq!(
        field_of(tampered(append(), set_u64(BODY_AT, u64::MAX))),
        "log term"
    );
    assert_eq!(
        field_of(tampered(append(), set_u64(BODY_AT, 0))),
        "log term"
    );
    assert_eq!(
        field_of(tampered(append(), set_u64(BODY_AT, 8))),
        "log term"
    );
    assert_eq!(
        field_of(tampered(append(), set_u64(BODY_AT + 8, u64::MAX))),
        "index"
    );
    assert_eq!(
        field_of(tampered(append(), set_u64(BODY_AT + 16, largest))),
        "commit"
    );
    let heartbeat = every_kind().remove(4);
    assert_eq!(
        field_of(tampered(heartbeat, set_u64(BODY_AT, largest))),
        "commit"
    );
}

#[test]
fn entries_that_go_back_in_term_or_past_the_message_are_refused() {
    let first_term = BODY_AT + 26;
    for term in [0, 3, 7, 8] {
        // 7 is below the message's term but above that of the next entry.
        let field = field_of(tampered(append(), set_u64(first_term, term)));
        assert_eq!(field, "entry term", "term {term}");
    }
}

#[test]
fn an_entry_that_is_no_log_entry_is_refused() {
    let result = tampered(append(), |bytes| {
        bytes[BODY_AT + 26 + limits::ENTRY_HEADER_BYTES] = 77;
    });
    let source = EntryError::Kind(77);
    assert_eq!(result, Err(WireError::Entry { index: 11, source }));
}

#[test]
fn a_count_larger_than_the_message_is_refused() {
    let count_at = BODY_AT + 24;
    let many = |count: u16| {
        move |bytes: &mut Vec<u8>| {
            bytes[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
        }
    };
    assert!(matches!(
        tampered(append(), many(4)),
        Err(WireError::Short { .. })
    ));
    let control_entry_bytes = 9;
    assert_eq!(
        tampered(append(), many(2)),
        Err(WireError::Trailing(
            limits::ENTRY_HEADER_BYTES + control_entry_bytes + 1
        ))
    );
    assert_eq!(field_of(tampered(append(), many(u16::MAX))), "entry count");
}

#[test]
fn a_context_longer_than_a_heartbeat_round_is_refused() {
    let heartbeat = every_kind().remove(4);
    let field = field_of(tampered(heartbeat.clone(), |bytes| bytes[BODY_AT + 8] = 17));
    assert_eq!(field, "context length");
    let mut long = heartbeat;
    long.context = Bytes::from(vec![0; 17]);
    let result = encode(&envelope(Body::Raft(long)), GROUP, &mut BytesMut::new());
    assert!(matches!(
        result,
        Err(EncodeError::Long {
            part: "context",
            bytes: 17
        })
    ));
}

#[test]
fn a_snapshot_of_no_entry_or_a_later_term_is_refused() {
    assert_eq!(
        field_of(tampered(snapshot(), set_u64(BODY_AT, 0))),
        "snapshot index"
    );
    assert_eq!(
        field_of(tampered(snapshot(), set_u64(BODY_AT + 8, 0))),
        "snapshot term"
    );
    assert_eq!(
        field_of(tampered(snapshot(), set_u64(BODY_AT + 8, 8))),
        "snapshot term"
    );
}

#[test]
fn what_the_byte_form_cannot_carry_is_not_sent() {
    let mut gap = append();
    gap.mut_entries()[2].index = 14;
    let mut membership = append();
    membership.mut_entries()[0].set_entry_type(EntryType::EntryConfChange);
    let mut long = snapshot();
    long.mut_snapshot().data = Bytes::from(vec![0; limits::SNAPSHOT_BYTES_MAX + 1]);
    for message in [gap, membership, long] {
        let mut out = BytesMut::new();
        assert!(encode(&envelope(Body::Raft(message)), GROUP, &mut out).is_err());
        assert!(out.is_empty());
    }
}

#[test]
fn an_entry_that_changes_the_members_is_known_by_its_data() {
    let members = plover_types::MembersEntry {
        version: 1,
        ..plover_types::MembersEntry::default()
    };
    let mut change = entry(11, 4);
    change.data = plover_types::LogEntry::Members(members).encode();
    change.set_entry_type(EntryType::EntryConfChangeV2);
    let mut append = append();
    append.set_entries(vec![change].into());
    let sent = envelope(Body::Raft(append));
    assert_eq!(decoded(encoded(&sent).to_vec()), Ok(sent));
}

#[test]
fn a_copy_outside_a_sync_names_none() {
    let bytes = encoded(&envelope(Body::Report(report(CopyState::Running))));
    let mut changed = bytes.to_vec();
    set_u64(limits::MESSAGE_HEADER_BYTES + 33, 5)(&mut changed);
    assert_eq!(field_of(decoded(changed)), "sync of a copy outside a sync");
    let mut changed = bytes.to_vec();
    changed[limits::MESSAGE_HEADER_BYTES + 32] = 9;
    set_u64(limits::MESSAGE_HEADER_BYTES + 33, 5)(&mut changed);
    assert_eq!(field_of(decoded(changed)), "copy state");
}

#[test]
fn groups_of_different_names_differ() {
    assert_eq!(GroupId::of(""), GroupId(0xcbf2_9ce4_8422_2325));
    assert_ne!(GroupId::of("blue"), GroupId::of("green"));
}

proptest! {
    #[test]
    fn no_bytes_make_decode_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in prop_oneof![1u8..=10, Just(report::KIND), any::<u8>()],
        ours in prop::bool::weighted(0.9),
    ) {
        if ours && bytes.len() >= limits::MESSAGE_HEADER_BYTES {
            let mut header = BytesMut::new();
            header.put_u8(WIRE_VERSION);
            header.put_u8(kind);
            header.put_u64_le(GROUP.0);
            header.put_u64_le(2);
            header.put_u64_le(OWN.0);
            bytes[..header.len()].copy_from_slice(&header);
        }
        if let Ok(envelope) = decoded(bytes.clone()) {
            prop_assert_eq!(encoded(&envelope), bytes);
        }
    }
}
