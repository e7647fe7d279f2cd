//! The general case of the receive ring: a packet over several chains, buffers of any length,
//! indirect tables, buffers that span regions.

use std::num::Wrapping;
use std::ops::ControlFlow;

use super::{FRAME_BYTES_ORDINARY, Kind, Place, Unlaid};
use crate::limits::{RING_BURST_MAX, SEGMENTS_MAX};
use crate::ring::chain::Access;
use crate::ring::copy;
use crate::ring::fault::RingFault;
use crate::ring::frame::ToLay;
use crate::ring::guest_map::Piece;
use crate::ring::split::SplitRing;

/// Pieces of a burst; a packet that may not fit into what is left begins the next burst.
const PIECES_MAX: usize = SEGMENTS_MAX + 64 * RING_BURST_MAX;

/// Chains that were found for packets, with their pieces, in order.
pub(super) struct Chains {
    found: Vec<Found>,
    pieces: Vec<Piece>,
}

/// A chain that a packet goes into.
#[derive(Clone, Copy)]
struct Found {
    head: u16,
    /// Bytes of the packet in this chain.
    bytes: u32,
    /// Where its pieces end; they begin where those of the chain before end.
    pieces_end: u32,
}

impl Default for Chains {
    fn default() -> Self {
        // Each chain has a piece, and each piece holds at least one byte of its packet.
        Self {
            found: Vec::with_capacity(PIECES_MAX),
            pieces: Vec::with_capacity(PIECES_MAX),
        }
    }
}

impl Chains {
    #[inline]
    pub(super) fn clear(&mut self) {
        self.found.clear();
        self.pieces.clear();
    }

    fn truncate(&mut self, found: usize, pieces: usize) {
        self.found.truncate(found);
        self.pieces.truncate(pieces);
    }

    fn pieces_of(&self, chain: usize) -> &[Piece] {
        let begin = match chain {
            0 => 0,
            chain => self.found[chain - 1].pieces_end as usize,
        };
        &self.pieces[begin..self.found[chain].pieces_end as usize]
    }
}

/// What was found for a packet.
pub(super) struct FoundChains {
    /// None: no buffer of the guest's will ever hold it.
    chains: Option<(u32, u32)>,
    /// The chain behind them.
    next: usize,
    /// Chains known to be offered.
    offered: usize,
}

impl FoundChains {
    /// Returns the chain to go on with, and how many are known to be offered.
    pub(super) fn put_into(self, place: &mut Place) -> (usize, usize) {
        place.kind = match self.chains {
            Some(chains) => {
                place.chains = chains;
                Kind::Chains
            }
            None => Kind::Nowhere,
        };
        (self.next, self.offered)
    }
}

impl SplitRing {
    /// Finds chains for a packet, from number `chain` on, of which `offered` are known.
    #[cold]
    pub(super) fn find_chains(
        &mut self,
        chains: &mut Chains,
        chain: usize,
        mut offered: usize,
        frame_bytes: usize,
    ) -> Result<FoundChains, Unlaid> {
        if chains.pieces.len() + SEGMENTS_MAX > PIECES_MAX {
            return Err(Unlaid::NoBuffer);
        }
        let (from, pieces) = (chains.found.len(), chains.pieces.len());
        let mut next = chain;
        let gathered = self.gather(chains, &mut next, &mut offered, frame_bytes);
        if let Ok(true) = gathered {
            return Ok(FoundChains {
                chains: Some((from as u32, chains.found.len() as u32)),
                next,
                offered,
            });
        }
        chains.truncate(from, pieces);
        gathered.map(|_| FoundChains {
            chains: None,
            next: chain,
            offered,
        })
    }

