//! What Plover's tests across crates are made of: the handles of the end-to-end tests. The
//! simulation of a replica group is a crate of its own, `plover-sim`.

pub mod e2e;
pub mod frontend;
pub mod linear;
