//! The byte form of datagrams.
//!
//! Each begins with a header of 16 bytes, all integers little endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind |
//! | 1 | version ([`SECURE_VERSION`]) |
//! | 2..4 | 0 |
//! | 4..8 | index of a session, as the side that must find it named it |
//! | 8..16 | number, by kind |
//!
//! | kind | index | number | then |
//! |---|---|---|---|
//! | 1 hello | 0 | random | guard |
//! | 2 challenge | 0 | the hello's | challenge 16, guard |
//! | 3 offer | the sender's new one | 0 | challenge 16, first Noise message 48, guard |
//! | 4 answer | that of the offer | the sender's new one | second Noise message 48, guard |
//! | 5 data | the receiver's | counter | ciphertext, tag 16 |
//!
//! The guard is an HMAC-SHA256 of all before it, 32 bytes, under a key that only these two nodes can
//! compute, one for each direction.

use super::limits::SECURE_VERSION;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const TAG_BYTES: usize = 16;
pub(super) const GUARD_BYTES: usize = 32;
pub(super) const CHALLENGE_BYTES: usize = 16;
/// An ephemeral key and the tag of an empty payload.
pub(super) const NOISE_BYTES: usize = 32 + 16;

pub(super) const HELLO_BYTES: usize = HEADER_BYTES + GUARD_BYTES;
pub(super) const CHALLENGE_DATAGRAM_BYTES: usize = HEADER_BYTES + CHALLENGE_BYTES + GUARD_BYTES;
pub(super) const OFFER_BYTES: usize = HEADER_BYTES + CHALLENGE_BYTES + NOISE_BYTES + GUARD_BYTES;
pub(super) const ANSWER_BYTES: usize = HEADER_BYTES + NOISE_BYTES + GUARD_BYTES;

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Challenge = 2,
    Offer = 3,
    Answer = 4,
    Data = 5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) index: u32,
    pub(super) number: u64,
}

/// Why bytes are no datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Malformed,
    Version,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind as u8;
        out[1] = SECURE_VERSION;
        out[4..8].copy_from_slice(&self.index.to_le_bytes());
        out[8..].copy_from_slice(&self.number.to_le_bytes());
        out
    }

    /// Reads a header, and checks that the datagram has the length of its kind.
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, BadHeader> {
        let Some((bytes, _)) = datagram.split_first_chunk::<HEADER_BYTES>() else {
            return Err(BadHeader::Malformed);
        };
        let [kind, version, 0, 0, i0, i1, i2, i3, number @ ..] = *bytes else {
            return Err(BadHeader::Malformed);
        };
        if version != SECURE_VERSION {
            return Err(BadHeader::Version);
        }
        let (kind, is_long_enough) = match kind {
            1 => (Kind::Hello, datagram.len() == HELLO_BYTES),
            2 => (Kind::Challenge, datagram.len() == CHALLENGE_DATAGRAM_BYTES),
            3 => (Kind::Offer, datagram.len() == OFFER_BYTES),
            4 => (Kind::Answer, datagram.len() == ANSWER_BYTES),
            5 => (Kind::Data, datagram.len() >= HEADER_BYTES + TAG_BYTES),
            _ => return Err(BadHeader::Malformed),
        };
        if !is_long_enough {
            return Err(BadHeader::Malformed);
        }
        Ok(Self {
            kind,
            index: u32::from_le_bytes([i0, i1, i2, i3]),
            number: u64::from_le_bytes(number),
        })
    }
}

/// A handshake datagram being put together, on the stack.
pub(super) struct Draft {
    bytes: [u8; OFFER_BYTES],
    len: usize,
}

impl Draft {
    pub(super) fn new(header: Header) -> Self {
        let mut draft = Self {
            bytes: [0; OFFER_BYTES],
            len: 0,
        };
        draft.put(&header.encode());
        draft
    }

    pub(super) fn put(&mut self, part: &[u8]) {
        self.bytes[self.len..][..part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_goes_there_and_back() {
        let header = Header {
            kind: Kind::Data,
            index: 0x0102_0304,
            number: 0x1112_1314_1516_1718,
        };
        let mut datagram = header.encode().to_vec();
        assert_eq!(Header::decode(&datagram), Err(BadHeader::Malformed));
        datagram.resize(HEADER_BYTES + TAG_BYTES, 0);
        assert_eq!(Header::decode(&datagram), Ok(header));
        datagram[1] = 2;
        assert_eq!(Header::decode(&datagram), Err(BadHeader::Version));
    }

    #[test]
    fn each_kind_has_its_length() {
        let lengths = [
            (1, HELLO_BYTES),
            (2, CHALLENGE_DATAGRAM_BYTES),
            (3, OFFER_BYTES),
            (4, ANSWER_BYTES),
        ];
        for (kind, length) in lengths {
            for have in 0..200 {
                let mut datagram = vec![0; have];
                if have > 1 {
                    (datagram[0], datagram[1]) = (kind, SECURE_VERSION);
                }
                assert_eq!(Header::decode(&datagram).is_ok(), have == length);
            }
        }
        assert!(Header::decode(&[[6, 1].as_slice(), &[0; 100]].concat()).is_err());
        assert!(Header::decode(&[[5, 1, 1].as_slice(), &[0; 100]].concat()).is_err());
    }
}
