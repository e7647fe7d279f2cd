//! What a guest leaves to its network card: unfinished checksums, and packets to be cut into
//! frames. Pure functions over bytes, without allocation; who calls them, and which packets go to
//! which port, is not known here.
//!
//! ```text
//! guest ──frame, Offload──▶ Egress ──▶ the port finishes it, where it can
//!                             │
//!                             └─────▶ we do: finish_checksum, Segments
//!
//! port ──▶ received ──▶ frame, Offload ──▶ guest
//! ```
//!
//! The frame and its [`Offload`] are both a hostile guest's. Nothing is taken from one that does
//! not fit the other: what is wrong is a [`FinishError`], and the packet is dropped and counted.

mod checksum;
mod egress;
mod error;
mod headers;
mod segments;
mod sum;

#[cfg(test)]
mod tests;

pub use checksum::finish_checksum;
pub use egress::{Egress, EgressError, finish_mbuf, received};
pub use error::FinishError;
pub use segments::{Segment, Segments};

/// Bytes of the headers of a packet that is cut: Ethernet, two VLAN tags, IPv6 with some
/// extension headers, the longest TCP header. Longer ones don't occur and are refused.
pub const HEADERS_BYTES_MAX: usize = 14 + 2 * 4 + 40 + 64 + 60;

/// Frames that one packet may become: 64 bytes of payload each in the largest packet. A guest
/// that asks for more would turn one descriptor into a flood.
pub const SEGMENTS_MAX: usize = 1024;
