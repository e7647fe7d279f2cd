//! What a leader does next: a pure function of what it sees.
//!
//! Raft leader and primary are different things. A leader whose own copy is listed valid proposes
//! itself as primary; any other leader only hands leadership to a node that can serve. The
//! primary's leader also decides when a sync starts, ends and is given up.

use std::time::Duration;

use plover_types::{
    CopySet, LogEntry, LogIndex, Mode, NodeId, RoleEntry, Standing, SyncId, SyncKind,
};

use crate::epoch::{LocalCopy, Progress};
use crate::group::{GroupState, SyncInFlight};
use crate::limits::FILL_TIMEOUTS;
use crate::planted::{Bug, planted};
use crate::wire::{CopyReport, CopyState};

/// What to do when the backup is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBackupLoss {
    /// Serve on, unprotected, and say so.
    #[default]
    Continue,
    /// Hold output until a backup is back.
    Stall,
}

/// A peer as its last report shows it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its id.
    pub id: NodeId,
    /// Whether it may hold a copy.
    pub is_replica: bool,
    /// Its last report, if it came recently enough to count.
    pub report: Option<&'a CopyReport>,
    /// When that came, in ticks.
    pub heard_at_tick: u64,
    /// It answered this leader, in this term and since raft-rs last asked whether it is there.
    pub answers: bool,
    /// What its word counts.
    pub standing: Standing,
    /// It has the log up to a little before its end.
    pub has_log: bool,
}

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// This node.
    pub own: NodeId,
    /// The committed state.
    pub group: &'a GroupState,
    /// This node's copy.
    pub copy: &'a LocalCopy,
    /// The other nodes.
    pub peers: &'a [Peer<'a>],
    /// Hash of what both hosts must have in common.
    pub host_facts_hash: u64,
    /// Whether the uplink has a link.
    pub uplink_up: bool,
    /// A sync is due: both copies idle, or a bound reached.
    pub sync_wanted: bool,
    /// A planned failover: to which node, after a sync that began behind this entry.
    pub failover: Option<(NodeId, LogIndex)>,
    /// How long the sync in flight has been.
    pub sync_age: Duration,
    /// When to give a sync up.
    pub sync_timeout: Duration,
    /// Syncs aborted in a row.
    pub aborted_in_a_row: u32,
    /// Aborts in a row after which the backup is given up.
    pub aborted_max: u32,
    /// Whether a fill may start (not too soon after a failed one).
    pub fill_allowed: bool,
    /// The guest here has something to do and has done nothing for a while.
    pub guest_stands: bool,
    /// And the backup's goes on.
    pub guest_stands_alone: bool,
    /// What to do without a backup.
    pub on_backup_loss: OnBackupLoss,
}

/// What the leader does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing for now.
    Wait,
    /// Put this entry into the log.
    Propose(LogEntry),
    /// Ask this node to take leadership.
    HandOver(NodeId),
}

/// Decides. Call it on a leader that has applied an entry of its own term and has no undecided
/// proposal of its own in the log.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    if let Some(entry) = members_step(view) {
        return Plan::Propose(entry);
    }
    let Some(role) = view.group.role() else {
        return first_role(view);
    };
    if role.primary != view.own {
        return take_over_or_hand_over(view, role);
    }
    if !view.copy.can_serve() {
        return hand_over(view, role);
    }
    let Some(backup) = view.peers.iter().find(|peer| peer.is_replica) else {
        return Plan::Wait;
    };
    if role.mode == Mode::Protected
        && view.on_backup_loss == OnBackupLoss::Continue
        && backup_is_lost(view, role, backup)
    {
        return propose_role(view, Mode::Unprotected, &[view.own]);
    }
    if !view.uplink_up && backup.report.is_some_and(|report| report.uplink_up) {
        // Clients cannot reach this host, and can reach the other one.
        return hand_over(view, role);
    }
    if view.guest_stands_alone
        && let Plan::HandOver(to) = hand_over(view, role)
    {
        return Plan::HandOver(to);
    }
    if let Some((to, since)) = view.failover
        && is_synced_since(view, backup, since)
        && backup.id == to
    {
        return Plan::HandOver(to);
    }
    match view.group.sync() {
        None => begin(view, role, backup),
        Some(sync) if sync.ended => finish_fill(view, sync, backup),
        Some(sync) => end_or_abort(view, sync, backup),
    }
}

