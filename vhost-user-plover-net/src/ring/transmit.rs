//! The transmit ring: frames that the guest sends. A burst is taken in two passes: the first finds
//! the frames in guest memory and asks the cache for them, the second has them copied out, each
//! straight to where it goes. A chain is returned as soon as its bytes were copied, so a stopped
//! ring holds nothing of ours.

use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::ptr::NonNull;

use plover_types::Offload;
use plover_types::offload::OFFLOAD_BYTES;

use super::chain::{Access, Descriptor};
use super::copy::prefetch_to_read;
use super::fault::RingFault;
use super::frame::{FrameSink, GuestFrame};
use super::guest_map::Piece;
use super::split::SplitRing;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, RING_BURST_MAX, SEGMENTS_MAX};

/// Bytes of a frame that the cache is asked for: beyond them its own prefetcher has found the way.
const PREFETCH_BYTES: usize = 256;
const CACHE_LINE_BYTES: usize = 64;

/// Pieces of a burst; a packet that may not fit into what is left begins the next burst.
const PIECES_MAX: usize = SEGMENTS_MAX + 64 * RING_BURST_MAX;

/// Room to find a burst's packets in, allocated once.
pub struct TransmitScratch {
    packets: Box<[Found; RING_BURST_MAX]>,
    pieces: Vec<Piece>,
}

/// A packet in guest memory, header and frame. Written and read field by field: a whole one that is
/// put together and then moved makes the processor wait for its own stores.
#[derive(Clone, Copy)]
struct Found {
    /// Its first piece.
    host: NonNull<u8>,
    piece_bytes: u32,
    /// Of all pieces.
    bytes: u32,
    /// Further pieces: where they begin and end in the scratch.
    more: (u32, u32),
    head: u16,
    verdict: Verdict,
}

// SAFETY: an address, looked at only by the ring that found it, while it lives.
unsafe impl Send for Found {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    TooLong,
    TooShort,
}

impl Default for TransmitScratch {
    fn default() -> Self {
        let nothing = Found {
            host: NonNull::dangling(),
            piece_bytes: 0,
            bytes: 0,
            more: (0, 0),
            head: 0,
            verdict: Verdict::TooShort,
        };
        Self {
            packets: Box::new([nothing; RING_BURST_MAX]),
            pieces: Vec::with_capacity(PIECES_MAX),
        }
    }
}

/// What was taken from a transmit ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenBurst {
    /// Frames that the sink was given.
    pub frames: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Packets longer than a driver may send; returned, not given on.
    pub too_long: usize,
    /// Packets too short for an Ethernet header; returned, not given on.
    pub too_short: usize,
    /// What stops the ring, behind all of these.
    pub fault: Option<RingFault>,
}

impl TakenBurst {
    /// Chains that were returned.
    #[must_use]
    pub fn chains(&self) -> usize {
        self.frames + self.too_long + self.too_short
    }
}

impl SplitRing {
    /// Takes a burst of up to `room` frames, gives each to `sink` and returns the chains, not yet
    /// visible to the guest. `pair` is what the sink is told.
    #[inline]
    pub fn take_burst(
        &mut self,
        pair: u8,
        scratch: &mut TransmitScratch,
        room: usize,
        sink: &mut impl FrameSink,
    ) -> TakenBurst {
        let mut taken = TakenBurst::default();
        let found = self.find_packets(scratch, room, &mut taken.fault);
        if found == 0 {
            return taken;
        }
        let TransmitScratch { packets, pieces } = scratch;
        let packets = &packets[..found];
        let good = packets.iter().filter(|p| p.verdict == Verdict::Good);
        let takes = sink.prepare(good.count());
        for packet in packets {
            match packet.verdict {
                Verdict::TooLong => taken.too_long += 1,
                Verdict::TooShort => taken.too_short += 1,
                Verdict::Good if taken.frames == takes => break,
                Verdict::Good => {
                    let frame = self.frame_of(packet, pair, pieces);
                    taken.frames += 1;
                    taken.bytes += frame.len() as u64;
                    sink.take(frame);
                }
            }
        }
        if taken.chains() < found {
            // The broken chain is met again, when it is the next one.
            taken.fault = None;
        }
        self.return_read_chains(taken.chains(), |number| packets[number].head);
        taken
    }

