//! What Plover's tests across crates are made of: the simulation of a replica group, and the
//! handles of the end-to-end tests.

pub mod e2e;
pub mod frontend;
pub mod linear;
pub mod sim;
