//! The set of guest pages that we wrote: a bitmap in a memfd that the hasher maps too. Who
//! collects, and when, is not decided here.
//!
//! One bit per 4 KiB page, bit n of byte n/8 is guest page n. A bit is set after the write that
//! it stands for; the hasher clears a word, then reads the pages. So a write is seen either by
//! that read or by the next collection. How the rings keep to that is told in `marker`.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::limits::{LOG_PAGE_BYTES, WORD_PAGES};

/// The bitmap, mapped.
pub struct WrittenPages {
    file: Arc<File>,
    words: NonNull<AtomicU64>,
    word_count: usize,
    map_bytes: NonZeroUsize,
    is_off: bool,
}

// SAFETY: the mapping belongs to this value and is only accessed as atomics.
unsafe impl Send for WrittenPages {}
// SAFETY: as above.
unsafe impl Sync for WrittenPages {}

impl WrittenPages {
    /// A new bitmap, all clear, for guest addresses below `guest_end`.
    pub fn create(guest_end: u64) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"plover-written-pages", flags)?);
        // Another process maps it: if it could be cut short, our next mark would be a SIGBUS.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        Self::map(Arc::new(file), guest_end)
    }

    /// A bitmap that nothing is marked in, to measure what marking costs. Never under protection:
    /// the hasher would miss what we write.
    pub fn off() -> io::Result<Self> {
        let mut pages = Self::create(LOG_PAGE_BYTES)?;
        pages.is_off = true;
        Ok(pages)
    }

    /// Whether writes are to be marked in it.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        !self.is_off
    }

    /// The same bitmap, longer: the same memfd, so no mark is lost and older mappings stay
    /// valid for the pages that they cover.
    pub fn grown(&self, guest_end: u64) -> io::Result<Self> {
        let mut pages = Self::map(Arc::clone(&self.file), guest_end)?;
        pages.is_off = self.is_off;
        Ok(pages)
    }

    fn map(file: Arc<File>, guest_end: u64) -> io::Result<Self> {
        let word_count = guest_end.div_ceil(LOG_PAGE_BYTES * WORD_PAGES).max(1);
        let file_bytes = (word_count * 8).next_multiple_of(LOG_PAGE_BYTES);
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
            words: start.cast(),
            word_count: word_count as usize,
            map_bytes,
            is_off: false,
        })
    }

    /// The memfd, for the hasher.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Pages that the bitmap covers, from guest physical address 0.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.word_count as u64 * WORD_PAGES
    }

    /// Whether it reaches up to guest address `guest_end`.
    #[must_use]
    pub fn covers(&self, guest_end: u64) -> bool {
        guest_end <= self.pages() * LOG_PAGE_BYTES
    }

    /// Whether guest page `page` is marked.
    #[must_use]
    pub fn is_marked(&self, page: u64) -> bool {
        let word = (page / WORD_PAGES) as usize;
        word < self.word_count
            && self.word(word).load(Ordering::Acquire) & (1 << (page % WORD_PAGES)) != 0
    }

    /// Takes and clears the marks of the 64 pages from `word * 64` on, as the hasher does.
    #[must_use]
    pub fn collect_word(&self, word: usize) -> u64 {
        if word < self.word_count {
            self.word(word).swap(0, Ordering::SeqCst)
        } else {
            0
        }
    }

    /// Sets a page's bit, unless it is set: a look is cheaper than a locked instruction.
    #[inline]
    pub(super) fn set(&self, page: u64) {
        let word = self.word((page / WORD_PAGES) as usize);
        let bit = 1 << (page % WORD_PAGES);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    #[inline]
    fn word(&self, word: usize) -> &AtomicU64 {
        // Addresses were checked against the regions that the bitmap was made for: beyond it is
        // a bug of ours.
        assert!(
            word < self.word_count,
            "guest page beyond the written-pages bitmap"
        );
        // SAFETY: in bounds of a live mapping, page-aligned, only ever used as atomics.
        unsafe { self.words.add(word).as_ref() }
    }
}

impl Drop for WrittenPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing borrows from it any more. It can
        // only fail for a range that was never mapped.
        let _ = unsafe { munmap(self.words.cast(), self.map_bytes.get()) };
    }
}
