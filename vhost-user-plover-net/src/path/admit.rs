//! `admit`: the one place where input from the uplink is dropped. What passes is proposed,
//! committed and delivered; it is never dropped later.

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Shorter than an Ethernet header or longer than a log entry's packet.
    Length,
    /// To another station: the switch flooded it, or the port is promiscuous.
    NotForGuest,
    /// From the guest's own address: it came round a loop.
    FromGuest,
}

/// Checks a frame from the uplink.
///
/// # Errors
/// Why it is none for the guest.
pub fn check(frame: &[u8], guest_mac: [u8; 6]) -> Result<(), Refused> {
    if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len()) {
        return Err(Refused::Length);
    }
    let is_group_address = frame[0] & 1 == 1;
    if !is_group_address && frame[..6] != guest_mac {
        return Err(Refused::NotForGuest);
    }
    if frame[6..12] == guest_mac {
        return Err(Refused::FromGuest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn frame(to: [u8; 6], from: [u8; 6], length: usize) -> Vec<u8> {
        let mut frame = [&to[..], &from[..]].concat();
        frame.resize(length, 0);
        frame
    }

    #[test]
    fn frames_to_the_guest_and_to_groups_pass() {
        assert_eq!(check(&frame(GUEST, OTHER, 60), GUEST), Ok(()));
        assert_eq!(check(&frame([0xff; 6], OTHER, 60), GUEST), Ok(()));
        assert_eq!(
            check(&frame([1, 0, 0x5e, 0, 0, 1], OTHER, FRAME_BYTES_MAX), GUEST),
            Ok(())
        );
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        assert_eq!(
            check(&frame(OTHER, GUEST, 60), GUEST),
            Err(Refused::NotForGuest)
        );
        assert_eq!(
            check(&frame([0xff; 6], GUEST, 60), GUEST),
            Err(Refused::FromGuest)
        );
        assert_eq!(
            check(&frame(GUEST, OTHER, FRAME_BYTES_MIN)[..13], GUEST),
            Err(Refused::Length)
        );
        assert_eq!(
            check(&frame(GUEST, OTHER, FRAME_BYTES_MAX + 1), GUEST),
            Err(Refused::Length)
        );
        assert_eq!(check(&[], GUEST), Err(Refused::Length));
    }
}
