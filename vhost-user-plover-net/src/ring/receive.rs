//! The receive ring: frames from the host into buffers that the guest posted. A burst is laid in
//! in two passes: the first finds where each packet goes and asks the cache for it, the second
//! copies. All of a packet or none: a chain is written only when enough were found for its packet.

use std::num::Wrapping;
use std::ptr::NonNull;

use plover_types::Offload;

use super::chain::Access;
use super::copy::{self, prefetch_to_read, prefetch_to_write};
use super::fault::RingFault;
use super::frame::ToLay;
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

/// Where a packet goes. Written and read field by field: a whole one that is put together and then
/// moved makes the processor wait for its own stores.
#[derive(Clone, Copy)]
struct Place {
    /// The one buffer, of at least the packet's length.
    host: NonNull<u8>,
    address: u64,
    head: u16,
    kind: Kind,
    /// Or the chains of the scratch.
    chains: (u32, u32),
}

// SAFETY: an address, looked at only by the ring that found it, while it lives.
unsafe impl Send for Place {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Into one buffer: how it nearly always is.
    Buffer,
    /// Over several, or over the pieces of one.
    Chains,
    /// No buffer of this guest's will ever hold it.
    Nowhere,
}

impl Default for ReceiveScratch {
    fn default() -> Self {
        let nowhere = Place {
            host: NonNull::dangling(),
            address: 0,
            head: 0,
            kind: Kind::Nowhere,
            chains: (0, 0),
        };
        Self {
            places: Box::new([nowhere; RING_BURST_MAX]),
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
        frames: &[impl ToLay],
    ) -> LaidBurst {
        let frames = &frames[..frames.len().min(RING_BURST_MAX)];
        let mut laid = LaidBurst::default();
        let found = self.find_places(scratch, frames, &mut laid.stop);
        let mut index = self.next;
        for (frame, place) in frames.iter().zip(&scratch.places[..found]) {
            match place.kind {
                Kind::Buffer => {
                    self.fill(index, place, frame);
                    index += 1;
                }
                Kind::Chains => {
                    index += self.fill_chains(index, &scratch.chains, place.chains, frame);
                }
                Kind::Nowhere => {
                    laid.too_long += 1;
                    continue;
                }
            }
            laid.bytes += frame.bytes().len() as u64;
        }
        self.next = index;
        laid.frames = found;
        laid
    }

    /// First pass.
    #[inline(always)]
    fn find_places(
        &mut self,
        scratch: &mut ReceiveScratch,
        frames: &[impl ToLay],
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
            let bytes = frame.bytes().len();
            assert!(
                (1..=FRAME_BYTES_MAX).contains(&bytes),
                "frame outside the limits"
            );
            if chain >= offered {
                match self.offered_of(chain + 1) {
                    Ok(now) if now > chain => offered = now,
                    Ok(_) => {
                        *stop = Some(Unlaid::NoBuffer);
                        return number;
                    }
                    Err(fault) => {
                        *stop = Some(Unlaid::Fault(fault));
                        return number;
                    }
                }
            }
            let place = &mut scratch.places[number];
            if self.find_buffer(place, chain, bytes) {
                chain += 1;
                continue;
            }
            let found = self.find_chains(&mut scratch.chains, chain, offered, bytes);
            match found {
                Ok(found) => (chain, offered) = found.put_into(place),
                Err(why) => {
                    *stop = Some(why);
                    return number;
                }
            }
        }
        frames.len()
    }

    /// The first and only buffer of the chain `chain` places ahead, if it holds the packet.
    #[inline(always)]
    fn find_buffer(&mut self, place: &mut Place, chain: usize, frame_bytes: usize) -> bool {
        let packet_bytes = self.features.header_bytes + frame_bytes;
        let head = self.head(chain);
        if let Ok(first) = self.chains.first(head)
            && let Some(buffer) = first.only_buffer(Access::Write)
            && buffer.bytes as usize >= packet_bytes
            && let Some(host) = self.packets.whole(buffer.address, packet_bytes as u64)
        {
            self.prefetch_place(host, packet_bytes);
            place.host = host;
            place.address = buffer.address;
            place.head = head;
            place.kind = Kind::Buffer;
            return true;
        }
        false
    }

    /// The header is read before it is written (see [`Self::fill`]), the rest only written.
    #[inline(always)]
    fn prefetch_place(&self, host: NonNull<u8>, packet_bytes: usize) {
        prefetch_to_read(host.as_ptr());
        let frame = host.as_ptr().wrapping_add(self.features.header_bytes);
        for at in (0..packet_bytes.min(PREFETCH_BYTES)).step_by(CACHE_LINE_BYTES) {
            prefetch_to_write(frame.wrapping_add(at));
        }
    }

    /// The header of a packet over `chains` chains.
    #[inline(always)]
    fn header_of(&self, frame: &impl ToLay, chains: u16) -> Header {
        let offload = if self.features.guest_offloads {
            frame.offload()
        } else {
            Offload::PLAIN
        };
        Header::new(&offload, chains)
    }

    /// Second pass: header and frame into one buffer.
    #[inline(always)]
    fn fill(&mut self, index: Wrapping<u16>, place: &Place, frame: &impl ToLay) {
        let header_bytes = self.features.header_bytes;
        let header = self.header_of(frame, 1);
        // SAFETY: `place` was found mapped for the whole packet, header and frame.
        unsafe {
            header.write_if_other(header_bytes, place.host);
            copy::to_guest(frame.bytes(), place.host.add(header_bytes));
        }
        let packet_bytes = header_bytes + frame.bytes().len();
        self.mark(place.address, packet_bytes as u64);
        self.write_used(index, place.head, packet_bytes as u32);
    }
}

/// A virtio-net header as it lies in guest memory, at any address: two numbers, since it is compared
/// as such, and put together from bytes it would make the processor wait for its own stores.
#[repr(C, packed)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    first: u64,
    second: u32,
}

const _: () = assert!(size_of::<Header>() == NET_HEADER_BYTES);

impl Header {
    #[inline(always)]
    fn new(offload: &Offload, chains: u16) -> Self {
        let first = u64::from(offload.flags)
            | u64::from(offload.gso_type) << 8
            | u64::from(offload.header_bytes) << 16
            | u64::from(offload.gso_bytes) << 32
            | u64::from(offload.checksum_start) << 48;
        Self {
            first,
            second: u32::from(offload.checksum_offset) | u32::from(chains) << 16,
        }
    }

    fn to_bytes(self) -> [u8; NET_HEADER_BYTES] {
        let mut bytes = [0; NET_HEADER_BYTES];
        bytes[..8].copy_from_slice(&{ self.first }.to_le_bytes());
        bytes[8..].copy_from_slice(&{ self.second }.to_le_bytes());
        bytes
    }

    /// Writes the header unless it is there already, left by an earlier packet. A guest that lays
    /// the frame on a line of its own and never writes the header keeps a copy of its line, and so
    /// do we.
    ///
    /// # Safety
    /// `to` is mapped for `bytes`, which is a header's length.
    #[inline(always)]
    unsafe fn write_if_other(self, bytes: usize, to: NonNull<u8>) {
        if bytes != NET_HEADER_BYTES {
            // SAFETY: promised by the caller.
            return unsafe { copy::to_guest(&self.to_bytes()[..bytes], to) };
        }
        // SAFETY: the whole header is mapped; packed, so any address is aligned. Volatile: a read
        // that the compiler may not repeat. A guest that changes it meanwhile gets the header of
        // its choice.
        unsafe {
            if to.cast::<Self>().read_volatile() != self {
                to.cast::<Self>().write(self);
            }
        }
    }
}
