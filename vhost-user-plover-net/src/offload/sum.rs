//! The Internet checksum (RFC 1071). A sum is kept in 64 bits, in the order of the bytes in memory,
//! and folded at the end: the order of bytes does not matter to a one's complement sum.

/// An unfinished sum of 16-bit words. Its parts begin at even offsets; only the last may be odd.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds `bytes`. 64 bits overflow after 16 GiB.
    #[inline]
    #[must_use]
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        // Two words of 32 bits at a time, each in a 64-bit lane of its own: carries need no look,
        // and the compiler turns the loop into vector instructions.
        let (blocks, rest) = bytes.as_chunks::<LANES_BYTES>();
        let mut lanes = [0u64; LANES];
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (words, tail) = rest.as_chunks::<2>();
        let words: u64 = words
            .iter()
            .map(|w| u64::from(u16::from_ne_bytes(*w)))
            .sum();
        let last = tail
            .first()
            .map_or(0, |byte| u16::from_ne_bytes([*byte, 0]));
        Self(self.0 + lanes.iter().sum::<u64>() + words + u64::from(last))
    }

    /// Adds a word given as a number.
    #[inline]
    #[must_use]
    pub(super) fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// The checksum's two bytes, as they lie in a packet.
    #[inline]
    pub(super) fn checksum(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum >> 16) + (sum & u64::from(u16::MAX));
        }
        (!(sum as u16)).to_ne_bytes()
    }
}

const LANES: usize = 8;
const LANES_BYTES: usize = 4 * LANES;
