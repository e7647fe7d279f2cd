//! Who belongs to the group: how one list of members follows from another, and what raft-rs is told
//! of it. The list is part of the [group's state](crate::group), so it is in the log, in snapshots
//! and in a durable node's records; a configuration file only names the members a group starts with.
//!
//! A lost member is replaced in three entries. Each is proposed once the one before is applied, and
//! is ignored by everybody alike if it is not the one that follows:
//!
//! ```text
//!   1  2  3 ── replace 2 by 4 ──▶ 1  2  3  4 learner     4 follows the log and has no vote; 2 is
//!                                                        no longer heard
//!           ── promote ─────────▶ 1  2 leaving  3  4 joining    decisions need a majority of both
//!                                                               1 2 3 and 1 4 3 (joint consensus)
//!           ── leave ───────────▶ 1  4  3        id 2 is gone for good
//! ```
//! A replica is promoted when its copy is loaded, a witness when it has the log. A learner that does
//! not come can itself be replaced, which leaves the voters as they are.

use bytes::{Bytes, BytesMut};
use plover_types::limits::{GROUP_NODES_MAX, PLACE_BYTES_MAX};
use plover_types::{CopySet, Member, MembersEntry, NodeId, NodeSpec, Standing};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

/// Why a member is not replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceRefused {
    /// Only the leader puts entries into the log.
    #[error("this node does not lead the group; ask node {0}")]
    NotLeader(NodeId),
    /// Nobody leads, or the leader has not yet applied an entry of its own term.
    #[error("the group has no leader at the moment: without a majority no member can be replaced")]
    NoLeader,
    /// The one to be replaced is no voter.
    #[error("node {0} is not a voter of the group")]
    NotMember(NodeId),
    /// The one to be replaced is this node.
    #[error("node {0} leads the group; hand its work over first (plover failover)")]
    Own(NodeId),
    /// The one to be replaced answers.
    #[error("node {0} is alive: it was heard a moment ago; stop it first")]
    Alive(NodeId),
    /// A witness cannot stand in for a replica, nor the other way round.
    #[error("node {new} is not of the same kind as node {lost}")]
    Kind {
        /// The one to be replaced.
        lost: NodeId,
        /// The one that is to come.
        new: NodeId,
    },
    /// The id is or was a member's.
    #[error("id {0} is or was another member's; an id is used once: choose a new one, 1 to 63")]
    IdUsed(NodeId),
    /// The place is longer than any.
    #[error(
        "the new node's address and names have {0} bytes, at most {PLACE_BYTES_MAX} are possible"
    )]
    Place(usize),
    /// Another replacement is past the point where it could be given up.
    #[error("a replacement is about to finish; try again in a moment")]
    UnderWay,
}

/// The members of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(MembersEntry);

impl Members {
    /// The members that a group starts with: all of them vote. Ids that no group has are left out.
    #[must_use]
    pub fn of(nodes: &[NodeSpec]) -> Self {
        let fits = |node: &&NodeSpec| CopySet::of(&[node.id]).contains(node.id);
        let members = nodes.iter().filter(fits).map(|spec| Member {
            spec: spec.clone(),
            standing: Standing::Voter,
        });
        Self(MembersEntry {
            members: members.collect(),
            ..MembersEntry::default()
        })
    }

