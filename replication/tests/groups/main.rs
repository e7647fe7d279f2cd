//! Whole groups over real cores, in one thread and in virtual time.

mod bounds;
mod compaction;
mod failover;
mod group;
mod membership;
mod watchdog;
