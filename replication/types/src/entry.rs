//! Entries of the input log and their byte form.
//!
//! All integers are little endian. The first byte is the kind:
//!
//! | kind | entry | body |
//! |---|---|---|
//! | 1 | input | count u8, then the packets: see `burst` |
//! | 2 | role | generation u64, primary u64, mode u8, valid copies u64, id bits |
//! | 3 | sync begin | generation u64, kind u8 |
//! | 4 | sync end | generation u64, sync u64, position (u64, u32), certificate 16 bytes |
//! | 5 | sync abort | generation u64, sync u64 |
//! | 6 | members | see [`MembersEntry::encode`] |
//!
//! Bytes come from a peer or a disk: [`LogEntry::decode`] accepts exactly what
//! [`LogEntry::encode`] makes, and names what was wrong with anything else.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::burst::{KIND_INPUT, KIND_STUB, PacketBurst};
use crate::limits::ENTRY_BYTES_MAX;
use crate::members::MembersEntry;
use crate::{Certificate, Generation, LogIndex, NodeId, OffloadError, Position, SyncId};

const KIND_ROLE: u8 = 2;
const KIND_SYNC_BEGIN: u8 = 3;
const KIND_SYNC_END: u8 = 4;
const KIND_SYNC_ABORT: u8 = 5;
const KIND_MEMBERS: u8 = 6;

/// Why bytes are not a log entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// The entry ends before its body does.
    #[error("log entry ends at byte {have}, its body needs {need}")]
    Short {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Bytes follow the body.
    #[error("log entry has {0} bytes after its body")]
    Trailing(usize),
    /// The entry is longer than any entry may be.
    #[error("log entry of {0} bytes; at most {ENTRY_BYTES_MAX} are allowed")]
    Long(usize),
    /// The kind byte is none that this version knows.
    #[error("log entry of unknown kind {0}")]
    Kind(u8),
    /// A field holds a value outside its range.
    #[error("log entry field {field} holds {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A packet's offload does not fit the packet.
    #[error("packet {packet} of a log entry")]
    Offload {
        /// Number of the packet in the entry, from 0.
        packet: usize,
        /// What is wrong with it.
        #[source]
        source: OffloadError,
    },
}

/// Whether output waits for a second copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Two valid copies: output waits for a finished sync.
    Protected,
    /// One valid copy: output leaves at once.
    Unprotected,
}

/// The set of nodes whose copy is valid, by node id (1 to 63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CopySet(u64);

impl CopySet {
    /// The set of these nodes. Ids outside 1..=63 are left out: no group has them.
    #[must_use]
    pub fn of(nodes: &[NodeId]) -> Self {
        Self(nodes.iter().fold(0, |bits, node| bits | Self::bit(*node)))
    }

    const fn bit(node: NodeId) -> u64 {
        if node.0 >= 1 && node.0 < 64 {
            1 << node.0
        } else {
            0
        }
    }

    /// One bit per id.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of these bits; none if one of them stands for no id.
    #[must_use]
    pub const fn of_bits(bits: u64) -> Option<Self> {
        if bits & 1 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// This set and one more node.
    #[must_use]
    pub const fn with(self, node: NodeId) -> Self {
        Self(self.0 | Self::bit(node))
    }

    /// Whether this node's copy is in the set.
    #[must_use]
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & Self::bit(node) != 0
    }

    /// How many copies are valid.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether no copy is valid.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The nodes of the set, in order of id.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (1..64).map(NodeId).filter(move |node| self.contains(*node))
    }
}

/// Who serves, under which mode, and whose copies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleEntry {
    /// One more than the generation that it replaces.
    pub generation: Generation,
    /// The node that serves.
    pub primary: NodeId,
    /// Whether output waits for a second copy.
    pub mode: Mode,
    /// Nodes whose copy is valid; a copy that is not listed is void.
    pub valid: CopySet,
}

/// What a sync starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncKind {
    /// Both copies are valid: the union is what either wrote.
    Delta,
    /// The backup has no valid copy: the union is all memory.
    Fill,
}

/// One entry of the input log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// Packets from the uplink, one burst.
    Input(PacketBurst),
    /// Who serves from here on.
    Role(RoleEntry),
    /// A sync starts; all input before it belongs to the epoch that it closes.
    SyncBegin {
        /// The role under which it was proposed.
        generation: Generation,
        /// What it starts from.
        kind: SyncKind,
    },
    /// The backup holds everything needed to be the VM as it was at the sync point.
    SyncEnd {
        /// The role under which it was proposed.
        generation: Generation,
        /// The sync that it ends.
        sync: SyncId,
        /// The primary's delivered position at the sync point; both copies go on from it.
        position: Position,
        /// What both hashers agreed on.
        certificate: Certificate,
    },
    /// The sync is given up; its epoch merges into the next.
    SyncAbort {
        /// The role under which it was proposed.
        generation: Generation,
        /// The sync that it aborts.
        sync: SyncId,
    },
    /// Who belongs to the group from here on.
    Members(MembersEntry),
}

