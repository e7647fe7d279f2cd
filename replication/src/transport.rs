//! Messages in Ethernet frames: cut into fragments on one side, put together on the other.
//!
//! What lives here: the frame's byte form, the bounded reassembly, counters. What does not: ports
//! and mbufs (the caller copies), what a message says (see `wire`), loss (raft-rs sends again).
//!
//! All integers of our header are little endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0..14 | Ethernet: destination, source, type [`ETHERTYPE`] (big endian) |
//! | 14 | version ([`TRANSPORT_VERSION`]) |
//! | 15 | 0 |
//! | 16..18, 18..20 | fragment number from 0, fragment count |
//! | 20..24 | length of the whole message |
//! | 24..28 | CRC32 of the whole message |
//! | 28..36 | group |
//! | 36..44 | message id |
//! | 44.. | the fragment |
//!
//! Every fragment but the last is `ceil(length / count)` bytes long, so each one's place follows
//! from its number, in any order, and neither side has to know the other's MTU. Frames come from
//! whoever is on the link: what is wrong with one is counted, never logged and never an error.

use bytes::{Bytes, BytesMut};
use plover_types::NodeId;

use crate::wire::GroupId;
use crate::wire::limits::{
    FRAGMENTS_MAX, MESSAGE_BYTES_MAX, MTU_BYTES_MAX, MTU_BYTES_MIN, REASSEMBLY_SLOTS,
};

/// EtherType of our frames: IEEE 802, local experimental 1.
pub const ETHERTYPE: u16 = 0x88B5;

/// Version of the frame's byte form.
pub const TRANSPORT_VERSION: u8 = 1;

/// Bytes before the fragment: Ethernet's header and ours.
pub const HEADER: usize = ETHERNET_BYTES + FRAGMENT_HEADER_BYTES;

const ETHERNET_BYTES: usize = 14;
const FRAGMENT_HEADER_BYTES: usize = 30;

/// Frames shorter than this are padded to it on real links (without the frame check sequence).
const ETHERNET_FRAME_BYTES_MIN: usize = 60;

const _: () = assert!(
    MESSAGE_BYTES_MAX.div_ceil(MTU_BYTES_MIN - FRAGMENT_HEADER_BYTES) <= FRAGMENTS_MAX,
    "the longest message fits its fragments at the smallest MTU"
);
const _: () = assert!(FRAGMENTS_MAX <= u16::MAX as usize && MESSAGE_BYTES_MAX <= u32::MAX as usize);

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Where this node and its peers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// This node.
    pub own: NodeId,
    /// This node's address on the replication link.
    pub own_mac: Mac,
    /// The other nodes and their addresses.
    pub peers: Vec<(NodeId, Mac)>,
    /// The group; frames of others are dropped.
    pub group: GroupId,
    /// Bytes that follow the Ethernet header, at most.
    pub mtu: usize,
    /// Id of the first message. Random per process start, so that fragments of this life are
    /// never joined with those of the one before.
    pub first_message: u64,
}

/// Why a transport was not set up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TransportError {
    /// The MTU is outside what fragments are made for.
    #[error("replication MTU of {0} bytes; {MTU_BYTES_MIN} to {MTU_BYTES_MAX} are supported")]
    Mtu(usize),
    /// Two nodes have one id or one address.
    #[error("node {0} shares its id or its MAC with another node of the group")]
    Duplicate(NodeId),
}

/// What became of frames and messages, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TransportCounters {
    /// Messages cut into fragments.
    pub messages_sent: u64,
    /// Fragments made of them.
    pub fragments_sent: u64,
    /// Messages not sent: too long, empty, or to a node that is no peer.
    pub messages_unsendable: u64,
    /// Messages put together.
    pub messages_received: u64,
    /// Our fragments received.
    pub fragments_received: u64,
    /// Frames of another type, to another address, or of another group.
    pub foreign: u64,
    /// Frames of our type and group from an address that is no peer's.
    pub strangers: u64,
    /// Frames of another version of our byte form.
    pub other_version: u64,
    /// Frames with a header that contradicts itself, the frame's length or earlier fragments.
    pub malformed: u64,
    /// Messages longer than any may be.
    pub oversized: u64,
    /// Messages whose checksum did not match.
    pub corrupt: u64,
    /// Fragments received before.
    pub duplicates: u64,
    /// Messages given up incomplete, for want of room.
    pub evicted: u64,
}

/// Cuts messages into frames and puts them together again.
#[derive(Debug)]
pub struct Transport {
    own_mac: Mac,
    group: GroupId,
    fragment_bytes_max: usize,
    next_message: u64,
    peers: Vec<Peer>,
    counters: TransportCounters,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    mac: Mac,
    /// In order of their first fragment, oldest first.
    slots: Vec<Slot>,
}

/// A message being put together, or one that was: it then holds no buffer and stays for a while
/// so that late duplicates of its fragments are known.
#[derive(Debug)]
struct Slot {
    header: FragmentHeader,
    buffer: BytesMut,
    seen: [u64; FRAGMENTS_MAX.div_ceil(64)],
    missing: usize,
}