    /// First pass.
    #[inline(always)]
    fn find_packets(
        &mut self,
        scratch: &mut TransmitScratch,
        room: usize,
        fault: &mut Option<RingFault>,
    ) -> usize {
        scratch.pieces.clear();
        let offered = match self.offered_of(room.min(RING_BURST_MAX)) {
            Ok(offered) => offered,
            Err(jump) => {
                *fault = Some(jump);
                return 0;
            }
        };
        for number in 0..offered {
            if scratch.pieces.len() + SEGMENTS_MAX > PIECES_MAX {
                return number;
            }
            let packet = &mut scratch.packets[number];
            packet.head = self.head(number);
            if let Err(broken) = self.find_packet(&mut scratch.pieces, packet) {
                *fault = Some(broken);
                return number;
            }
        }
        offered
    }

    #[inline(always)]
    fn find_packet(
        &mut self,
        pieces: &mut Vec<Piece>,
        packet: &mut Found,
    ) -> Result<(), RingFault> {
        let header_bytes = self.features.header_bytes;
        let first = self.chains.first(packet.head)?;
        let ordinary = header_bytes + FRAME_BYTES_MIN..=header_bytes + FRAME_BYTES_MAX;
        if let Some(buffer) = first.only_buffer(Access::Read)
            && ordinary.contains(&(buffer.bytes as usize))
            && let Some(host) = self.packets.whole(buffer.address, u64::from(buffer.bytes))
        {
            self.prefetch_packet(host, buffer.bytes as usize);
            packet.host = host;
            packet.piece_bytes = buffer.bytes;
            packet.bytes = buffer.bytes;
            packet.more = (0, 0);
            packet.verdict = Verdict::Good;
            return Ok(());
        }
        self.find_pieces(pieces, packet, first)
    }

    /// The header's line only where it is read.
    #[inline(always)]
    fn prefetch_packet(&self, packet: NonNull<u8>, bytes: usize) {
        let skip = if self.features.offloads {
            0
        } else {
            self.features.header_bytes
        };
        for at in (skip..bytes.min(PREFETCH_BYTES)).step_by(CACHE_LINE_BYTES) {
            prefetch_to_read(packet.as_ptr().wrapping_add(at));
        }
    }

    /// The general case: a chain of any buffers, which may span regions.
    #[cold]
    fn find_pieces(
        &mut self,
        pieces: &mut Vec<Piece>,
        packet: &mut Found,
        first: Descriptor,
    ) -> Result<(), RingFault> {
        let header_bytes = self.features.header_bytes;
        let limit = header_bytes + FRAME_BYTES_MAX;
        let begin = pieces.len();
        let packets = &mut self.packets;
        let mut found = 0;
        self.chains.walk(first, Access::Read, |buffer| {
            found += buffer.bytes as usize;
            if found > limit {
                return Ok(ControlFlow::Break(()));
            }
            let (mut address, mut left) = (buffer.address, u64::from(buffer.bytes));
            while left > 0 {
                let piece = packets.piece(address, left);
                let piece = piece.ok_or(RingFault::BufferOutsideMemory {
                    address: buffer.address,
                    bytes: buffer.bytes,
                })?;
                pieces.push(piece);
                address = address.wrapping_add(piece.bytes as u64);
                left -= piece.bytes as u64;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if found == 0 {
            return Err(RingFault::EmptyChain);
        }
        if found < header_bytes {
            return Err(RingFault::HeaderDoesNotFit { bytes: found });
        }
        packet.verdict = match found {
            found if found > limit => Verdict::TooLong,
            found if found < header_bytes + FRAME_BYTES_MIN => Verdict::TooShort,
            _ => Verdict::Good,
        };
        if packet.verdict != Verdict::Good {
            pieces.truncate(begin);
        } else if let Some(piece) = pieces.get(begin) {
            packet.host = piece.host;
            packet.piece_bytes = piece.bytes as u32;
            packet.bytes = found as u32;
            packet.more = (begin as u32 + 1, pieces.len() as u32);
        }
        Ok(())
    }

    /// The frame behind the header, and what the header says of it.
    #[inline(always)]
    fn frame_of<'a>(&self, packet: &Found, pair: u8, pieces: &'a [Piece]) -> GuestFrame<'a> {
        let (from, to) = packet.more;
        let mut frame = GuestFrame {
            pair,
            offload: Offload::default(),
            bytes: packet.bytes as usize,
            host: packet.host,
            piece_bytes: packet.piece_bytes as usize,
            more: pieces.get(from as usize..to as usize).unwrap_or_default(),
        };
        let mut unread = self.features.header_bytes;
        if self.features.offloads {
            let mut header = [0; OFFLOAD_BYTES];
            frame.read(as_uninit(&mut header));
            frame.offload = Offload::from_bytes(&header);
            unread -= OFFLOAD_BYTES;
        }
        frame.skip(unread);
        frame
    }
}

fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the same bytes; what is written through the result is initialised.
    unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) }
}
