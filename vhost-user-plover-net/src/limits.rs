//! Every bound of this crate, with its reason. Nothing here is a tuning knob of a user's.

use std::time::Duration;

use dpdk_config::BURST_PACKETS_MAX;
use plover_types::limits::{ENTRY_PACKETS_MAX, PACKET_BYTES_MAX, PACKET_BYTES_MIN, PAGE_BYTES};

/// Descriptors in a ring. QEMU and Cloud Hypervisor default to 256 and allow up to 1024.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Queue pairs of a card: one for each vCPU of a middling guest. A pair costs two rings to poll.
pub const QUEUE_PAIRS_MAX: usize = 8;

/// Fds that a card can be woken by: its mailbox, and the kicks of all its rings.
pub const CARD_WAKE_FDS_MAX: usize = 1 + 2 * QUEUE_PAIRS_MAX;

/// Descriptors in one chain, an indirect table's included. The specification forbids chains
/// longer than the ring; a table may not make us read more than that.
pub const CHAIN_DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

/// Bytes in a virtio-net header with `num_buffers`.
pub const NET_HEADER_BYTES: usize = 12;

/// Bytes in a virtio-net header of a legacy driver without mergeable buffers.
pub const NET_HEADER_LEGACY_BYTES: usize = 10;

/// Bytes in the longest frame taken from or given to the guest.
pub const FRAME_BYTES_MAX: usize = PACKET_BYTES_MAX;

/// Bytes in the longest frame that every receive buffer must hold: MTU 1500 and one VLAN tag. A
/// driver that posts less breaks its ring; a longer frame that does not fit is dropped instead.
pub const FRAME_BYTES_ORDINARY: usize = 1518;

/// Frames that a ring takes or gives in one pass over its descriptors: two cache lines of entries,
/// and a DPDK burst.
pub const RING_BURST_MAX: usize = 32;

/// Bytes in the shortest frame taken from the guest.
pub const FRAME_BYTES_MIN: usize = PACKET_BYTES_MIN;

/// Pieces of guest memory that one packet may be spread over: a hostile guest may use buffers of one
/// byte, and each piece holds at least one.
pub const SEGMENTS_MAX: usize = NET_HEADER_BYTES + FRAME_BYTES_MAX;

/// Memory regions in a table: as many fds as one vhost-user message carries.
pub const MEMORY_REGIONS_MAX: usize = 32;

/// First guest physical address that no region may reach: x86-64 user addresses end here, and
/// DPDK's virtio_user sends those as guest addresses. Bounds the bitmap (4 GiB, sparse).
pub const GUEST_ADDRESS_END_MAX: u64 = 1 << 47;

/// How long the control thread waits for the poll core. A core that is silent for so long is
/// stuck, and the VMM's connection is dropped rather than the VMM hung.
pub const CORE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes in the body of a vhost-user message: the specification's own bound, and the crate's.
pub const MESSAGE_BODY_BYTES_MAX: usize = 4096;

/// How long a VMM may take to send the rest of a message it began, or to read a reply.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests in the mailbox. The control thread waits for each answer, so more than one means
/// that it gave up on one.
pub const MAILBOX_REQUESTS: usize = 16;

/// Ring faults waiting to be logged; beyond it only the counter knows.
pub const FAULT_REPORTS: usize = 16;

/// Pause after a failed accept (out of fds), so that it does not spin.
pub const ACCEPT_RETRY_MS: u16 = 100;

/// Lowest number of the listening socket's descriptor: above all others that a node has, and below
/// the usual limit of 1024.
pub const LISTENER_FD_MIN: i32 = 900;

/// Pause before another try to connect to a VMM that does not listen yet.
pub const CONNECT_RETRY_MS: u16 = 50;

/// Bytes of guest memory that one mark of the written pages stands for.
pub const LOG_PAGE_BYTES: u64 = PAGE_BYTES as u64;