/// What all fragments of a message have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FragmentHeader {
    message: u64,
    count: usize,
    total: usize,
    crc: u32,
}

impl FragmentHeader {
    const fn fragment_bytes(&self) -> usize {
        self.total.div_ceil(self.count)
    }

    /// The bytes of the message that are in this fragment, if the header makes sense.
    fn range_of(&self, number: usize) -> Option<std::ops::Range<usize>> {
        if number >= self.count || self.count > FRAGMENTS_MAX {
            return None;
        }
        let start = number * self.fragment_bytes();
        let end = (start + self.fragment_bytes()).min(self.total);
        (start < end && self.fragment_bytes() * (self.count - 1) < self.total).then_some(start..end)
    }
}

impl Transport {
    /// A transport for this node.
    ///
    /// # Errors
    /// The MTU is out of range, or two nodes have one id or address.
    pub fn new(config: TransportConfig) -> Result<Self, TransportError> {
        if !(MTU_BYTES_MIN..=MTU_BYTES_MAX).contains(&config.mtu) {
            return Err(TransportError::Mtu(config.mtu));
        }
        let mut seen = vec![(config.own, config.own_mac)];
        for (node, mac) in &config.peers {
            if seen
                .iter()
                .any(|(other, taken)| other == node || taken == mac)
            {
                return Err(TransportError::Duplicate(*node));
            }
            seen.push((*node, *mac));
        }
        let peers = config
            .peers
            .into_iter()
            .map(|(node, mac)| Peer::new(node, mac));
        Ok(Self {
            own_mac: config.own_mac,
            group: config.group,
            fragment_bytes_max: config.mtu - FRAGMENT_HEADER_BYTES,
            next_message: config.first_message,
            peers: peers.collect(),
            counters: TransportCounters::default(),
        })
    }

    /// Talks to these from now on; what is half received from those that stay is kept. Of two with
    /// one address the first counts.
    pub fn set_peers(&mut self, peers: &[(NodeId, Mac)]) {
        let mut before = std::mem::take(&mut self.peers);
        for (node, mac) in peers {
            let taken = self.peers.iter().any(|peer| peer.mac == *mac);
            if taken || *mac == self.own_mac {
                continue;
            }
            let known = before
                .iter()
                .position(|peer| (peer.node, peer.mac) == (*node, *mac));
            self.peers.push(match known {
                Some(at) => before.swap_remove(at),
                None => Peer::new(*node, *mac),
            });
        }
    }

    /// What became of frames so far.
    #[must_use]
    pub fn counters(&self) -> &TransportCounters {
        &self.counters
    }

    /// The frames that carry a message: for each its header, Ethernet's included, and the part of
    /// the message that follows. None if the message cannot be sent (counted).
    pub fn fragments<'a>(
        &mut self,
        to: NodeId,
        message: &'a [u8],
    ) -> impl Iterator<Item = ([u8; HEADER], &'a [u8])> + use<'a> {
        let peer = self.peers.iter().find(|peer| peer.node == to);
        let sendable = (1..=MESSAGE_BYTES_MAX).contains(&message.len());
        let (count, to_mac) = match peer {
            Some(peer) if sendable => (message.len().div_ceil(self.fragment_bytes_max), peer.mac),
            _ => {
                self.counters.messages_unsendable += 1;
                (0, Mac::default())
            }
        };
        let header = FragmentHeader {
            message: self.next_message,
            count,
            total: message.len(),
            crc: if count == 0 {
                0
            } else {
                crc32fast::hash(message)
            },
        };
        if count > 0 {
            self.next_message = self.next_message.wrapping_add(1);
            self.counters.messages_sent += 1;
            self.counters.fragments_sent += count as u64;
        }
        let frame = frame_header(to_mac, self.own_mac, self.group, &header);
        (0..count).filter_map(move |number| {
            let range = header.range_of(number)?;
            let mut frame = frame;
            put(&mut frame, 16, u16::try_from(number).ok()?.to_le_bytes());
            Some((frame, &message[range]))
        })
    }

    /// Takes a frame from the link. Returns the message that it completes, and who sent it. A
    /// message of one fragment that the link delivers twice is returned twice.
    pub fn receive(&mut self, frame: &[u8]) -> Option<(NodeId, Bytes)> {
        let (header, rest) = frame.split_first_chunk::<HEADER>().or_else(|| {
            self.counters.foreign += 1;
            None
        })?;
        let is_ours = header[0..6] == self.own_mac
            && take(header, 12).map(u16::from_be_bytes) == Some(ETHERTYPE);
        if !is_ours {
            self.counters.foreign += 1;
            return None;
        }
        if header[14] != TRANSPORT_VERSION {
            self.counters.other_version += 1;
            return None;
        }
        if u64::from_le_bytes(take(header, 28)?) != self.group.0 {
            self.counters.foreign += 1;
            return None;
        }
        let Some(peer) = self.peers.iter_mut().find(|peer| header[6..12] == peer.mac) else {
            self.counters.strangers += 1;
            return None;
        };
        self.counters.fragments_received += 1;
        let (number, header) = parse(header, &mut self.counters)?;
        let fragment = header.range_of(number).and_then(|range| {
            let padding = rest.len().checked_sub(range.len())?;
            (padding == 0 || frame.len() <= ETHERNET_FRAME_BYTES_MIN)
                .then(|| (&rest[..range.len()], range))
        });
        let Some((fragment, range)) = fragment else {
            self.counters.malformed += 1;
            return None;
        };
        let message = if header.count == 1 {
            Some(Bytes::copy_from_slice(fragment))
        } else {
            peer.add(number, header, range, fragment, &mut self.counters)
        }?;
        if crc32fast::hash(&message) != header.crc {
            self.counters.corrupt += 1;
            return None;
        }
        self.counters.messages_received += 1;
        Some((peer.node, message))
    }
}

