//! demo
pub mod client;
mod cpio;
pub mod events;
pub mod guest;
pub mod history;
pub mod namespace;
pub mod network;