    /// Counts the changes so far.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// Whether no list is known: so it is on a node that joins, until the log says more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.members.is_empty()
    }

    /// All members.
    #[must_use]
    pub fn list(&self) -> &[Member] {
        &self.0.members
    }

    /// A member's standing.
    #[must_use]
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        let member = self.list().iter().find(|member| member.spec.id == node)?;
        Some(member.standing)
    }

    /// Whether the node was a member once, or is being replaced: what it says is refused.
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.0.gone.contains(node) || self.is_replaced(node)
    }

    fn is_replaced(&self, node: NodeId) -> bool {
        let mut members = self.list().iter();
        members.any(|member| member.standing.replaces() == Some(node))
    }

    /// The members that are talked to: all but the one that is being replaced.
    pub fn reachable(&self) -> impl Iterator<Item = &Member> {
        let members = self.list().iter();
        members.filter(|member| !self.is_replaced(member.spec.id))
    }

    /// The member that has no vote yet.
    #[must_use]
    pub fn learner(&self) -> Option<&NodeSpec> {
        let is_learner = |member: &&Member| matches!(member.standing, Standing::Learner { .. });
        Some(&self.list().iter().find(is_learner)?.spec)
    }

    /// Whether decisions need a majority of the old and of the new voters.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        let mut members = self.list().iter();
        members.any(|member| matches!(member.standing, Standing::Joining { .. }))
    }

    /// Whether these nodes can decide: a majority of the voters, in a joint list of both sets.
    #[must_use]
    pub fn has_quorum(&self, among: impl Fn(NodeId) -> bool) -> bool {
        let majority = |votes: fn(Standing) -> bool| {
            let voters = self.list().iter().filter(|member| votes(member.standing));
            let (mut all, mut with) = (0, 0);
            for voter in voters {
                all += 1;
                with += usize::from(among(voter.spec.id));
            }
            with > all / 2
        };
        majority(Standing::votes) && (!self.is_joint() || majority(voted_before))
    }

    /// The entry that brings `new` in as a learner, to take the place of `lost`. A learner that is
    /// there already is given up.
    ///
    /// # Errors
    /// Says why that member cannot be replaced by that node.
    pub fn replaced(&self, lost: NodeId, new: &NodeSpec) -> Result<MembersEntry, ReplaceRefused> {
        if self.is_joint() {
            return Err(ReplaceRefused::UnderWay);
        }
        let mut next = self.without_learner();
        let is_lost = |member: &Member| member.spec.id == lost && member.standing.votes();
        let at = next.members.iter().position(is_lost);
        let at = at.ok_or(ReplaceRefused::NotMember(lost))?;
        let is_known = next.members.iter().any(|member| member.spec.id == new.id);
        if is_known || next.gone.contains(new.id) || !CopySet::of(&[new.id]).contains(new.id) {
            return Err(ReplaceRefused::IdUsed(new.id));
        }
        if next.members[at].spec.is_replica != new.is_replica {
            return Err(ReplaceRefused::Kind { lost, new: new.id });
        }
        if new.place.len() > PLACE_BYTES_MAX {
            return Err(ReplaceRefused::Place(new.place.len()));
        }
        let learner = Member {
            spec: new.clone(),
            standing: Standing::Learner { replaces: lost },
        };
        next.members.insert(at + 1, learner);
        Ok(next)
    }

    /// The entry that gives the learner a vote and takes the lost one's, joint; none without a
    /// learner.
    #[must_use]
    pub fn promoted(&self) -> Option<MembersEntry> {
        let mut next = self.following();
        let lost = next.members.iter_mut().find_map(|member| {
            let Standing::Learner { replaces } = member.standing else {
                return None;
            };
            member.standing = Standing::Joining { replaces };
            Some(replaces)
        })?;
        let lost = next
            .members
            .iter_mut()
            .find(|member| member.spec.id == lost)?;
        lost.standing = Standing::Leaving;
        Some(next)
    }

    /// The entry that ends a joint list; none if it is not joint.
    #[must_use]
    pub fn left_joint(&self) -> Option<MembersEntry> {
        if !self.is_joint() {
            return None;
        }
        let mut next = self.following();
        next.gone = self
            .list()
            .iter()
            .fold(next.gone, |gone, member| match member.standing {
                Standing::Leaving => gone.with(member.spec.id),
                _ => gone,
            });
        next.members
            .retain(|member| member.standing != Standing::Leaving);
        for member in &mut next.members {
            if member.standing.votes() {
                member.standing = Standing::Voter;
            }
        }
        Some(next)
    }

    fn without_learner(&self) -> MembersEntry {
        let mut next = self.following();
        if let Some(learner) = self.learner() {
            next.gone = next.gone.with(learner.id);
            next.members.retain(|member| member.spec.id != learner.id);
        }
        next
    }

    fn following(&self) -> MembersEntry {
        let mut next = self.0.clone();
        next.version += 1;
        next
    }

    /// Applies a committed entry. False if it does not follow from what is here: then it is ignored,
    /// on every node alike.
    pub fn apply(&mut self, entry: &MembersEntry) -> bool {
        let follows = if self.is_empty() {
            is_whole(entry)
        } else {
            self.follows(entry)
        };
        if follows {
            self.0 = entry.clone();
        }
        follows
    }

    fn follows(&self, entry: &MembersEntry) -> bool {
        let next = Self(entry.clone());
        if self.promoted().as_ref() == Some(entry) || self.left_joint().as_ref() == Some(entry) {
            return true;
        }
        let learner = next.learner().and_then(|spec| {
            let replaces = next.standing(spec.id)?.replaces()?;
            self.replaced(replaces, spec).ok()
        });
        learner.as_ref() == Some(entry)
    }

    /// What raft-rs calls this list.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        let ids = |fits: fn(Standing) -> bool| {
            let members = self.list().iter().filter(|member| fits(member.standing));
            members.map(|member| member.spec.id.0).collect::<Vec<_>>()
        };
        ConfState {
            voters: ids(Standing::votes),
            learners: ids(|standing| matches!(standing, Standing::Learner { .. })),
            voters_outgoing: if self.is_joint() {
                ids(voted_before)
            } else {
                Vec::new()
            },
            ..ConfState::default()
        }
    }

    /// What raft-rs has to do to get from `before` to this list, step by step.
    #[must_use]
    pub fn conf_changes(&self, before: &ConfState) -> Vec<ConfChangeV2> {
        let after = self.conf_state();
        let mut steps = Vec::new();
        if before.voters.is_empty() {
            let first = match after.voters_outgoing.is_empty() {
                true => &after.voters,
                false => &after.voters_outgoing,
            };
            let added = first.iter().map(|id| simple(*id, ConfChangeType::AddNode));
            steps.extend(added);
        }
        if !before.voters_outgoing.is_empty() && after.voters_outgoing.is_empty() {
            steps.push(ConfChangeV2::default());
        }
        if before.voters_outgoing.is_empty() && !after.voters_outgoing.is_empty() {
            let is_new = |id: &&u64| !after.voters_outgoing.contains(*id);
            let is_old = |id: &&u64| !after.voters.contains(*id);
            let new = after.voters.iter().filter(is_new);
            let old = after.voters_outgoing.iter().filter(is_old);
            let singles = new
                .map(|id| single(*id, ConfChangeType::AddNode))
                .chain(old.map(|id| single(*id, ConfChangeType::RemoveNode)));
            let mut joint = ConfChangeV2::default();
            joint.set_transition(ConfChangeTransition::Explicit);
            joint.set_changes(singles.collect::<Vec<_>>().into());
            steps.push(joint);
        }
        let is_gone = |id: &&u64| !after.learners.contains(*id) && !after.voters.contains(*id);
        let gone = before.learners.iter().filter(is_gone);
        steps.extend(gone.map(|id| simple(*id, ConfChangeType::RemoveNode)));
        let is_new = |id: &&u64| !before.learners.contains(*id);
        let new = after.learners.iter().filter(is_new);
        steps.extend(new.map(|id| simple(*id, ConfChangeType::AddLearnerNode)));
        steps
    }

    /// Appends the byte form.
    pub fn encode(&self, out: &mut BytesMut) {
        self.0.encode(out);
    }

    /// Reads what [`Self::encode`] wrote, up to the end of `bytes`.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (entry, length) = MembersEntry::decode(bytes).ok()?;
        let fits = entry.members.is_empty() || is_whole(&entry);
        (length == bytes.len() && fits).then_some(Self(entry))
    }
}

