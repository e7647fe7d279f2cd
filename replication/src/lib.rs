//! The input log, epochs, roles and the output rule.

pub mod storage;
pub mod wire;
