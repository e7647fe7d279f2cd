//! A vhost-user frontend with a guest's driver, for tests of the card from outside: what a VMM and
//! its guest do, with a checking mind.
//!
//! [`Guest`] has the memory and the rings and outlives its connection, so that a backend that was
//! killed can be met again with rings in mid-flight. [`traffic`] is what it sends and expects.
//! `connection` is the VMM's half. The driver side of one ring is in [`ring`].

mod connection;
mod guest;
mod memory;
pub mod ring;
pub mod traffic;

pub use guest::{Guest, GuestConfig, Negotiated};
pub use ring::Pieces;
