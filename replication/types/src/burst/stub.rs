//! Stubs: what stands in the log for an input entry of which some packets still lie where they were
//! received. A stub is the entry with the headers alone of those packets, under a kind of its own:
//! [`LogEntry::decode`](crate::LogEntry::decode) refuses it, so none gets out of a node or into it.
//! With the packets it can be written out at any time, to the very bytes that the entry would have
//! had from the start.

use bytes::{Bytes, BytesMut};

use super::{
    BURST_HEADER_BYTES, IS_KEPT, KIND_INPUT, PACKET_HEADER_BYTES, Packet, PacketBurst, read_header,
};
use crate::limits::ENTRY_BYTES_MAX;
use crate::offload::{OFFLOAD_BYTES, Offload};

/// Kind of a stub.
pub(crate) const KIND_STUB: u8 = 0xff;

/// What an entry says of a packet before its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// The queue pair that it is delivered to.
    pub pair: u8,
    /// What the receiver still has to do.
    pub offload: Offload,
    /// Its length.
    pub bytes: usize,
}

/// A packet of an entry or a stub, and what follows.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Whether it lies elsewhere.
    pub is_kept: bool,
    /// Where the next one's header starts.
    pub next: usize,
}

impl PacketBurst {
    /// Whether packets of it lie elsewhere.
    #[inline]
    #[must_use]
    pub fn is_stub(&self) -> bool {
        self.encoded.first() == Some(&KIND_STUB)
    }

    /// How many packets lie elsewhere; known of a burst that comes from its builder.
    #[must_use]
    pub fn kept_packets(&self) -> usize {
        self.kept
    }

    /// The packet whose header starts at `offset`; `kept` gives its bytes if it lies elsewhere. As
    /// [`Self::packet_at`] otherwise.
    #[inline]
    #[must_use]
    pub fn found_at<'a>(
        &'a self,
        offset: usize,
        kept: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Option<Found<'a>> {
        let (header, is_kept, start) = self.header_at(offset)?;
        let end = start + header.bytes;
        let (bytes, next) = if is_kept {
            (kept()?, start)
        } else {
            (self.encoded.get(start..end)?, end)
        };
        let packet = Packet {
            pair: header.pair,
            offload: header.offload,
            bytes,
        };
        Some(Found {
            packet,
            is_kept,
            next,
        })
    }

    /// Whether the packet whose header starts at `offset` lies elsewhere, and where the next one's
    /// does; none at the end.
    #[must_use]
    pub fn skip_at(&self, offset: usize) -> Option<(bool, usize)> {
        let (header, is_kept, start) = self.header_at(offset)?;
        let here = if is_kept { 0 } else { header.bytes };
        Some((is_kept, start + here))
    }

    /// The packet header at `offset`, whether the packet lies elsewhere, and where the header ends.
    #[inline(always)]
    fn header_at(&self, offset: usize) -> Option<(PacketHeader, bool, usize)> {
        let (header, rest) = self
            .encoded
            .get(offset..)?
            .split_first_chunk::<PACKET_HEADER_BYTES>()?;
        let (pair, has_offload, bytes) = read_header(*header);
        let mut end = offset + PACKET_HEADER_BYTES;
        let mut offload = Offload::PLAIN;
        if has_offload {
            offload = Offload::from_bytes(rest.first_chunk()?);
            end += OFFLOAD_BYTES;
        }
        let header = PacketHeader {
            pair: pair & !IS_KEPT,
            offload,
            bytes,
        };
        Some((header, pair & IS_KEPT != 0, end))
    }

    /// The entry that this stub stands for. `kept` gives the packets that lie elsewhere, by their
    /// number among these. None if it is no stub, or these are not its packets.
    #[must_use]
    pub fn written_out<'a>(&self, kept: impl Fn(usize) -> Option<&'a [u8]>) -> Option<Self> {
        if !self.is_stub() {
            return None;
        }
        let mut written = BytesMut::with_capacity(BURST_HEADER_BYTES);
        written.extend_from_slice(&[KIND_INPUT, self.encoded[1]]);
        let mut offset = Self::FIRST_OFFSET;
        let mut number = 0;
        for _ in 0..self.len() {
            let (header, is_kept, end) = self.header_at(offset)?;
            let at = written.len();
            written.extend_from_slice(self.encoded.get(offset..end)?);
            written[at] &= !IS_KEPT;
            offset = end;
            if is_kept {
                let bytes = kept(number).filter(|bytes| bytes.len() == header.bytes)?;
                written.extend_from_slice(bytes);
                number += 1;
            } else {
                let bytes = self.encoded.get(offset..offset + header.bytes)?;
                written.extend_from_slice(bytes);
                offset += header.bytes;
            }
        }
        debug_assert!(written.len() <= ENTRY_BYTES_MAX);
        // In memory of its own length: it may stay in the log for long.
        let encoded = Bytes::copy_from_slice(&written);
        Some(Self { encoded, kept: 0 })
    }
}
