//! Guest memory as the poll core sees it: a flat table of regions, translated once per memory
//! table, and bounds-checked look-ups in it. What is copied is for the rings, and what was written
//! is marked elsewhere (`written_pages`).

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
    /// Guest physical address of its first byte.
    pub address: u64,
    /// Its length, at most what was asked for.
    pub bytes: usize,
}

// SAFETY: an address, no more. Who follows it has to know that the mapping lives.
unsafe impl Send for Piece {}

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
    /// Where `bytes` bytes from `address` on are mapped, if all of them are in this region.
    #[inline]
    fn whole(&self, address: u64, bytes: u64) -> Option<NonNull<u8>> {
        let offset = address.wrapping_sub(self.guest_start);
        if offset >= self.bytes || bytes > self.bytes - offset {
            return None;
        }
        // SAFETY: `offset` is below the region's length, so the result stays in its mapping.
        Some(unsafe { self.host.add(offset as usize) })
    }

    #[inline]
    fn piece(&self, address: u64, bytes: u64) -> Option<Piece> {
        let host = self.whole(address, 1)?;
        let left = self.bytes - (address - self.guest_start);
        Some(Piece {
            host,
            address,
            bytes: left.min(bytes) as usize,
        })
    }
}

/// Guest memory as one user looks at it: the table, and the region that the last look-up found.
/// Buffers tend to stay in one region, descriptor tables in another, so each has its own view.
pub struct GuestView {
    map: Arc<GuestMap>,
    /// Of `map`; empty until the first look-up.
    last: MappedRegion,
}

impl GuestView {
    /// A view of `map`.
    #[must_use]
    pub fn new(map: Arc<GuestMap>) -> Self {
        let last = MappedRegion {
            guest_start: 0,
            bytes: 0,
            host: NonNull::dangling(),
        };
        Self { map, last }
    }

    /// The table.
    #[inline]
    #[must_use]
    pub fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Where `bytes` bytes from `address` on are mapped, if in one region.
    #[inline]
    #[must_use]
    pub fn whole(&mut self, address: u64, bytes: u64) -> Option<NonNull<u8>> {
        self.last.whole(address, bytes).or_else(|| {
            self.find(address)?;
            self.last.whole(address, bytes)
        })
    }

    /// The longest run from `address` on, at most `bytes` long. `None` outside of memory.
    #[inline]
    #[must_use]
    pub fn piece(&mut self, address: u64, bytes: u64) -> Option<Piece> {
        self.last.piece(address, bytes).or_else(|| {
            self.find(address)?;
            self.last.piece(address, bytes)
        })
    }

    #[cold]
    fn find(&mut self, address: u64) -> Option<()> {
        let mut regions = self.map.regions.iter();
        self.last = *regions.find(|region| region.whole(address, 1).is_some())?;
        Some(())
    }
}
