//! The limits that the log's byte form carries, each with its reason.

use crate::burst::{BURST_HEADER_BYTES, PACKET_HEADER_BYTES};
use crate::offload::OFFLOAD_BYTES;

/// Bytes in a guest page, as the hashers compare it.
pub const PAGE_BYTES: usize = 4096;

/// Packets in one log entry: as many DPDK bursts as one commit pays for. A power of two, as DPDK's
/// bulk calls like it.
pub const ENTRY_PACKETS_MAX: usize = 128;

/// Bytes in one packet: the longest IP packet, as TCP segmentation makes it, an Ethernet header
/// and a VLAN tag, rounded up. The guest's MTU bounds what is admitted more tightly.
pub const PACKET_BYTES_MAX: usize = 65_550;

/// Bytes in the shortest frame that the uplink accepts: an Ethernet header. Virtual links do not
/// pad to 60 bytes.
pub const PACKET_BYTES_MIN: usize = 14;

/// Bytes of an encoded entry. 128 KiB are filled before a packet of any length starts the next
/// one, so a full burst at MTU 1500 still is one entry.
pub const ENTRY_BYTES_MAX: usize =
    128 * 1024 + BURST_HEADER_BYTES + PACKET_HEADER_BYTES + OFFLOAD_BYTES + PACKET_BYTES_MAX;

/// Queue pairs of a guest's network card.
pub const QUEUE_PAIRS_MAX: u8 = 8;

/// Nodes in a group, at most: two replicas and a witness.
pub const GROUP_NODES_MAX: usize = 3;

/// Nodes that a group may have: a single replica, whose log protects nothing but orders all
/// input, or a whole group. Two nodes would lose their quorum with either of them.
pub const GROUP_SIZES: [usize; 2] = [1, GROUP_NODES_MAX];

/// Members of a group at once: one is replaced at a time, and both are members meanwhile.
pub const MEMBERS_MAX: usize = GROUP_NODES_MAX + 1;

/// Bytes that say how a node is reached: addresses, a public key, names.
pub const PLACE_BYTES_MAX: usize = 1024;

const _: () = assert!(ENTRY_PACKETS_MAX.is_power_of_two());
const _: () = assert!(ENTRY_PACKETS_MAX <= u8::MAX as usize);
const _: () = assert!(PACKET_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(PACKET_BYTES_MIN < PACKET_BYTES_MAX);
const _: () = assert!(ENTRY_PACKETS_MAX * (PACKET_HEADER_BYTES + 1518) < ENTRY_BYTES_MAX);
// The top bit of a packet's first byte is taken.
const _: () = assert!(QUEUE_PAIRS_MAX < 0x80);
