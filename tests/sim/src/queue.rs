//! What will happen, in order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use plover_types::SyncId;

use crate::step::{Interruption, Step};

/// Something that happens.
#[derive(Debug)]
pub(crate) enum What {
    /// A host looks at its clock.
    Tick,
    /// A message arrives.
    Message(Bytes),
    /// Writes up to this number are synced.
    Persisted(u64),
    /// The driver's job is done.
    Job(u64),
    /// A fault that was aimed at a step of a sync.
    Interrupt(SyncId, Step, Interruption),
    /// A node starts again.
    Restart,
    /// A stopped node goes on.
    Continue,
    /// A node that lost its disk is killed, to be started with it mended.
    Repair,
    /// The client sends.
    Client,
    /// A fault is drawn.
    Fault,
    /// The operator looks whether this host is in the lost one's place, and asks for it.
    Replace(usize),
    /// A primary is parted from the first of these voters; later from the second.
    PartVoter(usize, usize),
    /// The second part of a fault that tries the lease: the other host, and whether it restarts.
    Squeeze(usize, bool),
    /// A cut link works again, in one direction.
    MendLink(usize, usize),
    /// The network is as it should be.
    MendWeather,
    /// Disks are as fast as they should be.
    MendDisks,
    /// A host's uplink is back.
    MendUplink,
    /// No more faults.
    Heal,
}

impl What {
    /// Whether it happens to one life of a node's processes, and waits if they are stopped.
    pub(crate) fn is_of_life(&self) -> bool {
        matches!(
            self,
            Self::Tick
                | Self::Message(_)
                | Self::Persisted(_)
                | Self::Job(_)
                | Self::Interrupt(..)
                | Self::Continue
                | Self::Repair
        )
    }
}

/// Something that happens at some time, to some host.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) at_us: u64,
    sequence: u64,
    pub(crate) host: usize,
    pub(crate) incarnation: u64,
    pub(crate) what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.sequence) == (other.at_us, other.sequence)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

/// The events to come. Two of the same time come in the order in which they were put in.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at_us: u64, host: usize, incarnation: u64, what: What) {
        self.sequence += 1;
        self.heap.push(Reverse(Scheduled {
            at_us,
            sequence: self.sequence,
            host,
            incarnation,
            what,
        }));
    }

    pub(crate) fn pop(&mut self) -> Option<Scheduled> {
        self.heap.pop().map(|Reverse(scheduled)| scheduled)
    }
}
