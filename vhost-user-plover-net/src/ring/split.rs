//! A split ring on mapped guest memory: its indexes, entries and notifications. How packets are
//! laid into it is in `receive` and `transmit`.
//!
//! One index is kept for both sides: chains are returned in the order they were taken, and each
//! one is returned before the next turn, so "next available" equals "next used". That makes the
//! used index in guest memory the whole state of a stopped ring.

use std::num::Wrapping;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::chain::Chains;
use super::fault::RingFault;
use super::guest_map::GuestMap;
use super::layout::{
    AVAILABLE_ENTRY_BYTES, ENTRIES_OFFSET, INDEX_OFFSET, RingFeatures, RingLayout, RingPointers,
    USED_ENTRY_BYTES,
};
use super::written_pages::{Marker, WrittenPages};

const AVAILABLE_NO_CALLS: u16 = 1;
const USED_NO_KICKS: u16 = 1;

/// One ring, running.
pub struct SplitRing {
    layout: RingLayout,
    pub(super) features: RingFeatures,
    pointers: RingPointers,
    pub(super) chains: Chains,
    pub(super) marker: Marker,
    /// The next chain to take, and the next used entry to write.
    next: Wrapping<u16>,
    /// The used index that the guest sees.
    published: Wrapping<u16>,
    /// The used index when the guest was last asked whether it wants a call; none right after
    /// the start, when the guest's wish may be older than what it has seen.
    asked_at: Option<Wrapping<u16>>,
}

// SAFETY: the pointers lead into mappings that `chains.map` keeps alive; the ring is used by one
// thread at a time, through `&mut`.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Finds the ring in guest memory and takes its position from the used index there.
    pub fn start(
        map: &Arc<GuestMap>,
        pages: &Arc<WrittenPages>,
        layout: RingLayout,
        features: RingFeatures,
    ) -> Result<Self, RingFault> {
        let pointers = layout.locate(map)?;
        let chains =
            // SAFETY: `locate` found `layout.size` descriptors there, in a mapping of `map`.
            unsafe {
                Chains::new(Arc::clone(map), pointers.descriptors, layout.size, features.indirect)
            };
        let mut ring = Self {
            layout,
            features,
            pointers,
            chains,
            marker: Marker::new(Arc::clone(pages)),
            next: Wrapping(0),
            published: Wrapping(0),
            asked_at: None,
        };
        ring.next = Wrapping(ring.used_index().load(Ordering::Acquire));
        ring.published = ring.next;
        ring.offered()?;
        ring.want_kicks(false);
        Ok(ring)
    }

    /// The used index of a ring that does not run.
    pub fn index_in_memory(map: &GuestMap, layout: RingLayout) -> Result<u16, RingFault> {
        let pointers = layout.locate(map)?;
        Ok(index_of(pointers.used).load(Ordering::Acquire))
    }

    /// Descriptors in the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// The used index, which is also the position in the available ring.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.published.0
    }

    /// Chains that the guest has offered and that were not taken.
    #[inline]
    pub fn offered(&self) -> Result<u16, RingFault> {
        let available = Wrapping(self.available_index().load(Ordering::Acquire));
        let count = (available - self.next).0;
        if count > self.layout.size {
            return Err(RingFault::IndexJump {
                available: available.0,
                next: self.next.0,
                size: self.layout.size,
            });
        }
        Ok(count)
    }

    /// Head of the chain `ahead` places after the next one.
    #[inline]
    pub(super) fn head(&self, ahead: u16) -> u16 {
        let slot = u64::from((self.next + Wrapping(ahead)).0 & (self.layout.size - 1));
        let offset = ENTRIES_OFFSET + AVAILABLE_ENTRY_BYTES * slot;
        // SAFETY: the slot is below the ring's size; aligned to 2. Volatile, read once.
        unsafe {
            self.pointers
                .available
                .add(offset as usize)
                .cast::<u16>()
                .read_volatile()
        }
    }

    /// Returns the next chain, not yet visible to the guest.
    #[inline]
    pub(super) fn return_chain(&mut self, head: u16, written_bytes: u32) {
        let slot = u64::from(self.next.0 & (self.layout.size - 1));
        let offset = ENTRIES_OFFSET + USED_ENTRY_BYTES * slot;
        // SAFETY: the slot is below the ring's size; the ring is aligned to 4 and so are its
        // entries. The guest looks at the entry only after the index was published.
        unsafe {
            let entry = self.pointers.used.add(offset as usize).cast::<u32>();
            entry.write_volatile(u32::from(head));
            entry.add(1).write_volatile(written_bytes);
        }
        self.mark_used(offset, USED_ENTRY_BYTES);
        self.next += 1;
    }

    /// Shows the guest what was returned: marks first, then one Release store of the used index.
    /// True if the guest wants a call for it.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingFault> {
        if self.next == self.published {
            return Ok(false);
        }
        let found = self.used_index().load(Ordering::Relaxed);
        if found != self.published.0 {
            return Err(RingFault::UsedIndexChanged {
                found,
                published: self.published.0,
            });
        }
        self.marker.flush();
        self.used_index().store(self.next.0, Ordering::Release);
        self.published = self.next;
        // The index itself is marked after its write, like everything else.
        self.mark_used(INDEX_OFFSET, 2);
        self.marker.flush();
        Ok(self.wants_call())
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
        self.mark_used(offset, 2);
        self.marker.flush();
        // The guest's next offer must see our wish, or our next look must see its offer.
        fence(Ordering::SeqCst);
    }

    /// Whether the guest wants a call for what was published since it was last asked.
    fn wants_call(&mut self) -> bool {
        // Our index must be out before the guest's wish is read, or both may miss the other.
        fence(Ordering::SeqCst);
        if !self.features.event_idx {
            // SAFETY: `flags` is the first field of the available ring, aligned to 2.
            let flags = unsafe { self.pointers.available.cast::<u16>().read_volatile() };
            return flags & AVAILABLE_NO_CALLS == 0;
        }
        let Some(old) = self.asked_at.replace(self.published) else {
            return true;
        };
        let offset = self.layout.used_event() - self.layout.available;
        // SAFETY: `used_event` was part of what `locate` checked, aligned to 2.
        let event = unsafe {
            self.pointers
                .available
                .add(offset as usize)
                .cast::<u16>()
                .read_volatile()
        };
        self.published - Wrapping(event) - Wrapping(1) < self.published - old
    }

    #[inline]
    fn mark_used(&mut self, offset: u64, bytes: u64) {
        self.mark(self.layout.used + offset, bytes);
    }

    /// Every write into guest memory ends here.
    #[inline]
    pub(super) fn mark(&mut self, address: u64, bytes: u64) {
        self.marker.mark(address, bytes);
        self.chains.map.log_for_vmm(address, bytes);
    }

    #[inline]
    fn available_index(&self) -> &AtomicU16 {
        index_of(self.pointers.available)
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        index_of(self.pointers.used)
    }
}

#[inline]
fn index_of<'a>(ring: NonNull<u8>) -> &'a AtomicU16 {
    // SAFETY: `idx` is the second u16 of a located ring, aligned to 2, in a mapping that the ring
    // keeps alive; both sides use it as an atomic only. The callers bind the lifetime to `&self`.
    unsafe { ring.add(INDEX_OFFSET as usize).cast::<AtomicU16>().as_ref() }
}
