//! The receive ring: a frame from the host into buffers that the guest posted. All of it or none:
//! chains are gathered first, and written only when they hold the whole packet.

use std::ops::ControlFlow;

use super::chain::{Access, Buffer};
use super::fault::RingFault;
use super::split::SplitRing;
use crate::limits::{NET_HEADER_BYTES, SEGMENTS_MAX};

const NUM_BUFFERS_OFFSET: usize = 10;

/// Room to gather a packet's chains in, allocated once.
pub struct ReceiveScratch {
    segments: Vec<Buffer>,
    chains: Vec<GatheredChain>,
}

#[derive(Clone, Copy)]
struct GatheredChain {
    head: u16,
    bytes: u32,
}

impl Default for ReceiveScratch {
    fn default() -> Self {
        // Each segment and each chain holds at least one byte of the packet.
        Self {
            segments: Vec::with_capacity(SEGMENTS_MAX),
            chains: Vec::with_capacity(SEGMENTS_MAX),
        }
    }
}

impl SplitRing {
    /// Lays `frame` with its header into the ring, not yet visible to the guest. False, and
    /// nothing written, if the guest has not posted enough.
    ///
    /// # Panics
    /// If the frame is empty or longer than the limit: the caller admitted it.
    #[inline]
    pub fn deliver(
        &mut self,
        scratch: &mut ReceiveScratch,
        frame: &[u8],
    ) -> Result<bool, RingFault> {
        let packet_bytes = self.features.header_bytes + frame.len();
        assert!(
            !frame.is_empty() && packet_bytes <= SEGMENTS_MAX,
            "frame outside the limits"
        );
        if !self.gather(scratch, packet_bytes)? {
            return Ok(false);
        }
        let header = header_with(scratch.chains.len() as u16);
        self.scatter(scratch, &header[..self.features.header_bytes], frame)?;
        for chain in &scratch.chains {
            self.return_chain(chain.head, chain.bytes);
        }
        Ok(true)
    }

    fn gather(&self, scratch: &mut ReceiveScratch, wanted: usize) -> Result<bool, RingFault> {
        scratch.segments.clear();
        scratch.chains.clear();
        let offered = self.offered()?;
        let mut gathered = 0;
        while gathered < wanted {
            let chain_number = scratch.chains.len() as u16;
            if chain_number == offered {
                return self.short_of_chains(offered, gathered, wanted);
            }
            let head = self.head(chain_number);
            let bytes = self.gather_chain(&mut scratch.segments, head, wanted - gathered)?;
            if bytes == 0 {
                return Err(RingFault::EmptyChain);
            }
            if chain_number == 0 && bytes < self.features.header_bytes {
                return Err(RingFault::HeaderDoesNotFit { bytes });
            }
            gathered += bytes;
            scratch.chains.push(GatheredChain {
                head,
                bytes: bytes as u32,
            });
            if !self.features.mergeable && gathered < wanted {
                return Err(RingFault::BuffersTooSmall {
                    bytes: gathered,
                    wanted,
                });
            }
        }
        Ok(true)
    }

    /// Waiting helps unless the guest has posted all it can.
    fn short_of_chains(
        &self,
        offered: u16,
        bytes: usize,
        wanted: usize,
    ) -> Result<bool, RingFault> {
        if offered == self.size() {
            return Err(RingFault::BuffersTooSmall { bytes, wanted });
        }
        Ok(false)
    }

    fn gather_chain(
        &self,
        segments: &mut Vec<Buffer>,
        head: u16,
        wanted: usize,
    ) -> Result<usize, RingFault> {
        let mut bytes = 0;
        self.chains.walk(head, Access::Write, |buffer| {
            let run = (buffer.bytes as usize).min(wanted - bytes);
            segments.push(Buffer {
                address: buffer.address,
                bytes: run as u32,
            });
            bytes += run;
            Ok(if bytes == wanted {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(bytes)
    }

    fn scatter<'a>(
        &mut self,
        scratch: &ReceiveScratch,
        mut header: &'a [u8],
        mut frame: &'a [u8],
    ) -> Result<(), RingFault> {
        for segment in &scratch.segments {
            let mut at = segment.address;
            let mut left = segment.bytes as usize;
            for source in [&mut header, &mut frame] {
                let run = left.min(source.len());
                let (now, later) = source.split_at(run);
                *source = later;
                self.write(at, now, segment)?;
                at = at.wrapping_add(run as u64);
                left -= run;
            }
        }
        assert!(
            header.is_empty() && frame.is_empty(),
            "gathered segments hold the whole packet"
        );
        Ok(())
    }

    #[inline]
    fn write(&mut self, address: u64, bytes: &[u8], of: &Buffer) -> Result<(), RingFault> {
        self.chains
            .map
            .write(&self.chains.hint, address, bytes)
            .map_err(|_| RingFault::BufferOutsideMemory {
                address: of.address,
                bytes: of.bytes,
            })?;
        self.mark(address, bytes.len() as u64);
        Ok(())
    }
}

/// A header without offloads for a packet over `chains` chains.
fn header_with(chains: u16) -> [u8; NET_HEADER_BYTES] {
    let mut header = [0; NET_HEADER_BYTES];
    header[NUM_BUFFERS_OFFSET..].copy_from_slice(&chains.to_le_bytes());
    header
}
