//! vhost-user messages by their bytes (vhost-user specification, "Message Specification").

use crate::input::Input;

/// Bytes of guest memory in the file that the VMM shares.
pub const MEMORY_BYTES: u64 = 0x20_0000;
/// Where the VMM says it has guest memory mapped.
pub const VMM_BASE: u64 = 0x7000_0000_0000;
/// Descriptors of a ring that is set up as it should be.
pub const RING_SIZE: u16 = 64;

/// Numbers of requests.
pub mod request {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    /// The last that the specification knows.
    pub const LAST: u32 = 44;
}

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// VERSION_1, MRG_RXBUF, EVENT_IDX, INDIRECT_DESC and the protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 29 | 1 << 28 | 1 << 30;

/// A message: its request, its body, and the length that its header claims.
pub struct Message {
    /// Number of the request.
    pub request: u32,
    /// Flags of the header.
    pub flags: u32,
    /// Length of the body, if the header does not lie.
    pub claimed_bytes: u32,
    /// The body.
    pub body: Vec<u8>,
}

impl Message {
    /// As it should be.
    pub fn new(request: u32, body: Vec<u8>) -> Self {
        Self {
            request,
            flags: VERSION | NEED_REPLY,
            claimed_bytes: body.len() as u32,
            body,
        }
    }

    fn of_words(request: u32, words: &[u64]) -> Self {
        Self::new(
            request,
            words.iter().flat_map(|w| w.to_le_bytes()).collect(),
        )
    }

    /// A ring's number and one of its numbers.
    fn of_state(request: u32, ring: u32, number: u32) -> Self {
        Self::of_words(request, &[u64::from(ring) | u64::from(number) << 32])
    }

    /// The message as it travels.
    pub fn bytes(&self) -> Vec<u8> {
        let header = [self.request, self.flags, self.claimed_bytes];
        [&header.map(u32::to_le_bytes).concat(), &self.body[..]].concat()
    }

    /// Any request, most often with a body of its shape.
    pub fn any(input: &mut Input<'_>) -> Self {
        let request = match input.u8() {
            choice if u32::from(choice) <= request::LAST => u32::from(choice),
            255 => input.u32(),
            choice => u32::from(choice) % (request::LAST + 1),
        };
        let mut message = match request {
            request::SET_MEM_TABLE => Self::new(request, memory_table(input)),
            request::SET_VRING_ADDR => {
                let ring = u64::from(ring(input)) | u64::from(input.u8() & 1) << 32;
                Self::of_words(
                    request,
                    &[
                        ring,
                        place(input),
                        place(input),
                        place(input),
                        number(input),
                    ],
                )
            }
            request::SET_VRING_NUM | request::SET_VRING_BASE | request::GET_VRING_BASE => {
                Self::of_state(request, ring(input), ring_number(input))
            }
            request::SET_VRING_ENABLE => {
                Self::of_state(request, ring(input), u32::from(input.u8() & 3))
            }
            request::SET_VRING_KICK..=request::SET_VRING_ERR => {
                let no_fd = u64::from(input.u8() & 1) << 8;
                Self::of_words(request, &[u64::from(ring(input)) | no_fd])
            }
            request::SET_LOG_BASE => Self::of_words(request, &[number(input), number(input)]),
            request::SET_FEATURES | request::SET_PROTOCOL_FEATURES => {
                let bits = [FEATURES, FEATURES | 1 << 26, 0, 9, u64::MAX, input.u64()];
                Self::of_words(request, &[input.pick(&bits)])
            }
            _ => {
                let count = input.below(300);
                Self::new(request, input.bytes(count).to_vec())
            }
        };
        match input.u8() {
            1 => message.flags = input.u32(),
            2 => message.claimed_bytes = input.pick(&[0, 1, 8, 4095, 4096, 4097, u32::MAX]),
            3 => message.body.truncate(input.below(64)),
            4 => message.flags = VERSION,
            _ => {}
        }
        message
    }

