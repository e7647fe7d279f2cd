//! Every bound of the hasher, with its reason. Units are last in the names.

use std::time::Duration;

use plover_types::limits::PAGE_BYTES;

/// Bytes in the blocks within a page that are compared once the page is known to differ. What
/// differs in a page is mostly 40 to 70 bytes in one or two places, so a page costs its block
/// digests plus one or two blocks: 128 + 190 B here, against 376 B with blocks of 64 and 394 B
/// with blocks of 256.
pub const BLOCK_BYTES: usize = 128;

/// Blocks in a page: one bit each in a record's `u32` mask.
pub const BLOCKS_PER_PAGE: usize = PAGE_BYTES / BLOCK_BYTES;

/// Regions of guest memory: vhost-user's own bound is 8 without, 509 with memory slots; VMMs use
/// two or three.
pub const REGIONS_MAX: usize = 32;

/// Guest physical pages, holes included: 256 GiB. Bounds every page set and digest list.
pub const PAGES_MAX: u64 = 1 << 26;

/// Bytes of device state: QEMU needs 335 kB, Cloud Hypervisor 39 kB; many devices more.
pub const DEVICE_STATE_BYTES_MAX: usize = 64 << 20;

/// Bytes in a frame's payload. A page set of [`PAGES_MAX`] as plain bits is the longest.
pub const FRAME_BYTES_MAX: usize = (8 << 20) + 64;

/// Bytes of page records that are gathered in one frame: large enough that headers do not
/// matter, small enough that the backup stages while the primary sends.
pub const BLOCKS_FRAME_BYTES: usize = 1 << 20;

/// Page digests in one frame (4 bytes each).
pub const DIGESTS_FRAME_PAGES: usize = 1 << 18;

/// Pages whose block digests share a frame.
pub const BLOCK_DIGESTS_FRAME_PAGES: usize = 1 << 13;

/// Bytes of a group's name in a hello.
pub const GROUP_NAME_BYTES_MAX: usize = 64;

/// Bytes of the reason in an abort frame.
pub const REASON_BYTES_MAX: usize = 256;

/// Bytes of one message on the control socket; the longest lists [`REGIONS_MAX`] regions.
pub const CONTROL_BYTES_MAX: usize = 16 << 10;

/// Descriptors with one control message: one per region, two logs, two of the tracker.
pub const CONTROL_FDS_MAX: usize = REGIONS_MAX + 4;

/// Handshakes that may be under way at once with hosts that connect to us.
pub const HANDSHAKES_MAX: usize = 8;

/// To set up a connection and exchange hello and key.
pub const CONNECT_MAX: Duration = Duration::from_secs(2);

/// From our `BeginRound` to the peer's first message: its node may apply `SyncBegin` later, or
/// still be waiting for its guest to go quiet.
pub const PEER_BEGIN_MAX: Duration = Duration::from_secs(10);

/// Without a byte from (or taken by) the peer inside a round. Digesting 256 GiB at 10 GB/s fits.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(30);

/// For the abort message of a failed round; it only saves the peer a wait.
pub const ABORT_SEND_MAX: Duration = Duration::from_millis(200);

/// From the end of copying out to the node's device state.
pub const DEVICE_STATE_WAIT_MAX: Duration = Duration::from_secs(10);

/// For the node to take an event from its socket before it counts as gone.
pub const EVENT_SEND_MAX: Duration = Duration::from_secs(2);

/// Worker threads that digest. Two nearly saturate the memory of one socket slice.
pub const THREADS_MAX: usize = 64;

/// Pages per worker below which another thread costs more than it saves.
pub const PAGES_PER_THREAD_MIN: usize = 512;

/// One in so many pages thought untouched is checked in each round, so that a hole in the
/// tracking is found after at most this many rounds (more if [`SLICE_PAGES_MAX`] cuts in).
pub const SLICE_DIVISOR: u64 = 64;

/// Pages in the slice: 16 MiB, 2 ms of digesting.
pub const SLICE_PAGES_MAX: u64 = 4096;

/// Ranges that one PAGEMAP_SCAN call reports.
pub const SCAN_RANGES: usize = 4096;

const _: () = assert!(PAGE_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(BLOCKS_PER_PAGE == u32::BITS as usize);
const _: () = assert!(PAGES_MAX / 8 < FRAME_BYTES_MAX as u64);
const _: () = assert!(PAGES_MAX <= u32::MAX as u64);
const _: () = assert!(DIGESTS_FRAME_PAGES * 4 + 8 <= FRAME_BYTES_MAX);
const _: () = assert!(BLOCK_DIGESTS_FRAME_PAGES * BLOCKS_PER_PAGE * 4 + 8 <= FRAME_BYTES_MAX);
const _: () = assert!(BLOCKS_FRAME_BYTES + PAGE_BYTES + 12 <= FRAME_BYTES_MAX);
