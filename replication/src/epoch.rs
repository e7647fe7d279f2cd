//! The local copy of the VM, and what the committed log asks of it.
//!
//! ```text
//!  Absent ──Ready──▶ Ready ──first role──▶ Booting ──Booted──▶ Running ◀───────────────┐
//!    ▲                │ ▲                                     │  ▲  │                 │
//!    │ Lost      fill │ │ abort of a fill      SyncBegin(i)   │  │  │ not listed      │
//!  (any state)        │ │                        ┌────────────┘  │  ▼                 │
//!                     ▼ │                        ▼      abort    │ Void ──Ready──▶ Ready
//!                   Syncing ◀────────────────────┘───────────────┘                    │
//!                     │ backup: staged (a promise)        primary: SyncEnd(i) ────────┤
//!                     ▼                                                               │
//!                   Staged ──SyncEnd(i)──▶ Loading ──Loaded──────────────────────────┘
//! ```
//!
//! `staged(i)` is a promise, as in two-phase commit: from then on the backup neither discards the
//! staged set nor resumes until `SyncEnd(i)`, `SyncAbort(i)` or a new role is applied.
//!
//! Here is no IO: [`LocalCopy`] answers committed entries with [`CopyCommand`]s for the driver of
//! VMM and hasher, and the driver's [`CopyEvent`]s with new states. What the leader makes of the
//! states is in [`plan`](crate::plan).

use plover_types::{Certificate, NodeId, Position, RoleEntry, SyncId, SyncKind};

use crate::group::{Applied, SyncInFlight};
use crate::planted::{Bug, planted};
use crate::wire::CopyState;

/// Which part a replica plays in a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its memory is the truth.
    Primary,
    /// It takes over what differs.
    Backup,
}

/// What the driver of VMM and hasher is to do, in this order. Each is answered by an event where
/// one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCommand {
    /// Start the guest from its kernel. Answer: `Booted`.
    Boot,
    /// Quiesce, pause, collect, compare; the primary resumes by itself once all is copied out.
    /// Answer: `CopiedOut` or `Staged`, or `Failed`.
    Begin {
        /// The sync.
        sync: SyncId,
        /// What it starts from.
        kind: SyncKind,
        /// The part played here.
        side: Side,
    },
    /// Primary: the sync ended; forget its pending pages.
    Finish {
        /// The sync.
        sync: SyncId,
    },
    /// Backup: write the staged set, load the state, go on at `position`. Answer: `Loaded` or
    /// `LoadFailed`.
    Commit {
        /// The sync.
        sync: SyncId,
        /// The primary's delivered position.
        position: Position,
    },
    /// Undo everything of the sync; a copy that ran before it runs again.
    Abort {
        /// The sync.
        sync: SyncId,
        /// Whether the copy runs afterwards (it does not after an aborted fill).
        resume: bool,
    },
    /// Stop the copy for good and forget its output. Answer: `Ready`, once it can be filled.
    Void,
}

/// What the driver reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEvent {
    /// A VMM waits that can be booted or filled.
    Ready,
    /// The guest runs.
    Booted,
    /// Primary: all that differs is copied out, and the VM runs again.
    CopiedOut {
        /// The sync.
        sync: SyncId,
        /// Over the union, from the primary's memory.
        certificate: Certificate,
        /// Delivered at the sync point.
        position: Position,
    },
    /// Backup: everything is staged and verified.
    Staged {
        /// The sync.
        sync: SyncId,
        /// Over the union, from the backup's memory under the staged blocks.
        certificate: Certificate,
    },
    /// The sync cannot go on here. The copy is unharmed.
    Failed {
        /// The sync.
        sync: SyncId,
    },
    /// Backup: the copy is the primary's as of the sync point, and runs.
    Loaded {
        /// The sync.
        sync: SyncId,
    },
    /// Backup: the staged set could not be applied or loaded; the copy is void.
    LoadFailed {
        /// The sync.
        sync: SyncId,
    },
    /// The VMM is gone.
    Lost,
}

/// How far a sync has come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The driver is at it.
    Working,
    /// Primary: done, and running again.
    CopiedOut {
        /// Over the primary's memory.
        certificate: Certificate,
        /// Delivered at the sync point.
        position: Position,
    },
    /// It failed here; the leader will abort it.
    Failed,
}

