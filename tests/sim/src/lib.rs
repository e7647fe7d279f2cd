//! A seeded simulation of a replica group over the real core.
//!
//! Real: [`replication::core::Core`] with raft-rs, storage, wire form, the queue of held output,
//! ticks and lease. Modelled: time and clocks, the network, disks, the driver of VMM and hasher,
//! and the VM: a few pages of bytes that a guest changes, differently on each copy, so that a sync
//! has something to find ([`Step`] lists what it consists of).
//!
//! One seed always does the same. It draws the settings of its run, faults at random moments, and
//! faults in named steps of a sync. Faults: nodes killed (what was being written is kept in part),
//! stopped and continued; replicas lost for good, and replaced by new ones; a primary left with one
//! voter and then with none; planned failovers; VMMs and hashers that end; links cut in one or both
//! directions, loss, delay, duplicates, other order, messages cut short; slow and failing disks;
//! uplinks that go down; clocks that drift and change their rate; transfers that are damaged; loads
//! that fail.
//!
//! Checked at every event; [`Violation`] names what:
//! 1. every copy is given the same packets in the same order;
//! 2. no packet leaves before its epoch is agreed or the committed role is unprotected, and no
//!    answer is seen that the copy which serves later does not know;
//! 3. after each applied sync the backup's bytes equal the primary's at the sync point, it goes on
//!    from the primary's place in the log, and nothing is applied before the end is committed;
//! 4. at most one node may transmit, nobody wins an election while another's lease holds, nobody
//!    votes twice, nothing is acknowledged that a crash would take back;
//! 5. the VM is lost only if a fault destroyed the last valid copy; once faults stop, the group
//!    serves again, and is protected again if both replicas live;
//! 6. every node applies the same entries.
//!
//! Not verified here: real memory and devices, DPDK, TCP, the transport and its
//! encryption, the byte form of the log on disk,
//! timing of real schedulers. A disk that loses what it said was synced is not modelled: no node
//! survives that under its id.

mod batch;
mod check;
mod clock;
mod coverage;
mod disk;
mod driver;
mod faults;
mod guest;
mod hashing;
mod host;
mod lease_faults;
mod lineage;
mod members;
mod network;
mod notes;
mod outcome;
mod queue;
mod round;
mod settings;
mod step;
mod violation;
mod vm;
mod watch;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use replication::wire::GroupId;

pub use batch::{Batch, Failure, fresh_seed};
pub use coverage::{Coverage, SyncSide};
pub use outcome::Outcome;
pub use settings::Options;
pub use step::{Interruption, Step};
pub use violation::Violation;

use world::World;

pub(crate) const GROUP: GroupId = GroupId(7);

/// Nodes that a group has at most, those that left it included.
pub(crate) const NODES_MAX: usize = 8;

/// What became of a run.
#[derive(Debug)]
pub struct Run {
    /// What was seen until then.
    pub outcome: Outcome,
    /// The first thing that must never happen, if one did.
    pub violation: Option<Violation>,
    /// What happened, a line each, if it was asked for.
    pub trace: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(options: Options) -> Run {
    let mut world = World::new(options);
    // An assertion of ours or of raft-rs is a finding like any other.
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = ended.map_or(Some(Violation::Panicked), Result::err);
    Run {
        outcome: world.outcome,
        violation,
        trace: world.lines,
    }
}
