//! What the core of the group has to tell: to the log, to the journal, and of the members to the
//! hasher, which has another peer when the other replica is replaced.

use std::time::Instant;

use plover_types::{Member, Standing};
use replication::core::Notice;
use serde_json::json;
use tracing::{debug, error, info, warn};

use super::driver::Driver;
use super::journal::monotonic_ns;
use super::place;

impl Driver {
    pub(super) fn note(&mut self, at: Instant, notice: &Notice) {
        match *notice {
            Notice::Leader { term, leader } => {
                debug!(%term, %leader, "leader");
                self.journal
                    .write(at, "leader", json!({ "term": term, "leader": leader }));
            }
            Notice::Campaign { term, last_heard } => {
                info!(%term, "no leader heard: asking for votes");
                let heard = monotonic_ns(self.clock_start + last_heard);
                let fields = json!({ "term": term, "last_heartbeat_t_ns": heard });
                self.journal.write(at, "campaign", fields);
            }
            Notice::Role(role) => {
                self.role = Some(role);
                info!(generation = %role.generation, primary = %role.primary, mode = ?role.mode,
                    "role");
                let valid: Vec<_> = role.valid.iter().collect();
                let fields = json!({
                    "generation": role.generation,
                    "primary": role.primary,
                    "mode": role.mode,
                    "valid": valid,
                });
                self.journal.write(at, "role", fields);
            }
            Notice::HandOver { to } => {
                info!(%to, "handing leadership over");
                self.journal.write(at, "hand_over", json!({ "to": to }));
            }
            Notice::GuestStands { is_alone } => {
                if is_alone {
                    warn!(
                        "the guest here does nothing, the backup's goes on: the backup takes over"
                    );
                } else {
                    warn!("the guest does nothing with its input, on either host");
                }
                let guest = if is_alone { "stands_here" } else { "stands" };
                self.journal
                    .write(at, "watchdog", json!({ "guest": guest }));
            }
            Notice::HostsDiffer { node } => {
                warn!(%node, "this host and that node's differ in VMM, CPU or guest: its copy is \
                    not filled; compare host.facts of `plover status --json` on both");
                self.journal
                    .write(at, "hosts_differ", json!({ "node": node }));
            }
            Notice::Members {
                version,
                ref members,
            } => self.note_members(at, version, members),
            Notice::GoneHeard { node } => {
                warn!(%node, "that node was replaced and is still there: it is not listened to; \
                    stop it");
                self.journal
                    .write(at, "gone_heard", json!({ "node": node }));
            }
            Notice::Removed => {
                error!(
                    "another node took this one's place: it votes no more and its copy is void; \
                    stop it, and do not start it again under this id"
                );
                self.journal.write(at, "removed", json!({}));
            }
            Notice::Failover(progress) => {
                info!(?progress, "planned failover");
                self.journal
                    .write(at, "failover", json!({ "failover": progress }));
            }
            Notice::Copy(copy) => debug!(?copy, "copy"),
            Notice::SyncBegan(sync) => debug!(?sync, "sync began"),
            Notice::SyncEnded { sync, position } => debug!(?sync, %position, "sync ended"),
            Notice::SyncAborted(sync) => {
                info!(sync = %sync.id, kind = ?sync.kind, "sync given up");
            }
        }
    }

    fn note_members(&mut self, at: Instant, version: u64, members: &[Member]) {
        let word = |member: &Member| match member.standing {
            Standing::Voter => "voter",
            Standing::Learner { .. } => "learner",
            Standing::Joining { .. } => "joining",
            Standing::Leaving => "leaving",
        };
        let list: Vec<_> = members
            .iter()
            .map(|member| json!({ "node": member.spec.id, "standing": word(member) }))
            .collect();
        info!(version, members = %json!(list), "members");
        let fields = json!({ "version": version, "members": list });
        self.journal.write(at, "members", fields);
        self.follow_replica(members);
    }

    /// The hasher talks to the other replica's: to the newcomer's, where there is one.
    fn follow_replica(&mut self, members: &[Member]) {
        let is_replaced = |member: &Member| {
            let mut others = members.iter();
            others.any(|other| other.standing.replaces() == Some(member.spec.id))
        };
        let other = members.iter().find(|member| {
            member.spec.is_replica
                && member.spec.id.0 != u64::from(self.config.id)
                && !is_replaced(member)
        });
        let place = other.and_then(|member| place::read(&member.spec));
        let hashing = self.replica.as_mut().and_then(|it| it.hashing.as_mut());
        let (Some(hashing), Some(place)) = (hashing, place) else {
            return;
        };
        if hashing.setup.follow(&place) {
            self.restart_hasher("the other replica is another one");
        }
    }
}
