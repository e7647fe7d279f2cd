//! The demo: a group of three nodes on this one machine, a load, a kill, a table.
//!
//! [`run`] goes through it step by step. Around it: the machine's network ([`network`]), the
//! guest's image ([`guest`]), the checking clients ([`client`], [`counter`]) and, apart from all
//! that runs, the checker ([`check`]). Nothing of it is in the data path, and it knows the
//! nodes only by their command line, configuration file and events.

pub mod check;
pub mod client;
pub mod counter;
pub mod cpio;
pub mod events;
pub mod group;
pub mod guest;
pub mod history;
mod interrupt;
mod kill;
mod leftovers;
pub mod live;
pub mod namespace;
pub mod network;
mod node_config;
mod options;
pub mod outage;
mod replacement;
pub mod resp;
mod run;
pub mod table;

pub use leftovers::clean as clean_leftovers;
pub use options::{DemoOptions, DemoVmm, KillPlan, Service, Setting, Victim};
pub use run::{DemoOutcome, run};

/// A line of progress, on standard error: standard output has the report alone.
fn say(line: &str) {
    eprintln!("{line}");
}
