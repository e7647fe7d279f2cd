//! Finishing a checksum that a guest, or the stack on the other side, has left open.

use plover_types::Offload;

use super::FinishError;
use super::headers::ETHERNET_BYTES;
use super::sum::Sum;

/// Where UDP's checksum is in its header. No other protocol has it there.
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// Finishes the checksum of a frame that asks for it, in place. Its field holds the sum of the
/// pseudo-header, as the specification has it. Does nothing to a frame that does not ask; the
/// caller clears the flag of what goes on with an offload.
///
/// # Errors
/// If what is to be summed, or the field, is not in the frame. The frame is as it was.
#[inline]
pub fn finish_checksum(frame: &mut [u8], offload: &Offload) -> Result<(), FinishError> {
    if !offload.needs_checksum() {
        return Ok(());
    }
    let start = usize::from(offload.checksum_start);
    let field = check_place(frame.len(), offload)?;
    let mut checksum = Sum::default().add(&frame[start..]).checksum();
    // In UDP 0 says that there is no checksum; its other form is as good.
    if checksum == [0, 0] && offload.checksum_offset == UDP_CHECKSUM_OFFSET {
        checksum = [0xff, 0xff];
    }
    frame[field..field + 2].copy_from_slice(&checksum);
    Ok(())
}

/// Where the field is, if it and all before it is in a frame of `frame_bytes`.
pub(super) fn check_place(frame_bytes: usize, offload: &Offload) -> Result<usize, FinishError> {
    let start = usize::from(offload.checksum_start);
    let field = start + usize::from(offload.checksum_offset);
    if start < ETHERNET_BYTES || field + 2 > frame_bytes {
        return Err(FinishError::ChecksumPlace {
            start,
            field,
            frame_bytes,
        });
    }
    Ok(field)
}
