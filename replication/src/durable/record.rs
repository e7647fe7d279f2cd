//! Records of the durable log and their byte form. All integers are little endian.
//!
//! | header field | bytes |
//! |---|---|
//! | mark `PLVR` | 4 |
//! | version, 0 | 2, 2 |
//! | length of the body | 4 |
//! | CRC32 of the body | 4 |
//! | record number | 8 |
//! | CRC32 of the header so far | 4 |
//!
//! The body is a list of items, each a tag u8 and:
//!
//! | tag | item | fields |
//! |---|---|---|
//! | 1 | owner | group u64, node u64 |
//! | 2 | hard state | term, vote, commit |
//! | 3 | entries | first index u64, count u32, then per entry: term u64, length u32, data |
//! | 4, 5 | snapshot taken, installed | index, term, length u32, data |
//! | 6 | compacted | index, term |
//! | 7 | end | none; the last byte of every body, so that a record ends in no zeros |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use plover_types::{LogIndex, NodeId, Term};
use raft::eraftpb::{Entry, HardState};

use super::{Owner, SnapshotState};
use crate::storage::entry_type_of;
use crate::wire::GroupId;

pub(super) const VERSION: u16 = 2;
pub(super) const HEADER_BYTES: usize = 28;
const MARK: [u8; 4] = *b"PLVR";
const END: u8 = 7;

/// Bytes of one record's body: many requests may be written as one, but memory is bounded when
/// a file is read.
pub(super) const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One change, as it is written.
#[derive(Clone, Copy)]
pub(super) enum Item<'a> {
    Owner(Owner),
    HardState(&'a HardState),
    Entries(&'a [Entry]),
    SnapshotTaken(&'a SnapshotState),
    SnapshotInstalled(&'a SnapshotState),
    Compacted(LogIndex, Term),
}

/// One change, as it is read.
#[derive(Debug, PartialEq)]
pub(super) enum OwnedItem {
    Owner(Owner),
    HardState(HardState),
    Entries(Vec<Entry>),
    SnapshotTaken(SnapshotState),
    SnapshotInstalled(SnapshotState),
    Compacted(LogIndex, Term),
}

/// Appends a record to `out`.
pub(super) fn encode<'a>(number: u64, items: impl Iterator<Item = Item<'a>>, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    for item in items {
        encode_item(item, out);
    }
    out.put_u8(END);
    let body = &out[start + HEADER_BYTES..];
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&MARK);
    header.put_u16_le(VERSION);
    header.put_u16_le(0);
    header.put_u32_le(length(body.len()));
    header.put_u32_le(crc32fast::hash(body));
    header.put_u64_le(number);
    header.put_u32_le(crc32fast::hash(&header));
    out[start..start + HEADER_BYTES].copy_from_slice(&header);
}

fn encode_item(item: Item<'_>, out: &mut BytesMut) {
    match item {
        Item::Owner(owner) => put(out, 1, &[owner.group.0, owner.node.0]),
        Item::HardState(state) => put(out, 2, &[state.term, state.vote, state.commit]),
        Item::Entries(entries) => {
            put(out, 3, &[entries.first().map_or(0, |entry| entry.index)]);
            out.put_u32_le(length(entries.len()));
            for entry in entries {
                out.put_u64_le(entry.term);
                out.put_u32_le(length(entry.data.len()));
                out.put_slice(&entry.data);
            }
        }
        Item::SnapshotTaken(snapshot) => encode_snapshot(4, snapshot, out),
        Item::SnapshotInstalled(snapshot) => encode_snapshot(5, snapshot, out),
        Item::Compacted(index, term) => put(out, 6, &[index.0, term.0]),
    }
}

fn encode_snapshot(tag: u8, snapshot: &SnapshotState, out: &mut BytesMut) {
    put(out, tag, &[snapshot.index.0, snapshot.term.0]);
    out.put_u32_le(length(snapshot.data.len()));
    out.put_slice(&snapshot.data);
}

fn put(out: &mut BytesMut, tag: u8, values: &[u64]) {
    out.put_u8(tag);
    values.iter().for_each(|value| out.put_u64_le(*value));
}

/// Lengths are bounded far below 4 GiB by what the core keeps in memory.
#[expect(clippy::cast_possible_truncation, reason = "asserted")]
fn length(length: usize) -> u32 {
    assert!(length <= BODY_BYTES_MAX, "a record of {length} bytes");
    length as u32
}

/// The fixed part of a record, read and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u16,
    pub(super) body_bytes: usize,
    pub(super) body_crc: u32,
    pub(super) number: u64,
}

