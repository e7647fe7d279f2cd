//! The primary's finding of what differs, and the buffer that it is copied out into.
//!
//! Pages are compared by digest here; blocks within them in `blocks`.

use bytes::Bytes;
use plover_types::{PageDigest, PageIndex};

use crate::blocks::RECORD_HEADER_BYTES;
use crate::digest::{Digests, ZERO_PAGE_DIGEST};
use crate::exchange::Union;
use crate::guest_memory::{PageBuf, advise_huge};
use crate::limits::BLOCKS_FRAME_BYTES;

/// What is known of the backup's version of a differing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Its block digests must be asked for.
    Unknown,
    /// Zeros.
    Zeros,
    /// The page goes whole, or is zero and only named.
    Irrelevant,
}

/// A page that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differing {
    /// The page.
    pub page: PageIndex,
    /// What its blocks are compared with.
    pub base: Base,
}

/// The pages that differ; all of them if the union goes whole.
#[must_use]
pub fn compare(union: &Union, own: &Digests, theirs: &[PageDigest]) -> Vec<Differing> {
    if union.whole {
        let base = Base::Irrelevant;
        return union
            .pages
            .iter()
            .map(|page| Differing { page: *page, base })
            .collect();
    }
    let pairs = own.crcs.iter().zip(theirs);
    let differing = union
        .pages
        .iter()
        .zip(pairs)
        .filter(|(_, (own, theirs))| own != theirs);
    differing
        .map(|(page, (own, theirs))| {
            // A page that only has the digest of zeros costs a mismatch, nothing else.
            let base = match (*own == ZERO_PAGE_DIGEST, *theirs == ZERO_PAGE_DIGEST) {
                (true, _) => Base::Irrelevant,
                (_, true) => Base::Zeros,
                _ => Base::Unknown,
            };
            Differing { page: *page, base }
        })
        .collect()
}

/// Records, cut into frames of one buffer.
#[derive(Debug)]
pub struct Frames {
    buffer: Vec<u8>,
    starts: Vec<usize>,
}

impl Frames {
    /// Room for so many whole pages. Only what is written takes memory, in huge pages where the
    /// kernel allows: page faults would cost more than the copying.
    #[must_use]
    pub fn with_room(pages: usize) -> Self {
        let buffer = Vec::with_capacity(pages * (RECORD_HEADER_BYTES + size_of::<PageBuf>()));
        advise_huge(&buffer);
        Self {
            buffer,
            starts: vec![0],
        }
    }

    /// Where the next record goes.
    pub fn room(&mut self) -> &mut Vec<u8> {
        let start = self.starts.last().copied().unwrap_or(0);
        if self.buffer.len() - start >= BLOCKS_FRAME_BYTES {
            self.starts.push(self.buffer.len());
        }
        &mut self.buffer
    }

    /// The frames.
    #[must_use]
    pub fn finish(self) -> Vec<Bytes> {
        let whole = Bytes::from(self.buffer);
        let ends = self.starts[1..].iter().copied().chain([whole.len()]);
        let parts = self
            .starts
            .iter()
            .zip(ends)
            .map(|(start, end)| whole.slice(*start..end));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::PageTag;
    use crate::page_set::PageSet;

    fn union(whole: bool) -> Union {
        let pages = [1, 4, 6, 9].map(PageIndex).to_vec();
        let written = PageSet::new();
        Union {
            pages,
            written,
            all_memory: false,
            whole,
        }
    }

    fn bases(own: [u32; 4], theirs: &[u32], whole: bool) -> Vec<(u64, Base)> {
        let own = Digests {
            crcs: own.map(PageDigest).to_vec(),
            tags: vec![PageTag::default(); 4],
        };
        let theirs: Vec<_> = theirs.iter().copied().map(PageDigest).collect();
        let differing = compare(&union(whole), &own, &theirs);
        differing
            .iter()
            .map(|page| (page.page.0, page.base))
            .collect()
    }

    #[test]
    fn pages_with_equal_digests_are_left_out_and_zeros_need_no_asking() {
        let zero = ZERO_PAGE_DIGEST.0;
        let found = bases([7, 8, zero, 5], &[7, 9, 3, zero], false);
        assert_eq!(
            found,
            [(4, Base::Unknown), (6, Base::Irrelevant), (9, Base::Zeros)]
        );
        assert_eq!(bases([7, 8, 9, 5], &[], true).len(), 4);
    }

    #[test]
    fn frames_are_cut_between_records_and_lose_nothing() {
        let mut frames = Frames::with_room(1000);
        for n in 0..1000u32 {
            frames.room().extend_from_slice(&[n as u8; 3000]);
        }
        let frames = frames.finish();
        assert_eq!(frames.iter().map(Bytes::len).sum::<usize>(), 3_000_000);
        assert!(frames.iter().all(|frame| frame.len() % 3000 == 0));
        assert!(
            frames
                .iter()
                .all(|frame| frame.len() < BLOCKS_FRAME_BYTES + 3000)
        );
        assert!(Frames::with_room(0).finish().is_empty());
    }
}
