//! A host of the world: the real core of a node, and the modelled things around it.

use bytes::Bytes;
use plover_types::{LogEntry, LogIndex, NodeId, NodeSpec, SyncId};
use replication::core::Core;
use replication::epoch::LocalCopy;
use replication::output_rule::HoldQueue;
use replication::ticks::Ticks;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::queue::Scheduled;
use crate::vm::{Answer, Vm};

/// A host, with or without a running node.
pub(crate) struct Host {
    pub(crate) spec: NodeSpec,
    /// None: its processes are not running.
    pub(crate) core: Option<Core>,
    /// Counts starts and ends: what was scheduled for another life is not for this one.
    pub(crate) incarnation: u64,
    pub(crate) clock: Clock,
    pub(crate) ticks: Ticks,
    /// Stands still (SIGSTOP): events wait.
    pub(crate) is_stopped: bool,
    pub(crate) waiting: Vec<Scheduled>,
    pub(crate) hold: HoldQueue<Answer>,
    pub(crate) vm: Vm,
    pub(crate) driver: Driver,
    /// None: the log is in memory.
    pub(crate) disk: Option<Disk>,
    /// Nothing is written any more.
    pub(crate) disk_failed: bool,
    /// A node without a disk cannot come back under its id.
    pub(crate) is_gone: bool,
    /// Another node has taken its place.
    pub(crate) is_replaced: bool,
    /// It came when the group ran already.
    pub(crate) joins: bool,
    /// Those that it talks to, itself included.
    pub(crate) members: Vec<NodeSpec>,
    pub(crate) uplink_up: bool,
    /// A fill for which the VM was paused: what it sends from then on waits.
    pub(crate) filling: Option<SyncId>,
    /// Packets processed by then were free to leave, for the role said unprotected.
    pub(crate) passed: u64,
    pub(crate) host_facts: u64,
    /// What the checkers saw of it last.
    pub(crate) applied_seen: LogIndex,
    pub(crate) copy_seen: LocalCopy,
}

impl Host {
    pub(crate) fn id(&self) -> NodeId {
        self.spec.id
    }

    /// Whether its processes run, and are not stopped.
    pub(crate) fn is_up(&self) -> bool {
        self.core.is_some() && !self.is_stopped
    }

    /// Whether its log has a role entry that it has not applied. A node that is down has its log
    /// on disk.
    pub(crate) fn has_undecided_role(&self) -> bool {
        let is_role = |data: &Bytes| matches!(LogEntry::decode(data), Ok(LogEntry::Role(_)));
        match (&self.core, &self.disk) {
            (Some(core), _) => (core.applied().0 + 1..)
                .map_while(|index| core.log_entry(LogIndex(index)))
                .any(|(_, data)| is_role(&data)),
            (None, Some(disk)) => disk.kept().entries.iter().any(|entry| is_role(&entry.data)),
            (None, None) => false,
        }
    }
}
