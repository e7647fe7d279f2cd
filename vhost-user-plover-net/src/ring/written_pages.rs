//! The set of guest pages that we wrote: a byte a page in a memfd that the hasher maps too. Who
//! collects, and when, is not decided here.
//!
//! Byte n is guest page n of 4 KiB, 1 if it was written. The byte is stored after the write that
//! it stands for, with Release; the hasher clears a byte with one exchange, then reads the page:
//!
//! ```text
//!   write page ; store 1        the exchange finds the 1: what was written before it is seen by
//!                               the read that follows
//!                               the exchange came before: the next one finds the 1
//! ```
//!
//! So a write is seen either by that read or by the next collection, and the poll core neither
//! looks at what is there nor waits for its own stores: a bit would take both (decision 0018).

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::limits::LOG_PAGE_BYTES;

/// The marks, mapped.
pub struct WrittenPages {
    file: Arc<File>,
    marks: NonNull<AtomicU8>,
    page_count: u64,
    map_bytes: NonZeroUsize,
    is_off: bool,
}

// SAFETY: the mapping belongs to this value and is only accessed as atomics.
unsafe impl Send for WrittenPages {}
// SAFETY: as above.
unsafe impl Sync for WrittenPages {}

impl WrittenPages {
    /// No page written yet, for guest addresses below `guest_end`.
    pub fn create(guest_end: u64) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"plover-written-pages", flags)?);
        // Another process maps it: if it could be cut short, our next mark would be a SIGBUS.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        Self::map(Arc::new(file), guest_end)
    }

    /// Marks that are not made, to measure what marking costs. Never under protection:
    /// the hasher would miss what we write.
    pub fn off() -> io::Result<Self> {
        let mut pages = Self::create(LOG_PAGE_BYTES)?;
        pages.is_off = true;
        Ok(pages)
    }

    /// The same marks, longer: the same memfd, so none is lost and older mappings stay
    /// valid for the pages that they cover.
    pub fn grown(&self, guest_end: u64) -> io::Result<Self> {
        let mut pages = Self::map(Arc::clone(&self.file), guest_end)?;
        pages.is_off = self.is_off;
        Ok(pages)
    }

    fn map(file: Arc<File>, guest_end: u64) -> io::Result<Self> {
        let page_count = guest_end.div_ceil(LOG_PAGE_BYTES).max(1);
        let file_bytes = page_count.next_multiple_of(LOG_PAGE_BYTES);
        if file.metadata()?.len() < file_bytes {
            file.set_len(file_bytes)?;
        }
        let map_bytes =
            NonZeroUsize::new(file_bytes as usize).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                None,
                map_bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                &*file,
                0,
            )
        }?;
        Ok(Self {
            file,
            marks: start.cast(),
            page_count,
            map_bytes,
            is_off: false,
        })
    }

    /// The memfd, for the hasher.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it reaches up to guest address `guest_end`.
    #[must_use]
    pub fn covers(&self, guest_end: u64) -> bool {
        guest_end <= self.page_count * LOG_PAGE_BYTES
    }

    /// Whether guest page `page` is marked.
    #[must_use]
    pub fn is_marked(&self, page: u64) -> bool {
        page < self.page_count && self.of(page).load(Ordering::Acquire) != 0
    }

    /// Takes and clears the mark of guest page `page`, as the hasher does.
    #[must_use]
    pub fn collect(&self, page: u64) -> bool {
        page < self.page_count && self.of(page).swap(0, Ordering::AcqRel) != 0
    }

    /// Takes and clears all marks.
    pub fn collect_all(&self) {
        (0..self.page_count).for_each(|page| _ = self.collect(page));
    }

    /// Marks the pages of `bytes` bytes from guest address `address` on, which were written.
    ///
    /// First and last page without asking whether they are the same one: how buffers lie over
    /// pages has no pattern that a branch could be predicted by.
    #[inline(always)]
    pub fn mark(&self, address: u64, bytes: u64) {
        if bytes == 0 || self.is_off {
            return;
        }
        let first = address / LOG_PAGE_BYTES;
        let last = (address + (bytes - 1)) / LOG_PAGE_BYTES;
        // Addresses were checked against the regions that this was made for: beyond it is a bug
        // of ours.
        assert!(
            first <= last && last < self.page_count,
            "guest page beyond the written pages"
        );
        self.of(first).store(1, Ordering::Release);
        self.of(last).store(1, Ordering::Release);
        if bytes > LOG_PAGE_BYTES {
            (first..last).for_each(|page| self.of(page).store(1, Ordering::Release));
        }
    }

    #[inline(always)]
    fn of(&self, page: u64) -> &AtomicU8 {
        debug_assert!(page < self.page_count);
        // SAFETY: every caller has compared `page` with `page_count`; in bounds of a live
        // mapping, only ever used as atomics.
        unsafe { self.marks.add(page as usize).as_ref() }
    }
}

impl Drop for WrittenPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing borrows from it any more. It can
        // only fail for a range that was never mapped.
        let _ = unsafe { munmap(self.marks.cast(), self.map_bytes.get()) };
    }
}
