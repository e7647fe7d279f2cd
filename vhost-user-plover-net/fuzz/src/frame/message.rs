//! Messages of a peer's, and what is to be true of one that can be read.

use bytes::{Bytes, BytesMut};
use plover_types::{LogIndex, NodeId, Term};
use replication::wire::{self, Body, LogBounds};

use super::{GROUP, OWN, PEER};
use crate::input::Input;

/// Version, kind, group, from, to.
const MESSAGE_HEADER_BYTES: usize = 26;
const KIND_OFFSET: usize = 1;

/// A message with a proper header, mostly, and any body, repeated until it is long enough.
pub fn message(input: &mut Input<'_>) -> Vec<u8> {
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

/// Reads it, and writes it again.
pub fn decode(message: &Bytes, input: &mut Input<'_>) {
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
