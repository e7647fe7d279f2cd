//! The members of a group, as the log carries them, and their byte form.
//!
//! A change of membership is an entry that holds the whole list as it is from there on, so that a
//! node which reads the log from its start needs nothing else. How one list follows from another is
//! decided by the core that proposes it and checked by the one that applies it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::entry::{Body, EntryError, field};
use crate::limits::{MEMBERS_MAX, PLACE_BYTES_MAX};
use crate::{CopySet, NodeId};

/// A node of a group: who it is and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its id, 1 to 63, used once in the life of a group.
    pub id: NodeId,
    /// Whether it may hold a copy of the VM; a witness may not.
    pub is_replica: bool,
    /// How it is reached (addresses, public key), in the form of whoever drives the core; opaque
    /// here. [`PLACE_BYTES_MAX`] bytes at most.
    pub place: Bytes,
}

impl NodeSpec {
    /// A replica whose place is told elsewhere.
    #[must_use]
    pub const fn replica(id: u64) -> Self {
        Self {
            id: NodeId(id),
            is_replica: true,
            place: Bytes::new(),
        }
    }

    /// A witness whose place is told elsewhere.
    #[must_use]
    pub const fn witness(id: u64) -> Self {
        Self {
            id: NodeId(id),
            is_replica: false,
            place: Bytes::new(),
        }
    }
}

/// What a member's word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It votes.
    Voter,
    /// It follows the log and has no vote yet: it is to take the place of a lost voter.
    Learner {
        /// The lost one.
        replaces: NodeId,
    },
    /// It votes among the new voters, while a decision needs a majority of both sets.
    Joining {
        /// The lost one.
        replaces: NodeId,
    },
    /// It votes among the old voters only, and is gone with the next entry.
    Leaving,
}

impl Standing {
    /// Whether it is among the voters as they will be.
    #[must_use]
    pub const fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Joining { .. })
    }

    /// The member whose place it is to take, or takes.
    #[must_use]
    pub const fn replaces(self) -> Option<NodeId> {
        match self {
            Self::Learner { replaces } | Self::Joining { replaces } => Some(replaces),
            Self::Voter | Self::Leaving => None,
        }
    }
}

/// A node and its standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub spec: NodeSpec,
    /// What its word counts.
    pub standing: Standing,
}

/// The members of a group from an entry of the log on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersEntry {
    /// One more than the version that it replaces; a group starts with version 0.
    pub version: u64,
    /// All members, in the order in which they ask for votes.
    pub members: Vec<Member>,
    /// Ids that were in use before: none of them comes back.
    pub gone: CopySet,
}

impl MembersEntry {
    /// Appends the byte form: version u64, ids gone u64 (bits), count u8, then per member id u64,
    /// replica u8, standing u8, replaced u64, length of the place u16, place.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.version);
        out.put_u64_le(self.gone.bits());
        out.put_u8(u8::try_from(self.members.len()).unwrap_or(u8::MAX));
        for Member { spec, standing } in &self.members {
            out.put_u64_le(spec.id.0);
            out.put_u8(spec.is_replica.into());
            out.put_u8(match standing {
                Standing::Voter => 1,
                Standing::Learner { .. } => 2,
                Standing::Joining { .. } => 3,
                Standing::Leaving => 4,
            });
            out.put_u64_le(standing.replaces().map_or(0, |id| id.0));
            out.put_u16_le(u16::try_from(spec.place.len()).unwrap_or(u16::MAX));
            out.put_slice(&spec.place);
        }
    }

    /// Reads what [`Self::encode`] wrote, from the start of `bytes`. Returns how many it took.
    ///
    /// # Errors
    /// Names the first field that no list of members has.
    pub fn decode(bytes: &Bytes) -> Result<(Self, usize), EntryError> {
        let mut body = Body::new(bytes);
        let version = body.u64()?;
        let gone = CopySet::of_bits(body.u64()?).ok_or_else(|| field("ids gone", 0))?;
        let count = body.u8()?;
        if usize::from(count) > MEMBERS_MAX {
            return Err(field("members", count.into()));
        }
        let mut members: Vec<Member> = Vec::with_capacity(count.into());
        for _ in 0..count {
            let member = decode_member(&mut body)?;
            let id = member.spec.id;
            if gone.contains(id) || members.iter().any(|other| other.spec.id == id) {
                return Err(field("member's id", id.0));
            }
            members.push(member);
        }
        let entry = Self {
            version,
            members,
            gone,
        };
        Ok((entry, body.at()))
    }
}

fn decode_member(body: &mut Body<'_>) -> Result<Member, EntryError> {
    let id = NodeId(body.in_range("member's id", 1..=63)?);
    let is_replica = match body.u8()? {
        0 => false,
        1 => true,
        other => return Err(field("member's kind", other.into())),
    };
    let standing = body.u8()?;
    let replaces = body.u64()?;
    let standing = match (standing, replaces) {
        (1, 0) => Standing::Voter,
        (2, 1..=63) => Standing::Learner {
            replaces: NodeId(replaces),
        },
        (3, 1..=63) => Standing::Joining {
            replaces: NodeId(replaces),
        },
        (4, 0) => Standing::Leaving,
        (1..=4, other) => return Err(field("replaced member", other)),
        (other, _) => return Err(field("standing", other.into())),
    };
    let length = usize::from(body.u16()?);
    if length > PLACE_BYTES_MAX {
        return Err(field("length of a place", length as u64));
    }
    let place = body.bytes(length)?;
    let spec = NodeSpec {
        id,
        is_replica,
        place,
    };
    Ok(Member { spec, standing })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::LogEntry;

    fn entry() -> MembersEntry {
        let member = |spec: NodeSpec, standing| Member { spec, standing };
        let mut joining = NodeSpec::replica(4);
        joining.place = Bytes::from_static(b"10.0.0.4:7401");
        let replaces = NodeId(2);
        MembersEntry {
            version: 2,
            members: vec![
                member(NodeSpec::replica(1), Standing::Voter),
                member(NodeSpec::replica(2), Standing::Leaving),
                member(joining, Standing::Joining { replaces }),
                member(NodeSpec::witness(3), Standing::Learner { replaces }),
            ],
            gone: CopySet::of(&[NodeId(9)]),
        }
    }

    #[test]
    fn a_list_survives_its_byte_form_and_nothing_shorter_is_one() {
        let entry = LogEntry::Members(entry());
        let encoded = entry.encode();
        assert_eq!(LogEntry::decode(&encoded), Ok(entry));
        for length in 0..encoded.len() {
            assert!(LogEntry::decode(&encoded.slice(..length)).is_err());
        }
    }

    #[test]
    fn an_id_is_listed_once_and_never_after_it_is_gone() {
        let mut twice = entry();
        twice.members[3].spec.id = NodeId(1);
        let mut back = entry();
        back.gone = CopySet::of(&[NodeId(1)]);
        let mut many = entry();
        many.members.push(Member {
            spec: NodeSpec::replica(7),
            standing: Standing::Voter,
        });
        for bad in [twice, back, many] {
            assert!(LogEntry::decode(&LogEntry::Members(bad).encode()).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = Bytes::from(bytes);
            if let Ok((entry, length)) = MembersEntry::decode(&bytes) {
                let mut out = BytesMut::new();
                entry.encode(&mut out);
                prop_assert_eq!(&out[..], &bytes[..length]);
            }
        }
    }
}
