//! What must never happen. Each names the rule of the design that is broken.

use plover_types::{LogIndex, NodeId, SyncId};

/// Something that must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A copy was given another packet at this place than the other copy.
    Order {
        /// The copy.
        node: NodeId,
        /// How many packets it had been given.
        place: u64,
    },
    /// A packet left that no `SyncEnd` covers, under a role that says protected.
    EarlyRelease {
        /// Who sent it.
        node: NodeId,
        /// The packet that it answers.
        packet: u64,
    },
    /// The client saw two different answers to one packet, or one that the serving copy lacks.
    LostAnswer {
        /// The copy that serves.
        node: NodeId,
        /// How many answers the client saw, counted along what the VM had processed.
        seen: u64,
    },
    /// The backup differs from the primary's memory at the sync point.
    Differs {
        /// The backup.
        node: NodeId,
        /// The sync.
        sync: SyncId,
    },
    /// The backup runs on from another place in the log than the primary.
    Position {
        /// The backup.
        node: NodeId,
        /// The sync.
        sync: SyncId,
    },
    /// A copy that promised, or is invalid, was run.
    BrokenPromise {
        /// The backup.
        node: NodeId,
        /// The sync.
        sync: SyncId,
    },
    /// A state was loaded on a host that is not like the one it comes from.
    UnequalHost {
        /// The host.
        node: NodeId,
    },
    /// Two nodes may transmit at once.
    TwoPrimaries(NodeId, NodeId),
    /// A node won an election while another one's lease held.
    LeaseBroken {
        /// Holds the lease.
        holder: NodeId,
        /// Leads in a later term.
        leader: NodeId,
    },
    /// Two nodes lead in one term.
    TwoLeaders(NodeId, NodeId),
    /// A node voted for two others in one term.
    TwoVotes {
        /// The voter.
        node: NodeId,
        /// The term.
        term: u64,
    },
    /// A node acknowledged what a crash would take from it.
    NotDurable {
        /// The node.
        node: NodeId,
        /// What it acknowledged.
        index: LogIndex,
    },
    /// Two nodes applied different entries at one index.
    LogDiffers {
        /// The second of them.
        node: NodeId,
        /// The index.
        index: LogIndex,
    },
    /// Two nodes made different things of the same log: other members, another role or sync.
    StateDiffers {
        /// The second of them.
        node: NodeId,
        /// How far they had applied it.
        index: LogIndex,
    },
    /// A node transmits whose copy the committed role does not name.
    VoidServes {
        /// The node.
        node: NodeId,
    },
    /// The other copy was given up for one that is invalid: it is being loaded.
    GaveUpBoth {
        /// The primary.
        node: NodeId,
    },
    /// A node took an older report for a newer one.
    StaleReport {
        /// The node.
        node: NodeId,
        /// Whose report it was.
        from: NodeId,
    },
    /// A copy that the group counts on was given up: the log no longer held its input.
    GivenUp {
        /// The node.
        node: NodeId,
    },
    /// An assertion failed, in the core or in raft-rs.
    Panicked,
    /// No copy is left, and no fault destroyed the last one.
    LostAll,
    /// Faults stopped, a valid copy is left, and nothing is served.
    NotServing,
    /// Faults stopped, both replicas live, and the group is not protected.
    NotProtected,
}

impl Violation {
    /// The checker that fired.
    #[must_use]
    pub fn checker(&self) -> String {
        let text = format!("{self:?}");
        let end = text.find([' ', '(']).unwrap_or(text.len());
        text[..end].to_owned()
    }
}
