//! Messages that are put together from fragments, and memory for them.

use bytes::{Bytes, BytesMut};

use super::datagram::Fragment;
use crate::limits::{REASSEMBLY_SLOTS_MAX, RECEIVE_BYTES_MAX};
use crate::wire::limits::FRAGMENTS_MAX;

/// Messages are cut from pieces of memory of this size, not allocated one by one.
const PIECE_BYTES: usize = 64 * 1024;

/// What became of a fragment.
pub(super) enum Put {
    /// More are missing.
    Incomplete,
    /// That was the last one missing.
    Whole(Bytes),
    /// It was there before.
    Duplicate,
    /// It contradicts earlier ones of its message.
    Contradiction,
}

/// Incomplete messages of one peer.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// In order of their first fragment, oldest first.
    slots: Vec<Slot>,
    bytes: usize,
    memory: BytesMut,
}

#[derive(Debug)]
struct Slot {
    message: u64,
    count: u16,
    total: u32,
    buffer: BytesMut,
    seen: [u64; FRAGMENTS_MAX / 64],
    missing: u16,
}

impl Reassembly {
    /// Puts a fragment in its place. `evicted` counts messages that had to go for it.
    pub(super) fn put(&mut self, fragment: &Fragment, bytes: &[u8], evicted: &mut u64) -> Put {
        if fragment.count == 1 {
            let mut message = self.room(bytes.len());
            message.copy_from_slice(bytes);
            return Put::Whole(message.freeze());
        }
        let Some(range) = fragment.range() else {
            return Put::Contradiction;
        };
        let at = self.slot(fragment, evicted);
        let slot = &mut self.slots[at];
        if (slot.count, slot.total) != (fragment.count, fragment.total) {
            return Put::Contradiction;
        }
        let (word, bit) = (
            usize::from(fragment.number) / 64,
            1 << (fragment.number % 64),
        );
        if slot.seen[word] & bit != 0 {
            return Put::Duplicate;
        }
        slot.seen[word] |= bit;
        slot.buffer[range].copy_from_slice(bytes);
        slot.missing -= 1;
        if slot.missing > 0 {
            return Put::Incomplete;
        }
        let slot = self.slots.remove(at);
        self.bytes -= slot.buffer.len();
        Put::Whole(slot.buffer.freeze())
    }

    /// Forgets the incomplete messages before this one: their sender gave them up.
    pub(super) fn forget_before(&mut self, message: u64, evicted: &mut u64) {
        let bytes = &mut self.bytes;
        self.slots.retain(|slot| {
            let stays = slot.message >= message;
            if !stays {
                *bytes -= slot.buffer.len();
                *evicted += 1;
            }
            stays
        });
    }

    /// Whether anything is incomplete.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn slot(&mut self, fragment: &Fragment, evicted: &mut u64) -> usize {
        let known = |slot: &Slot| slot.message == fragment.message;
        if let Some(at) = self.slots.iter().position(known) {
            return at;
        }
        let total = fragment.total as usize;
        while self.slots.len() >= REASSEMBLY_SLOTS_MAX
            || (self.bytes + total > RECEIVE_BYTES_MAX && !self.slots.is_empty())
        {
            self.bytes -= self.slots.remove(0).buffer.len();
            *evicted += 1;
        }
        self.bytes += total;
        let buffer = self.room(total);
        self.slots.push(Slot {
            message: fragment.message,
            count: fragment.count,
            total: fragment.total,
            buffer,
            seen: [0; FRAGMENTS_MAX / 64],
            missing: fragment.count,
        });
        self.slots.len() - 1
    }

    /// Memory for a message.
    fn room(&mut self, bytes: usize) -> BytesMut {
        if self.memory.capacity() < bytes {
            self.memory.reserve(bytes.max(PIECE_BYTES));
        }
        self.memory.resize(bytes, 0);
        self.memory.split()
    }
}
