//! What can fail while DPDK is set up. The data path has no errors of this kind: it counts.

use nix::errno::Errno;

/// Why DPDK, a pool or a port could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DpdkError {
    /// A value of the configuration cannot be used.
    #[error("configuration key `{key}`: {reason}")]
    Config {
        /// The key as it is written in the configuration.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// EAL was already asked for in this process; it starts once.
    #[error("DPDK was already initialised in this process; that is possible only once")]
    AlreadyInitialised,
    /// The thread that initialises EAL could not be started, or died.
    #[error("the thread that initialises DPDK did not finish")]
    InitThread,
    /// EAL refused its arguments or the machine.
    #[error("DPDK did not initialise with `{arguments}`: {log}")]
    Init {
        /// EAL's command line.
        arguments: String,
        /// What EAL logged.
        log: String,
        /// EAL's error number.
        source: Errno,
    },
    /// The calling thread could not be pinned.
    #[error("configuration key `main_core`: this thread cannot be pinned to core {core}")]
    Pin {
        /// The core that was asked for.
        core: usize,
        /// The kernel's reason.
        source: Errno,
    },
    /// The calling thread got no identity in EAL.
    #[error("this thread could not be registered with DPDK")]
    RegisterThread {
        /// DPDK's error number.
        source: Errno,
    },
    /// A pool of mbufs could not be made.
    #[error(
        "mempool `{name}` of {mbufs} mbufs with {data_room_bytes} bytes each was not created \
         (raise `memory_mib` if memory ran out): {log}"
    )]
    MempoolCreate {
        /// The pool's name.
        name: String,
        /// Mbufs asked for.
        mbufs: u32,
        /// Bytes of packet data in each.
        data_room_bytes: u16,
        /// What DPDK logged.
        log: String,
        /// DPDK's error number.
        source: Errno,
    },
    /// The kernel interface that a device names does not exist here.
    #[error("device `{device}`: no network interface `{interface}` in this network namespace")]
    NoInterface {
        /// The device string of the configuration.
        device: String,
        /// The interface it names.
        interface: String,
    },
    /// The PCI device does not exist.
    #[error("configuration key `pci`: there is no PCI device `{address}` on this machine")]
    NoPciDevice {
        /// The address of the configuration.
        address: String,
    },
    /// A port of that name is open in this process.
    #[error("device `{device}`: a port of that name is already open in this process")]
    AlreadyOpen {
        /// The device string of the configuration.
        device: String,
    },
    /// The driver did not make a port of the device.
    #[error("device `{device}`: the driver made no port: {log}")]
    Attach {
        /// The device string of the configuration.
        device: String,
        /// What the driver logged.
        log: String,
        /// The driver's error number; `UnknownErrno` if it gave none.
        source: Errno,
    },
    /// A step in setting up a port failed.
    #[error("device `{device}`: {step} failed: {log}")]
    Setup {
        /// The device string of the configuration.
        device: String,
        /// What was tried.
        step: &'static str,
        /// What the driver logged.
        log: String,
        /// The driver's error number.
        source: Errno,
    },
    /// An open port could not be asked or changed.
    #[error("device `{device}`: {step} failed")]
    Port {
        /// The device string of the configuration.
        device: String,
        /// What was tried.
        step: &'static str,
        /// The driver's error number.
        source: Errno,
    },
}

/// Why no mbuf was allocated. Nothing was taken from the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The pool holds fewer mbufs than were asked for.
    #[error("the mempool is empty")]
    Empty,
    /// The burst has no room for that many.
    #[error("the burst is full")]
    BurstFull,
}

/// Bytes do not fit into an mbuf. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes do not fit into the {room} that the mbuf has left")]
pub struct TooLong {
    /// Bytes that were to be appended.
    pub bytes: usize,
    /// Bytes that were free.
    pub room: usize,
}

/// The error in a DPDK call's negative return value. Drivers also return a bare -1, which says
/// nothing (and would read as "operation not permitted").
pub(crate) fn errno_of(status: i32) -> Errno {
    match status {
        -1 => Errno::UnknownErrno,
        status => Errno::from_raw(status.saturating_neg()),
    }
}

/// DPDK's error number of the last failed call on this thread.
pub(crate) fn last_errno() -> Errno {
    // SAFETY: reads a thread-local integer.
    Errno::from_raw(unsafe { dpdk_sys::plover_rte_errno() })
}