    /// False if no buffer of the guest's can hold the packet.
    fn gather(
        &mut self,
        chains: &mut Chains,
        next: &mut usize,
        offered: &mut usize,
        frame_bytes: usize,
    ) -> Result<bool, Unlaid> {
        let header_bytes = self.features.header_bytes;
        let wanted = header_bytes + frame_bytes;
        let begin = *next;
        let mut gathered = 0;
        while gathered < wanted {
            if *next >= *offered {
                *offered = self.offered_of(*next + 1).map_err(Unlaid::Fault)?;
                if *next >= *offered {
                    return self.short_of_chains(begin, *next, gathered, frame_bytes);
                }
            }
            let head = self.head(*next);
            let bytes = self
                .gather_chain(chains, head, wanted - gathered)
                .map_err(Unlaid::Fault)?;
            if bytes == 0 {
                return Err(Unlaid::Fault(RingFault::EmptyChain));
            }
            if gathered == 0 && bytes < header_bytes {
                return Err(Unlaid::Fault(RingFault::HeaderDoesNotFit { bytes }));
            }
            gathered += bytes;
            *next += 1;
            if !self.features.mergeable && gathered < wanted {
                return too_small(gathered, wanted, frame_bytes);
            }
        }
        Ok(true)
    }

    /// Waiting helps unless the guest has posted all it can.
    fn short_of_chains(
        &self,
        begin: usize,
        end: usize,
        bytes: usize,
        frame_bytes: usize,
    ) -> Result<bool, Unlaid> {
        if begin == 0 && end == usize::from(self.size()) {
            let wanted = self.features.header_bytes + frame_bytes;
            return too_small(bytes, wanted, frame_bytes);
        }
        Err(Unlaid::NoBuffer)
    }

    fn gather_chain(
        &mut self,
        chains: &mut Chains,
        head: u16,
        wanted: usize,
    ) -> Result<usize, RingFault> {
        let first = self.chains.first(head)?;
        let (packets, pieces) = (&mut self.packets, &mut chains.pieces);
        let mut bytes = 0;
        self.chains.walk(first, Access::Write, |buffer| {
            let run = (buffer.bytes as usize).min(wanted - bytes);
            let (mut address, mut left) = (buffer.address, run as u64);
            while left > 0 {
                let piece = packets.piece(address, left);
                let piece = piece.ok_or(RingFault::BufferOutsideMemory {
                    address: buffer.address,
                    bytes: run as u32,
                })?;
                pieces.push(piece);
                address = address.wrapping_add(piece.bytes as u64);
                left -= piece.bytes as u64;
            }
            bytes += run;
            Ok(if bytes == wanted {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        chains.found.push(Found {
            head,
            bytes: bytes as u32,
            pieces_end: chains.pieces.len() as u32,
        });
        Ok(bytes)
    }

    /// Second pass: header and frame over chains. Returns how many.
    #[cold]
    pub(super) fn fill_chains(
        &mut self,
        mut index: Wrapping<u16>,
        chains: &Chains,
        (from, to): (u32, u32),
        frame: &impl ToLay,
    ) -> u16 {
        let header = self.header_of(frame, (to - from) as u16).to_bytes();
        let mut header = &header[..self.features.header_bytes];
        let mut bytes = frame.bytes();
        for chain in from..to {
            for piece in chains.pieces_of(chain as usize) {
                self.fill_piece(*piece, [&mut header, &mut bytes]);
            }
            let Found { head, bytes, .. } = chains.found[chain as usize];
            self.write_used(index, head, bytes);
            index += 1;
        }
        assert!(bytes.is_empty(), "the chains found hold the whole packet");
        (to - from) as u16
    }

    fn fill_piece(&mut self, piece: Piece, sources: [&mut &[u8]; 2]) {
        let mut filled = 0;
        for source in sources {
            let (now, later) = source.split_at(source.len().min(piece.bytes - filled));
            // SAFETY: a piece is mapped for its whole length, and no more is copied into it.
            unsafe { copy::to_guest(now, piece.host.add(filled)) };
            *source = later;
            filled += now.len();
        }
        self.mark(piece.address, filled as u64);
    }
}

/// A driver must post buffers for ordinary frames; others are dropped where they don't fit.
fn too_small(bytes: usize, wanted: usize, frame_bytes: usize) -> Result<bool, Unlaid> {
    if frame_bytes <= FRAME_BYTES_ORDINARY {
        return Err(Unlaid::Fault(RingFault::BuffersTooSmall { bytes, wanted }));
    }
    Ok(false)
}