impl Peer {
    fn new(node: NodeId, mac: Mac) -> Self {
        Self {
            node,
            mac,
            slots: Vec::with_capacity(REASSEMBLY_SLOTS),
        }
    }

    /// Puts a fragment in its place. Returns the message if that was the last one missing.
    fn add(
        &mut self,
        number: usize,
        header: FragmentHeader,
        range: std::ops::Range<usize>,
        fragment: &[u8],
        counters: &mut TransportCounters,
    ) -> Option<Bytes> {
        let slot = self.slot_for(header, counters)?;
        let bit = 1u64 << (number % 64);
        let word = &mut slot.seen[number / 64];
        if *word & bit != 0 {
            counters.duplicates += 1;
            return None;
        }
        *word |= bit;
        slot.buffer[range].copy_from_slice(fragment);
        slot.missing -= 1;
        (slot.missing == 0).then(|| std::mem::take(&mut slot.buffer).freeze())
    }

    fn slot_for(
        &mut self,
        header: FragmentHeader,
        counters: &mut TransportCounters,
    ) -> Option<&mut Slot> {
        let known = self
            .slots
            .iter()
            .position(|slot| slot.header.message == header.message);
        let at = match known {
            Some(at) if self.slots[at].header == header => at,
            Some(_) => {
                counters.malformed += 1;
                return None;
            }
            None => {
                self.make_room(counters);
                self.slots.push(Slot {
                    header,
                    buffer: BytesMut::zeroed(header.total),
                    seen: [0; FRAGMENTS_MAX.div_ceil(64)],
                    missing: header.count,
                });
                self.slots.len() - 1
            }
        };
        self.slots.get_mut(at)
    }

    fn make_room(&mut self, counters: &mut TransportCounters) {
        if self.slots.len() < REASSEMBLY_SLOTS {
            return;
        }
        if self.slots.remove(0).missing > 0 {
            counters.evicted += 1;
        }
    }
}

fn frame_header(to: Mac, from: Mac, group: GroupId, header: &FragmentHeader) -> [u8; HEADER] {
    let mut frame = [0; HEADER];
    put(&mut frame, 0, to);
    put(&mut frame, 6, from);
    put(&mut frame, 12, ETHERTYPE.to_be_bytes());
    frame[14] = TRANSPORT_VERSION;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "FRAGMENTS_MAX fits a u16, MESSAGE_BYTES_MAX a u32; what is longer is not sent"
    )]
    let (count, total) = (header.count as u16, header.total as u32);
    put(&mut frame, 18, count.to_le_bytes());
    put(&mut frame, 20, total.to_le_bytes());
    put(&mut frame, 24, header.crc.to_le_bytes());
    put(&mut frame, 28, group.0.to_le_bytes());
    put(&mut frame, 36, header.message.to_le_bytes());
    frame
}

fn parse(
    frame: &[u8; HEADER],
    counters: &mut TransportCounters,
) -> Option<(usize, FragmentHeader)> {
    let number = u16::from_le_bytes(take(frame, 16)?);
    let count = u16::from_le_bytes(take(frame, 18)?);
    let total = u32::from_le_bytes(take(frame, 20)?);
    let header = FragmentHeader {
        message: u64::from_le_bytes(take(frame, 36)?),
        count: count.into(),
        total: total as usize,
        crc: u32::from_le_bytes(take(frame, 24)?),
    };
    if header.total > MESSAGE_BYTES_MAX {
        counters.oversized += 1;
        return None;
    }
    if frame[15] != 0 || header.total == 0 || header.count == 0 {
        counters.malformed += 1;
        return None;
    }
    Some((number.into(), header))
}

fn put<const N: usize>(frame: &mut [u8; HEADER], at: usize, bytes: [u8; N]) {
    frame[at..at + N].copy_from_slice(&bytes);
}

fn take<const N: usize>(frame: &[u8; HEADER], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests;
