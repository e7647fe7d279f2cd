//! Frames of the replication link, from peers and from strangers: fragments of honest messages,
//! damaged, lost, repeated, in any order, and frames that never were one. What comes together is
//! decoded; what is decoded is encoded again and is the same; nothing panics.

use bytes::{Bytes, BytesMut};
use plover_types::{LogIndex, NodeId, Term};
use replication::transport::{ETHERTYPE, Mac, TRANSPORT_VERSION, Transport, TransportConfig};
use replication::wire::{self, Body, GroupId, LogBounds};

use crate::input::Input;

const GROUP: GroupId = GroupId(7);
const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const MACS: [(NodeId, Mac); 2] = [(OWN, [2, 0, 0, 0, 0, 1]), (PEER, [2, 0, 0, 0, 0, 2])];
/// Version, kind, group, from, to.
const MESSAGE_HEADER_BYTES: usize = 26;
const KIND_OFFSET: usize = 1;
const STEPS_MAX: usize = 64;

/// Feeds a node the frames that `data` describes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mtu = 576 + input.below(2000);
    let mut node = transport(OWN, mtu);
    let mut peer = transport(PEER, mtu);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 4 {
            0 => {
                let count = input.below(2048);
                receive(&mut node, input.bytes(count), &mut input);
            }
            1 => {
                let frame = headed_frame(&mut input);
                receive(&mut node, &frame, &mut input);
            }
            _ => send_message(&mut peer, &mut node, &mut input),
        }
    }
}

fn transport(own: NodeId, mtu: usize) -> Transport {
    let (of_own, peers): (Vec<_>, Vec<_>) = MACS.into_iter().partition(|(node, _)| *node == own);
    let config = TransportConfig {
        own,
        own_mac: of_own[0].1,
        peers,
        group: GROUP,
        mtu,
        first_message: 0,
    };
    Transport::new(config).expect("within the limits")
}

/// A frame that gets past the address, and then says anything.
fn headed_frame(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = [&MACS[0].1[..], &MACS[1].1, &ETHERTYPE.to_be_bytes()].concat();
    frame.extend([TRANSPORT_VERSION, input.u8() & 1]);
    frame.extend([input.u16(), input.u16()].map(u16::to_le_bytes).concat());
    frame.extend(input.u32().to_le_bytes());
    frame.extend(input.u32().to_le_bytes());
    frame.extend(GROUP.0.to_le_bytes());
    frame.extend((u64::from(input.u8())).to_le_bytes());
    let count = input.below(1600);
    frame.extend(input.bytes(count));
    frame
}

/// A message in fragments; what the input says is lost, repeated or damaged on the way.
fn send_message(peer: &mut Transport, node: &mut Transport, input: &mut Input<'_>) {
    let message = message(input);
    let mut frames: Vec<Vec<u8>> = peer
        .fragments(OWN, &message)
        .map(|(header, part)| [&header[..], part].concat())
        .collect();
    let faults = input.u8();
    if faults & 1 != 0 {
        frames.reverse();
    }
    if faults & 2 != 0 && !frames.is_empty() {
        let number = input.below(frames.len());
        let at = input.below(frames[number].len());
        frames[number][at] ^= input.u8();
    }
    if faults & 4 != 0 && !frames.is_empty() {
        frames.remove(input.below(frames.len()));
    }
    if faults & 8 != 0 {
        frames.extend_from_within(..);
    }
    for frame in frames {
        receive(node, &frame, input);
    }
}

/// A message with a proper header, mostly, and any body, repeated until it is long enough.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = vec![wire::limits::WIRE_VERSION, input.u8()];
    for field in [GROUP.0, PEER.0, OWN.0] {
        message.extend(field.to_le_bytes());
    }
    debug_assert_eq!(message.len(), MESSAGE_HEADER_BYTES);
    if input.u8() == 0 {
        message[input.below(MESSAGE_HEADER_BYTES)] ^= input.u8();
    }
    let count = input.below(1024);
    let body = input.bytes(count);
    let repeats = match input.u8() {
        0 => input.below(300),
        _ => 1,
    };
    message.extend(body.repeat(repeats));
    message
}

fn receive(node: &mut Transport, frame: &[u8], input: &mut Input<'_>) {
    let Some((from, message)) = node.receive(frame) else {
        return;
    };
    assert_eq!(from, PEER, "nobody else sends");
    decode(&message, input);
}

fn decode(message: &Bytes, input: &mut Input<'_>) {
    let known = |node: NodeId| node == PEER || node == NodeId(3);
    let Ok(envelope) = wire::decode(message.clone(), GROUP, OWN, known) else {
        return;
    };
    let mut again = BytesMut::new();
    if wire::encode(&envelope, GROUP, &mut again).is_ok() {
        assert_eq!(again.freeze(), *message, "two byte forms of one message");
    } else {
        panic!("kind {} is read and can't be written", message[KIND_OFFSET]);
    }
    if let Body::Raft(raft) = &envelope.body {
        // Any answer will do: it is to come, and to be the same twice.
        let log = Log::new(input);
        let answer = wire::check_against_log(raft, &log);
        assert_eq!(answer, wire::check_against_log(raft, &log));
    }
}

/// A log as the checks see it: first ≤ applied ≤ committed ≤ persisted ≤ last.
struct Log {
    marks: [u64; 5],
    term: u64,
}

impl Log {
    fn new(input: &mut Input<'_>) -> Self {
        let mut marks = [1; 5];
        for number in 1..marks.len() {
            marks[number] = marks[number - 1] + u64::from(input.u8());
        }
        let term = 1 + u64::from(input.u8());
        Self { marks, term }
    }
}

impl LogBounds for Log {
    fn first_index(&self) -> LogIndex {
        LogIndex(self.marks[0])
    }

    fn last_index(&self) -> LogIndex {
        LogIndex(self.marks[4])
    }

    fn persisted(&self) -> LogIndex {
        LogIndex(self.marks[3])
    }

    fn committed(&self) -> LogIndex {
        LogIndex(self.marks[2])
    }

    fn applied(&self) -> LogIndex {
        LogIndex(self.marks[1])
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        (self.marks[0] - 1..=self.marks[4])
            .contains(&index.0)
            .then_some(Term(self.term))
    }
}
