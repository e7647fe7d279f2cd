//! The operator: puts a new node in the place of one that is lost for good, asks for planned
//! failovers.

use plover_types::{NodeId, NodeSpec, Standing};
use replication::members::ReplaceRefused;

use crate::host::Host;
use crate::queue::What;
use crate::world::World;
use crate::{NODES_MAX, violation::Violation};

/// Between two looks whether the replacement is done.
const ASK_AGAIN_US: u64 = 200_000;

impl World {
    /// Whether one more node may be lost for good: one at a time, and not more than there are ids.
    pub(crate) fn may_lose_one(&self) -> bool {
        let is_open = |host: &Host| host.is_gone && !host.is_replaced;
        self.hosts.len() < NODES_MAX && !self.hosts.iter().any(is_open)
    }

    /// A node is gone for good: another one, under a new id, is to take its place.
    pub(crate) fn bring_another(&mut self, lost: usize) {
        let id = self.hosts.len() as u64 + 1;
        let spec = if self.hosts[lost].spec.is_replica {
            NodeSpec::replica(id)
        } else {
            NodeSpec::witness(id)
        };
        let lost_id = self.hosts[lost].id();
        let random = &mut self.random;
        let mut host = Host::new(spec.clone(), &self.settings, false, random);
        let keeps = |member: &&NodeSpec| member.id != lost_id;
        host.members = self.hosts[lost]
            .members
            .iter()
            .filter(keeps)
            .cloned()
            .collect();
        host.members.push(spec);
        host.joins = true;
        host.host_facts = self.hosts[lost].host_facts;
        self.hosts.push(host);
        self.start(id as usize - 1);
        self.queue.push(
            self.now_us + ASK_AGAIN_US,
            lost,
            0,
            What::Replace(id as usize - 1),
        );
    }

    /// Asks whoever leads, again and again: a leader may die before it is done.
    pub(crate) fn ask_to_replace(&mut self, lost: usize, new: usize) -> Result<(), Violation> {
        let (lost_id, spec) = (self.hosts[lost].id(), self.hosts[new].spec.clone());
        for host in 0..self.hosts.len() {
            if !self.hosts[host].is_up() || host == new {
                continue;
            }
            let members = self.core(host).group().members();
            let is_done = members.standing(spec.id) == Some(Standing::Voter);
            if is_done && members.standing(lost_id).is_none() {
                self.trace(host, || {
                    format!("has node {} in place of {lost_id}", spec.id)
                });
                self.hosts[lost].is_replaced = true;
                self.outcome.coverage.decided("member replaced");
                return Ok(());
            }
            let now = self.local(host);
            let asked = self.core(host).replace(now, lost_id, &spec);
            self.pump(host)?;
            if asked.is_ok() {
                self.trace(host, || {
                    format!("is to put node {} in place of {lost_id}", spec.id)
                });
                break;
            }
            if let Err(ReplaceRefused::IdUsed(_) | ReplaceRefused::Kind { .. }) = asked {
                unreachable!("ids are new: {asked:?}");
            }
        }
        self.queue
            .push(self.now_us + ASK_AGAIN_US, lost, 0, What::Replace(new));
        Ok(())
    }

    /// A planned failover, if this node serves and the group is protected.
    pub(crate) fn plan_failover(&mut self, host: usize) -> Result<(), Violation> {
        let now = self.local(host);
        if !self.hosts[host].is_up() {
            return Ok(());
        }
        if let Ok(to) = self.core(host).fail_over(now) {
            self.trace(host, || format!("is asked to hand over to node {to}"));
            self.outcome.coverage.decided("planned failover asked");
        }
        self.pump(host)
    }

    /// Whether a host is heard by another: it is a member as far as that one knows.
    pub(crate) fn is_reached(&self, host: usize, from: NodeId) -> bool {
        self.hosts[host].members.iter().any(|spec| spec.id == from)
    }
}
