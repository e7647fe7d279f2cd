//! Failovers that nobody asked for, and those of them that were false: the old primary was alive, and
//! only slow, or cut off.

use plover_types::NodeId;
use raft::StateRole;

use super::Core;
use crate::wire::CopyReport;

/// Whose work this node took over without being asked to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Detection {
    /// This node asks for votes because it did not hear the leader.
    by_timeout: bool,
    /// The primary before, and which of its lives it was in.
    former: Option<(NodeId, u64)>,
}

impl Core {
    /// raft-rs's state changed. A node that was asked to take over is a candidate without having been
    /// one that asks whether it may be.
    pub(super) fn watch_detection(&mut self, state: StateRole) {
        match state {
            StateRole::PreCandidate => {
                self.counters.campaigns += 1;
                self.detection.by_timeout = true;
            }
            StateRole::Candidate => {}
            StateRole::Follower => self.detection.by_timeout = false,
            StateRole::Leader => {
                if std::mem::take(&mut self.detection.by_timeout) {
                    self.took_over();
                }
            }
        }
    }

    fn took_over(&mut self) {
        let own = self.config.own;
        let role = self.group.role().filter(|role| role.primary != own);
        let Some(role) = role else { return };
        self.counters.failovers += 1;
        let peer = self.peers.iter().find(|peer| peer.spec.id == role.primary);
        let report = peer.and_then(|peer| peer.report);
        self.detection.former = report.map(|(_, _, report)| (role.primary, report.incarnation));
    }

    /// A primary that is heard again in the life in which it was given up had not died.
    pub(super) fn heard_again(&mut self, from: NodeId, report: &CopyReport) {
        if self.detection.former == Some((from, report.incarnation))
            && report.generation >= self.group.generation()
        {
            self.detection.former = None;
            self.counters.false_failovers += 1;
        }
    }
}