impl Header {
    /// None if these bytes are no header.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (mut checked, mut crc) = bytes.split_at(HEADER_BYTES - 4);
        if checked[..4] != MARK || crc32fast::hash(checked) != crc.get_u32_le() {
            return None;
        }
        checked.advance(4);
        let version = checked.get_u16_le();
        checked.advance(2);
        Some(Self {
            version,
            body_bytes: checked.get_u32_le() as usize,
            body_crc: checked.get_u32_le(),
            number: checked.get_u64_le(),
        })
    }
}

/// Reads the items of a body whose checksum matched. Data shares the body's buffer.
pub(super) fn decode(mut body: Bytes) -> Result<Vec<OwnedItem>, &'static str> {
    let mut items = Vec::new();
    loop {
        match body.try_get_u8() {
            Ok(END) if body.is_empty() => return Ok(items),
            Ok(tag) => items.push(decode_item(tag, &mut body)?),
            Err(_) => return Err("a record without an end"),
        }
    }
}

fn decode_item(tag: u8, body: &mut Bytes) -> Result<OwnedItem, &'static str> {
    Ok(match tag {
        1 => OwnedItem::Owner(Owner {
            group: GroupId(u64_of(body)?),
            node: NodeId(u64_of(body)?),
        }),
        2 => OwnedItem::HardState(HardState {
            term: u64_of(body)?,
            vote: u64_of(body)?,
            commit: u64_of(body)?,
            ..HardState::default()
        }),
        3 => decode_entries(body)?,
        4 => OwnedItem::SnapshotTaken(decode_snapshot(body)?),
        5 => OwnedItem::SnapshotInstalled(decode_snapshot(body)?),
        6 => OwnedItem::Compacted(LogIndex(u64_of(body)?), Term(u64_of(body)?)),
        _ => return Err("an item of unknown kind"),
    })
}

fn decode_entries(body: &mut Bytes) -> Result<OwnedItem, &'static str> {
    let first = u64_of(body)?;
    let count = u32_of(body)?;
    let mut entries = Vec::new();
    for number in 0..u64::from(count) {
        let mut entry = Entry {
            index: first.checked_add(number).ok_or("an index out of range")?,
            term: u64_of(body)?,
            data: data_of(body)?,
            ..Entry::default()
        };
        entry.set_entry_type(entry_type_of(&entry.data));
        entries.push(entry);
    }
    Ok(OwnedItem::Entries(entries))
}

fn decode_snapshot(body: &mut Bytes) -> Result<SnapshotState, &'static str> {
    Ok(SnapshotState {
        index: LogIndex(u64_of(body)?),
        term: Term(u64_of(body)?),
        data: data_of(body)?,
    })
}

const SHORT: &str = "an item longer than its record";

fn u64_of(body: &mut Bytes) -> Result<u64, &'static str> {
    body.try_get_u64_le().map_err(|_| SHORT)
}

fn u32_of(body: &mut Bytes) -> Result<u32, &'static str> {
    body.try_get_u32_le().map_err(|_| SHORT)
}

fn data_of(body: &mut Bytes) -> Result<Bytes, &'static str> {
    let length = u32_of(body)? as usize;
    if length > body.len() {
        return Err(SHORT);
    }
    Ok(body.split_to(length))
}
