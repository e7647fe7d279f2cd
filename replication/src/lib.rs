//! The input log, epochs, roles and the output rule.

pub mod core;
pub mod durable;
pub mod epoch;
pub mod group;
pub mod identity;
pub mod input;
pub mod lease;
pub mod limits;
pub mod link;
pub mod members;
pub mod net;
pub mod node;
pub mod output_rule;
pub mod plan;
pub mod planted;
pub mod secure;
pub mod storage;
pub mod ticks;
pub mod transport;
pub mod wire;
