//! What the poll core is made of, what other threads ask of it, and what it tells them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use plover_types::{NodeId, NodeSpec, Position, SyncId};
use replication::core::{FailoverRefused, Notice};
use replication::epoch::{CopyCommand, CopyEvent, Side};
use replication::members::ReplaceRefused;
use replication::node::Node;

use crate::event_fd::EventFd;
use crate::guest_nic::GuestNic;
use crate::path::ports::NodePort;
use crate::record::DeliveryRecord;
use crate::status::Status;

/// How the core behaves.
#[derive(Clone, Debug)]
pub struct PollConfig {
    /// Never sleep.
    pub is_busy: bool,
    /// Longest sleep when there is nothing to do.
    pub idle_sleep: Duration,
    /// The guest's MAC address; with none, frames to and from any station are taken.
    pub guest_mac: Option<[u8; 6]>,
    /// Bytes that follow the Ethernet header in the longest frame that the guest takes.
    pub guest_mtu: u16,
    /// Shortest time between two syncs.
    pub sync_interval_min: Duration,
    /// Longest time that output waits for a sync to start.
    pub sync_interval_max: Duration,
    /// Packets held at most; the guest's transmit ring waits beyond.
    pub held_packets_max: usize,
    /// Debugging: false keeps input from a copy that is not the primary's.
    pub deliver_to_backup: bool,
    /// Whether the steps of the path are timed, now and then.
    pub measures_steps: bool,
}

/// What other threads ask of the core.
#[derive(Debug)]
pub enum PollCommand {
    /// Answer `Quiet` when the copy has taken its input and its rings rest, or after this long.
    Quiesce {
        /// The sync.
        sync: SyncId,
        /// Answer at the latest then.
        longest: Duration,
    },
    /// The VM is paused: take what its transmit ring offers, then leave guest memory alone.
    /// Answer: `Frozen`.
    Freeze {
        /// The sync.
        sync: SyncId,
        /// On the primary, what was sent so far belongs to the epoch that the sync closes.
        side: Side,
    },
    /// The VM goes on: so do its rings, and its input beyond this sync (none: it boots). The
    /// barrier of a later sync stays.
    Thaw {
        /// The sync that paused it.
        sync: Option<SyncId>,
    },
    /// The copy was replaced: go on at `position`, forget its output, read its rings afresh once
    /// thawed. Answer: `Replaced`.
    Replace {
        /// The sync that replaced it.
        sync: SyncId,
        /// Where to go on.
        position: Position,
    },
    /// The copy is void: leave guest memory alone, forget its output.
    Stop,
    /// For the core of the group.
    Copy(CopyEvent),
    /// Whether the vCPUs rest.
    VcpusIdle(bool),
    /// Send the status here.
    Status(Sender<Box<Status>>),
    /// An operator's: hand the primary's work to the backup. Answer: the node that is to take over.
    FailOver(Sender<Result<NodeId, FailoverRefused>>),
    /// An operator's: another node takes a lost one's place in the group.
    ReplaceMember {
        /// The lost one.
        lost: NodeId,
        /// The other.
        new: NodeSpec,
        /// Whether it was put into the log.
        reply: Sender<Result<(), ReplaceRefused>>,
    },
}

/// What the core tells other threads, with the time at which it happened.
#[derive(Debug)]
pub enum PollEvent {
    /// For the driver of VMM and hasher.
    Command(CopyCommand),
    /// The copy is as quiet as it gets.
    Quiet(SyncId),
    /// Guest memory is left alone.
    Frozen {
        /// The sync.
        sync: SyncId,
        /// Delivered so far.
        position: Position,
        /// Packets held.
        held: usize,
    },
    /// Delivery goes on elsewhere.
    Replaced {
        /// The sync.
        sync: SyncId,
        /// False if the log does not reach back to that position.
        found: bool,
        /// Packets of the copy's own output that were forgotten.
        discarded: usize,
    },
    /// Something to tell the operator.
    Note(Notice),
    /// The uplink is open, or shut.
    Serving(bool),
    /// The first packet left since the uplink opened.
    FirstRelease,
    /// The disk failed.
    DiskFailed(String),
}

/// What a core is made of.
pub struct PollSetup {
    /// The node.
    pub node: Node,
    /// The port to the peers; none in a group of one node.
    pub replication: Option<NodePort>,
    /// The port to the clients; none on the witness.
    pub uplink: Option<NodePort>,
    /// The guest's card; none on the witness.
    pub nic: Option<GuestNic>,
    /// How to behave.
    pub config: PollConfig,
    /// From other threads.
    pub commands: Receiver<PollCommand>,
    /// To other threads.
    pub events: Sender<(Instant, PollEvent)>,
    /// Rung for each event.
    pub bell: Arc<EventFd>,
    /// Rung for each command.
    pub wake: Arc<EventFd>,
    /// Debugging: each delivered packet is written here.
    pub record: Option<DeliveryRecord>,
}
