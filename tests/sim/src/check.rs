//! What must always hold, checked against everything that the world does.
//!
//! The checkers see more than any node does: which packet came at which place on any copy, what
//! the client saw, each primary's memory at its sync points, every log. They share no code with
//! what they check.

use std::collections::{BTreeMap, BTreeSet};

use plover_types::{LogIndex, NodeId, Position, RoleEntry, SyncId};
use replication::group::GroupState;

use crate::lineage::{LineageId, Lineages};
use crate::violation::Violation;
use crate::vm::{Answer, Image};

type Checked = Result<(), Violation>;

/// Sync points remembered; older ones are not asked for any more.
const SYNC_POINTS_MAX: usize = 16;

/// The primary as it was when it was paused for a sync.
#[derive(Clone, Debug)]
pub(crate) struct SyncPoint {
    pub(crate) image: Image,
    pub(crate) position: Position,
    pub(crate) host_facts: u64,
}

/// Remembers what was seen.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) lineages: Lineages,
    /// The packets given to copies, in order.
    order: Vec<u64>,
    /// What the client knows: after `n` packets the VM it talks to had the lineage `known[n]`.
    known: Vec<LineageId>,
    answered: Vec<bool>,
    answers: u64,
    sync_points: BTreeMap<SyncId, SyncPoint>,
    /// Packets processed by then are covered by a committed `SyncEnd`.
    agreed: u64,
    ended: BTreeSet<SyncId>,
    told: BTreeSet<(&'static str, SyncId)>,
    /// Hash and term of what was applied, by index.
    log: Vec<Option<(u64, u32)>>,
    /// Hash of what a node made of the log up to an index.
    states: BTreeMap<LogIndex, u32>,
    roles: Vec<RoleEntry>,
    votes: BTreeMap<(NodeId, u64), NodeId>,
    leaders: BTreeMap<u64, NodeId>,
    reports: BTreeMap<(NodeId, NodeId), (u64, u64)>,
}

impl Checker {
    /// A copy that had been given `place` packets is given this one.
    pub(crate) fn given(&mut self, node: NodeId, place: u64, packet: u64) -> Checked {
        match self.order.get(place as usize) {
            None if place == self.order.len() as u64 => self.order.push(packet),
            Some(known) if *known == packet => {}
            _ => return Err(Violation::Order { node, place }),
        }
        Ok(())
    }

    /// The client sees an answer that `node` sent. `passed`: so many
    /// packets were processed when the role that the node applied last said unprotected.
    pub(crate) fn seen(&mut self, node: NodeId, answer: Answer, passed: u64) -> Checked {
        if answer.count > self.agreed.max(passed) {
            return Err(Violation::EarlyRelease {
                node,
                packet: answer.packet,
            });
        }
        self.knows(node, answer.count, answer.lineage)?;
        let packet = answer.packet as usize;
        if self.answered.len() <= packet {
            self.answered.resize(packet + 1, false);
        }
        self.answers += u64::from(!std::mem::replace(&mut self.answered[packet], true));
        Ok(())
    }

    /// Follows `lineage` back to what the client knows already, and adds it to that.
    fn knows(&mut self, node: NodeId, count: u64, lineage: LineageId) -> Checked {
        if self.known.is_empty() {
            self.known.push(LineageId::default());
        }
        let known = self.known.len() as u64 - 1;
        let lost = Violation::LostAnswer { node, seen: known };
        if count <= known {
            let is_same = self.known[count as usize] == lineage;
            return if is_same { Ok(()) } else { Err(lost) };
        }
        let newer = self.path(count, lineage, known).ok_or(lost)?;
        self.known.extend(newer.into_iter().rev());
        Ok(())
    }

    /// The lineages from `lineage` (after `count` packets) back to, without, the one after
    /// `known` packets; none if that is not what the client knows.
    fn path(&self, count: u64, lineage: LineageId, known: u64) -> Option<Vec<LineageId>> {
        let mut path = Vec::with_capacity((count - known) as usize);
        let mut at = lineage;
        for _ in known..count {
            path.push(at);
            at = self.lineages.parent(at)?;
        }
        (at == self.known[known as usize]).then_some(path)
    }

    /// `node` serves with this memory: it must know every answer that was seen.
    pub(crate) fn serves(&self, node: NodeId, image: &Image) -> Checked {
        let Some(known) = self.known.len().checked_sub(1) else {
            return Ok(());
        };
        let (known, count) = (known as u64, image.count());
        if count >= known && self.path(count, image.lineage(), known).is_some() {
            return Ok(());
        }
        Err(Violation::LostAnswer { node, seen: known })
    }

