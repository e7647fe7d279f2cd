//! What the committed log says of the group: its members, the role and the sync in flight. The same
//! on every node that applied the same entries.
//!
//! ```text
//!            SyncBegin(i)                 SyncEnd(i), delta
//!   idle ───────────────────▶ in flight ─────────────────────▶ idle
//!    ▲                         │      │ SyncEnd(i), fill
//!    │  SyncAbort(i), Role     │      ▼
//!    ├─────────────────────────┘    filled ── Role, SyncAbort(i) ──▶ idle
//! ```
//!
//! Control entries carry the generation of the role under which they were proposed; one that is
//! not current is ignored when applied.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use plover_types::{
    Certificate, Generation, LogEntry, LogIndex, Position, RoleEntry, SyncId, SyncKind,
};
use raft::eraftpb::ConfState;

use crate::members::Members;

/// A sync that `SyncBegin` opened and nothing closed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncInFlight {
    /// Its name.
    pub id: SyncId,
    /// What it starts from.
    pub kind: SyncKind,
    /// A fill whose `SyncEnd` is applied and whose role entry is not: the new copy is loading.
    pub ended: bool,
}

/// What applying an entry changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// The entry was proposed under another role, or names a sync that is not in flight.
    Ignored,
    /// Packets to deliver.
    Input,
    /// A new role; any sync in flight is over.
    Role {
        /// The role that it replaces.
        replaced: Option<RoleEntry>,
        /// The sync that it ended: a completed fill, or one given up.
        sync: Option<SyncInFlight>,
    },
    /// A sync starts.
    SyncBegan(SyncInFlight),
    /// The backup holds all of the epoch.
    SyncEnded {
        /// The sync.
        sync: SyncInFlight,
        /// Where both copies go on.
        position: Position,
        /// What the hashers agreed on.
        certificate: Certificate,
    },
    /// The sync is given up.
    SyncAborted(SyncInFlight),
    /// Others belong to the group from here on.
    Members {
        /// What raft-rs knew until now.
        before: ConfState,
    },
}

/// The replicated state of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    members: Members,
    role: Option<RoleEntry>,
    sync: Option<SyncInFlight>,
    /// The last sync that ended, and its position.
    last_end: Option<(SyncId, Position)>,
}

/// Version 1 had no members: a node that reads it takes those of its configuration.
const SNAPSHOT_VERSION: u8 = 2;

/// What raft-rs has to know of the members in a snapshot's bytes; none if they are no group's, or
/// say nothing of members.
pub(crate) fn conf_state_of(snapshot: &Bytes) -> Option<ConfState> {
    let group = GroupState::decode(snapshot.clone())?;
    names_members(snapshot).then(|| group.members.conf_state())
}

/// Whether a snapshot is of a version that has members (a node that joins has none yet).
pub(crate) fn names_members(snapshot: &Bytes) -> bool {
    snapshot.first().is_some_and(|version| *version > 1)
}

impl GroupState {
    /// The state of a group of these members that has decided nothing yet.
    #[must_use]
    pub fn of(members: Members) -> Self {
        Self {
            members,
            ..Self::default()
        }
    }

    /// Who belongs to the group.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Puts the members of a configuration where a snapshot of an older version has none.
    pub(crate) fn set_members(&mut self, members: Members) {
        self.members = members;
    }

    /// The committed role.
    #[must_use]
    pub fn role(&self) -> Option<&RoleEntry> {
        self.role.as_ref()
    }

