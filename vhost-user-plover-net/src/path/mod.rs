//! The steps of a packet's path, each a file of its own. [`crate::poll`] takes them in order.

pub mod admit;
pub mod announce;
pub mod flow_hash;
pub mod kept;
pub mod outgoing;
pub mod ports;
