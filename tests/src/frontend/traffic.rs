//! What is sent and what is expected back: frames that carry their number and whose every byte
//! follows from it, so that a frame that comes back cut, mixed or twice is found.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// Ethernet header, number, length, and enough that follows from the number to check it.
pub const FRAME_BYTES_MIN: usize = 14 + 8 + 4 + 8;
/// For local experiments (IEEE Std 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Whom frames come from: nobody's address.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// Writes frame `number` of `bytes` bytes to station `to`.
pub fn write_frame(to: [u8; 6], number: u64, bytes: usize, frame: &mut Vec<u8>) {
    frame.clear();
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&SENDER);
    frame.extend_from_slice(&ETHERTYPE);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(&(bytes as u32).to_be_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while frame.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let room = (bytes - frame.len()).min(8);
        frame.extend_from_slice(&state.to_le_bytes()[..room]);
    }
}

/// The number of a frame, if it is one of ours and whole.
///
/// # Errors
/// What is wrong with it.
pub fn check_frame(to: [u8; 6], frame: &[u8]) -> Result<u64> {
    ensure!(
        frame.len() >= FRAME_BYTES_MIN && frame[12..14] == ETHERTYPE,
        "a frame of {} bytes is none of ours",
        frame.len()
    );
    let mut number = [0; 8];
    number.copy_from_slice(&frame[14..22]);
    let number = u64::from_be_bytes(number);
    let mut length = [0; 4];
    length.copy_from_slice(&frame[22..26]);
    let length = u32::from_be_bytes(length) as usize;
    ensure!(
        length == frame.len(),
        "frame {number} was sent with {length} bytes and came with {}",
        frame.len()
    );
    let mut expected = Vec::with_capacity(length);
    write_frame(to, number, length, &mut expected);
    ensure!(
        frame == expected,
        "frame {number} came back with other bytes"
    );
    Ok(number)
}

/// Which numbers are on the way, and what became of them.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Numbers that were sent and did not come back yet.
    pub outstanding: BTreeSet<u64>,
    /// Numbers that were on the way when one side was killed: they may have gone with it.
    doubtful: BTreeSet<u64>,
    /// The next number.
    pub next: u64,
    /// Frames that came back.
    pub received: u64,
    /// Frames that went with a side that was killed.
    pub lost: u64,
    /// Frames that came back after a later one had.
    pub overtaken: u64,
    last: Option<u64>,
}

impl Ledger {
    /// A number for a frame that is being sent.
    pub fn send(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.outstanding.insert(number);
        number
    }

    /// A frame came back.
    ///
    /// # Errors
    /// It came twice, or after a later one had shown that it was lost, or was never sent.
    pub fn receive(&mut self, number: u64) -> Result<()> {
        if self.outstanding.remove(&number) {
            // Frames keep their order, so none of these will come any more.
            self.lost += self.doubtful.len() as u64;
            self.doubtful.clear();
        } else {
            ensure!(
                self.doubtful.remove(&number),
                "frame {number} came a second time, or too late, or from nowhere"
            );
        }
        self.received += 1;
        self.overtaken += u64::from(self.last.is_some_and(|last| last > number));
        self.last = self.last.max(Some(number));
        Ok(())
    }

    /// One side was killed.
    pub fn doubt_outstanding(&mut self) {
        self.doubtful.append(&mut self.outstanding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: [u8; 6] = [2, 0, 0, 0, 0, 0x10];

    #[test]
    fn a_frame_is_known_by_its_number_and_every_byte_is_checked() {
        let mut frame = Vec::new();
        for bytes in [FRAME_BYTES_MIN, 64, 1514, 9018] {
            write_frame(TO, 77, bytes, &mut frame);
            assert_eq!(frame.len(), bytes);
            assert_eq!(check_frame(TO, &frame).unwrap(), 77);
            for at in [0, 20, 25, bytes - 1] {
                frame[at] ^= 1;
                assert!(check_frame(TO, &frame).is_err(), "byte {at} of {bytes}");
                frame[at] ^= 1;
            }
            assert!(check_frame(TO, &frame[..bytes - 1]).is_err());
        }
    }

    #[test]
    fn a_frame_that_comes_twice_or_late_is_an_error() {
        let mut ledger = Ledger::default();
        let numbers = [ledger.send(), ledger.send(), ledger.send()];
        ledger.receive(numbers[1]).unwrap();
        ledger.receive(numbers[0]).unwrap();
        assert_eq!(ledger.overtaken, 1);
        assert!(ledger.receive(numbers[0]).is_err());
    }

    #[test]
    fn what_was_on_the_way_at_a_kill_may_come_until_a_later_frame_has() {
        let mut ledger = Ledger::default();
        let before = [ledger.send(), ledger.send(), ledger.send()];
        ledger.doubt_outstanding();
        let after = ledger.send();
        ledger.receive(before[1]).unwrap();
        ledger.receive(after).unwrap();
        assert_eq!((ledger.received, ledger.lost), (2, 2));
        assert!(ledger.receive(before[1]).is_err(), "a second time");
        assert!(ledger.receive(before[2]).is_err(), "too late");
    }
}
