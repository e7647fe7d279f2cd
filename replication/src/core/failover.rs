//! A planned failover: the primary hands its work to a backup that has just been synced, and waits
//! for no timeout. Nothing is lost: what the old primary held was seen by nobody, and the backup's
//! own output since the sync leaves with it.
//!
//! ```text
//!   asked ──▶ syncing ──sync ended, backup loaded──▶ handing over ──its role is applied──▶ done
//!                 │                                      │
//!                 └──────── given up: too late, or not protected any more ────▶ serving on
//! ```

use std::time::Duration;

use plover_types::{LogIndex, Mode, NodeId, RoleEntry};

use super::{Core, Notice};
use crate::wire::CopyState;

/// Why the work is not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailoverRefused {
    /// Another node serves.
    #[error("this node is not the primary; ask node {0}")]
    NotPrimary(NodeId),
    /// Nobody serves.
    #[error("the group has no primary that serves at the moment")]
    NoPrimary,
    /// There is no other copy.
    #[error(
        "the VM is not protected: there is no other copy that could take over; see plover status"
    )]
    NotProtected,
    /// The other copy is not heard of, or does not run.
    #[error("the backup, node {0}, does not answer or its copy does not run")]
    BackupAway(NodeId),
    /// Clients could not reach the other copy.
    #[error("the uplink of the backup, node {0}, has no link")]
    BackupUplink(NodeId),
    /// One was asked for already.
    #[error("a failover is under way")]
    UnderWay,
}

/// How far a planned failover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum FailoverProgress {
    /// A sync makes both copies equal.
    Syncing,
    /// The uplink is shut; the backup is asked to lead.
    HandingOver,
    /// The other node is primary.
    Done {
        /// The new primary.
        to: NodeId,
        /// From the request until the uplink was shut.
        prepared_us: u64,
        /// From then until this node saw the new primary's role: nobody served.
        without_service_us: u64,
    },
    /// This node serves on.
    GivenUp,
}

/// A failover that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failover {
    pub(super) to: NodeId,
    /// A sync that began after this entry counts.
    pub(super) since: LogIndex,
    asked: Duration,
    shut: Option<Duration>,
    pub(super) progress: FailoverProgress,
}

impl Failover {
    pub(super) fn is_under_way(&self) -> bool {
        matches!(
            self.progress,
            FailoverProgress::Syncing | FailoverProgress::HandingOver
        )
    }
}

impl Core {
    /// Hands the primary's work to the backup: after one more sync, at once. How far it is comes from
    /// [`Self::failover`]. Returns the node that is to take over.
    ///
    /// # Errors
    /// Says why not; then nothing has changed.
    pub fn fail_over(&mut self, now: Duration) -> Result<NodeId, FailoverRefused> {
        self.now = now;
        let own = self.config.own;
        if !self.is_serving() {
            let primary = self.group.role().map(|role| role.primary);
            return Err(match primary.filter(|primary| *primary != own) {
                Some(primary) => FailoverRefused::NotPrimary(primary),
                None => FailoverRefused::NoPrimary,
            });
        }
        if self
            .failover
            .is_some_and(|failover| failover.is_under_way())
        {
            return Err(FailoverRefused::UnderWay);
        }
        let to = self.protecting_backup()?;
        self.failover = Some(Failover {
            to,
            since: self.applied,
            asked: now,
            shut: None,
            progress: FailoverProgress::Syncing,
        });
        self.settle();
        Ok(to)
    }

    fn protecting_backup(&self) -> Result<NodeId, FailoverRefused> {
        let role = self
            .group
            .role()
            .filter(|role| role.mode == Mode::Protected);
        let role = role.ok_or(FailoverRefused::NotProtected)?;
        let is_backup = |node: &NodeId| *node != self.config.own;
        let to = role.valid.iter().find(is_backup);
        let to = to.ok_or(FailoverRefused::NotProtected)?;
        let peer = self.peers.iter().find(|peer| peer.spec.id == to);
        let report = peer
            .and_then(|peer| peer.report)
            .filter(|(_, at_tick, _)| self.is_recent(*at_tick))
            .map(|(_, _, report)| report)
            .filter(|report| !matches!(report.copy, CopyState::None | CopyState::Void));
        match report {
            Some(report) if report.uplink_up => Ok(to),
            Some(_) => Err(FailoverRefused::BackupUplink(to)),
            None => Err(FailoverRefused::BackupAway(to)),
        }
    }

    /// How far the last planned failover is that this node was asked for.
    #[must_use]
    pub fn failover(&self) -> Option<FailoverProgress> {
        self.failover.map(|failover| failover.progress)
    }

    /// The uplink is shut, the other node is asked to lead.
    pub(super) fn failover_shut(&mut self) {
        if let Some(failover) = &mut self.failover
            && failover.progress == FailoverProgress::Syncing
        {
            failover.shut = Some(self.now);
            failover.progress = FailoverProgress::HandingOver;
        }
    }

    /// A role was applied: the other node's ends the failover well, any other ends it.
    pub(super) fn failover_role(&mut self, role: &RoleEntry) {
        let now = self.now;
        let Some(failover) = self.failover.as_mut().filter(|it| it.is_under_way()) else {
            return;
        };
        let shut = failover.shut.filter(|_| role.primary == failover.to);
        failover.progress = match shut {
            Some(shut) => FailoverProgress::Done {
                to: failover.to,
                prepared_us: micros(shut - failover.asked),
                without_service_us: micros(now.saturating_sub(shut)),
            },
            None => FailoverProgress::GivenUp,
        };
        let progress = failover.progress;
        self.actions
            .push(super::Action::Note(Notice::Failover(progress)));
    }

    /// Ends one that takes too long.
    pub(super) fn watch_failover(&mut self) {
        let timeout = self.config.tick * self.config.election_ticks;
        let sync_timeout = self.config.sync_timeout;
        let (now, leads) = (self.now, self.leads());
        let Some(failover) = self.failover.as_mut().filter(|it| it.is_under_way()) else {
            return;
        };
        let is_late = match failover.shut {
            // raft-rs gives the transfer up after an election timeout.
            Some(shut) => leads && now >= shut + timeout + self.config.tick,
            None => !leads || now >= failover.asked + 2 * sync_timeout,
        };
        // Somebody else leads: its role will come.
        let is_lost = failover
            .shut
            .is_some_and(|shut| now >= shut + 2 * sync_timeout);
        if is_late || is_lost {
            failover.progress = FailoverProgress::GivenUp;
            let was_shut = failover.shut.is_some();
            if was_shut && leads {
                self.step_down();
            }
            self.handed_over_at = None;
            self.actions.push(super::Action::Note(Notice::Failover(
                FailoverProgress::GivenUp,
            )));
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