/// The next step of a replacement that waits for nothing: out of a joint list at once, whoever leads;
/// and a witness is given its vote once it has the log. (A replica: once its copy is loaded.)
fn members_step(view: &View<'_>) -> Option<LogEntry> {
    let members = view.group.members();
    if let Some(entry) = members.left_joint() {
        return Some(LogEntry::Members(entry));
    }
    let learner = members.learner().filter(|learner| !learner.is_replica)?;
    let peer = view.peers.iter().find(|peer| peer.id == learner.id)?;
    (peer.report.is_some() && peer.answers && peer.has_log)
        .then(|| members.promoted().map(LogEntry::Members))
        .flatten()
}

/// A group that never had a role: a replica whose VMM waits becomes the first primary.
fn first_role(view: &View<'_>) -> Plan {
    if *view.copy == LocalCopy::Ready {
        return propose_role(view, Mode::Unprotected, &[view.own]);
    }
    find_peer(view, |peer, report| {
        peer.is_replica && report.copy == CopyState::Ready
    })
}

fn take_over_or_hand_over(view: &View<'_>, role: &RoleEntry) -> Plan {
    // The role makes the other copy void: not before this one is known to run. A copy that is
    // being loaded may turn out not to; leadership goes back to a primary that lives, else it
    // waits.
    let is_loading =
        matches!(view.copy, LocalCopy::Loading { .. }) && !planted(Bug::TakeOverWhileLoading);
    if role.valid.contains(view.own) && view.copy.can_serve() && !is_loading {
        return propose_role(view, Mode::Unprotected, &[view.own]);
    }
    hand_over(view, role)
}

/// Hands leadership to a valid copy that runs.
fn hand_over(view: &View<'_>, role: &RoleEntry) -> Plan {
    let can = |peer: &Peer<'_>, report: &CopyReport| {
        role.valid.contains(peer.id) && peer.id != view.own && serves(report.copy)
    };
    find_peer(view, can)
}

/// Whether the backup runs the copy of a sync that began behind entry `since`.
fn is_synced_since(view: &View<'_>, backup: &Peer<'_>, since: LogIndex) -> bool {
    let last = view
        .group
        .last_end()
        .filter(|_| view.group.sync().is_none());
    let report = backup.report.filter(|_| backup.answers);
    match (last, report.map(|report| report.copy)) {
        (Some((sync, _)), Some(CopyState::Loaded { sync: loaded })) => {
            sync == loaded && sync.0 > since
        }
        _ => false,
    }
}

fn find_peer(view: &View<'_>, fits: impl Fn(&Peer<'_>, &CopyReport) -> bool) -> Plan {
    // One that answers: a report may be of a node that has died since, and raft-rs gives a
    // transfer to it up only after an election timeout. Of several, the one heard last.
    view.peers
        .iter()
        .filter(|peer| peer.answers && peer.standing.votes())
        .filter(|peer| peer.report.is_some_and(|report| fits(peer, report)))
        .max_by_key(|peer| peer.heard_at_tick)
        .map_or(Plan::Wait, |peer| Plan::HandOver(peer.id))
}

/// Whether a copy that says this could serve if its node led. Before a replica gives its own copy
/// up it must know that the other one runs, so a copy that waits for anything does not count,
/// except for a sync that a new role ends.
fn serves(copy: CopyState) -> bool {
    matches!(
        copy,
        CopyState::Running
            | CopyState::Loaded { .. }
            | CopyState::Syncing { .. }
            | CopyState::Staged { .. }
            | CopyState::Failed { .. }
    )
}

fn backup_is_lost(view: &View<'_>, role: &RoleEntry, backup: &Peer<'_>) -> bool {
    let Some(report) = backup.report else {
        return true;
    };
    let gave_up = matches!(
        report.copy,
        CopyState::None | CopyState::Ready | CopyState::Void
    );
    // The sync has ended, and the copy that holds it does not come up.
    let is_stuck = matches!(report.copy, CopyState::Loading { .. })
        && view.group.sync().is_none()
        && view.sync_age > view.sync_timeout;
    is_stuck
        || (report.generation == role.generation && gave_up)
        || view.aborted_in_a_row >= view.aborted_max
}