    /// How a VMM sets its device up, in order.
    pub fn proper_sequence() -> Vec<Self> {
        let mut sequence = vec![
            Self::new(request::SET_OWNER, Vec::new()),
            Self::new(request::GET_FEATURES, Vec::new()),
            Self::of_words(request::SET_PROTOCOL_FEATURES, &[1 << 3]),
            Self::of_words(request::SET_FEATURES, &[FEATURES]),
            Self::of_words(request::SET_MEM_TABLE, &[1, 0, MEMORY_BYTES, VMM_BASE, 0]),
        ];
        for ring in 0..2 {
            let base = VMM_BASE + ring_base(ring);
            let words = [u64::from(ring), base, base + 0x2000, base + 0x1000, 0];
            sequence.extend([
                Self::of_state(request::SET_VRING_NUM, ring, RING_SIZE.into()),
                Self::of_state(request::SET_VRING_BASE, ring, 0),
                Self::of_words(request::SET_VRING_ADDR, &words),
                Self::of_words(request::SET_VRING_CALL, &[u64::from(ring)]),
                Self::of_words(request::SET_VRING_KICK, &[u64::from(ring)]),
                Self::of_state(request::SET_VRING_ENABLE, ring, 1),
            ]);
        }
        sequence
    }
}

/// Where ring `ring` is in guest memory: descriptors, then at 0x1000 the available ring, at
/// 0x2000 the used one.
pub fn ring_base(ring: u32) -> u64 {
    0x1000 + 0x4000 * u64::from(ring)
}

fn memory_table(input: &mut Input<'_>) -> Vec<u8> {
    let count = input.below(34);
    let claimed = match input.u8() {
        0 => input.u32(),
        _ => count as u32,
    };
    let mut words = vec![u64::from(claimed)];
    for _ in 0..count {
        words.extend(match input.u8() % 4 {
            // All of memory, or a part of it.
            0 => [0, MEMORY_BYTES, VMM_BASE, 0],
            1 => {
                let (from, pages) = (u64::from(input.u8()) << 12, u64::from(input.u8()) << 12);
                [from, pages, VMM_BASE + from, from]
            }
            _ => [number(input), number(input), place(input), number(input)],
        });
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn ring(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        choice if choice < 128 => u32::from(choice & 1),
        choice if choice < 250 => u32::from(choice & 31),
        _ => input.u32(),
    }
}

fn ring_number(input: &mut Input<'_>) -> u32 {
    let choices = [
        64,
        0,
        1,
        2,
        3,
        256,
        1024,
        2048,
        32_768,
        32_769,
        65_535,
        65_536,
        u32::MAX,
    ];
    input.pick(&choices)
}

/// An address as the VMM has it: right, at an edge, or any.
fn place(input: &mut Input<'_>) -> u64 {
    match input.u8() % 8 {
        0 => number(input),
        1 => VMM_BASE + MEMORY_BYTES - u64::from(input.u8()),
        2 => VMM_BASE - u64::from(input.u8()),
        3 => VMM_BASE + u64::from(input.u16()),
        choice => VMM_BASE + ring_base(u32::from(choice & 1)) + u64::from(input.u8() & 3) * 0x1000,
    }
}

/// A number at which sums overflow, files end, or pages begin.
fn number(input: &mut Input<'_>) -> u64 {
    match input.u8() % 10 {
        0 => 0,
        1 => MEMORY_BYTES,
        2 => u64::from(input.u8()) << 12,
        3 => u64::MAX - u64::from(input.u16()),
        4 => (1 << 47) - (u64::from(input.u8()) << 12),
        5 => u64::from(input.u8()),
        6 => 1 << (input.u8() & 63),
        7 => MEMORY_BYTES - u64::from(input.u8()),
        8 => VMM_BASE,
        _ => input.u64(),
    }
}