/// The state of this node's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalCopy {
    /// No VMM: it did not start yet, or it died. Always so on the witness.
    Absent,
    /// A VMM waits, without a valid copy.
    Ready,
    /// The first primary's guest is starting.
    Booting,
    /// The copy runs.
    Running {
        /// The sync that it was loaded from, if it is the backup's.
        loaded: Option<SyncId>,
    },
    /// A sync is at work.
    Syncing {
        /// The sync.
        sync: SyncInFlight,
        /// The part played here.
        side: Side,
        /// How far it is.
        progress: Progress,
    },
    /// Promised: everything of the sync is staged.
    Staged {
        /// The sync.
        sync: SyncInFlight,
        /// What was verified.
        certificate: Certificate,
    },
    /// The staged set is being written and loaded.
    Loading {
        /// The sync.
        sync: SyncId,
    },
    /// Stopped for good, until it is `Ready` to be filled.
    Void,
}

impl LocalCopy {
    /// What the other nodes are told.
    #[must_use]
    pub fn report(&self) -> CopyState {
        match *self {
            Self::Absent => CopyState::None,
            Self::Ready => CopyState::Ready,
            Self::Booting | Self::Running { loaded: None } => CopyState::Running,
            Self::Running { loaded: Some(sync) } => CopyState::Loaded { sync },
            Self::Syncing {
                sync,
                progress: Progress::Failed,
                ..
            } => CopyState::Failed { sync: sync.id },
            Self::Syncing { sync, .. } => CopyState::Syncing { sync: sync.id },
            Self::Staged { sync, certificate } => CopyState::Staged {
                sync: sync.id,
                certificate,
            },
            Self::Loading { sync } => CopyState::Loading { sync },
            Self::Void => CopyState::Void,
        }
    }