    /// The primary was paused for `sync`.
    pub(crate) fn sync_point(&mut self, sync: SyncId, point: SyncPoint) {
        self.sync_points.insert(sync, point);
        if self.sync_points.len() > SYNC_POINTS_MAX {
            self.sync_points.pop_first();
        }
    }

    /// A node applied `SyncEnd(sync)`. True the first time.
    pub(crate) fn ended(&mut self, sync: SyncId) -> bool {
        if let Some(point) = self.sync_points.get(&sync) {
            self.agreed = self.agreed.max(point.image.count());
        }
        self.ended.insert(sync)
    }

    /// True the first time that this is told of a sync.
    pub(crate) fn first(&mut self, what: &'static str, sync: SyncId) -> bool {
        self.told.insert((what, sync))
    }

    /// The backup loaded `sync` and goes on at `position`.
    pub(crate) fn loaded(
        &self,
        node: NodeId,
        sync: SyncId,
        image: &Image,
        position: Position,
        host_facts: u64,
    ) -> Checked {
        if !self.ended.contains(&sync) {
            return Err(Violation::BrokenPromise { node, sync });
        }
        let Some(point) = self.sync_points.get(&sync) else {
            return Err(Violation::Differs { node, sync });
        };
        if point.image != *image {
            return Err(Violation::Differs { node, sync });
        }
        if point.position != position {
            return Err(Violation::Position { node, sync });
        }
        if point.host_facts != host_facts {
            return Err(Violation::UnequalHost { node });
        }
        Ok(())
    }

    /// A node applied the entry at `index`.
    pub(crate) fn applied(
        &mut self,
        node: NodeId,
        index: LogIndex,
        term: u64,
        data: &[u8],
    ) -> Checked {
        let entry = (term, crc32fast::hash(data));
        let at = index.0 as usize;
        if self.log.len() <= at {
            self.log.resize(at + 1, None);
        }
        match self.log[at].replace(entry) {
            Some(before) if before != entry => Err(Violation::LogDiffers { node, index }),
            _ => Ok(()),
        }
    }

    /// What a node made of the log up to `index`: members, role, sync. One that joins knows no
    /// members until it reads of them.
    pub(crate) fn state(&mut self, node: NodeId, index: LogIndex, group: &GroupState) -> Checked {
        if group.members().is_empty() {
            return Ok(());
        }
        let state = crc32fast::hash(&group.encode());
        match self.states.insert(index, state) {
            Some(before) if before != state => Err(Violation::StateDiffers { node, index }),
            _ => Ok(()),
        }
    }

    /// A node applied a role. True the first time.
    pub(crate) fn role(&mut self, node: NodeId, role: &RoleEntry) -> Result<bool, Violation> {
        let at = role.generation.0 as usize - 1;
        match self.roles.get(at) {
            Some(known) if known == role => Ok(false),
            None => {
                self.roles.resize(at + 1, *role);
                Ok(true)
            }
            Some(_) => Err(Violation::LogDiffers {
                node,
                index: LogIndex(role.generation.0),
            }),
        }
    }

    /// The newest role that any node applied.
    pub(crate) fn newest_role(&self) -> Option<&RoleEntry> {
        self.roles.last()
    }

    /// A node grants its vote.
    pub(crate) fn votes(&mut self, node: NodeId, term: u64, candidate: NodeId) -> Checked {
        match self.votes.insert((node, term), candidate) {
            Some(before) if before != candidate => Err(Violation::TwoVotes { node, term }),
            _ => Ok(()),
        }
    }

    /// A node leads.
    pub(crate) fn leads(&mut self, node: NodeId, term: u64) -> Checked {
        match self.leaders.insert(term, node) {
            Some(before) if before != node => Err(Violation::TwoLeaders(before, node)),
            _ => Ok(()),
        }
    }

    /// The last report of `from` that `node` knows of: never an older one of the same life.
    pub(crate) fn reported(
        &mut self,
        node: NodeId,
        from: NodeId,
        life: u64,
        number: u64,
    ) -> Checked {
        match self.reports.insert((node, from), (life, number)) {
            Some((before, last)) if before == life && last > number => {
                Err(Violation::StaleReport { node, from })
            }
            _ => Ok(()),
        }
    }

    /// Whether the client saw an answer to this packet.
    pub(crate) fn was_answered(&self, packet: u64) -> bool {
        self.answered.get(packet as usize) == Some(&true)
    }

    /// Packets that the client saw an answer to.
    pub(crate) fn answers(&self) -> u64 {
        self.answers
    }
}