fn voted_before(standing: Standing) -> bool {
    matches!(standing, Standing::Voter | Standing::Leaving)
}

/// Whether an entry that nothing is known before of can be a group's: voters of a whole group or of
/// one node, and a newcomer for each that goes.
fn is_whole(entry: &MembersEntry) -> bool {
    let count = |fits: fn(Standing) -> bool| {
        let members = entry.members.iter();
        members.filter(|member| fits(member.standing)).count()
    };
    let voters = count(Standing::votes);
    let newcomers = entry.members.iter();
    let newcomers = newcomers.filter(|member| member.standing.replaces().is_some());
    let has_lost = |member: &Member| {
        let expected = match member.standing {
            Standing::Joining { .. } => Standing::Leaving,
            _ => Standing::Voter,
        };
        let mut members = entry.members.iter();
        member.standing.replaces().is_none_or(|lost| {
            members.any(|other| other.spec.id == lost && other.standing == expected)
        })
    };
    (1..=GROUP_NODES_MAX).contains(&voters)
        && voters == count(voted_before)
        && newcomers.count() <= 1
        && entry.members.iter().all(has_lost)
}

fn single(id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut change = ConfChangeSingle::default();
    change.set_change_type(kind);
    change.node_id = id;
    change
}

fn simple(id: u64, kind: ConfChangeType) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single(id, kind)].into());
    change
}

#[cfg(test)]
mod tests;
