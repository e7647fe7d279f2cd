//! The modelled driver of VMM and hasher on one node: what it is asked to do, what it is at.

use std::collections::VecDeque;

use plover_types::{Certificate, Position, SyncId, SyncKind};
use replication::epoch::{CopyCommand, Side};

use crate::step::Step;
use crate::vm::PageBits;

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A VMM is starting.
    Launch,
    /// The guest is starting.
    Boot,
    /// The round's present step.
    Step,
}

/// What the primary copies out, and what arrives of it.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) pages: Vec<(usize, Box<[u8]>)>,
    pub(crate) cpu: u64,
    pub(crate) certificate: Certificate,
}

/// A sync at work on one node.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) sync: SyncId,
    pub(crate) kind: SyncKind,
    pub(crate) side: Side,
    pub(crate) step: Step,
    /// How often the present step waited for the other side.
    pub(crate) tries: u32,
    /// Pages collected here; they are dirty again if the sync is given up.
    pub(crate) pending: PageBits,
    /// Pages that either side collected.
    pub(crate) union: PageBits,
    /// Primary: the backup's digests of the union.
    pub(crate) theirs: Vec<u32>,
    /// Primary: where it stood when it was paused. Backup: where it goes on.
    pub(crate) position: Position,
    /// Primary: copied out. Backup: arrived, then staged.
    pub(crate) package: Option<Package>,
}

impl Round {
    pub(crate) fn new(sync: SyncId, kind: SyncKind, side: Side) -> Self {
        Self {
            sync,
            kind,
            side,
            step: Step::Pause,
            tries: 0,
            pending: 0,
            union: 0,
            theirs: Vec::new(),
            position: Position::default(),
            package: None,
        }
    }

    /// The driver blocks in these; in the others it takes what the core asks for.
    fn is_blocking(&self) -> bool {
        match self.step {
            Step::Pause | Step::Commit | Step::Apply | Step::Load => true,
            Step::Resume => self.side == Side::Backup,
            _ => false,
        }
    }
}

/// The driver of one node.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    /// Commands not begun, in order.
    pub(crate) commands: VecDeque<CopyCommand>,
    pub(crate) job: Option<Job>,
    /// Counts jobs: only the completion that carries the present count is taken.
    pub(crate) count: u64,
    pub(crate) round: Option<Round>,
    /// The present step ends in an error.
    pub(crate) fails: bool,
    /// Which pages were written is not known.
    pub(crate) tracker_lost: bool,
}

impl Driver {
    /// Whether the next command is begun now.
    pub(crate) fn takes_command(&self) -> bool {
        match (self.job, &self.round) {
            (None, _) => true,
            (Some(Job::Step), Some(round)) => !round.is_blocking(),
            (Some(_), _) => false,
        }
    }

    /// Starts a job; returns its count.
    pub(crate) fn start(&mut self, job: Job) -> u64 {
        self.count += 1;
        self.job = Some(job);
        self.count
    }

    /// Takes the job if the completion is its own.
    pub(crate) fn complete(&mut self, count: u64) -> Option<Job> {
        if self.count == count {
            self.job.take()
        } else {
            None
        }
    }

    /// The VMM is gone, and with it everything that was to be done with it.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            count: self.count + 1,
            ..Self::default()
        };
    }
}
