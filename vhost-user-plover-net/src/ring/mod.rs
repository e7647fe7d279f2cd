//! The split-ring engine on mapped guest memory. Here: translation, bounds, copies, indexes,
//! notifications, the log of what we wrote; nearly all `unsafe` of the crate. Not here: who
//! decides when a ring runs (`guest_nic`), and how the VMM set it up (`control`).
//!
//! Everything in guest memory is hostile: each field is read once, every loop is bounded by the
//! ring, and what cannot be right is a [`RingFault`] that stops the ring.

mod chain;
mod copy;
mod fault;
mod frame;
mod guest_map;
mod layout;
mod receive;
mod split;
mod transmit;
mod used;
mod written_pages;

#[cfg(test)]
mod tests;

pub use fault::RingFault;
pub use frame::{Frame, FrameSink, GuestFrame, ToLay};
pub use guest_map::{GuestMap, GuestView, Piece, VmmMemory};
pub use layout::{Direction, RingFeatures, RingId, RingLayout};
pub use receive::{LaidBurst, ReceiveScratch, Unlaid};
pub use split::SplitRing;
pub use transmit::{TakenBurst, TransmitScratch};
pub use written_pages::WrittenPages;
