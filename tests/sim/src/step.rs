//! The steps of a sync, by the names that the real driver and hasher use, and what may come
//! between.

use crate::coverage::SyncSide;

/// A step of a sync on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Quiesce, pause, freeze the rings.
    Pause,
    /// Which pages were written here.
    Collect,
    /// A digest of each.
    Digest,
    /// The other side's pages and digests.
    Exchange,
    /// Primary: which pages differ.
    Compare,
    /// Primary: what differs is copied out. Backup: it arrives.
    Blocks,
    /// Primary: the VM runs again. Backup: it runs from the sync point on.
    Resume,
    /// Primary: what was copied out leaves, while the VM runs.
    Send,
    /// Backup: what came is staged.
    Stage,
    /// Backup: its memory with what is staged must have the primary's certificate.
    Verify,
    /// Backup: promised; the end is awaited.
    Staged,
    /// Backup: the end is committed.
    Commit,
    /// Backup: what is staged is written into memory.
    Apply,
    /// Backup: the primary's state is loaded.
    Load,
}

/// What comes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interruption {
    /// The node's processes end.
    Kill,
    /// The node's processes stand still for a while.
    Stop,
    /// The links between the two replicas are cut.
    Cut,
    /// The VMM ends.
    Vmm,
    /// The hasher ends, and is started again.
    Hasher,
    /// The step itself fails.
    Error,
}

impl Interruption {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Kill,
        Self::Stop,
        Self::Cut,
        Self::Vmm,
        Self::Hasher,
        Self::Error,
    ];

    /// For a table's head.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::Vmm => "vmm",
            Self::Hasher => "hasher",
            Self::Error => "error",
        }
    }
}

const PRIMARY: [Step; 8] = [
    Step::Pause,
    Step::Collect,
    Step::Digest,
    Step::Exchange,
    Step::Compare,
    Step::Blocks,
    Step::Resume,
    Step::Send,
];

const BACKUP: [Step; 12] = [
    Step::Pause,
    Step::Collect,
    Step::Digest,
    Step::Exchange,
    Step::Blocks,
    Step::Stage,
    Step::Verify,
    Step::Staged,
    Step::Commit,
    Step::Apply,
    Step::Load,
    Step::Resume,
];

impl Step {
    /// All steps of both sides, in order.
    pub fn all() -> impl Iterator<Item = (SyncSide, Self)> {
        let primary = PRIMARY.into_iter().map(|step| (SyncSide::Primary, step));
        primary.chain(BACKUP.into_iter().map(|step| (SyncSide::Backup, step)))
    }

    /// What may come between which step. A promise that is waited on has nothing that could fail.
    pub fn interruptible() -> impl Iterator<Item = (SyncSide, Self, Interruption)> {
        Self::all()
            .flat_map(|(side, step)| Interruption::ALL.map(|by| (side, step, by)))
            .filter(|(_, step, by)| (*step, *by) != (Self::Staged, Interruption::Error))
    }

    /// The step that follows by itself.
    pub(crate) fn next(self, side: SyncSide) -> Option<Self> {
        let steps = match side {
            SyncSide::Primary => &PRIMARY[..],
            SyncSide::Backup => &BACKUP[..],
        };
        let at = steps.iter().position(|step| *step == self)?;
        steps.get(at + 1).copied()
    }

    /// As the real driver's journal calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Collect => "collect",
            Self::Digest => "digest",
            Self::Exchange => "exchange",
            Self::Compare => "compare",
            Self::Blocks => "blocks",
            Self::Resume => "resume",
            Self::Send => "send",
            Self::Stage => "stage",
            Self::Verify => "verify",
            Self::Staged => "staged",
            Self::Commit => "commit",
            Self::Apply => "apply",
            Self::Load => "load",
        }
    }
}
