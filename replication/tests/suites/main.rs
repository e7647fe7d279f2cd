//! The scenarios of suites that others wrote, told anew over our log, our wire form and the way in
//! which our core drives raft-rs: etcd's interaction scripts (`scripts_...`) and the groups of
//! raft-rs's own harness. The table of which is which, and of those that do not apply, is in
//! docs/testing.md.
//!
//! [`group`] is a group of any size around `RawNode`, where each Ready and each message moves only
//! when a scenario says so; [`cores`] is three whole cores, moved by ticks alone. Both check Raft's
//! promises by themselves after every step, so a scenario need only say what is particular to it.

mod content;
mod core_scenarios;
mod cores;
mod disk;
mod elections;
mod flow;
mod group;
mod hardship;
mod log_repair;
mod node;
mod paper;
mod safety;
mod scripts_elections;
mod scripts_log;
mod snapshots;
mod trace;
mod traced;
mod transfer;