    /// The current generation; 0 before the first role.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.role.map_or(Generation(0), |role| role.generation)
    }

    /// The sync in flight.
    #[must_use]
    pub fn sync(&self) -> Option<&SyncInFlight> {
        self.sync.as_ref()
    }

    /// The last sync that ended, with the position from which both copies went on.
    #[must_use]
    pub fn last_end(&self) -> Option<(SyncId, Position)> {
        self.last_end
    }

    /// Applies a committed entry.
    pub fn apply(&mut self, index: LogIndex, entry: &LogEntry) -> Applied {
        match *entry {
            LogEntry::Input(_) => Applied::Input,
            LogEntry::Role(role) => self.apply_role(role),
            LogEntry::SyncBegin { generation, kind } => {
                if generation != self.generation() || self.sync.is_some() || self.role.is_none() {
                    return Applied::Ignored;
                }
                let sync = SyncInFlight {
                    id: SyncId(index),
                    kind,
                    ended: false,
                };
                self.sync = Some(sync);
                Applied::SyncBegan(sync)
            }
            LogEntry::SyncEnd {
                generation,
                sync,
                position,
                certificate,
            } => match self.in_flight(generation, sync) {
                Some(found) if !found.ended && position.index <= sync.0 => {
                    self.last_end = Some((sync, position));
                    self.sync = (found.kind == SyncKind::Fill).then_some(SyncInFlight {
                        ended: true,
                        ..found
                    });
                    Applied::SyncEnded {
                        sync: found,
                        position,
                        certificate,
                    }
                }
                _ => Applied::Ignored,
            },
            LogEntry::SyncAbort { generation, sync } => {
                if self.in_flight(generation, sync).is_none() {
                    return Applied::Ignored;
                }
                self.sync
                    .take()
                    .map_or(Applied::Ignored, Applied::SyncAborted)
            }
            LogEntry::Members(ref entry) => {
                let before = self.members.conf_state();
                if self.members.apply(entry) {
                    Applied::Members { before }
                } else {
                    Applied::Ignored
                }
            }
        }
    }

    fn apply_role(&mut self, role: RoleEntry) -> Applied {
        if role.generation != self.generation().next() || !role.valid.contains(role.primary) {
            return Applied::Ignored;
        }
        let replaced = self.role.replace(role);
        Applied::Role {
            replaced,
            sync: self.sync.take(),
        }
    }

    fn in_flight(&self, generation: Generation, sync: SyncId) -> Option<SyncInFlight> {
        self.sync
            .filter(|found| found.id == sync && generation == self.generation())
    }

    /// The state's bytes, for a Raft snapshot.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(SNAPSHOT_VERSION);
        let role = self
            .role
            .map_or_else(Bytes::new, |role| LogEntry::Role(role).encode());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a role entry has under 40 bytes"
        )]
        out.put_u8(role.len() as u8);
        out.put_slice(&role);
        match self.sync {
            None => out.put_u8(0),
            Some(sync) => {
                let kind = match sync.kind {
                    SyncKind::Delta => 1,
                    SyncKind::Fill => 2,
                };
                out.put_u8(kind);
                out.put_u64_le(sync.id.0.0);
                out.put_u8(sync.ended.into());
            }
        }
        match self.last_end {
            None => out.put_u8(0),
            Some((sync, position)) => {
                out.put_u8(1);
                out.put_u64_le(sync.0.0);
                out.put_u64_le(position.index.0);
                out.put_u32_le(position.packet);
            }
        }
        self.members.encode(&mut out);
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote; `None` if the bytes are anything else.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let mut state = Self::default();
        let version = bytes.try_get_u8().ok()?;
        if !(1..=SNAPSHOT_VERSION).contains(&version) {
            return None;
        }
        let role_length = usize::from(bytes.try_get_u8().ok()?);
        if role_length > bytes.remaining() {
            return None;
        }
        let role = bytes.split_to(role_length);
        if !role.is_empty() {
            let LogEntry::Role(role) = LogEntry::decode(&role).ok()? else {
                return None;
            };
            state.role = Some(role);
        }
        let kind = match bytes.try_get_u8().ok()? {
            0 => None,
            1 => Some(SyncKind::Delta),
            2 => Some(SyncKind::Fill),
            _ => return None,
        };
        if let Some(kind) = kind {
            let id = SyncId(LogIndex(bytes.try_get_u64_le().ok()?));
            let ended = match bytes.try_get_u8().ok()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            state.sync = Some(SyncInFlight { id, kind, ended });
        }
        match bytes.try_get_u8().ok()? {
            0 => {}
            1 => {
                let sync = SyncId(LogIndex(bytes.try_get_u64_le().ok()?));
                let index = LogIndex(bytes.try_get_u64_le().ok()?);
                let packet = bytes.try_get_u32_le().ok()?;
                state.last_end = Some((sync, Position { index, packet }));
            }
            _ => return None,
        }
        if version > 1 {
            state.members = Members::decode(&bytes)?;
            return Some(state);
        }
        bytes.is_empty().then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use plover_types::{CopySet, Mode, NodeId, NodeSpec};
    use proptest::prelude::*;

    use super::*;

    fn role(generation: u64, primary: u64) -> LogEntry {
        LogEntry::Role(RoleEntry {
            generation: Generation(generation),
            primary: NodeId(primary),
            mode: Mode::Unprotected,
            valid: CopySet::of(&[NodeId(primary)]),
        })
    }

    fn begin(generation: u64, kind: SyncKind) -> LogEntry {
        LogEntry::SyncBegin {
            generation: Generation(generation),
            kind,
        }
    }

    fn end(generation: u64, sync: u64) -> LogEntry {
        LogEntry::SyncEnd {
            generation: Generation(generation),
            sync: SyncId(LogIndex(sync)),
            position: Position::start_of(LogIndex(sync)),
            certificate: Certificate::default(),
        }
    }

    #[test]
    fn a_role_that_is_not_the_next_generation_is_ignored() {
        let mut state = GroupState::default();
        assert_eq!(state.apply(LogIndex(1), &role(2, 1)), Applied::Ignored);
        assert!(matches!(
            state.apply(LogIndex(2), &role(1, 1)),
            Applied::Role { .. }
        ));
        assert_eq!(state.apply(LogIndex(3), &role(1, 2)), Applied::Ignored);
        assert_eq!(state.role().map(|role| role.primary), Some(NodeId(1)));
    }

    #[test]
    fn one_sync_is_in_flight_and_only_its_own_end_ends_it() {
        let mut state = GroupState::default();
        assert_eq!(
            state.apply(LogIndex(1), &begin(0, SyncKind::Delta)),
            Applied::Ignored
        );
        state.apply(LogIndex(1), &role(1, 1));
        assert!(matches!(
            state.apply(LogIndex(2), &begin(1, SyncKind::Delta)),
            Applied::SyncBegan(_)
        ));
        assert_eq!(
            state.apply(LogIndex(3), &begin(1, SyncKind::Delta)),
            Applied::Ignored
        );
        assert_eq!(state.apply(LogIndex(4), &end(1, 3)), Applied::Ignored);
        assert_eq!(state.apply(LogIndex(5), &end(0, 2)), Applied::Ignored);
        assert!(matches!(
            state.apply(LogIndex(6), &end(1, 2)),
            Applied::SyncEnded { .. }
        ));
        assert_eq!(state.apply(LogIndex(7), &end(1, 2)), Applied::Ignored);
    }

    #[test]
    fn a_new_role_gives_the_sync_in_flight_up() {
        let mut state = GroupState::default();
        state.apply(LogIndex(1), &role(1, 1));
        state.apply(LogIndex(2), &begin(1, SyncKind::Delta));
        let Applied::Role {
            sync: Some(sync), ..
        } = state.apply(LogIndex(3), &role(2, 2))
        else {
            panic!("role ignored");
        };
        assert_eq!(sync.id, SyncId(LogIndex(2)));
        assert_eq!(state.apply(LogIndex(4), &end(1, 2)), Applied::Ignored);
        assert_eq!(state.apply(LogIndex(5), &end(2, 2)), Applied::Ignored);
    }

    #[test]
    fn a_fill_stays_in_flight_until_the_role_entry() {
        let mut state = GroupState::default();
        state.apply(LogIndex(1), &role(1, 1));
        state.apply(LogIndex(2), &begin(1, SyncKind::Fill));
        assert!(matches!(
            state.apply(LogIndex(3), &end(1, 2)),
            Applied::SyncEnded { .. }
        ));
        assert!(state.sync().is_some_and(|sync| sync.ended));
        assert_eq!(
            state.apply(LogIndex(4), &begin(1, SyncKind::Fill)),
            Applied::Ignored
        );
        assert!(matches!(
            state.apply(LogIndex(5), &role(2, 1)),
            Applied::Role { sync: Some(_), .. }
        ));
        assert!(state.sync().is_none());
    }

    #[test]
    fn the_snapshot_form_keeps_everything() {
        let mut state = GroupState::default();
        assert_eq!(GroupState::decode(state.encode()), Some(state.clone()));
        state.apply(LogIndex(1), &role(1, 1));
        state.apply(LogIndex(2), &begin(1, SyncKind::Fill));
        state.apply(LogIndex(3), &end(1, 2));
        let mut state = GroupState {
            members: Members::of(&[NodeSpec::replica(1)]),
            ..state
        };
        assert_eq!(GroupState::decode(state.encode()), Some(state.clone()));
        state.set_members(Members::default());
        let encoded = state.encode();
        for length in 0..encoded.len() {
            assert_eq!(GroupState::decode(encoded.slice(..length)), None);
        }
    }

    #[test]
    fn a_snapshot_without_members_is_one_of_the_version_before() {
        let mut state = GroupState::default();
        state.apply(LogIndex(1), &role(1, 1));
        let mut old = BytesMut::from(&state.encode()[..]);
        // Its members: version, ids gone, count.
        old.truncate(old.len() - 17);
        old[0] = 1;
        assert_eq!(GroupState::decode(old.freeze()), Some(state));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = GroupState::decode(Bytes::from(bytes));
        }
    }
}
