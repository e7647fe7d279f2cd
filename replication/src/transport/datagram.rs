//! A datagram's byte form. All integers are little endian.
//!
//! | bytes | field | there if |
//! |---|---|---|
//! | 1 | version ([`TRANSPORT_VERSION`]) | |
//! | 1 | flags: 1 numbered, 2 fragment, 4 acknowledgement, 8 in order | |
//! | 8 | group | |
//! | 8 | boot id of the sender | |
//! | 8 | boot id of the receiver, as the sender knows it; 0: not at all | |
//! | 8 | number | numbered |
//! | 2 | how many numbers before it the oldest is that the sender still waits for | numbered |
//! | 2 | how many messages before this one the oldest is that the sender still waits for | numbered |
//! | 8 | the newest number received | acknowledgement |
//! | 4 | microseconds since then | acknowledgement |
//! | 1 | count of words that follow, up to 8 | acknowledgement |
//! | 8 each | bit *b* of word *w*: number newest - 1 - 64 *w* - *b* was received | acknowledgement |
//! | 8 | message id | fragment |
//! | 2, 2 | fragment number from 0, fragment count | fragment |
//! | 4 | length of the whole message | fragment |
//! | rest | the fragment | fragment |
//!
//! Every fragment but the last is `ceil(length / count)` bytes long, so each one's place follows
//! from its number, in any order, and neither side has to know the other's MTU. Numbered fragments
//! are repaired; their messages' ids have no gaps. The others have ids of their own.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::limits::{MESSAGES_MAX, NUMBERS_MAX};
use crate::wire::GroupId;
use crate::wire::limits::{FRAGMENTS_MAX, MESSAGE_BYTES_MAX};

/// Version of the byte form. Nodes of different versions do not hear each other, and say so.
pub const TRANSPORT_VERSION: u8 = 2;

/// Words of an acknowledgement that travels with a fragment, at most.
pub(super) const ACK_WORDS_WITH_FRAGMENT: usize = 2;

/// Words of one that travels alone.
pub(super) const ACK_WORDS_MAX: usize = NUMBERS_MAX / 64;

const COMMON_BYTES: usize = 2 + 8 + 8 + 8;
const NUMBERED_BYTES: usize = 8 + 2 + 2;
const ACK_BYTES: usize = 8 + 4 + 1;
const FRAGMENT_BYTES: usize = 8 + 2 + 2 + 4;

/// Bytes before the fragment, at most.
pub const HEADER_BYTES_MAX: usize =
    COMMON_BYTES + NUMBERED_BYTES + ACK_BYTES + 8 * ACK_WORDS_WITH_FRAGMENT + FRAGMENT_BYTES;

/// What an acknowledgement alone takes; it fits the smallest datagram.
const ACK_ALONE_BYTES: usize = COMMON_BYTES + ACK_BYTES + 8 * ACK_WORDS_MAX;

/// Bytes of the longest header.
const BYTES_MAX: usize = if ACK_ALONE_BYTES > HEADER_BYTES_MAX {
    ACK_ALONE_BYTES
} else {
    HEADER_BYTES_MAX
};

const NUMBERED: u8 = 1;
const FRAGMENT: u8 = 2;
const ACK: u8 = 4;
const IN_ORDER: u8 = 8;

/// What a datagram says beside its fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub group: GroupId,
    pub boot: u64,
    pub peer_boot: u64,
    pub numbered: Option<Numbered>,
    pub ack: Option<Ack>,
    pub fragment: Option<Fragment>,
}

/// What the sender of a repaired fragment says of what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub number: u64,
    /// The oldest number that it waits for.
    pub number_min: u64,
    /// The oldest message that it waits for.
    pub message_min: u64,
    pub is_ordered: bool,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub newest: u64,
    pub delay_us: u32,
    pub words: ArrayVec<u64, ACK_WORDS_MAX>,
}

impl Ack {
    /// Whether this number was received.
    #[inline]
    pub(super) fn has(&self, number: u64) -> bool {
        if number >= self.newest {
            return number == self.newest;
        }
        let Ok(behind) = usize::try_from(self.newest - 1 - number) else {
            return false;
        };
        let word = self.words.get(behind / 64);
        word.is_some_and(|word| word >> (behind % 64) & 1 == 1)
    }
}

/// Which piece of which message this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub message: u64,
    pub number: u16,
    pub count: u16,
    pub total: u32,
}

impl Fragment {
    /// The bytes of the message that are in this fragment, if it makes sense.
    pub(super) fn range(&self) -> Option<Range<usize>> {
        let (number, count) = (usize::from(self.number), usize::from(self.count));
        let total = self.total as usize;
        if number >= count || count > FRAGMENTS_MAX || total == 0 {
            return None;
        }
        let bytes = total.div_ceil(count);
        let start = number * bytes;
        let end = (start + bytes).min(total);
        (start < end && bytes * (count - 1) < total).then_some(start..end)
    }
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Version,
    Group,
    Long,
    Malformed,
}

/// A datagram that makes sense by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub header: Header,
    pub fragment: &'a [u8],
}

impl Header {
    pub(super) fn new(group: GroupId, boot: u64, peer_boot: u64) -> Self {
        Self {
            group,
            boot,
            peer_boot,
            numbered: None,
            ack: None,
            fragment: None,
        }
    }

