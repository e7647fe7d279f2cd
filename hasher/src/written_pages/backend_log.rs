//! Pages that the vhost-user backend wrote: a bitmap in shared memory, one bit a page from guest
//! physical address 0 on, set by the backend after its write and before it publishes the used
//! index. The kernel's tracking does not see these writes: another process makes them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use plover_types::PageIndex;

use crate::error::AttachError;
use crate::guest_memory::Mapping;
use crate::limits::PAGES_MAX;
use crate::page_set::PageSet;

/// The shared bitmap.
#[derive(Debug)]
pub struct BackendLog {
    mapping: Mapping,
    words: usize,
}

impl BackendLog {
    /// Maps the bitmap of a guest with `pages` pages, holes counted.
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
        let need = pages.div_ceil(8);
        if have < need {
            return Err(AttachError::Short {
                what: "backend's log",
                have,
                need,
            });
        }
        let words = pages.div_ceil(64) as usize;
        // A last word that passes the file's end still lies in the file's last page.
        let mapping =
            Mapping::new(&file, 0, words * 8, true).map_err(io("map the backend's log"))?;
        Ok(Self { mapping, words })
    }

    /// Moves all marks into `pages`. What was written before its mark was seen here is visible
    /// to reads that follow.
    pub fn take_into(&self, pages: &mut PageSet) {
        let words = (0..self.words)
            .map(|n| {
                let word = self.word(n);
                // Most words are 0, and a plain load does not take the cache line.
                if word.load(Ordering::Relaxed) == 0 {
                    0
                } else {
                    word.swap(0, Ordering::AcqRel)
                }
            })
            .map(u64::from_le)
            .collect();
        pages.union_with(&PageSet::from_words(words));
    }

    /// Marks a page, as the backend does.
    pub fn mark(&self, page: PageIndex) {
        let bit = (1u64 << (page.0 % 64)).to_le();
        self.word((page.0 / 64) as usize)
            .fetch_or(bit, Ordering::Release);
    }

    fn word(&self, n: usize) -> &AtomicU64 {
        assert!(n < self.words);
        // SAFETY: inside the mapping, aligned (a mapping starts at a page), and only ever
        // accessed as atomics, by the backend, too.
        unsafe { self.mapping.start().cast::<AtomicU64>().add(n).as_ref() }
    }
}