impl LogEntry {
    /// The entry's bytes. An input entry shares its buffer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Self::Input(burst) => return burst.encoded().clone(),
            Self::Role(role) => {
                out.put_u8(KIND_ROLE);
                out.put_u64_le(role.generation.0);
                out.put_u64_le(role.primary.0);
                out.put_u8(match role.mode {
                    Mode::Protected => 1,
                    Mode::Unprotected => 2,
                });
                out.put_u64_le(role.valid.0);
            }
            Self::SyncBegin { generation, kind } => {
                out.put_u8(KIND_SYNC_BEGIN);
                out.put_u64_le(generation.0);
                out.put_u8(match kind {
                    SyncKind::Delta => 1,
                    SyncKind::Fill => 2,
                });
            }
            Self::SyncEnd {
                generation,
                sync,
                position,
                certificate,
            } => {
                out.put_u8(KIND_SYNC_END);
                out.put_u64_le(generation.0);
                out.put_u64_le(sync.0.0);
                out.put_u64_le(position.index.0);
                out.put_u32_le(position.packet);
                out.put_slice(&certificate.0);
            }
            Self::SyncAbort { generation, sync } => {
                out.put_u8(KIND_SYNC_ABORT);
                out.put_u64_le(generation.0);
                out.put_u64_le(sync.0.0);
            }
            Self::Members(entry) => {
                out.put_u8(KIND_MEMBERS);
                entry.encode(&mut out);
            }
        }
        out.freeze()
    }

    /// Whether these are the bytes of an input entry or a stub of one, if they are an entry's at
    /// all.
    #[inline]
    #[must_use]
    pub fn is_input(bytes: &[u8]) -> bool {
        matches!(bytes.first(), Some(&(KIND_INPUT | KIND_STUB)))
    }

    /// Whether these are the bytes of a stub, which must not leave the node.
    #[inline]
    #[must_use]
    pub fn is_stub(bytes: &[u8]) -> bool {
        bytes.first() == Some(&KIND_STUB)
    }

    /// Whether these are the bytes of an entry that changes who belongs to the group.
    #[inline]
    #[must_use]
    pub fn is_members(bytes: &[u8]) -> bool {
        bytes.first() == Some(&KIND_MEMBERS)
    }

    /// Checks and reads an entry.
    ///
    /// # Errors
    /// Names the first thing that is wrong: length, kind, a field outside its range.
    pub fn decode(bytes: &Bytes) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::Long(bytes.len()));
        }
        let mut body = Body::new(bytes);
        let entry = match body.u8()? {
            KIND_INPUT => return PacketBurst::decode(bytes).map(Self::Input),
            KIND_ROLE => Self::Role(RoleEntry {
                generation: Generation(body.u64()?),
                primary: NodeId(body.in_range("primary", 1..=63)?),
                mode: match body.u8()? {
                    1 => Mode::Protected,
                    2 => Mode::Unprotected,
                    other => return Err(field("mode", other.into())),
                },
                valid: CopySet(body.u64()?),
            }),
            KIND_SYNC_BEGIN => Self::SyncBegin {
                generation: Generation(body.u64()?),
                kind: match body.u8()? {
                    1 => SyncKind::Delta,
                    2 => SyncKind::Fill,
                    other => return Err(field("sync kind", other.into())),
                },
            },
            KIND_SYNC_END => Self::SyncEnd {
                generation: Generation(body.u64()?),
                sync: SyncId(LogIndex(body.u64()?)),
                position: Position {
                    index: LogIndex(body.u64()?),
                    packet: body.u32()?,
                },
                certificate: Certificate(body.array()?),
            },
            KIND_SYNC_ABORT => Self::SyncAbort {
                generation: Generation(body.u64()?),
                sync: SyncId(LogIndex(body.u64()?)),
            },
            KIND_MEMBERS => {
                let (entry, length) = MembersEntry::decode(&bytes.slice(1..))?;
                body.skip(length)?;
                Self::Members(entry)
            }
            other => return Err(EntryError::Kind(other)),
        };
        match bytes.len() - body.at {
            0 => Ok(entry),
            trailing => Err(EntryError::Trailing(trailing)),
        }
    }
}

pub(crate) fn field(field: &'static str, value: u64) -> EntryError {
    EntryError::Field { field, value }
}

/// Reads the fields of an entry, never past its end.
pub(crate) struct Body<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Body<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes, sharing the buffer.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<Bytes, EntryError> {
        let start = self.at;
        self.skip(count)?;
        Ok(self.bytes.slice(start..self.at))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, EntryError> {
        self.array().map(u16::from_le_bytes)
    }

    fn skip(&mut self, count: usize) -> Result<(), EntryError> {
        let need = self.at + count;
        if need > self.bytes.len() {
            return Err(EntryError::Short {
                have: self.bytes.len(),
                need,
            });
        }
        self.at = need;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let start = self.at;
        self.skip(N)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[start..start + N]);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, EntryError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, EntryError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, EntryError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn in_range(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, EntryError> {
        let value = self.u64()?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(field(name, value))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_entries_survive_their_byte_form() {
        let entries = [
            LogEntry::Role(RoleEntry {
                generation: Generation(3),
                primary: NodeId(2),
                mode: Mode::Protected,
                valid: CopySet::of(&[NodeId(1), NodeId(2)]),
            }),
            LogEntry::SyncBegin {
                generation: Generation(3),
                kind: SyncKind::Fill,
            },
            LogEntry::SyncEnd {
                generation: Generation(3),
                sync: SyncId(LogIndex(17)),
                position: Position {
                    index: LogIndex(16),
                    packet: 4,
                },
                certificate: Certificate([7; 16]),
            },
            LogEntry::SyncAbort {
                generation: Generation(3),
                sync: SyncId(LogIndex(17)),
            },
        ];
        for entry in entries {
            let encoded = entry.encode();
            assert_eq!(LogEntry::decode(&encoded), Ok(entry));
            for length in 0..encoded.len() {
                assert!(
                    LogEntry::decode(&encoded.slice(..length)).is_err(),
                    "cut at {length}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Ok(entry) = LogEntry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }
    }
}
