//! The receive ring: frames from the host into buffers that the guest posted. A burst is laid in
//! in two passes: the first finds where each packet goes and asks the cache for it, the second
//! copies. All of a packet or none: a chain is written only when enough were found for its packet.

use std::ptr::NonNull;

use super::chain::{Access, Descriptor};
use super::copy::{self, prefetch_to_read, prefetch_to_write};
use super::fault::RingFault;
use super::frame::Frame;
use super::guest_map::Piece;
use super::split::SplitRing;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_ORDINARY, NET_HEADER_BYTES, RING_BURST_MAX};

use self::scatter::Chains;

mod scatter;

/// Bytes of a packet that the cache is asked for: beyond them its own prefetcher has found the way.
const PREFETCH_BYTES: usize = 256;
const CACHE_LINE_BYTES: usize = 64;

/// Room to find a burst's buffers in, allocated once.
pub struct ReceiveScratch {
    places: Box<[Place; RING_BURST_MAX]>,
    chains: Chains,
}

/// Where a packet goes.
#[derive(Clone, Copy)]
enum Place {
    /// Into one buffer: how it nearly always is.
    Buffer { head: u16, piece: Piece },
    /// Over these chains of the scratch.
    Chains { from: u32, to: u32 },
    /// Nowhere: no buffer of this guest's will ever hold it.
    Nowhere,
}

impl Default for ReceiveScratch {
    fn default() -> Self {
        Self {
            places: Box::new([Place::Nowhere; RING_BURST_MAX]),
            chains: Chains::default(),
        }
    }
}

/// Why not all frames of a burst were laid in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlaid {
    /// The guest has posted too little room: try again later.
    NoBuffer,
    /// The ring is broken.
    Fault(RingFault),
}

/// What became of a burst of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaidBurst {
    /// Frames of the burst that are done with, from its front.
    pub frames: usize,
    /// Of these, the ones that no buffer of the guest's can hold, left out.
    pub too_long: usize,
    /// Bytes of the others.
    pub bytes: u64,
    /// Why there are not more of them.
    pub stop: Option<Unlaid>,
}

