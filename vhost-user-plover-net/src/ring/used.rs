//! The used ring: chains go back to the guest, first unseen, then shown with one store of the
//! index; and who is told of it. Nothing of packets here.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use super::fault::RingFault;
use super::layout::{ENTRIES_OFFSET, INDEX_OFFSET, USED_ENTRY_BYTES};
use super::split::{SplitRing, index_of};

const AVAILABLE_NO_CALLS: u16 = 1;
const USED_NO_KICKS: u16 = 1;

impl SplitRing {
    /// Returns the next `count` chains, which were only read, not yet visible to the guest. With
    /// IN_ORDER the last one's entry, where the first one's would be, stands for all of them.
    #[inline]
    pub(super) fn return_read_chains(&mut self, count: usize, head: impl Fn(usize) -> u16) {
        if self.features.in_order && count > 0 {
            self.write_used(self.next, head(count - 1), 0);
        } else {
            let first = self.next;
            for number in 0..count {
                self.write_used(first + Wrapping(number as u16), head(number), 0);
            }
        }
        self.next += count as u16;
    }

    /// Writes a used entry, not yet visible to the guest. It counts when `next` moves past it, once
    /// for a burst: an index that is moved for each chain makes the processor wait for its own
    /// store.
    #[inline(always)]
    pub(super) fn write_used(&mut self, index: Wrapping<u16>, head: u16, written_bytes: u32) {
        let offset = ENTRIES_OFFSET + USED_ENTRY_BYTES * self.slot_of(index);
        let entry = u64::from(head) | u64::from(written_bytes) << u32::BITS;
        // SAFETY: the slot is below the ring's size, so the entry is in the ring as located. Both
        // of its fields at once; the guest looks at them only after the index was published.
        unsafe {
            self.pointers
                .used
                .add(offset as usize)
                .cast::<u64>()
                .write_unaligned(entry.to_le());
        }
    }

    /// Shows the guest what was returned, with one Release store of the used index, and marks what
    /// was written. True if the guest wants a call for it.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingFault> {
        if self.next == self.published {
            return Ok(false);
        }
        let index = index_of(self.pointers.used);
        let found = index.load(Ordering::Relaxed);
        if found != self.published.0 {
            return Err(RingFault::UsedIndexChanged {
                found,
                published: self.published.0,
            });
        }
        index.store(self.next.0, Ordering::Release);
        self.mark_returned();
        self.published = self.next;
        // Our index must be out before the guest's wish is read, or each side may miss the other.
        fence(Ordering::SeqCst);
        Ok(self.wants_call())
    }

    /// Marks the used entries since the last publication, and the index.
    #[inline]
    fn mark_returned(&mut self) {
        let count = u64::from((self.next - self.published).0);
        let first = self.slot_of(self.published);
        let to_end = count.min(u64::from(self.layout.size) - first);
        let entries = self.layout.used + ENTRIES_OFFSET;
        self.mark(
            entries + USED_ENTRY_BYTES * first,
            USED_ENTRY_BYTES * to_end,
        );
        self.mark(entries, USED_ENTRY_BYTES * (count - to_end));
        self.mark(self.layout.used + INDEX_OFFSET, 2);
    }

    /// Asks for kicks, or asks that none be sent. With EVENT_IDX "none" is an index far behind.
    pub fn want_kicks(&mut self, wanted: bool) {
        let (offset, value) = if !self.features.event_idx {
            (0, if wanted { 0 } else { USED_NO_KICKS })
        } else if wanted {
            (self.layout.available_event_offset(), self.next.0)
        } else {
            return;
        };
        // SAFETY: both fields are in the used ring as located, aligned to 2.
        unsafe {
            self.pointers
                .used
                .add(offset as usize)
                .cast::<u16>()
                .write_volatile(value);
        };
        self.mark(self.layout.used + offset, 2);
        // The guest's next offer must see our wish, or our next look must see its offer.
        fence(Ordering::SeqCst);
    }

    /// Whether the guest wants a call for what was published since it was last asked.
    fn wants_call(&mut self) -> bool {
        if !self.features.event_idx {
            // SAFETY: `flags` is the first field of the available ring, aligned to 2.
            let flags = unsafe { self.pointers.available.cast::<u16>().read_volatile() };
            return flags & AVAILABLE_NO_CALLS == 0;
        }
        let Some(old) = self.asked_at.replace(self.published) else {
            return true;
        };
        let event = self.used_event();
        self.published - Wrapping(event) - Wrapping(1) < self.published - old
    }

    fn used_event(&self) -> u16 {
        let offset = self.layout.used_event() - self.layout.available;
        // SAFETY: `used_event` was part of what `locate` checked, aligned to 2.
        unsafe {
            self.pointers
                .available
                .add(offset as usize)
                .cast::<u16>()
                .read_volatile()
        }
    }

    /// What the guest moves in this ring when it does anything with it: the index of what it offers,
    /// and up to where it has seen what was returned. Without EVENT_IDX the latter is not known: a
    /// guest may have taken what it was given as long as it has buffers left, so then there is no
    /// answer.
    pub fn guest_indices(&self) -> Option<[u16; 2]> {
        let available = index_of(self.pointers.available).load(Ordering::Relaxed);
        if self.features.event_idx {
            return Some([available, self.used_event()]);
        }
        (available == self.next.0).then_some([available, 0])
    }
}

impl Drop for SplitRing {
    /// What was written and not published is marked all the same.
    fn drop(&mut self) {
        if self.next != self.published {
            self.mark_returned();
        }
    }
}
