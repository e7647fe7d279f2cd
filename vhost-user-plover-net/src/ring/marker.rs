//! Marks of what a ring wrote, gathered until they are set in the bitmap of written pages.
//!
//! The hasher clears a word of the bitmap with one exchange, then reads the pages. So that it
//! never misses a write, a bit must be set *after* the write that it stands for. A bit that is
//! found set already need not be set again, but only if the write had left our store buffer
//! before the bit was looked at: else the exchange and the hasher's reading of the page could
//! both fall between the look and the write's arrival. Hence one full fence, between all writes
//! of a burst and all looks:
//!
//! ```text
//!   write page ; FENCE ; bit is 1       the exchange that clears it comes after the look, so
//!                                       after the fence, so the hasher reads what was written
//!                        bit is 0       set it: the next exchange finds it
//! ```
//!
//! The exchange is a full fence of the hasher's own (on x86 by its nature).
//!
//! Whether the used index is published before the bits are set does not matter: the hasher needs
//! every bit at a sync only, and then the rings are paused, which sets what was gathered.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::written_pages::WrittenPages;
use crate::limits::{LOG_PAGE_BYTES, WORD_PAGES};

/// Bitmap words that are gathered side by side: the buffers of a burst lie in a few.
const SLOTS: usize = 8;

/// Gathers marks, so that a burst costs one fence and hardly a locked instruction.
pub struct Marker {
    pages: Arc<WrittenPages>,
    is_on: bool,
    slots: [Slot; SLOTS],
}

/// Marks of one word.
#[derive(Clone, Copy, Default)]
struct Slot {
    word: usize,
    mask: u64,
}

impl Marker {
    /// A marker without marks.
    #[must_use]
    pub fn new(pages: Arc<WrittenPages>) -> Self {
        Self {
            is_on: pages.is_on(),
            pages,
            slots: [Slot::default(); SLOTS],
        }
    }

    /// Remembers that `bytes` bytes from guest address `address` on were written.
    #[inline(always)]
    pub fn mark(&mut self, address: u64, bytes: u64) {
        if bytes == 0 || !self.is_on {
            return;
        }
        let first = address / LOG_PAGE_BYTES;
        let last = (address + (bytes - 1)) / LOG_PAGE_BYTES;
        self.mark_page(first);
        if first != last {
            (first + 1..=last).for_each(|page| self.mark_page(page));
        }
    }

    #[inline(always)]
    fn mark_page(&mut self, page: u64) {
        let word = (page / WORD_PAGES) as usize;
        let slot = &mut self.slots[word % SLOTS];
        if slot.word != word {
            // A locked instruction: after the write, and a full fence by itself.
            self.pages.set(slot.word, slot.mask);
            *slot = Slot { word, mask: 0 };
        }
        slot.mask |= 1 << (page % WORD_PAGES);
    }

    /// Sets what was gathered. The caller has put a full fence behind the writes.
    #[inline]
    pub(super) fn settle_fenced(&mut self) {
        if !self.is_on {
            return;
        }
        for slot in &mut self.slots {
            let mask = std::mem::take(&mut slot.mask);
            if !self.pages.has(slot.word, mask) {
                self.pages.set(slot.word, mask);
            }
        }
    }

    /// Sets what was gathered.
    #[inline]
    pub fn settle(&mut self) {
        fence(Ordering::SeqCst);
        self.settle_fenced();
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.settle();
    }
}
