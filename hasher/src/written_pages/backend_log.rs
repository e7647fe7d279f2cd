//! Pages that the vhost-user backend wrote: shared memory with one byte a page from guest physical
//! address 0 on, stored by the backend after its write. The kernel's tracking does not see these
//! writes: another process makes them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use plover_types::PageIndex;

use crate::error::AttachError;
use crate::guest_memory::Mapping;
use crate::limits::PAGES_MAX;
use crate::page_set::PageSet;

/// Pages whose marks are taken together.
const WORD_PAGES: usize = 8;

/// The mark of each page of a word, as the backend stores it.
const MARKS: u64 = 0x0101_0101_0101_0101;

/// The shared marks.
#[derive(Debug)]
pub struct BackendLog {
    mapping: Mapping,
    pages: usize,
}

impl BackendLog {
    /// Maps the marks of a guest with `pages` pages, holes counted.
    ///
    /// # Errors
    /// If the file is too short or cannot be mapped.
    pub fn map(file: OwnedFd, pages: u64) -> Result<Self, AttachError> {
        assert!(pages > 0 && pages <= PAGES_MAX);
        let file = File::from(file);
        let io = |doing| move |source| AttachError::Io { doing, source };
        let have = file
            .metadata()
            .map_err(io("examine the backend's log"))?
            .len();
        let need = pages;
        if have < need {
            return Err(AttachError::Short {
                what: "backend's log",
                have,
                need,
            });
        }
        let pages = pages as usize;
        // A last word that passes the file's end still lies in the file's last page.
        let bytes = pages.next_multiple_of(WORD_PAGES);
        let mapping = Mapping::new(&file, 0, bytes, true).map_err(io("map the backend's log"))?;
        Ok(Self { mapping, pages })
    }

    /// Moves all marks into `pages`. What was written before its mark was seen here is visible
    /// to reads that follow.
    pub fn take_into(&self, pages: &mut PageSet) {
        let words = self.pages.div_ceil(WORD_PAGES);
        let sets = (0..words).step_by(WORD_PAGES).map(|first| {
            let last = words.min(first + WORD_PAGES);
            (first..last).fold(0, |set, word| {
                set | self.take_word(word) << ((word - first) * WORD_PAGES)
            })
        });
        pages.union_with(&PageSet::from_words(sets.collect()));
    }

    /// Takes the marks of eight pages: bit n for page `word * 8 + n`.
    fn take_word(&self, word: usize) -> u64 {
        let marks = self.word(word);
        // Most are 0, and a plain load does not take the cache line.
        if marks.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let taken = u64::from_le(marks.swap(0, Ordering::AcqRel));
        // Whatever a byte holds, it is a mark.
        let low = (taken | taken >> 4) & (MARKS * 0x0f);
        let low = (low | low >> 2) & (MARKS * 0x03);
        let low = (low | low >> 1) & MARKS;
        // Gathers the lowest bits of the eight bytes, none of which carries into another.
        low.wrapping_mul(0x0102_0408_1020_4080) >> 56
    }

    /// Marks a page, as the backend does, eight pages at a time.
    pub fn mark(&self, page: PageIndex) {
        let word = page.0 as usize / WORD_PAGES;
        let mark = (1u64 << (page.0 as usize % WORD_PAGES * 8)).to_le();
        self.word(word).fetch_or(mark, Ordering::Release);
    }

    /// Eight marks. The backend stores single bytes of it: on every processor that we run on, an
    /// exchange of the word and a store to a byte of it happen one after the other.
    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < self.pages.div_ceil(WORD_PAGES));
        // SAFETY: inside the mapping, aligned (a mapping starts at a page), and in this process
        // only ever accessed as this atomic.
        unsafe { self.mapping.start().cast::<AtomicU64>().add(word).as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::testing::memfd;

    #[test]
    fn each_byte_is_a_page_and_is_taken_once() {
        let file = memfd(300);
        let bytes = File::from(file.try_clone().expect("dup"));
        let log = BackendLog::map(file, 300).expect("map");
        for (page, byte) in [(0, 1u8), (7, 0x80), (8, 1), (63, 0xff), (64, 1), (299, 2)] {
            bytes.write_all_at(&[byte], page).expect("write");
        }
        let take = || {
            let mut pages = PageSet::new();
            log.take_into(&mut pages);
            pages.iter().map(|page| page.0).collect::<Vec<_>>()
        };
        assert_eq!(take(), [0, 7, 8, 63, 64, 299]);
        assert!(take().is_empty());
    }

    #[test]
    fn a_log_that_is_too_short_is_refused() {
        let refused = BackendLog::map(memfd(299), 300);
        assert!(matches!(refused, Err(AttachError::Short { need: 300, .. })));
    }
}
