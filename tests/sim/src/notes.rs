//! What a core tells of itself: checked, counted, traced.

use plover_types::SyncKind;
use replication::core::{FailoverProgress, Notice};
use replication::epoch::LocalCopy;

use crate::coverage::role_change;
use crate::violation::Violation;
use crate::world::World;

impl World {
    pub(crate) fn note(&mut self, host: usize, notice: &Notice) -> Result<(), Violation> {
        self.trace(host, || format!("{notice:?}"));
        let coverage = &mut self.outcome.coverage;
        let node = self.hosts[host].spec.id;
        match notice {
            Notice::Role(role) => {
                self.hosts[host].filling = None;
                let before = self.checker.newest_role().copied();
                if self.checker.role(node, role)? {
                    self.watch_role(role)?;
                    let coverage = &mut self.outcome.coverage;
                    coverage.decided(role_change(before.as_ref(), role));
                    let is_new = self
                        .index_of(role.primary)
                        .is_some_and(|at| self.hosts[at].joins);
                    if is_new && before.is_some_and(|before| before.primary != role.primary) {
                        self.outcome
                            .coverage
                            .decided("role: taken over by a new member");
                    }
                    self.outcome.roles += 1;
                }
            }
            Notice::SyncBegan(sync) if self.checker.first("begins", sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync begins", "fill begins"]));
            }
            Notice::SyncEnded { sync, .. } if self.checker.ended(sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync ends", "fill ends"]));
                self.outcome.syncs += 1;
            }
            Notice::SyncAborted(sync) if self.checker.first("aborted", sync.id) => {
                coverage.decided(sync_name(sync.kind, ["sync aborted", "fill aborted"]));
            }
            Notice::HandOver { to } => {
                coverage.decided("handover");
                if !self.hosts[host].spec.is_replica {
                    coverage.decided("handover by the witness");
                }
                self.part_from(host, *to);
            }
            Notice::Campaign { .. } => coverage.decided("campaign"),
            Notice::Copy(copy) => {
                coverage.copy(&self.hosts[host].copy_seen, copy);
                let loads = matches!(self.hosts[host].copy_seen, LocalCopy::Loading { .. });
                if *copy == LocalCopy::Void && !loads {
                    self.given_up(host)?;
                }
                self.hosts[host].copy_seen = *copy;
            }
            Notice::Failover(FailoverProgress::Done { .. }) => {
                coverage.decided("planned failover done");
            }
            _ => {}
        }
        Ok(())
    }
}

fn sync_name(kind: SyncKind, names: [&'static str; 2]) -> &'static str {
    match kind {
        SyncKind::Delta => names[0],
        SyncKind::Fill => names[1],
    }
}
