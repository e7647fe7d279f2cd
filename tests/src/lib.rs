//! What Plover's end-to-end tests are made of: the simulation of a replica group.

pub mod sim;
