//! The transmit ring: frames that the guest sends, copied out. A chain is returned as soon as its
//! bytes were copied, so a stopped ring holds nothing of ours.

use std::ops::ControlFlow;

use super::chain::Access;
use super::fault::RingFault;
use super::split::SplitRing;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};

/// Room for one frame, allocated once.
pub struct TransmitScratch(Box<[u8; FRAME_BYTES_MAX]>);

impl Default for TransmitScratch {
    fn default() -> Self {
        Self(Box::new([0; FRAME_BYTES_MAX]))
    }
}

/// What was found in a transmit chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken<'a> {
    /// A frame, without its virtio header.
    Frame(&'a [u8]),
    /// Longer than what was negotiated lets a driver send. Returned, not given on.
    TooLong,
    /// Too short for an Ethernet header. Returned, not given on.
    TooShort,
}

impl SplitRing {
    /// Takes the next chain, copies its frame out and returns the chain, not yet visible to the
    /// guest. The caller has looked at [`SplitRing::offered`].
    #[inline]
    pub fn take<'a>(&mut self, scratch: &'a mut TransmitScratch) -> Result<Taken<'a>, RingFault> {
        let head = self.head(0);
        let packet_bytes = self.copy_out(head, &mut scratch.0[..])?;
        self.return_chain(head, 0);
        let frame_bytes = packet_bytes - self.features.header_bytes;
        Ok(match frame_bytes {
            ..FRAME_BYTES_MIN => Taken::TooShort,
            FRAME_BYTES_MIN..=FRAME_BYTES_MAX => Taken::Frame(&scratch.0[..frame_bytes]),
            _ => Taken::TooLong,
        })
    }

    /// Copies what follows the header into `frame`. Returns the bytes of header and frame, or
    /// more than `frame` holds if there is more: the rest is not looked at.
    fn copy_out(&self, head: u16, frame: &mut [u8]) -> Result<usize, RingFault> {
        let header_bytes = self.features.header_bytes;
        let limit = header_bytes + frame.len();
        let mut seen = 0;
        self.chains.walk(head, Access::Read, |buffer| {
            let end = seen + buffer.bytes as usize;
            if end > limit {
                seen = limit + 1;
                return Ok(ControlFlow::Break(()));
            }
            let skip = header_bytes.saturating_sub(seen).min(buffer.bytes as usize);
            let from = (seen + skip).max(header_bytes) - header_bytes;
            let to = end.max(header_bytes) - header_bytes;
            let outside = RingFault::BufferOutsideMemory {
                address: buffer.address,
                bytes: buffer.bytes,
            };
            let address = buffer.address.checked_add(skip as u64).ok_or(outside)?;
            self.chains
                .map
                .read(&self.chains.hint, address, &mut frame[from..to])
                .map_err(|_| outside)?;
            seen = end;
            Ok(ControlFlow::Continue(()))
        })?;
        match seen {
            0 => Err(RingFault::EmptyChain),
            bytes if bytes < header_bytes => Err(RingFault::HeaderDoesNotFit { bytes }),
            bytes => Ok(bytes),
        }
    }
}
