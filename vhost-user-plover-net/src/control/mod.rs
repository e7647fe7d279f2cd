//! The control plane: the vhost-user server, and the mailbox through which it reaches the poll
//! core. No packet passes here.

mod backend;
mod card;
mod endpoint;
pub mod mailbox;
mod memory;
mod relay;
mod session;
mod vhost_user;
mod vring;

#[cfg(test)]
mod tests;

pub use card::CardConfig;
pub use memory::{MemoryEvent, MemoryListener, MemoryMap, Region};
pub use vhost_user::{ControlSide, NicConfig, VhostUserServer, channel};