    #[inline]
    pub(super) fn to_bytes(&self) -> ArrayVec<u8, BYTES_MAX> {
        let mut bytes = ArrayVec::new();
        let mut put = |field: &[u8]| {
            // BYTES_MAX is the sum of all that follows, and words are cut to what has room.
            let fits = bytes.try_extend_from_slice(field);
            debug_assert!(fits.is_ok());
        };
        let mut flags = 0;
        flags |= if self.fragment.is_some() { FRAGMENT } else { 0 };
        flags |= if self.ack.is_some() { ACK } else { 0 };
        if let Some(numbered) = self.numbered {
            flags |= NUMBERED | if numbered.is_ordered { IN_ORDER } else { 0 };
        }
        put(&[TRANSPORT_VERSION, flags]);
        put(&self.group.0.to_le_bytes());
        put(&self.boot.to_le_bytes());
        put(&self.peer_boot.to_le_bytes());
        if let (Some(numbered), Some(fragment)) = (self.numbered, self.fragment) {
            put(&numbered.number.to_le_bytes());
            put(&distance(numbered.number, numbered.number_min));
            put(&distance(fragment.message, numbered.message_min));
        }
        if let Some(ack) = &self.ack {
            let words_max = if self.fragment.is_some() {
                ACK_WORDS_WITH_FRAGMENT
            } else {
                ACK_WORDS_MAX
            };
            let words = &ack.words[..ack.words.len().min(words_max)];
            put(&ack.newest.to_le_bytes());
            put(&ack.delay_us.to_le_bytes());
            put(&[u8::try_from(words.len()).unwrap_or(0)]);
            words.iter().for_each(|word| put(&word.to_le_bytes()));
        }
        if let Some(fragment) = &self.fragment {
            put(&fragment.message.to_le_bytes());
            put(&fragment.number.to_le_bytes());
            put(&fragment.count.to_le_bytes());
            put(&fragment.total.to_le_bytes());
        }
        bytes
    }
}

fn distance(from: u64, to: u64) -> [u8; 2] {
    u16::try_from(from.saturating_sub(to))
        .unwrap_or(u16::MAX)
        .to_le_bytes()
}

impl<'a> Datagram<'a> {
    /// Reads a datagram: hostile until this is done.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8], group: GroupId) -> Result<Self, Refused> {
        let mut rest = bytes;
        let [version, flags] = take(&mut rest)?;
        if version != TRANSPORT_VERSION {
            return Err(Refused::Version);
        }
        if u64::from_le_bytes(take(&mut rest)?) != group.0 {
            return Err(Refused::Group);
        }
        let is = |flag| flags & flag != 0;
        let is_known = flags & !(NUMBERED | FRAGMENT | ACK | IN_ORDER) == 0;
        let says_something = is(FRAGMENT) || is(ACK);
        let is_consistent = (!is(NUMBERED) || is(FRAGMENT)) && (!is(IN_ORDER) || is(NUMBERED));
        if !is_known || !says_something || !is_consistent {
            return Err(Refused::Malformed);
        }
        let mut header = Header::new(
            group,
            u64::from_le_bytes(take(&mut rest)?),
            u64::from_le_bytes(take(&mut rest)?),
        );
        if header.boot == 0 {
            return Err(Refused::Malformed);
        }
        let numbers = if is(NUMBERED) {
            let number = u64::from_le_bytes(take(&mut rest)?);
            let behind = u16::from_le_bytes(take(&mut rest)?);
            let messages_behind = u16::from_le_bytes(take(&mut rest)?);
            Some((number, behind, messages_behind))
        } else {
            None
        };
        if is(ACK) {
            header.ack = Some(parse_ack(&mut rest)?);
        }
        if is(FRAGMENT) {
            let fragment = parse_fragment(&mut rest)?;
            header.fragment = Some(fragment);
            if let Some((number, behind, messages_behind)) = numbers {
                header.numbered = Some(Numbered {
                    number,
                    number_min: before(number, behind, NUMBERS_MAX)?,
                    message_min: before(fragment.message, messages_behind, MESSAGES_MAX)?,
                    is_ordered: is(IN_ORDER),
                });
            }
        } else if !rest.is_empty() {
            return Err(Refused::Malformed);
        }
        Ok(Self {
            header,
            fragment: rest,
        })
    }
}

fn before(value: u64, behind: u16, behind_max: usize) -> Result<u64, Refused> {
    // The largest numbers are none: one more can always be added to any.
    if usize::from(behind) >= behind_max || value > u64::MAX / 2 {
        return Err(Refused::Malformed);
    }
    value.checked_sub(behind.into()).ok_or(Refused::Malformed)
}

fn parse_ack(rest: &mut &[u8]) -> Result<Ack, Refused> {
    let newest = u64::from_le_bytes(take(rest)?);
    let delay_us = u32::from_le_bytes(take(rest)?);
    let [count] = take(rest)?;
    if usize::from(count) > ACK_WORDS_MAX {
        return Err(Refused::Malformed);
    }
    let mut words = ArrayVec::new();
    for _ in 0..count {
        words.push(u64::from_le_bytes(take(rest)?));
    }
    Ok(Ack {
        newest,
        delay_us,
        words,
    })
}

fn parse_fragment(rest: &mut &[u8]) -> Result<Fragment, Refused> {
    let fragment = Fragment {
        message: u64::from_le_bytes(take(rest)?),
        number: u16::from_le_bytes(take(rest)?),
        count: u16::from_le_bytes(take(rest)?),
        total: u32::from_le_bytes(take(rest)?),
    };
    if fragment.total as usize > MESSAGE_BYTES_MAX {
        return Err(Refused::Long);
    }
    let range = fragment.range().ok_or(Refused::Malformed)?;
    (range.len() == rest.len())
        .then_some(fragment)
        .ok_or(Refused::Malformed)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Refused> {
    let (field, after) = rest.split_first_chunk().ok_or(Refused::Malformed)?;
    *rest = after;
    Ok(*field)
}
