//! Checks a memory table before anything looks into it, and tells the rest of the node (the
//! hasher) which files guest memory is in.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::error::Refusal;
use crate::limits::{GUEST_ADDRESS_END_MAX, LOG_PAGE_BYTES};
use crate::ring::{VmmMemory, WrittenPages};

/// A region of guest memory, as the VMM sent it.
#[derive(Clone, Debug)]
pub struct Region {
    /// First guest physical address.
    pub guest_phys_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where it starts in the file, in bytes.
    pub mmap_offset: u64,
    /// The file.
    pub file: Arc<File>,
}

/// Guest memory, and the log of our own writes to it.
#[derive(Clone)]
pub struct MemoryMap {
    /// In order of address, not overlapping.
    pub regions: Vec<Region>,
    /// At least as long as the highest region. Its file is the same for as long as the node
    /// runs; it only grows.
    pub written_pages: Arc<WrittenPages>,
}

/// What became of guest memory.
#[derive(Clone)]
pub enum MemoryEvent {
    /// The VMM sent a memory table, and the poll core uses it.
    Mapped(MemoryMap),
    /// The VMM has gone.
    Unmapped,
}

/// Told of every change, on the control thread.
pub type MemoryListener = Box<dyn FnMut(MemoryEvent) + Send>;

/// Describes and checks the regions of a new memory table.
pub(super) fn check_regions(memory: &VmmMemory) -> Result<Vec<Region>, Refusal> {
    let regions = memory
        .iter()
        .map(check_region)
        .collect::<Result<Vec<_>, _>>()?;
    let end = regions
        .iter()
        .map(|r| r.guest_phys_addr + r.size)
        .max()
        .unwrap_or(0);
    if end > GUEST_ADDRESS_END_MAX {
        return Err(Refusal::MemoryTooHigh { end });
    }
    Ok(regions)
}

fn check_region(
    region: &GuestRegionMmap<impl vm_memory::bitmap::Bitmap>,
) -> Result<Region, Refusal> {
    let address = region.start_addr().0;
    let size = region.len();
    let no_file = || io::Error::from(io::ErrorKind::InvalidInput);
    let place = GuestMemoryRegion::file_offset(region).ok_or_else(|| Refusal::RegionFile {
        address,
        source: no_file(),
    })?;
    if !address.is_multiple_of(LOG_PAGE_BYTES) || !size.is_multiple_of(LOG_PAGE_BYTES) {
        return Err(Refusal::RegionNotPages { address });
    }
    let file = place
        .file()
        .metadata()
        .map_err(|source| Refusal::RegionFile { address, source })?
        .len();
    let end = place.start().saturating_add(size);
    if end > file {
        return Err(Refusal::RegionPastFileEnd { address, end, file });
    }
    Ok(Region {
        guest_phys_addr: address,
        size,
        mmap_offset: place.start(),
        file: Arc::clone(place.arc()),
    })
}
