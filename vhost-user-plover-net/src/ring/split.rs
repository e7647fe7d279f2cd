//! A split ring on mapped guest memory: its place, its indexes and the guest's side of it. How
//! packets are laid into it and taken from it is in `receive` and `transmit`, how chains go back
//! in `used`.
//!
//! One index is kept for both sides: chains are returned in the order they were taken, and each
//! one is returned before the next turn, so "next available" equals "next used". That makes the
//! used index in guest memory the whole state of a stopped ring.

use std::num::Wrapping;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::chain::Chains;
use super::fault::RingFault;
use super::guest_map::{GuestMap, GuestView};
use super::layout::{
    AVAILABLE_ENTRY_BYTES, ENTRIES_OFFSET, INDEX_OFFSET, RingFeatures, RingLayout, RingPointers,
};
use super::written_pages::WrittenPages;

/// One ring, running.
pub struct SplitRing {
    pub(super) layout: RingLayout,
    pub(super) features: RingFeatures,
    pub(super) pointers: RingPointers,
    pub(super) chains: Chains,
    /// Where packets are looked up.
    pub(super) packets: GuestView,
    written: Arc<WrittenPages>,
    /// The next chain to take, and the next used entry to write.
    pub(super) next: Wrapping<u16>,
    /// The used index that the guest sees.
    pub(super) published: Wrapping<u16>,
    /// The guest's index when it was last looked at.
    available: Wrapping<u16>,
    /// The used index when the guest was last asked whether it wants a call; none right after
    /// the start, when the guest's wish may be older than what it has seen.
    pub(super) asked_at: Option<Wrapping<u16>>,
}

// SAFETY: the pointers lead into mappings that the views keep alive; the ring is used by one
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
        let position = Wrapping(index_of(pointers.used).load(Ordering::Acquire));
        let mut ring = Self {
            layout,
            features,
            pointers,
            chains,
            packets: GuestView::new(Arc::clone(map)),
            written: Arc::clone(pages),
            next: position,
            published: position,
            available: position,
            asked_at: None,
        };
        ring.offered()?;
        ring.want_kicks(false);
        Ok(ring)
    }

    /// The used index of a ring that does not run. Nothing is written.
    pub fn index_in_memory(map: &Arc<GuestMap>, layout: RingLayout) -> Result<u16, RingFault> {
        let pointers = layout.locate(map)?;
        Ok(index_of(pointers.used).load(Ordering::Acquire))
    }

    /// Whether the driver's headers say what is left to do with a packet.
    #[must_use]
    pub fn offloads(&self) -> bool {
        self.features.offloads
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

    /// Chains that the guest has offered and that were not taken. Those that were taken and not
    /// yet shown to it count against the ring's size too: the guest can't have them to offer again.
    #[inline]
    pub fn offered(&self) -> Result<u16, RingFault> {
        let available = Wrapping(index_of(self.pointers.available).load(Ordering::Acquire));
        let count = (available - self.next).0;
        let unpublished = (self.next - self.published).0;
        if count > self.layout.size - unpublished {
            return Err(RingFault::IndexJump {
                available: available.0,
                next: self.next.0,
                size: self.layout.size,
            });
        }
        Ok(count)
    }

    /// Chains that may be taken, as many as `wanted` or fewer. The guest's index is looked at only
    /// when what was seen of it before does not suffice: each look takes its cache line away from
    /// the guest.
    #[inline]
    pub(super) fn offered_of(&mut self, wanted: usize) -> Result<usize, RingFault> {
        let seen = usize::from((self.available - self.next).0);
        if seen >= wanted {
            return Ok(wanted);
        }
        let offered = self.offered()?;
        self.available = self.next + Wrapping(offered);
        Ok(wanted.min(usize::from(offered)))
    }

    /// Head of the chain `ahead` places after the next one. Read from the available ring with
    /// IN_ORDER, too: it is two cache lines a burst that only the guest writes, and where a chain
    /// starts need not be known from the one before, which may have been taken by another process.
    #[inline(always)]
    pub(super) fn head(&self, ahead: usize) -> u16 {
        let slot = self.slot_of(self.next + Wrapping(ahead as u16));
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

    /// Which entry of the available or used ring an index names.
    #[inline(always)]
    pub(super) fn slot_of(&self, index: Wrapping<u16>) -> u64 {
        u64::from(index.0 & (self.layout.size - 1))
    }

    /// Every write into guest memory ends here.
    #[inline(always)]
    pub(super) fn mark(&mut self, address: u64, bytes: u64) {
        self.written.mark(address, bytes);
        self.packets.map().log_for_vmm(address, bytes);
    }
}

/// The index of an available or used ring.
#[inline(always)]
pub(super) fn index_of<'a>(ring: NonNull<u8>) -> &'a AtomicU16 {
    // SAFETY: `idx` is the second u16 of a located ring, aligned to 2, in a mapping that the
    // caller's view keeps alive; both sides use it as an atomic only. No caller keeps it.
    unsafe { ring.add(INDEX_OFFSET as usize).cast::<AtomicU16>().as_ref() }
}