impl SplitRing {
    /// Lays frames with their headers into the ring, not yet visible to the guest: from the first
    /// on, a ring's burst at most.
    ///
    /// # Panics
    /// If a frame is empty or longer than the limit: the caller admitted it.
    #[inline]
    pub fn deliver_burst(
        &mut self,
        scratch: &mut ReceiveScratch,
        frames: &[Frame<'_>],
    ) -> LaidBurst {
        let frames = &frames[..frames.len().min(RING_BURST_MAX)];
        let mut laid = LaidBurst::default();
        let found = self.find_places(scratch, frames, &mut laid.stop);
        for (frame, place) in frames.iter().zip(&scratch.places[..found]) {
            match place {
                Place::Buffer { head, piece } => self.fill(*head, *piece, frame),
                Place::Chains { from, to } => {
                    self.fill_chains(&scratch.chains, *from..*to, frame);
                }
                Place::Nowhere => {
                    laid.too_long += 1;
                    continue;
                }
            }
            laid.bytes += frame.bytes.len() as u64;
        }
        laid.frames = found;
        laid
    }

    /// First pass.
    #[inline(always)]
    fn find_places(
        &mut self,
        scratch: &mut ReceiveScratch,
        frames: &[Frame<'_>],
        stop: &mut Option<Unlaid>,
    ) -> usize {
        scratch.chains.clear();
        let mut offered = match self.offered_of(frames.len()) {
            Ok(offered) => offered,
            Err(fault) => {
                *stop = Some(Unlaid::Fault(fault));
                return 0;
            }
        };
        let mut chain = 0;
        for (number, frame) in frames.iter().enumerate() {
            let bytes = frame.bytes.len();
            assert!(
                (1..=FRAME_BYTES_MAX).contains(&bytes),
                "frame outside the limits"
            );
            let place = self.find_place(&mut scratch.chains, &mut chain, &mut offered, bytes);
            match place {
                Ok(place) => scratch.places[number] = place,
                Err(why) => {
                    *stop = Some(why);
                    return number;
                }
            }
        }
        frames.len()
    }

    #[inline(always)]
    fn find_place(
        &mut self,
        chains: &mut Chains,
        chain: &mut usize,
        offered: &mut usize,
        frame_bytes: usize,
    ) -> Result<Place, Unlaid> {
        if *chain >= *offered {
            *offered = self.offered_of(*chain + 1).map_err(Unlaid::Fault)?;
            if *chain >= *offered {
                return Err(Unlaid::NoBuffer);
            }
        }
        let head = self.head(*chain);
        let first = self.chains.first(head).map_err(Unlaid::Fault)?;
        let packet_bytes = self.features.header_bytes + frame_bytes;
        if let Some(piece) = self.only_piece(first, packet_bytes) {
            self.prefetch_place(piece);
            *chain += 1;
            return Ok(Place::Buffer { head, piece });
        }
        self.find_chains(chains, chain, offered, frame_bytes)
    }

    #[inline(always)]
    fn only_piece(&mut self, first: Descriptor, packet_bytes: usize) -> Option<Piece> {
        let buffer = first
            .only_buffer(Access::Write)
            .filter(|buffer| buffer.bytes as usize >= packet_bytes)?;
        let host = self.packets.whole(buffer.address, packet_bytes as u64)?;
        Some(Piece {
            host,
            address: buffer.address,
            bytes: packet_bytes,
        })
    }

    /// The header is read before it is written (see [`Self::fill`]), the rest only written.
    #[inline(always)]
    fn prefetch_place(&self, place: Piece) {
        prefetch_to_read(place.host.as_ptr());
        let frame = place.host.as_ptr().wrapping_add(self.features.header_bytes);
        for at in (0..place.bytes.min(PREFETCH_BYTES)).step_by(CACHE_LINE_BYTES) {
            prefetch_to_write(frame.wrapping_add(at));
        }
    }

    /// Second pass: header and frame into one buffer.
    #[inline(always)]
    fn fill(&mut self, head: u16, place: Piece, frame: &Frame<'_>) {
        let header_bytes = self.features.header_bytes;
        let header = header_of(frame, 1);
        // SAFETY: `place` was found mapped for the whole packet, header and frame.
        unsafe {
            write_if_other(&header, header_bytes, place.host);
            copy::to_guest(frame.bytes, place.host.add(header_bytes));
        }
        self.mark(place.address, place.bytes as u64);
        self.return_chain(head, place.bytes as u32);
    }
}

/// Writes the header unless it is there already, left by an earlier packet. Guests that lay the
/// frame on a line of its own and never write the header keep a copy of its line, and so do we.
///
/// # Safety
/// `to` is mapped for `bytes`, which is a header's length.
#[inline(always)]
unsafe fn write_if_other(header: &[u8; NET_HEADER_BYTES], bytes: usize, to: NonNull<u8>) {
    /// As in guest memory, where it may lie at any address.
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Header(u64, u32);
    // SAFETY: the whole header is mapped; packed, so any address is aligned. Volatile: a read that
    // the compiler may not repeat. A guest that changes it meanwhile gets the header of its choice.
    unsafe {
        if bytes == NET_HEADER_BYTES {
            let found = to.cast::<Header>().read_volatile();
            let wanted = header.as_ptr().cast::<Header>().read();
            if (found.0, found.1) == (wanted.0, wanted.1) {
                return;
            }
        }
        copy::to_guest(&header[..bytes], to);
    }
}

/// The header of a packet over `chains` chains.
#[inline(always)]
fn header_of(frame: &Frame<'_>, chains: u16) -> [u8; NET_HEADER_BYTES] {
    let mut header = [0; NET_HEADER_BYTES];
    let (offload, buffers) = header.split_at_mut(NET_HEADER_BYTES - 2);
    offload.copy_from_slice(&frame.offload.to_bytes());
    buffers.copy_from_slice(&chains.to_le_bytes());
    header
}
