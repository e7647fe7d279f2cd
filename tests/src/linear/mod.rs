//! Linearizability: what clients saw of the guest's server, and whether one server that does one
//! request at a time could have answered so.
//!
//! ```text
//!   recorder ──▶ history ──▶ checker ──▶ verdict
//!   (clients)                (model)
//!   faults: what happens to the group meanwhile
//! ```
//!
//! A service that fails over is indistinguishable from one machine exactly if every such history is
//! linearizable: no acknowledged write is lost, none is done twice, and nothing old is read after
//! something newer was.
//!
//! What it does not show: anything about requests that nobody sent. The clients hit a few keys, so
//! that any two requests are likely to depend on each other.

pub mod checker;
pub mod faults;
pub mod history;
mod inflict;
pub mod model;
pub mod recorder;
pub mod run;
