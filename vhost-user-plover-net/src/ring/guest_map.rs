//! Guest memory as the poll core sees it: a flat table of regions, translated once per memory
//! table, and bounds-checked copies in and out. What is written is marked elsewhere
//! (`written_pages`); what the bytes mean is for the rings.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::limits::MEMORY_REGIONS_MAX;

/// Guest memory as `vhost-user-backend` maps it, with the log that a VMM asks for when it
/// migrates the VM.
pub type VmmMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// The address range is not, or not wholly, in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideMemory;

#[derive(Clone, Copy)]
struct MappedRegion {
    guest_start: u64,
    bytes: u64,
    host: NonNull<u8>,
}

/// A run of bytes that is contiguous in guest and host.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Where it is mapped.
    pub host: NonNull<u8>,
    /// Its length, at most what was asked for.
    pub bytes: usize,
}

/// The flat table. Shared between the core and its rings; keeps the mapping alive.
pub struct GuestMap {
    regions: ArrayVec<MappedRegion, MEMORY_REGIONS_MAX>,
    memory: Arc<VmmMemory>,
    log_for_vmm: AtomicBool,
}

// SAFETY: the pointers lead into mappings that `memory` keeps alive and that are shared with
// another process anyway; they are only used for copies, volatile reads and atomics.
unsafe impl Send for GuestMap {}
// SAFETY: as above; nothing in the table changes after it was built but an atomic flag.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// Flattens `memory`. `None` if it has more regions than a memory table can carry.
    #[must_use]
    pub fn new(memory: Arc<VmmMemory>) -> Option<Self> {
        let mut regions = ArrayVec::new();
        for region in memory.iter() {
            regions
                .try_push(MappedRegion {
                    guest_start: region.start_addr().0,
                    bytes: region.len(),
                    host: NonNull::new(region.get_mmap().as_ptr())?,
                })
                .ok()?;
        }
        Some(Self {
            regions,
            memory,
            log_for_vmm: AtomicBool::new(false),
        })
    }

    /// First guest physical address behind the highest region.
    #[must_use]
    pub fn guest_end(&self) -> u64 {
        self.regions
            .iter()
            .map(|r| r.guest_start + r.bytes)
            .max()
            .unwrap_or(0)
    }

    /// The longest run from `address` on, at most `bytes` long. `None` outside of memory.
    #[inline]
    #[must_use]
    pub fn piece(&self, hint: &RegionHint, address: u64, bytes: u64) -> Option<Piece> {
        let last = hint.0.get();
        if let Some(piece) = self.regions.get(last).and_then(|r| r.piece(address, bytes)) {
            return Some(piece);
        }
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let piece = region.piece(address, bytes)?;
            hint.0.set(index);
            Some(piece)
        })
    }

    /// Where `bytes` bytes from `address` on are mapped, if in one region.
    #[inline]
    #[must_use]
    pub fn whole(&self, hint: &RegionHint, address: u64, bytes: u64) -> Option<NonNull<u8>> {
        let piece = self.piece(hint, address, bytes)?;
        (piece.bytes as u64 == bytes).then_some(piece.host)
    }

    /// Copies guest memory from `address` on into `to`. A range may span adjoining regions.
    #[inline]
    pub fn read(
        &self,
        hint: &RegionHint,
        mut address: u64,
        mut to: &mut [u8],
    ) -> Result<(), OutsideMemory> {
        while !to.is_empty() {
            let piece = self
                .piece(hint, address, to.len() as u64)
                .ok_or(OutsideMemory)?;
            let (now, later) = to.split_at_mut(piece.bytes);
            // SAFETY: `piece` lies in a live mapping and is `now.len()` long; `now` is ours, so
            // they don't overlap. The guest may write meanwhile: the bytes are data to us, and
            // are looked at only in our copy.
            unsafe {
                now.as_mut_ptr()
                    .copy_from_nonoverlapping(piece.host.as_ptr(), now.len());
            };
            address += piece.bytes as u64;
            to = later;
        }
        Ok(())
    }

    /// Copies `from` into guest memory from `address` on. Does not mark what it wrote.
    #[inline]
    pub fn write(
        &self,
        hint: &RegionHint,
        mut address: u64,
        mut from: &[u8],
    ) -> Result<(), OutsideMemory> {
        while !from.is_empty() {
            let piece = self
                .piece(hint, address, from.len() as u64)
                .ok_or(OutsideMemory)?;
            let (now, later) = from.split_at(piece.bytes);
            // SAFETY: `piece` lies in a live, writable mapping and is `now.len()` long; `now` is
            // ours, so they don't overlap. No reference to guest memory exists anywhere.
            unsafe {
                piece
                    .host
                    .as_ptr()
                    .copy_from_nonoverlapping(now.as_ptr(), now.len());
            };
            address += piece.bytes as u64;
            from = later;
        }
        Ok(())
    }

    /// Whether the VMM asked for a log of what we write (it migrates the VM).
    pub fn set_log_for_vmm(&self, on: bool) {
        self.log_for_vmm.store(on, Ordering::Relaxed);
    }

    /// Marks a write in the VMM's own log, if it wants one. Takes a lock, but only then.
    #[inline]
    pub fn log_for_vmm(&self, address: u64, bytes: u64) {
        if self.log_for_vmm.load(Ordering::Relaxed) {
            self.log_in_regions(address, bytes);
        }
    }

    #[cold]
    fn log_in_regions(&self, mut address: u64, mut bytes: u64) {
        while bytes > 0 {
            let found = self.memory.iter().find(|region| {
                address >= region.start_addr().0 && address - region.start_addr().0 < region.len()
            });
            let Some(region) = found else { return };
            let offset = address - region.start_addr().0;
            let run = bytes.min(region.len() - offset);
            GuestRegionMmap::bitmap(region).mark_dirty(offset as usize, run as usize);
            address += run;
            bytes -= run;
        }
    }
}

impl MappedRegion {
    #[inline]
    fn piece(&self, address: u64, bytes: u64) -> Option<Piece> {
        let offset = address.checked_sub(self.guest_start)?;
        let left = self.bytes.checked_sub(offset).filter(|left| *left > 0)?;
        // SAFETY: `offset` is below the region's length, so the result stays in its mapping.
        let host = unsafe { self.host.add(offset as usize) };
        Some(Piece {
            host,
            bytes: left.min(bytes) as usize,
        })
    }
}

/// The region that the last look-up found: each ring has its own, buffers tend to stay in one.
#[derive(Default)]
pub struct RegionHint(Cell<usize>);
