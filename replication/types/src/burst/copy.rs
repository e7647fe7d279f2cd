//! A packet's bytes into the entry that is being built.

use bytes::{BufMut, BytesMut};

/// Packets up to this length are copied here, the others by the C library: a call costs as much as
/// moving a small packet.
const SHORT_BYTES_MAX: usize = 128;

/// Bytes that are moved at once.
const STEP: usize = 16;

/// Appends `packet`, for which there is room, or room is made.
#[inline(always)]
pub(super) fn append(buffer: &mut BytesMut, packet: &[u8]) {
    let bytes = packet.len();
    let room = buffer.spare_capacity_mut();
    if !(STEP..=SHORT_BYTES_MAX).contains(&bytes) || room.len() < bytes {
        return buffer.put_slice(packet);
    }
    let room = &mut room[..bytes];
    let last = bytes - STEP;
    let mut at = 0;
    while at < last {
        room[at..at + STEP].write_copy_of_slice(&packet[at..at + STEP]);
        at += STEP;
    }
    // Overlaps the step before it where the length is no multiple of one.
    room[last..].write_copy_of_slice(&packet[last..]);
    let filled = buffer.len() + bytes;
    // SAFETY: the steps have filled the room for `bytes` bytes behind the buffer's end, from the
    // first to the last, without a gap.
    unsafe { buffer.set_len(filled) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_any_length_are_appended_whole() {
        let bytes: Vec<u8> = (0..300u16).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        for room in [0, 100, 400] {
            for length in 0..=300 {
                let mut buffer = BytesMut::with_capacity(room);
                buffer.extend_from_slice(b"before");
                append(&mut buffer, &bytes[..length]);
                assert_eq!(&buffer[..6], b"before");
                assert_eq!(
                    &buffer[6..],
                    &bytes[..length],
                    "{length} bytes, room {room}"
                );
            }
        }
    }
}
