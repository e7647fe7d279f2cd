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
//!
//! The form without all of its packets, a stub, is in `stub`.

mod chunks;
mod copy;
mod stub;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

pub(crate) use self::stub::KIND_STUB;
pub use self::stub::{Found, PacketHeader};

use self::chunks::Chunks;
use crate::entry::{EntryError, LogEntry, field};
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

/// Set in a packet's first byte, in a stub only, if the packet itself lies elsewhere.
const IS_KEPT: u8 = 0x40;

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
    /// Of a stub as it was built: packets that lie elsewhere.
    kept: usize,
}

impl PacketBurst {
    /// Where the first packet starts; see [`Self::packet_at`].
    pub const FIRST_OFFSET: usize = BURST_HEADER_BYTES;

    /// Checks the bytes of an input entry.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, EntryError> {
        let burst = Self {
            encoded: bytes.clone(),
            kept: 0,
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
        let found = self.found_at(offset, || None)?;
        Some((found.packet, found.next))
    }

    /// An entry of a log or a stub, whose bytes were checked when they came into it. If they are
    /// neither after all, what is read of it is garbage, but nothing outside of it.
    #[must_use]
    pub fn of_log(bytes: Bytes) -> Option<Self> {
        (bytes.len() > BURST_HEADER_BYTES && LogEntry::is_input(&bytes)).then_some(Self {
            encoded: bytes,
            kept: 0,
        })
    }

    /// The packets, in order; a stub's up to the first that lies elsewhere.
    pub fn iter(&self) -> impl Iterator<Item = Packet<'_>> {
        let mut offset = Self::FIRST_OFFSET;
        std::iter::from_fn(move || {
            let (packet, next) = self.packet_at(offset)?;
            offset = next;
            Some(packet)
        })
    }

    /// The entry's bytes, ready to be proposed; a stub's only to a core that takes stubs.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }
}

/// Pair, whether an offload follows, and length. The mark of a packet that lies elsewhere is part
/// of the pair, so that none is valid outside of a stub.
#[inline]
fn read_header([pair, length @ ..]: [u8; PACKET_HEADER_BYTES]) -> (u8, bool, usize) {
    let length = u32::from_le_bytes(length) as usize;
    (pair & !HAS_OFFLOAD, pair & HAS_OFFLOAD != 0, length)
}

/// Collects packets and encodes them in place: nothing is allocated for a packet, nor for an entry
/// once the log is as long as it gets. When an entry is full the next one starts; no packet is
/// dropped for want of room.
#[derive(Debug, Default)]
pub struct PacketBurstBuilder {
    /// The entry that was begun, and the room of its chunk behind it.
    buffer: BytesMut,
    /// Packets in the entry that was begun.
    open_packets: usize,
    /// Of these, the ones that lie elsewhere.
    open_kept: usize,
    /// Its bytes, as if it were written out, so that it can be.
    open_bytes: usize,
    /// Full entries that were not taken yet, oldest first.
    full: VecDeque<PacketBurst>,
    full_packets: usize,
    chunks: Chunks,
}

impl PacketBurstBuilder {
    /// An empty burst.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Packets collected and not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full_packets + self.open_packets
    }

    /// Whether no packet was collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a packet; if it does not fit the entry that was begun, it starts the next one.
    ///
    /// # Errors
    /// The pair, the length or the offload is none that an entry may hold. Nothing is added then.
    #[inline(always)]
    pub fn push(&mut self, pair: u8, offload: Offload, packet: &[u8]) -> Result<(), EntryError> {
        let header = PacketHeader {
            pair,
            offload,
            bytes: packet.len(),
        };
        self.push_header(0, header, packet.len())?;
        copy::append(&mut self.buffer, packet);
        Ok(())
    }

    /// Adds the header alone of a packet that stays where it is. The entry becomes a stub.
    ///
    /// # Errors
    /// As [`Self::push`].
    #[inline]
    pub fn push_kept(&mut self, header: PacketHeader) -> Result<(), EntryError> {
        self.push_header(IS_KEPT, header, 0)?;
        self.open_kept += 1;
        Ok(())
    }

    /// Adds the header of a packet, and makes sure that `here` bytes fit behind it.
    #[inline(always)]
    fn push_header(
        &mut self,
        mark: u8,
        header: PacketHeader,
        here: usize,
    ) -> Result<(), EntryError> {
        let PacketHeader {
            pair,
            offload,
            bytes,
        } = header;
        if pair >= QUEUE_PAIRS_MAX {
            return Err(field("queue pair", pair.into()));
        }
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes) {
            return Err(field("packet length", bytes as u64));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "PACKET_BYTES_MAX fits a u32"
        )]
        let [l0, l1, l2, l3] = (bytes as u32).to_le_bytes();
        if offload.is_plain() {
            self.make_room(PACKET_HEADER_BYTES + here, bytes - here);
            self.buffer
                .extend_from_slice(&[pair | mark, l0, l1, l2, l3]);
        } else {
            let packet = self.open_packets;
            let named = |source| EntryError::Offload { packet, source };
            offload.check(bytes).map_err(named)?;
            let header_bytes = PACKET_HEADER_BYTES + OFFLOAD_BYTES;
            self.make_room(header_bytes + here, bytes - here);
            self.buffer
                .extend_from_slice(&[pair | HAS_OFFLOAD | mark, l0, l1, l2, l3]);
            self.buffer.extend_from_slice(&offload.to_bytes());
        }
        self.open_packets += 1;
        Ok(())
    }

    /// Makes sure that a packet fits the entry that is open afterwards: `here` bytes of it in the
    /// entry, the others elsewhere.
    #[inline(always)]
    fn make_room(&mut self, here: usize, elsewhere: usize) {
        let fits = self.open_packets < ENTRY_PACKETS_MAX
            && self.open_bytes + here + elsewhere <= ENTRY_BYTES_MAX
            && self.buffer.len() + here <= self.buffer.capacity();
        if self.open_packets == 0 || !fits {
            self.start_entry(here);
        }
        self.open_bytes += here + elsewhere;
    }

    /// An entry ends with its chunk, too: that is cheaper than to move it.
    #[cold]
    fn start_entry(&mut self, here: usize) {
        self.seal();
        if self.buffer.capacity() < BURST_HEADER_BYTES + here {
            let rest = std::mem::take(&mut self.buffer);
            self.buffer = self.chunks.replace(rest);
        }
        self.buffer.extend_from_slice(&[KIND_INPUT, 0]);
        self.open_bytes = BURST_HEADER_BYTES;
    }

    fn seal(&mut self) {
        if self.open_packets == 0 {
            return;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "ENTRY_PACKETS_MAX fits a u8"
        )]
        let count = self.open_packets as u8;
        self.buffer[1] = count;
        if self.open_kept > 0 {
            self.buffer[0] = KIND_STUB;
        }
        self.full_packets += self.open_packets;
        self.open_packets = 0;
        self.full.push_back(PacketBurst {
            encoded: self.buffer.split().freeze(),
            kept: std::mem::take(&mut self.open_kept),
        });
    }

    /// The oldest entry's packets, or nothing if none is left; full ones come first, then the one
    /// that was begun.
    pub fn finish(&mut self) -> Option<PacketBurst> {
        if self.full.is_empty() {
            self.seal();
        }
        let burst = self.full.pop_front()?;
        self.full_packets -= burst.len();
        Some(burst)
    }
}

#[cfg(test)]
mod tests;
