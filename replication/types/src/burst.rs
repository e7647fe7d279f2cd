//! The packets of an input entry: their byte form, built in place and read without copies.
//!
//! The entry's kind and the count of packets come first, one byte each. Then per packet:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | queue pair in the low seven bits; the top bit says that an offload follows |
//! | 4 | length of the packet |
//! | 0 or 10 | [`Offload`], if the packet is not plain |
//! | length | the packet |

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::entry::{EntryError, field};
use crate::limits::{
    ENTRY_BYTES_MAX, ENTRY_PACKETS_MAX, PACKET_BYTES_MAX, PACKET_BYTES_MIN, QUEUE_PAIRS_MAX,
};
use crate::offload::{OFFLOAD_BYTES, Offload};

/// Kind of an input entry.
pub(crate) const KIND_INPUT: u8 = 1;

/// Bytes before the first packet: kind and count.
pub(crate) const BURST_HEADER_BYTES: usize = 2;

/// Bytes before a plain packet: pair and length.
pub(crate) const PACKET_HEADER_BYTES: usize = 5;

/// Set in a packet's first byte if its offload follows.
const HAS_OFFLOAD: u8 = 0x80;

/// A packet of an input entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The queue pair that it is delivered to.
    pub pair: u8,
    /// What the receiver still has to do.
    pub offload: Offload,
    /// The frame.
    pub bytes: &'a [u8],
}

/// The packets of one input entry: a checked view of the entry's bytes, no copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketBurst {
    /// The whole encoded entry, kind byte included.
    encoded: Bytes,
}

impl PacketBurst {
    /// Where the first packet starts; see [`Self::packet_at`].
    pub const FIRST_OFFSET: usize = BURST_HEADER_BYTES;

    /// Checks the bytes of an input entry.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, EntryError> {
        let burst = Self {
            encoded: bytes.clone(),
        };
        burst.check().map(|()| burst)
    }

    fn check(&self) -> Result<(), EntryError> {
        let count = match self.encoded.first_chunk::<BURST_HEADER_BYTES>() {
            Some([_, count]) => usize::from(*count),
            None => return Err(self.short(BURST_HEADER_BYTES)),
        };
        if count == 0 || count > ENTRY_PACKETS_MAX {
            return Err(field("packet count", count as u64));
        }
        let mut at = BURST_HEADER_BYTES;
        for packet in 0..count {
            at = self.check_packet(packet, at)?;
        }
        match self.encoded.len() - at {
            0 => Ok(()),
            trailing => Err(EntryError::Trailing(trailing)),
        }
    }

    /// Checks the packet at `at`. Returns where the next one starts.
    fn check_packet(&self, packet: usize, at: usize) -> Result<usize, EntryError> {
        let rest = &self.encoded[at..];
        let Some((header, rest)) = rest.split_first_chunk::<PACKET_HEADER_BYTES>() else {
            return Err(self.short(at + PACKET_HEADER_BYTES));
        };
        let (pair, has_offload, length) = read_header(*header);
        if pair >= QUEUE_PAIRS_MAX {
            return Err(field("queue pair", pair.into()));
        }
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&length) {
            return Err(field("packet length", length as u64));
        }
        let mut start = at + PACKET_HEADER_BYTES;
        if has_offload {
            start += OFFLOAD_BYTES;
            let bytes = rest.first_chunk().ok_or_else(|| self.short(start))?;
            let offload = Offload::from_bytes(bytes);
            if offload.is_plain() {
                return Err(field("offload of a plain packet", packet as u64));
            }
            let named = |source| EntryError::Offload { packet, source };
            offload.check(length).map_err(named)?;
        }
        let end = start + length;
        if end > self.encoded.len() {
            return Err(self.short(end));
        }
        Ok(end)
    }

    fn short(&self, need: usize) -> EntryError {
        EntryError::Short {
            have: self.encoded.len(),
            need,
        }
    }

    /// Packets in the burst, 1 to [`ENTRY_PACKETS_MAX`].
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.encoded[1])
    }

    /// Always false: an entry without packets is refused when it is decoded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packet whose header starts at `offset`, and where the next one's does; none at the
    /// end. An offset that did not come from here reads garbage, but nothing outside the entry.
    #[inline]
    #[must_use]
    pub fn packet_at(&self, offset: usize) -> Option<(Packet<'_>, usize)> {
        let (header, rest) = self
            .encoded
            .get(offset..)?
            .split_first_chunk::<PACKET_HEADER_BYTES>()?;
        let (pair, has_offload, length) = read_header(*header);
        let mut start = offset + PACKET_HEADER_BYTES;
        let mut offload = Offload::PLAIN;
        if has_offload {
            offload = Offload::from_bytes(rest.first_chunk()?);
            start += OFFLOAD_BYTES;
        }
        let end = start + length;
        let bytes = self.encoded.get(start..end)?;
        let packet = Packet {
            pair,
            offload,
            bytes,
        };
        Some((packet, end))
    }

    /// The packets, in order.
    pub fn iter(&self) -> impl Iterator<Item = Packet<'_>> {
        let mut offset = Self::FIRST_OFFSET;
        std::iter::from_fn(move || {
            let (packet, next) = self.packet_at(offset)?;
            offset = next;
            Some(packet)
        })
    }

    /// The entry's bytes, ready to be proposed.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }
}

