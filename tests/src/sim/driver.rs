//! The modelled driver of VMM and hasher: does the core's commands in order, with delays.

use std::collections::VecDeque;

use plover_types::{Position, SyncId};
use replication::epoch::{CopyCommand, Side};

use super::vm::Difference;

/// A step of a command that takes time.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// A VMM is starting.
    Launch,
    /// The guest is starting.
    Boot,
    /// The copy goes quiet before its pause.
    Quiesce {
        /// The sync.
        sync: SyncId,
        /// The part played here.
        side: Side,
    },
    /// Paused: collect, digest, compare, copy out.
    CopyOut {
        /// The sync.
        sync: SyncId,
        /// Delivered at the sync point.
        position: Position,
    },
    /// Paused: the primary's differences are awaited and staged.
    Stage {
        /// The sync.
        sync: SyncId,
        /// How often it was looked for.
        tries: u32,
    },
    /// The staged set is written and loaded.
    Load {
        /// The sync.
        sync: SyncId,
        /// Where to go on.
        position: Position,
    },
}

/// The driver of one node.
#[derive(Debug, Default)]
pub struct Driver {
    /// Commands not begun.
    pub commands: VecDeque<CopyCommand>,
    /// What it is at. Only the completion that carries the current count is taken.
    pub job: Option<Job>,
    /// Counts jobs, so that a cancelled one's completion is not taken for the next one's.
    pub count: u64,
    /// The staged set.
    pub staged: Option<(SyncId, Difference)>,
}

impl Driver {
    /// Whether the next command is begun now. Commands are done in order; what is at work is only
    /// interrupted where the real driver waits for the hasher, and only to be undone.
    pub fn takes_command(&self) -> bool {
        let undoes = matches!(
            self.commands.front(),
            Some(CopyCommand::Abort { .. } | CopyCommand::Void)
        );
        match self.job {
            None => true,
            Some(Job::CopyOut { .. } | Job::Stage { .. }) => undoes,
            Some(_) => false,
        }
    }

    /// Starts a job; returns its count.
    pub fn start(&mut self, job: Job) -> u64 {
        self.count += 1;
        self.job = Some(job);
        self.count
    }

    /// Forgets the job at work.
    pub fn cancel(&mut self) {
        self.job = None;
    }

    /// Takes the job if the completion is its own.
    pub fn complete(&mut self, count: u64) -> Option<Job> {
        if self.count == count {
            self.job.take()
        } else {
            None
        }
    }
}
