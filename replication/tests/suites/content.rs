//! What entries, snapshots and messages of the scenarios hold.

use bytes::Bytes;
use plover_types::{LogIndex, NodeSpec, Offload, PacketBurstBuilder, Term};
use raft::eraftpb::{Message, MessageType, Snapshot};
use replication::group::GroupState;
use replication::members::Members;

/// An entry of input: one packet with this number.
pub fn burst(number: u32) -> Bytes {
    let mut packet = [0; 60];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    let mut builder = PacketBurstBuilder::new();
    builder.push(0, Offload::PLAIN, &packet).expect("a packet");
    builder.finish().expect("a burst").encoded().clone()
}

/// What a snapshot of a group of three says.
pub fn state_of_three() -> Bytes {
    let nodes: Vec<NodeSpec> = (1..=3).map(NodeSpec::replica).collect();
    GroupState::of(Members::of(&nodes)).encode()
}

/// A message between nodes, to be filled in.
pub fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (from, to, term);
    message
}

/// A snapshot of the group's state at an entry.
pub fn snapshot(index: LogIndex, term: Term) -> Snapshot {
    let mut snapshot = Snapshot {
        data: state_of_three(),
        ..Snapshot::default()
    };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index.0, term.0);
    metadata.mut_conf_state().voters = (1..=3).collect();
    snapshot
}