/// Pair, whether an offload follows, and length.
#[inline]
fn read_header([pair, length @ ..]: [u8; PACKET_HEADER_BYTES]) -> (u8, bool, usize) {
    let length = u32::from_le_bytes(length) as usize;
    (pair & !HAS_OFFLOAD, pair & HAS_OFFLOAD != 0, length)
}

/// Collects packets and encodes them in place: one allocation an entry, none a packet. When an
/// entry is full the next one starts; no packet is dropped for want of room.
#[derive(Debug)]
pub struct PacketBurstBuilder {
    buffer: BytesMut,
    /// Full entries that were not taken yet, oldest first.
    full: VecDeque<PacketBurst>,
}

impl Default for PacketBurstBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl PacketBurstBuilder {
    /// An empty burst.
    #[must_use]
    pub fn new() -> Self {
        let mut buffer = BytesMut::new();
        start_entry(&mut buffer);
        Self {
            buffer,
            full: VecDeque::new(),
        }
    }

    /// Packets collected and not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full.iter().map(PacketBurst::len).sum::<usize>() + self.open_packets()
    }

    /// Whether no packet was collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open_packets() == 0
    }

    fn open_packets(&self) -> usize {
        usize::from(self.buffer[1])
    }

    /// Adds a packet; if it does not fit the entry that was begun, it starts the next one.
    ///
    /// # Errors
    /// The pair, the length or the offload is none that an entry may hold. Nothing is added then.
    #[inline]
    pub fn push(&mut self, pair: u8, offload: Offload, packet: &[u8]) -> Result<(), EntryError> {
        if pair >= QUEUE_PAIRS_MAX {
            return Err(field("queue pair", pair.into()));
        }
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&packet.len()) {
            return Err(field("packet length", packet.len() as u64));
        }
        let is_plain = offload.is_plain();
        if !is_plain {
            offload
                .check(packet.len())
                .map_err(|source| EntryError::Offload {
                    packet: self.open_packets(),
                    source,
                })?;
        }
        let bytes_max = PACKET_HEADER_BYTES + OFFLOAD_BYTES + packet.len();
        if self.open_packets() == ENTRY_PACKETS_MAX
            || self.buffer.len() + bytes_max > ENTRY_BYTES_MAX
        {
            self.seal();
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "PACKET_BYTES_MAX fits a u32"
        )]
        let [l0, l1, l2, l3] = (packet.len() as u32).to_le_bytes();
        self.buffer.reserve(bytes_max);
        if is_plain {
            self.buffer.put_slice(&[pair, l0, l1, l2, l3]);
        } else {
            self.buffer.put_slice(&[pair | HAS_OFFLOAD, l0, l1, l2, l3]);
            self.buffer.put_slice(&offload.to_bytes());
        }
        self.buffer.put_slice(packet);
        self.buffer[1] += 1;
        Ok(())
    }

    fn seal(&mut self) {
        let encoded = self.buffer.split().freeze();
        start_entry(&mut self.buffer);
        self.full.push_back(PacketBurst { encoded });
    }

    /// The oldest entry's packets, or nothing if none is left; full ones come first, then the one
    /// that was begun.
    pub fn finish(&mut self) -> Option<PacketBurst> {
        if self.full.is_empty() && self.open_packets() > 0 {
            self.seal();
        }
        self.full.pop_front()
    }
}

fn start_entry(buffer: &mut BytesMut) {
    buffer.put_slice(&[KIND_INPUT, 0]);
}

#[cfg(test)]
mod tests;
