//! Bounds on what a peer's frame or a file may make this node hold, each with its reason.

use plover_types::limits::ENTRY_BYTES_MAX;

/// What raft-rs may put into one append (its `max_size_per_msg`), as it counts. An entry that is
/// longer goes alone.
pub const APPEND_BYTES_MAX: u64 = 64 * 1024;

/// Version of the messages' byte form. A peer with another one is refused, by name.
pub const WIRE_VERSION: u8 = 4;

/// Bytes of one encoded message. Holds the largest append that raft-rs makes: one entry of
/// [`ENTRY_BYTES_MAX`], or as many small ones as [`APPEND_BYTES_MAX`] allows, headers included,
/// with room to spare for a snapshot.
pub const MESSAGE_BYTES_MAX: usize = 200 * 1024;

/// Bytes before a message's body: version, kind, group, from, to.
pub const MESSAGE_HEADER_BYTES: usize = 2 + 8 + 8 + 8;

/// Bytes before an entry's data in an append: term and length.
pub const ENTRY_HEADER_BYTES: usize = 8 + 4;

/// Entries in one append. An empty entry costs [`ENTRY_HEADER_BYTES`], so this many still fit.
pub const APPEND_ENTRIES_MAX: usize = 8192;

/// Bytes of a message's context: a heartbeat round, or raft-rs's mark of a leadership transfer.
pub const CONTEXT_BYTES_MAX: usize = 16;

/// Bytes of a snapshot's data: roles, the sync in flight, positions. Never guest memory.
pub const SNAPSHOT_BYTES_MAX: usize = 64 * 1024;

/// Indexes and terms stay below this, so that adding a message's entries to one cannot overflow.
/// A million elections or bursts a second need 146,000 years to get there.
pub const INDEX_AND_TERM_MAX: u64 = 1 << 62;

/// Fragments of one message, at most: [`MESSAGE_BYTES_MAX`] at [`MTU_BYTES_MIN`], with all headers.
pub const FRAGMENTS_MAX: usize = 512;

/// Smallest MTU of a replication link: what every IPv4 network carries.
pub const MTU_BYTES_MIN: usize = 576;

/// Largest MTU of a replication link: jumbo frames.
pub const MTU_BYTES_MAX: usize = 9600;

/// Messages of one peer that may be incomplete at once. A peer sends its messages in order, so
/// more than a few means that fragments were lost. Bounds the memory of a hostile peer to this
/// many times [`MESSAGE_BYTES_MAX`].
pub const REASSEMBLY_SLOTS: usize = 8;

const _: () = assert!(ENTRY_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(APPEND_ENTRIES_MAX <= u16::MAX as usize);
const _: () = assert!(SNAPSHOT_BYTES_MAX < MESSAGE_BYTES_MAX / 2 + 1);
const _: () = assert!(MESSAGE_HEADER_BYTES + 64 + ENTRY_BYTES_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(APPEND_ENTRIES_MAX * ENTRY_HEADER_BYTES < MESSAGE_BYTES_MAX);
// The shortest input entry has 21 bytes of data and at least 6 of protobuf's; 33 in our form. So
// a message of APPEND_BYTES_MAX as raft-rs counts it is at most a quarter longer as we write it.
const _: () = assert!(APPEND_BYTES_MAX as usize / 4 * 5 + 1024 <= MESSAGE_BYTES_MAX);
