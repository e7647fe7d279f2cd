//! Limits of the VMM side, each with its reason.

use std::time::Duration;

/// Time for a VMM to answer its first API call after its start. Debian's QEMU needs 50 to 200 ms
/// on an idle machine; a loaded two-core CI machine has been seen to need seconds.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for one API call. Calls take 1 to 10 ms; a VMM that needs this long is hung, and the
/// answer to a hang is failover.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for an API call that builds a machine (create, boot, restore): it maps and may populate
/// memory, and reads the guest's kernel.
pub const MACHINE_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for a killed VMM to be reaped. A process in an uninterruptible sleep is left behind.
pub const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for one step of the ptrace work at the exec stop; each takes microseconds.
pub const EXEC_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes in a captured state that we accept: QEMU makes 0.9 MB, Cloud Hypervisor 40 kB. More
/// vCPUs and devices add kilobytes.
pub const STATE_BYTES_MAX: usize = 64 << 20;

/// Bytes in one QMP message.
pub const QMP_LINE_BYTES_MAX: usize = 4 << 20;

/// QMP events and guest events kept until somebody asks for them; older ones are dropped.
pub const EVENTS_MAX: usize = 1024;

/// Bytes in the head of an HTTP answer of Cloud Hypervisor.
pub const HTTP_HEAD_BYTES_MAX: usize = 8 << 10;

/// Bytes in the body of an HTTP answer of Cloud Hypervisor (vm.info is the largest, some kB).
pub const HTTP_BODY_BYTES_MAX: usize = 4 << 20;

/// Bytes of undelivered Cloud Hypervisor events; one event is about 100 bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Gap that Cloud Hypervisor gets between a resume and the next pause. `vm.pause` right after
/// `vm.resume` can hang it for good (a virtio worker is still parked while the next barrier
/// waits); never seen with gaps of 20 ms.
pub const PAUSE_GAP: Duration = Duration::from_millis(20);

/// Time for Cloud Hypervisor's virtio workers to be seen asleep in epoll_wait before a pause.
pub const WORKERS_READY_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes in the path of a Unix socket (`sun_path` without its final zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// vCPUs that a guest may have.
pub const VCPUS_ALLOWED: [u32; 3] = [1, 2, 4];

/// MiB of guest memory: below 64 no Linux boots; above 1 TiB is a typing error.
pub const MEMORY_MIB_MIN: u64 = 64;
/// See [`MEMORY_MIB_MIN`].
pub const MEMORY_MIB_MAX: u64 = 1 << 20;

/// Most bytes of a configuration file: it is typed by hand.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Largest node id: a copy set is a 64-bit mask with bit 0 unused.
pub const NODE_ID_MAX: u8 = 63;

/// The guest's MTU: the specification's smallest, and the largest that network cards carry.
pub const GUEST_MTU_MIN: u16 = 68;
/// See [`GUEST_MTU_MIN`].
pub const GUEST_MTU_MAX: u16 = 9216;

/// Queue pairs of the guest's network card. One poll core serves them all.
pub const QUEUE_PAIRS_MAX: u8 = 8;

const _: () = assert!(CALL_TIMEOUT.as_millis() > PAUSE_GAP.as_millis());
const _: () = assert!(MACHINE_TIMEOUT.as_millis() >= CALL_TIMEOUT.as_millis());
const _: () = assert!(HTTP_HEAD_BYTES_MAX < HTTP_BODY_BYTES_MAX);
const _: () = assert!(MEMORY_MIB_MIN < MEMORY_MIB_MAX);
const _: () = assert!(NODE_ID_MAX < u64::BITS as u8);

/// Bytes that follow the Ethernet header in a frame to a peer, at most: it fits the smallest packet
/// buffer, whatever the port could carry.
pub const REPLICATION_MTU_MAX: u16 = 1500;