fn begin(view: &View<'_>, role: &RoleEntry, backup: &Peer<'_>) -> Plan {
    let Some(report) = backup.report else {
        return Plan::Wait;
    };
    if report.generation != role.generation || !matches!(view.copy, LocalCopy::Running { .. }) {
        return Plan::Wait;
    }
    let kind = match (role.mode, report.copy) {
        (Mode::Protected, CopyState::Running | CopyState::Loaded { .. })
            if view.sync_wanted && !view.guest_stands =>
        {
            SyncKind::Delta
        }
        // Under `OnBackupLoss::Stall` the role stays protected while the backup is filled anew.
        // A state of a host that is not alike could not be loaded.
        (_, CopyState::Ready)
            if view.fill_allowed
                && (report.host_facts_hash == view.host_facts_hash
                    || planted(Bug::FillUnequalHost)) =>
        {
            SyncKind::Fill
        }
        _ => return Plan::Wait,
    };
    Plan::Propose(LogEntry::SyncBegin {
        generation: role.generation,
        kind,
    })
}

fn end_or_abort(view: &View<'_>, sync: &SyncInFlight, backup: &Peer<'_>) -> Plan {
    let LocalCopy::Syncing {
        sync: at, progress, ..
    } = view.copy
    else {
        return abort(view, sync.id);
    };
    if at.id != sync.id || *progress == Progress::Failed || view.sync_age > timeout(view, sync) {
        return abort(view, sync.id);
    }
    // The pause hangs. The backup waits for it, too, and cannot show that its guest goes on.
    if view.guest_stands && *progress == Progress::Working {
        return abort(view, sync.id);
    }
    // Output waits for the sync, a fill's too: not for a backup that is silent.
    let Some(report) = backup.report else {
        return abort(view, sync.id);
    };
    match (report.copy, progress) {
        (
            CopyState::Staged {
                sync: staged,
                certificate: theirs,
            },
            Progress::CopiedOut {
                certificate,
                position,
            },
        ) if staged == sync.id => {
            // A position beyond the sync would never be accepted; our driver went wrong.
            if (theirs != *certificate && !planted(Bug::EndOtherCertificate))
                || position.index > sync.id.0
            {
                return abort(view, sync.id);
            }
            Plan::Propose(LogEntry::SyncEnd {
                generation: view.group.generation(),
                sync: sync.id,
                position: *position,
                certificate: theirs,
            })
        }
        (CopyState::Syncing { sync: at } | CopyState::Staged { sync: at, .. }, _)
            if at == sync.id =>
        {
            Plan::Wait
        }
        // The backup has applied the begin and is not at it: it failed, or never could.
        _ if report.applied >= sync.id.0 => abort(view, sync.id),
        _ => Plan::Wait,
    }
}

/// The backup holds all memory; once it runs, the group is protected.
fn finish_fill(view: &View<'_>, sync: &SyncInFlight, backup: &Peer<'_>) -> Plan {
    if view.sync_age > timeout(view, sync) {
        return abort(view, sync.id);
    }
    let Some(report) = backup.report else {
        return abort(view, sync.id);
    };
    match report.copy {
        // Protected means that the other copy could take over, so it needs its vote first.
        CopyState::Loaded { sync: loaded } if loaded == sync.id && !backup.standing.votes() => {
            let promoted = view.group.members().promoted();
            match promoted.filter(|_| backup.answers && backup.has_log) {
                Some(entry) => Plan::Propose(LogEntry::Members(entry)),
                None => Plan::Wait,
            }
        }
        CopyState::Loaded { sync: loaded } if loaded == sync.id => {
            propose_role(view, Mode::Protected, &[view.own, backup.id])
        }
        CopyState::None | CopyState::Ready | CopyState::Void | CopyState::Failed { .. } => {
            abort(view, sync.id)
        }
        _ => Plan::Wait,
    }
}

/// All memory takes longer than what was written since the last sync.
fn timeout(view: &View<'_>, sync: &SyncInFlight) -> Duration {
    match sync.kind {
        SyncKind::Delta => view.sync_timeout,
        SyncKind::Fill => view.sync_timeout * FILL_TIMEOUTS,
    }
}

fn abort(view: &View<'_>, sync: SyncId) -> Plan {
    Plan::Propose(LogEntry::SyncAbort {
        generation: view.group.generation(),
        sync,
    })
}

fn propose_role(view: &View<'_>, mode: Mode, valid: &[NodeId]) -> Plan {
    Plan::Propose(LogEntry::Role(RoleEntry {
        generation: view.group.generation().next(),
        primary: view.own,
        mode,
        valid: CopySet::of(valid),
    }))
}

#[cfg(test)]
mod tests;
