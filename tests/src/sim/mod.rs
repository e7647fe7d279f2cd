//! A seeded simulation of a replica group over the real core.
//!
//! Real: [`replication::core::Core`] with raft-rs, storage, wire form, hold queue. Modelled: time,
//! the network (delay, loss, duplication, reordering, corruption, partitions), the disk of the
//! witness, the driver of VMM and hasher, and the VM ([`vm::Vm`]).
//!
//! The modelled VM answers each packet with a number that it draws at random and remembers, so
//! two copies that processed the same packets differ until a sync makes them equal. A client that
//! saw an answer which the serving copy does not remember has lost something.
//!
//! Checked, at every step ([`check::Checker`]):
//! 1. both copies are given the same packets in the same order;
//! 2. no answer is seen that the copy which serves later does not know;
//! 3. after each applied sync the backup's memory equals the primary's at the sync point;
//! 4. at most one node may transmit at any instant, with clocks that drift within the bound;
//! 5. the VM is lost only if a fault destroyed the last valid copy;
//! 6. once faults stop, the group serves again if a valid copy is left, and is protected again if
//!    both replicas live.
//!
//! Not verified here: bytes of real memory and devices, DPDK, TCP, timing of real schedulers.

mod check;
mod driver;
mod network;
mod vm;
mod world;

pub use check::Violation;
pub use world::{Options, Outcome, Sabotage, run};
