//! demo
pub mod check;
pub mod client;
pub mod counter;
mod cpio;
pub mod events;
pub mod guest;
pub mod history;
pub mod namespace;
pub mod network;
pub mod outage;
pub mod table;
