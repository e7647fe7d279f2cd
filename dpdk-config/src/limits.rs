//! The limits of the DPDK wrapper, each with its reason.

/// Packets in one burst. DPDK's own examples and the log's entries use the same number; a power of
/// two suits the bulk calls.
pub const BURST_PACKETS_MAX: usize = 32;

/// Bytes of packet data in one mbuf. 2048 is what `net_af_packet` needs for its default frame slot
/// and what a NIC expects for an unscattered 1518-byte frame.
pub const DATA_ROOM_BYTES_DEFAULT: u16 = 2048;

/// Receive and transmit descriptors of a port unless configured. `net_tap` takes one mbuf of the
/// pool for each receive descriptor when it opens.
pub const DESCRIPTORS_DEFAULT: u16 = 256;

/// Fewest descriptors accepted: less than a burst would split every burst.
pub const DESCRIPTORS_MIN: u16 = BURST_PACKETS_MAX as u16;

/// Most descriptors accepted: no driver that is used here has longer queues.
pub const DESCRIPTORS_MAX: u16 = 4096;

/// MiB that EAL maps unless configured: a pool of 8192 mbufs takes 20 of them.
pub const MEMORY_MIB_DEFAULT: u32 = 64;

/// Fewest MiB accepted: EAL's own tables and a pool of 512 mbufs.
pub const MEMORY_MIB_MIN: u32 = 16;

/// Most MiB accepted, so that a slip in the unit is found before the machine swaps.
pub const MEMORY_MIB_MAX: u32 = 64 * 1024;

/// Smallest MTU, from IPv4.
pub const MTU_BYTES_MIN: u16 = 68;

/// Largest MTU: jumbo frames as most NICs have them.
pub const MTU_BYTES_MAX: u16 = 9216;

/// Bytes of a frame beyond its MTU: the Ethernet header and one VLAN tag, no FCS.
pub const FRAME_OVERHEAD_BYTES: u32 = 14 + 4;

/// Bytes in a mempool's name: `RTE_MEMPOOL_NAMESIZE` without the terminating zero.
pub const MEMPOOL_NAME_BYTES_MAX: usize = 25;

/// Bytes in a device's name: `RTE_DEV_NAME_MAX_LEN` without the terminating zero.
pub const DEVICE_NAME_BYTES_MAX: usize = 63;

/// Bytes in a network interface's name: the kernel's `IFNAMSIZ` without the terminating zero.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Bytes in EAL's file prefix: it becomes a folder's name.
pub const FILE_PREFIX_BYTES_MAX: usize = 64;

const _: () = assert!(BURST_PACKETS_MAX.is_power_of_two());
const _: () = assert!(BURST_PACKETS_MAX <= u16::MAX as usize);
const _: () = assert!(DESCRIPTORS_MIN <= DESCRIPTORS_DEFAULT);
const _: () = assert!(DESCRIPTORS_DEFAULT <= DESCRIPTORS_MAX);
const _: () = assert!(MEMORY_MIB_MIN <= MEMORY_MIB_DEFAULT);
const _: () = assert!(MEMORY_MIB_DEFAULT <= MEMORY_MIB_MAX);
const _: () = assert!(DATA_ROOM_BYTES_DEFAULT as u32 >= 1500 + FRAME_OVERHEAD_BYTES);
