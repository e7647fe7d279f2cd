//! The limits that the log's byte form carries, each with its reason.

/// Bytes in a guest page, as the hashers compare it.
pub const PAGE_BYTES: usize = 4096;

/// Packets in one log entry: one DPDK burst. A power of two, as DPDK's bulk calls like it.
pub const ENTRY_PACKETS_MAX: usize = 32;

/// Bytes in one packet: an Ethernet frame without FCS, MTU 1500, one VLAN tag. No offload that
/// makes larger frames is offered to the guest.
pub const PACKET_BYTES_MAX: usize = 1518;

/// Bytes in the shortest frame that the uplink accepts: an Ethernet header. Virtual links do not
/// pad to 60 bytes.
pub const PACKET_BYTES_MIN: usize = 14;

/// Bytes of an encoded entry: kind, count, lengths and packets of a full burst.
pub const ENTRY_BYTES_MAX: usize = 2 + ENTRY_PACKETS_MAX * (2 + PACKET_BYTES_MAX);

/// Nodes in a group: two replicas and a witness.
pub const GROUP_NODES: usize = 3;

const _: () = assert!(ENTRY_PACKETS_MAX.is_power_of_two());
const _: () = assert!(ENTRY_PACKETS_MAX <= u8::MAX as usize);
const _: () = assert!(PACKET_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PACKET_BYTES_MIN < PACKET_BYTES_MAX);
