//! What the runs went through: transitions of copies and of roles, what leaders decided, and in
//! which step of a sync what came between.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use plover_types::{Mode, RoleEntry, SyncKind};
use replication::epoch::{LocalCopy, Progress, Side};

use crate::step::{Interruption, Step};

/// Counts over one or many runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Steps of syncs that something came between.
    pub interrupted: BTreeMap<(SyncSide, Step, Interruption), u64>,
    /// From one state of a copy to another.
    pub copies: BTreeMap<(&'static str, &'static str), u64>,
    /// What leaders decided, and what was committed of it.
    pub decisions: BTreeMap<&'static str, u64>,
    /// Messages between the nodes, by kind.
    pub messages: BTreeMap<&'static str, u64>,
}

/// The part that a node plays in a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SyncSide {
    /// Its memory is the truth.
    Primary,
    /// It takes over what differs.
    Backup,
}

impl From<Side> for SyncSide {
    fn from(side: Side) -> Self {
        match side {
            Side::Primary => Self::Primary,
            Side::Backup => Self::Backup,
        }
    }
}

impl Coverage {
    pub(crate) fn interrupted(&mut self, side: Side, step: Step, by: Interruption) {
        *self.interrupted.entry((side.into(), step, by)).or_default() += 1;
    }

    pub(crate) fn copy(&mut self, from: &LocalCopy, to: &LocalCopy) {
        *self.copies.entry((name(from), name(to))).or_default() += 1;
    }

    pub(crate) fn decided(&mut self, what: &'static str) {
        *self.decisions.entry(what).or_default() += 1;
    }

    pub(crate) fn sent(&mut self, kind: &'static str) {
        *self.messages.entry(kind).or_default() += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        fn sum<K: Ord + Copy>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(*key).or_default() += count;
            }
        }
        sum(&mut self.interrupted, &other.interrupted);
        sum(&mut self.copies, &other.copies);
        sum(&mut self.decisions, &other.decisions);
        sum(&mut self.messages, &other.messages);
    }

    /// What must be taken, and was not.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (side, step, by) in Step::interruptible() {
            if !self.interrupted.contains_key(&(side, step, by)) {
                missing.push(format!("{step:?} of the {side:?}, by {by:?}"));
            }
        }
        for change in COPY_CHANGES {
            if !self.copies.contains_key(change) {
                missing.push(format!("copy {} -> {}", change.0, change.1));
            }
        }
        for decision in DECISIONS {
            if !self.decisions.contains_key(decision) {
                missing.push((*decision).to_owned());
            }
        }
        missing
    }
}

/// A name for each state of a copy that a transition starts from or ends in.
fn name(copy: &LocalCopy) -> &'static str {
    match copy {
        LocalCopy::Absent => "absent",
        LocalCopy::Ready => "ready",
        LocalCopy::Booting => "booting",
        LocalCopy::Running { .. } => "running",
        LocalCopy::Loading { .. } => "loading",
        LocalCopy::Void => "void",
        LocalCopy::Staged { sync, .. } => match sync.kind {
            SyncKind::Delta => "staged",
            SyncKind::Fill => "fill staged",
        },
        LocalCopy::Syncing {
            sync,
            side,
            progress,
        } => match (side, sync.kind, progress) {
            (Side::Primary, _, Progress::Working) => "primary syncs",
            (Side::Primary, _, Progress::CopiedOut { .. }) => "copied out",
            (Side::Primary, _, Progress::Failed) => "primary failed",
            (Side::Backup, SyncKind::Delta, Progress::Failed) => "backup failed",
            (Side::Backup, SyncKind::Fill, Progress::Failed) => "fill failed",
            (Side::Backup, SyncKind::Delta, _) => "backup syncs",
            (Side::Backup, SyncKind::Fill, _) => "fills",
        },
    }
}

/// The transitions of `replication::epoch` that each batch must take.
const COPY_CHANGES: &[(&str, &str)] = &[
    ("absent", "ready"),
    ("ready", "booting"),
    ("ready", "fills"),
    ("ready", "absent"),
    ("booting", "running"),
    ("running", "primary syncs"),
    ("running", "backup syncs"),
    ("running", "void"),
    ("running", "absent"),
    ("primary syncs", "copied out"),
    ("primary syncs", "primary failed"),
    ("primary syncs", "running"),
    ("primary syncs", "void"),
    ("primary syncs", "absent"),
    ("copied out", "running"),
    ("copied out", "primary failed"),
    ("copied out", "void"),
    ("copied out", "absent"),
    ("primary failed", "running"),
    ("primary failed", "absent"),
    ("backup syncs", "staged"),
    ("backup syncs", "backup failed"),
    ("backup syncs", "running"),
    ("backup syncs", "void"),
    ("backup syncs", "absent"),
    ("backup failed", "running"),
    ("backup failed", "absent"),
    ("staged", "loading"),
    ("staged", "running"),
    ("staged", "void"),
    ("staged", "absent"),
    ("fills", "fill staged"),
    ("fills", "fill failed"),
    ("fills", "ready"),
    ("fills", "absent"),
    ("fill failed", "ready"),
    ("fill staged", "loading"),
    ("fill staged", "ready"),
    ("fill staged", "absent"),
    ("loading", "running"),
    ("loading", "void"),
    ("loading", "absent"),
    ("void", "ready"),
];

/// What leaders must have decided, in each batch.
const DECISIONS: &[&str] = &[
    "role: first",
    "role: unprotected, the backup is lost",
    "role: taken over",
    "role: protected, the fill is loaded",
    "sync begins",
    "sync ends",
    "sync aborted",
    "fill begins",
    "fill ends",
    "fill aborted",
    "handover",
    "handover by the witness",
    "campaign",
    "snapshot installed",
    "node restarted with its log",
    "member replaced",
    "role: taken over by a new member",
    "planned failover asked",
    "planned failover done",
];

/// What a role is, against the one before it.
pub(crate) fn role_change(before: Option<&RoleEntry>, role: &RoleEntry) -> &'static str {
    match (before, role.mode) {
        (None, _) => "role: first",
        (Some(before), _) if before.primary != role.primary => "role: taken over",
        (Some(_), Mode::Unprotected) => "role: unprotected, the backup is lost",
        (Some(_), Mode::Protected) => "role: protected, the fill is loaded",
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "steps of a sync, and how often what came between:")?;
        let mut head = format!("  {:<20}", "");
        for by in Interruption::ALL {
            let _ = write!(head, "{:>9}", by.name());
        }
        writeln!(out, "{head}")?;
        for (side, step) in Step::all() {
            write!(out, "  {:<20}", format!("{side:?} {}", step.name()))?;
            for by in Interruption::ALL {
                let count = self.interrupted.get(&(side, step, by));
                write!(out, "{:>9}", count.copied().unwrap_or(0))?;
            }
            writeln!(out)?;
        }
        table(out, "copies:", &self.copies, |(from, to)| {
            format!("{from} -> {to}")
        })?;
        table(out, "decisions and roles:", &self.decisions, |what| {
            (*what).to_owned()
        })?;
        table(out, "messages:", &self.messages, |kind| (*kind).to_owned())
    }
}

fn table<K>(
    out: &mut fmt::Formatter<'_>,
    title: &str,
    rows: &BTreeMap<K, u64>,
    text: impl Fn(&K) -> String,
) -> fmt::Result {
    writeln!(out, "{title}")?;
    for (row, count) in rows {
        writeln!(out, "  {:<44} {count:>10}", text(row))?;
    }
    Ok(())
}
