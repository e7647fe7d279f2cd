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
use crate::limits::LOG_PAGE_BYTES;

/// Pages that are gathered before they are looked at: those of a burst's buffers, and the ring's own.
const GATHERED_MAX: usize = 128;
/// No page.
const NONE: u64 = u64::MAX;

/// Gathers marks, so that a burst costs one fence and hardly a locked instruction. Pages are noted
/// one after the other and looked at together: no mark waits for the one before.
pub struct Marker {
    pages: Arc<WrittenPages>,
    is_on: bool,
    count: usize,
    /// What was noted last.
    last: u64,
    gathered: [u64; GATHERED_MAX],
}

impl Marker {
    /// A marker without marks.
    #[must_use]
    pub fn new(pages: Arc<WrittenPages>) -> Self {
        Self {
            is_on: pages.is_on(),
            pages,
            count: 0,
            last: NONE,
            gathered: [NONE; GATHERED_MAX],
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
        // Noted and not looked at yet: the look comes after this write, too.
        if page == self.last {
            return;
        }
        if self.count == GATHERED_MAX {
            self.settle();
        }
        self.gathered[self.count] = page;
        self.count += 1;
        self.last = page;
    }

    /// Sets what was gathered. The caller has put a full fence behind the writes.
    #[inline]
    pub(super) fn settle_fenced(&mut self) {
        for page in &self.gathered[..self.count] {
            self.pages.set(*page);
        }
        self.count = 0;
        self.last = NONE;
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