const _: () = assert!(QUEUE_SIZE_MAX.is_power_of_two());
const _: () = assert!(QUEUE_PAIRS_MAX <= u8::MAX as usize);
// What a turn receives fits one entry.
const _: () = assert!(TAKEN_PER_TURN <= ENTRY_PACKETS_MAX);
const _: () = assert!(FRAME_BYTES_MIN < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_ORDINARY < FRAME_BYTES_MAX);
const _: () = assert!(RING_BURST_MAX <= QUEUE_SIZE_MAX as usize);
const _: () = assert!(NET_HEADER_LEGACY_BYTES < NET_HEADER_BYTES);
const _: () = assert!(LOG_PAGE_BYTES.is_power_of_two());
const _: () = assert!(GUEST_ADDRESS_END_MAX.is_multiple_of(LOG_PAGE_BYTES));

/// Addresses of the guest that are announced after a takeover: enough for a server with a few of
/// each family. The others are refreshed by the guest's own traffic.
pub const LEARNED_ADDRESSES_MAX: usize = 8;

/// Log entries that are committed and not yet delivered; beyond it `admit` drops. At a full entry
/// each this is what a guest can miss while it is paused for a long sync at full load.
pub const UNDELIVERED_ENTRIES_MAX: u64 = 4096;

/// Entries that wait for a guest that runs, before no more are received: a few rings' worth. More
/// would only grow old, and be out of the processor's cache when their turn comes.
pub const WAITING_ENTRIES_MAX: u64 = 16;

/// Received packets that stay in their mbufs until they are delivered: those of the entries that may
/// wait for a guest that runs, and of the turn that follows. The uplink's pool has to have them
/// beside all others.
pub const KEPT_PACKETS_MAX: usize = (WAITING_ENTRIES_MAX as usize + 1) * TAKEN_PER_TURN;

/// Bytes of the shortest packet that is kept. A shorter one is cheaper to copy into its entry than
/// its mbuf to come back to.
pub const KEPT_BYTES_MIN: usize = 256;

/// How long a guest that takes nothing has packets kept in their mbufs, before they are written
/// into the log and the mbufs freed.
pub const KEPT_FOR: Duration = Duration::from_millis(10);

/// Bursts taken from each port in one turn, so that no step starves the others.
pub const BURSTS_PER_TURN: usize = 4;

/// Packets taken from the guest in one turn, for the same reason.
pub const TAKEN_PER_TURN: usize = BURSTS_PER_TURN * BURST_PACKETS_MAX;

/// Packet buffers that an uplink's pool has beside those for held packets, so that packets of
/// 64 KiB that are cut into frames of 1,448 bytes of payload (TCP with time stamps, MTU 1500) find
/// theirs: room for held packets is looked at once for each [`TAKEN_PER_TURN`] of them. A guest that
/// asks for smaller frames may lose its packet, by counter.
pub const CUT_MBUFS: usize = TAKEN_PER_TURN * 65_535_usize.div_ceil(1448);

/// How long the guest's rings must rest before its copy counts as idle.
pub const IDLE_RINGS: Duration = Duration::from_micros(500);

/// How long the rings must rest for a copy to count as quiet before its pause.
pub const QUIET_RINGS: Duration = Duration::from_micros(200);

/// A protected guest that sends nothing is synced this often all the same: the log is compacted,
/// and the next difference stays small.
pub const IDLE_SYNC_INTERVAL: Duration = Duration::from_millis(1000);

/// How often the uplink's link state is looked at.
pub const LINK_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks whether the guest moved its rings.
pub const GUEST_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How long an idle core spins before it sleeps (adaptive polling).
pub const SPIN: Duration = Duration::from_micros(20);

/// Longest sleep of a core whose ports all have interrupts: ticks are noticed this late at most.
pub const INTERRUPT_SLEEP: Duration = Duration::from_millis(1);

/// Turns of the passthrough core between two looks at what other threads want: a look costs a tenth
/// of a turn, and 16 turns are over within some 20 µs.
pub const COMMAND_TURNS: usize = 16;
