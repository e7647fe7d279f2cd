//! Guest memory as the hasher sees it: shared mappings of the VMM's memory file, read and
//! written a page at a time through copies.
//!
//! Nearly all `unsafe` of the crate is here and in `written_pages`. No reference into guest
//! memory ever leaves this file: a guest or a VMM may write at any time.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::unistd::{Whence, lseek};
use plover_types::PageIndex;
use plover_types::limits::PAGE_BYTES;
use serde::{Deserialize, Serialize};

use crate::error::AttachError;
use crate::limits::REGIONS_MAX;
use crate::page_set::{MemoryMap, PageSet};

/// A region of guest memory, as in the vhost-user memory table. All values in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Its length.
    pub size: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
}

/// Shorter runs of pages are left to page faults.
const POPULATE_PAGES_MIN: u64 = 8;

/// Asks for huge pages behind a large, still empty buffer.
pub(crate) fn advise_huge(buffer: &Vec<u8>) {
    let start = (buffer.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
    let end = (buffer.as_ptr() as usize + buffer.capacity()) / PAGE_BYTES * PAGE_BYTES;
    if let (Some(address), true) = (NonNull::new(start as *mut _), end > start) {
        // SAFETY: whole pages inside our own allocation; the advice changes no byte.
        let _ = unsafe { madvise(address, end - start, MmapAdvise::MADV_HUGEPAGE) };
    }
}

/// The content of one page, copied out of the guest.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct PageBuf(pub [u8; PAGE_BYTES]);

impl Default for PageBuf {
    fn default() -> Self {
        Self([0; PAGE_BYTES])
    }
}

/// A shared mapping of (a part of) a file, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory at a fixed address until drop; it is only accessed through
// raw copies and atomics, which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: as above; no `&` or `&mut` to its content is ever made from a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of a file from `offset` on, shared.
    pub(crate) fn new(
        file: impl AsFd,
        offset: u64,
        bytes: usize,
        writable: bool,
    ) -> Result<Self, io::Error> {
        let length = NonZeroUsize::new(bytes).ok_or_else(|| io::Error::other("empty mapping"))?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let access = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing of ours.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new` and nobody holds a pointer into it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

#[derive(Debug)]
struct Region {
    first_page: u64,
    pages: u64,
    mapping: Mapping,
    file: File,
    device: u64,
    inode: u64,
    file_offset: u64,
}

/// Where a region's bytes lie in its file: what a tracker needs to find it in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Device number of the file, as `st_dev`.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// First byte in the file.
    pub offset: u64,
    /// First page in the guest.
    pub first_page: u64,
    /// Pages.
    pub pages: u64,
}

/// All of a guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    map: MemoryMap,
}

impl GuestMemory {
    /// Maps the regions; `files[n]` holds `specs[n]`.
    ///
    /// # Errors
    /// Names the region that is not page aligned, overlaps, or is longer than its file.
    pub fn map(specs: &[RegionSpec], files: Vec<OwnedFd>) -> Result<Self, AttachError> {
        if specs.len() > REGIONS_MAX || specs.len() != files.len() {
            let count = specs.len();
            return Err(AttachError::Regions(format!(
                "{count} regions, {} files",
                files.len()
            )));
        }
        let mut regions = specs
            .iter()
            .zip(files)
            .map(|(spec, file)| Region::map(spec, file))
            .collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(|region| region.first_page);
        let ranges: Vec<_> = regions.iter().map(|r| (r.first_page, r.pages)).collect();
        let map = MemoryMap::new(&ranges).map_err(AttachError::Regions)?;
        Ok(Self { regions, map })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &MemoryMap {
        &self.map
    }

    /// Where the regions lie in their files.
    pub fn extents(&self) -> impl Iterator<Item = FileExtent> + '_ {
        self.regions.iter().map(|region| FileExtent {
            device: region.device,
            inode: region.inode,
            offset: region.file_offset,
            first_page: region.first_page,
            pages: region.pages,
        })
    }

    /// Pages that the files have no memory for: they hold zeros, and reading them through a
    /// mapping would make the kernel allocate them. Empty where the file cannot tell.
    #[must_use]
    pub fn holes(&self) -> PageSet {
        let mut holes = PageSet::new();
        for region in &self.regions {
            region.add_holes(&mut holes);
        }
        holes
    }

    /// Copies a page out.
    ///
    /// # Panics
    /// If the page is not in the layout: callers check what comes from outside.
    pub fn read_page(&self, page: PageIndex, into: &mut PageBuf) {
        let from = self.address(page);
        // SAFETY: `address` is the start of a page inside a live mapping, `into` is as long and
        // our own. Concurrent writes by the guest can tear the copy, nothing else.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.0.as_mut_ptr(), PAGE_BYTES) }
    }

    /// Writes bytes into a page.
    ///
    /// # Panics
    /// If the page is not in the layout or the bytes pass its end: callers check.
    pub fn write(&self, page: PageIndex, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= PAGE_BYTES,
            "write past the end of a page"
        );
        let to = self.address(page);
        // SAFETY: the range lies inside one page of a live, writable mapping; `bytes` is never
        // guest memory, so the two don't overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr().add(offset), bytes.len());
        }
    }

    /// Lets the kernel map the longer runs of these pages at once, for writing: a fault each
    /// would cost more than the writing. Does nothing where the kernel can't.
    pub fn prepare_writes(&self, pages: &PageSet) {
        for (start, count) in pages.runs().filter(|run| run.1 >= POPULATE_PAGES_MIN) {
            for region in &self.regions {
                let from = start.max(region.first_page);
                let to = (start + count).min(region.first_page + region.pages);
                if from >= to {
                    continue;
                }
                let bytes = (to - from) as usize * PAGE_BYTES;
                let address = self.address(PageIndex(from));
                // SAFETY: the range lies in one live mapping of ours; populating changes no byte.
                let _ = unsafe { madvise(address.cast(), bytes, MmapAdvise::MADV_POPULATE_WRITE) };
            }
        }
    }

    fn address(&self, page: PageIndex) -> NonNull<u8> {
        let region = self
            .regions
            .iter()
            .find(|r| page.0.wrapping_sub(r.first_page) < r.pages)
            .expect("page outside guest memory");
        let offset = (page.0 - region.first_page) as usize * PAGE_BYTES;
        assert!(offset + PAGE_BYTES <= region.mapping.bytes());
        // SAFETY: just checked to lie inside the mapping.
        unsafe { region.mapping.start().add(offset) }
    }
}

impl Region {
    fn map(spec: &RegionSpec, file: OwnedFd) -> Result<Self, AttachError> {
        let page = PAGE_BYTES as u64;
        let aligned = [spec.guest_phys_addr, spec.size, spec.mmap_offset]
            .iter()
            .all(|value| value.is_multiple_of(page));
        let end = spec.mmap_offset.checked_add(spec.size);
        let (true, Some(end), true) = (aligned, end, spec.size > 0) else {
            return Err(AttachError::Regions(format!(
                "{spec:?} is not of whole pages"
            )));
        };
        let file = File::from(file);
        let io = |doing| move |source| AttachError::Io { doing, source };
        let metadata = file
            .metadata()
            .map_err(io("examine the guest's memory file"))?;
        if metadata.len() < end {
            let have = metadata.len();
            return Err(AttachError::Short {
                what: "guest memory file",
                have,
                need: end,
            });
        }
        let bytes = usize::try_from(spec.size)
            .map_err(|_| AttachError::Regions(format!("{spec:?} is too long")))?;
        let mapping = Mapping::new(&file, spec.mmap_offset, bytes, true)
            .map_err(io("map the guest's memory file"))?;
        Ok(Self {
            first_page: spec.guest_phys_addr / page,
            pages: spec.size / page,
            mapping,
            device: metadata.dev(),
            inode: metadata.ino(),
            file_offset: spec.mmap_offset,
            file,
        })
    }

    fn add_holes(&self, holes: &mut PageSet) {
        let page = PAGE_BYTES as u64;
        let end = self.file_offset + self.pages * page;
        let mut at = self.file_offset;
        while at < end {
            let Some(hole) = self.seek(at, Whence::SeekHole) else {
                return;
            };
            let hole = hole.next_multiple_of(page);
            if hole >= end {
                return;
            }
            let data = match lseek(&self.file, hole as i64, Whence::SeekData) {
                Ok(data) => (data as u64 / page * page).min(end),
                Err(nix::Error::ENXIO) => end,
                Err(_) => return,
            };
            if data > hole {
                let first = self.first_page + (hole - self.file_offset) / page;
                holes.insert_range(first, (data - hole) / page);
            }
            at = data.max(hole + page);
        }
    }

    fn seek(&self, at: u64, whence: Whence) -> Option<u64> {
        lseek(&self.file, at as i64, whence)
            .ok()
            .map(|found| found as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{guest, memfd};

    #[test]
    fn pages_are_read_back_as_written() {
        let memory = guest(&[(0, 4), (100, 4)]);
        memory.write(PageIndex(102), 40, b"hello");
        let mut page = PageBuf::default();
        memory.read_page(PageIndex(102), &mut page);
        assert_eq!(&page.0[40..45], b"hello");
        memory.read_page(PageIndex(2), &mut page);
        assert!(page.0.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn holes_are_the_pages_never_touched() {
        let memory = guest(&[(0, 8), (100, 8)]);
        memory.write(PageIndex(3), 0, &[1]);
        memory.write(PageIndex(107), 0, &[1]);
        let holes: Vec<u64> = memory.holes().iter().map(|page| page.0).collect();
        assert_eq!(
            holes,
            [0, 1, 2, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106]
        );
    }

    #[test]
    fn regions_that_do_not_fit_are_refused() {
        let spec = |guest_phys_addr, size, mmap_offset| RegionSpec {
            guest_phys_addr,
            size,
            mmap_offset,
        };
        let bad = [
            vec![spec(1, 4096, 0)],
            vec![spec(0, 4097, 0)],
            vec![spec(0, 0, 0)],
            vec![spec(0, 8 * 4096, 0)],
            vec![spec(0, 4096, u64::MAX - 4095)],
            vec![spec(0, 8192, 0), spec(4096, 4096, 0)],
            vec![],
        ];
        for specs in bad {
            let files = specs.iter().map(|_| memfd(4 * 4096)).collect();
            assert!(GuestMemory::map(&specs, files).is_err(), "{specs:?}");
        }
    }
}