    /// Whether this copy serves, or will without help from the other one.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        match self {
            Self::Booting | Self::Running { .. } | Self::Loading { .. } => true,
            Self::Syncing { sync, side, .. } => {
                *side == Side::Primary || sync.kind == SyncKind::Delta
            }
            Self::Staged { sync, .. } => sync.kind == SyncKind::Delta,
            Self::Absent | Self::Ready | Self::Void => false,
        }
    }

    /// Whether the guest's memory is this copy's own and current: output of it may leave.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(
            self,
            Self::Running { .. }
                | Self::Syncing {
                    side: Side::Primary,
                    ..
                }
        )
    }

    /// Takes a driver's report. Reports that do not fit the state are stale, and ignored.
    pub fn on_event(&mut self, event: CopyEvent) {
        *self = match (*self, event) {
            (_, CopyEvent::Lost) => Self::Absent,
            (Self::Absent | Self::Void, CopyEvent::Ready) => Self::Ready,
            (Self::Booting, CopyEvent::Booted) => Self::Running { loaded: None },
            (
                Self::Syncing {
                    sync,
                    side: Side::Primary,
                    progress: Progress::Working,
                },
                CopyEvent::CopiedOut {
                    sync: done,
                    certificate,
                    position,
                },
            ) if sync.id == done => Self::Syncing {
                sync,
                side: Side::Primary,
                progress: Progress::CopiedOut {
                    certificate,
                    position,
                },
            },
            (
                Self::Syncing {
                    sync,
                    side: Side::Backup,
                    progress: Progress::Working,
                },
                CopyEvent::Staged {
                    sync: done,
                    certificate,
                },
            ) if sync.id == done => Self::Staged { sync, certificate },
            (Self::Syncing { sync, side, .. }, CopyEvent::Failed { sync: failed })
                if sync.id == failed =>
            {
                Self::Syncing {
                    sync,
                    side,
                    progress: Progress::Failed,
                }
            }
            (Self::Loading { sync }, CopyEvent::Loaded { sync: done }) if sync == done => {
                Self::Running { loaded: Some(sync) }
            }
            (Self::Loading { sync }, CopyEvent::LoadFailed { sync: failed }) if sync == failed => {
                Self::Void
            }
            (state, _) => state,
        };
    }

    /// Takes what a committed entry changed, and tells the driver through `command`. Only a guest
    /// that cannot have run yet is started from its kernel (`may_boot`).
    pub fn on_applied(
        &mut self,
        own: NodeId,
        role: Option<&RoleEntry>,
        applied: &Applied,
        may_boot: bool,
        mut command: impl FnMut(CopyCommand),
    ) {
        match *applied {
            Applied::Ignored | Applied::Input | Applied::Members { .. } => {}
            Applied::Role { replaced, .. } => {
                if let Some(role) = role {
                    self.on_role(own, role, may_boot && replaced.is_none(), &mut command);
                }
            }
            Applied::SyncBegan(sync) => {
                if let Some(role) = role {
                    self.on_begin(own, role, sync, &mut command);
                }
            }
            Applied::SyncEnded { sync, position, .. } => {
                self.on_end(own, role, sync, position, &mut command);
            }
            Applied::SyncAborted(sync) => self.on_abort(own, role, sync, &mut command),
        }
    }

    /// The log was compacted past what this node has: a copy here missed input.
    pub fn on_snapshot(&mut self, mut command: impl FnMut(CopyCommand)) {
        if !matches!(self, Self::Absent | Self::Ready | Self::Void) {
            self.void(&mut command);
        }
    }

    fn on_role(
        &mut self,
        own: NodeId,
        role: &RoleEntry,
        first: bool,
        command: &mut impl FnMut(CopyCommand),
    ) {
        self.undo(command);
        if !role.valid.contains(own) {
            if self.can_serve() && !planted(Bug::RoleWithoutVoid) {
                self.void(command);
            }
        } else if first && role.primary == own && *self == Self::Ready {
            command(CopyCommand::Boot);
            *self = Self::Booting;
        }
    }

    fn on_begin(
        &mut self,
        own: NodeId,
        role: &RoleEntry,
        sync: SyncInFlight,
        command: &mut impl FnMut(CopyCommand),
    ) {
        let side = if role.primary == own {
            Side::Primary
        } else {
            Side::Backup
        };
        let fits = match (side, sync.kind) {
            (Side::Primary, _) | (Side::Backup, SyncKind::Delta) => {
                role.valid.contains(own) && matches!(self, Self::Running { .. })
            }
            (Side::Backup, SyncKind::Fill) => *self == Self::Ready,
        };
        // A copy that does not fit says so by its report; the leader aborts the sync.
        if fits {
            command(CopyCommand::Begin {
                sync: sync.id,
                kind: sync.kind,
                side,
            });
            *self = Self::Syncing {
                sync,
                side,
                progress: Progress::Working,
            };
        }
    }

    fn on_end(
        &mut self,
        own: NodeId,
        role: Option<&RoleEntry>,
        sync: SyncInFlight,
        position: Position,
        command: &mut impl FnMut(CopyCommand),
    ) {
        match *self {
            Self::Syncing {
                sync: at,
                side: Side::Primary,
                ..
            } if at.id == sync.id => {
                command(CopyCommand::Finish { sync: sync.id });
                *self = Self::Running { loaded: None };
            }
            Self::Staged { sync: at, .. } if at.id == sync.id => {
                command(CopyCommand::Commit {
                    sync: sync.id,
                    position,
                });
                *self = Self::Loading { sync: sync.id };
            }
            // The group counts on a staged set that is not here.
            _ if role.is_some_and(|role| role.primary != own) && self.can_serve() => {
                self.void(command);
            }
            Self::Syncing { .. } => self.undo(command),
            _ => {}
        }
    }

    fn on_abort(
        &mut self,
        own: NodeId,
        role: Option<&RoleEntry>,
        sync: SyncInFlight,
        command: &mut impl FnMut(CopyCommand),
    ) {
        self.undo(command);
        let lists_us = role.is_some_and(|role| role.valid.contains(own));
        if sync.ended && !lists_us && self.can_serve() {
            self.void(command);
        }
    }

    /// Gives up a sync at work here, if there is one. A set that is being loaded is beyond undoing.
    fn undo(&mut self, command: &mut impl FnMut(CopyCommand)) {
        let (sync, resume) = match *self {
            Self::Syncing { sync, side, .. } => {
                (sync, side == Side::Primary || sync.kind == SyncKind::Delta)
            }
            Self::Staged { sync, .. } => (sync, sync.kind == SyncKind::Delta),
            _ => return,
        };
        command(CopyCommand::Abort {
            sync: sync.id,
            resume,
        });
        *self = if resume {
            Self::Running { loaded: None }
        } else {
            Self::Ready
        };
    }

    fn void(&mut self, command: &mut impl FnMut(CopyCommand)) {
        command(CopyCommand::Void);
        *self = Self::Void;
    }
}

#[cfg(test)]
mod tests;
