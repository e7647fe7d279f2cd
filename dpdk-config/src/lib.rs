//! DPDK for Plover: a safe wrapper over `dpdk-sys`, typed configuration and preflight checks.
//!
//! [`Eal`] starts DPDK once, a [`Mempool`] has the packet buffers, a [`Port`] moves them in a
//! [`Burst`]. What the packets mean is no concern of this crate. Written against DPDK 22.11; 23.11
//! and 24.11 build too.

mod af_packet;
mod attach;
pub mod config;
pub mod eal;
pub mod error;
mod kernel_interface;
pub mod limits;
mod log;
pub mod mbuf;
pub mod mempool;
pub mod offloads;
pub mod port;
pub mod preflight;
mod queue;
mod tap_signals;
#[cfg(test)]
mod testing;
mod vdev;

pub use config::{EalConfig, HugePages, PortConfig};
pub use eal::{Eal, RegisteredThread};
pub use error::{AllocError, DpdkError, TooLong};
pub use limits::BURST_PACKETS_MAX;
pub use mbuf::{Burst, Mbuf};
pub use mempool::Mempool;
pub use offloads::{L4, OffloadUse, PortOffloads, RxChecksum, TxRequest};
pub use port::{Port, PortStats};
pub use preflight::{Check, Outcome, PreflightRequest};
pub use queue::MbufQueue;
