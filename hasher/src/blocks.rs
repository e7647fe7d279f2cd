//! What differs within a page: digests of its blocks, and records that carry the blocks.
//!
//! A record, little endian: page u32, CRC32C of the page after it u32, mask u32 (bit n: block n
//! follows), then those blocks in order. Mask 0 names a page of zeros. Records have the same form
//! on the wire and in the staging file. Whether a page may be named is checked by who reads them.

use plover_types::limits::PAGE_BYTES;
use plover_types::{PageDigest, PageIndex};

use crate::digest::{is_zero, page_digest};
use crate::error::ProtocolError;
use crate::guest_memory::{GuestMemory, PageBuf};
use crate::limits::{BLOCK_BYTES, BLOCKS_PER_PAGE};

/// Bytes of a record before its blocks.
pub const RECORD_HEADER_BYTES: usize = 12;

/// Bytes of the block digests of one page.
pub const BLOCK_DIGESTS_BYTES: usize = BLOCKS_PER_PAGE * 4;

const ALL_BLOCKS: u32 = u32::MAX;

/// CRC32C of each block of a page.
pub type BlockDigests = [u32; BLOCKS_PER_PAGE];

/// Digests the blocks of a page.
#[must_use]
pub fn block_digests(page: &[u8; PAGE_BYTES]) -> BlockDigests {
    let (blocks, _) = page.as_chunks::<BLOCK_BYTES>();
    let mut digests = [0; BLOCKS_PER_PAGE];
    for (digest, block) in digests.iter_mut().zip(blocks) {
        *digest = crc32c::crc32c(block);
    }
    digests
}

/// Appends the record that makes a page with the peer's block digests into this one. Returns
/// the bytes of blocks that it carries.
pub fn append_difference(
    out: &mut Vec<u8>,
    page: PageIndex,
    content: &[u8; PAGE_BYTES],
    peer: &BlockDigests,
) -> usize {
    if is_zero(content) {
        return append_record(out, page, content, 0);
    }
    let own = block_digests(content);
    let differs = |n: &usize| own[*n] != peer[*n];
    let mask = (0..BLOCKS_PER_PAGE)
        .filter(differs)
        .fold(0, |mask, n| mask | 1 << n);
    // The pages differ although no block's digest does: a collision. Mask 0 would mean zeros.
    append_record(
        out,
        page,
        content,
        if mask == 0 { ALL_BLOCKS } else { mask },
    )
}

/// Appends a record with the whole page. Returns the bytes of blocks that it carries.
pub fn append_whole(out: &mut Vec<u8>, page: PageIndex, content: &[u8; PAGE_BYTES]) -> usize {
    append_record(
        out,
        page,
        content,
        if is_zero(content) { 0 } else { ALL_BLOCKS },
    )
}

fn append_record(
    out: &mut Vec<u8>,
    page: PageIndex,
    content: &[u8; PAGE_BYTES],
    mask: u32,
) -> usize {
    let number = u32::try_from(page.0).expect("PAGES_MAX fits a u32");
    let header = out.len();
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&page_digest(content).0.to_le_bytes());
    out.extend_from_slice(&mask.to_le_bytes());
    if mask == ALL_BLOCKS {
        out.extend_from_slice(content);
    } else {
        let (blocks, _) = content.as_chunks::<BLOCK_BYTES>();
        for (n, block) in blocks.iter().enumerate() {
            if mask & 1 << n != 0 {
                out.extend_from_slice(block);
            }
        }
    }
    out.len() - header - RECORD_HEADER_BYTES
}

/// A record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The page.
    pub page: PageIndex,
    /// What the page's CRC32C must be after it.
    pub crc: PageDigest,
    mask: u32,
    blocks: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes the first record off `bytes`.
    ///
    /// # Errors
    /// If the bytes end before the record does.
    pub fn split_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), ProtocolError> {
        let short = |need| ProtocolError::Short {
            what: "page record",
            have: bytes.len(),
            need,
        };
        let (header, rest) = bytes
            .split_first_chunk::<RECORD_HEADER_BYTES>()
            .ok_or_else(|| short(RECORD_HEADER_BYTES))?;
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| header[at + n]));
        let mask = field(8);
        let length = mask.count_ones() as usize * BLOCK_BYTES;
        let (blocks, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| short(RECORD_HEADER_BYTES + length))?;
        let page = PageIndex(field(0).into());
        Ok((
            Self {
                page,
                crc: PageDigest(field(4)),
                mask,
                blocks,
            },
            rest,
        ))
    }

    /// Whether it names a page of zeros.
    #[must_use]
    pub fn is_zero_page(&self) -> bool {
        self.mask == 0
    }

    /// Bytes of blocks in it.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds the whole content, so that what was there before does not matter.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.mask == 0 || self.mask == ALL_BLOCKS
    }

    /// Lays its blocks over a page's copy.
    pub fn overlay(&self, page: &mut PageBuf) {
        if self.is_zero_page() {
            page.0.fill(0);
        }
        self.each_block(|offset, block| {
            page.0[offset..offset + BLOCK_BYTES].copy_from_slice(block);
        });
    }

    /// Writes its blocks into guest memory.
    pub fn apply(&self, memory: &GuestMemory) {
        if self.is_zero_page() {
            memory.write(self.page, 0, &[0; PAGE_BYTES]);
        }
        self.each_block(|offset, block| memory.write(self.page, offset, block));
    }

    fn each_block(&self, mut act: impl FnMut(usize, &[u8])) {
        let (blocks, _) = self.blocks.as_chunks::<BLOCK_BYTES>();
        let numbers = (0..BLOCKS_PER_PAGE).filter(|n| self.mask & 1 << n != 0);
        for (n, block) in numbers.zip(blocks) {
            act(n * BLOCK_BYTES, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_difference_laid_over_the_old_page_gives_the_new_one(
            changes in proptest::collection::vec((0usize..PAGE_BYTES, any::<u8>()), 0..40),
            fill in any::<u8>(),
        ) {
            let mut old = PageBuf([fill; PAGE_BYTES]);
            let mut new = old.clone();
            for (at, value) in changes {
                new.0[at] = value;
            }
            let mut bytes = Vec::new();
            let carried =
                append_difference(&mut bytes, PageIndex(5), &new.0, &block_digests(&old.0));
            let (record, rest) = Record::split_first(&bytes).expect("whole");
            prop_assert!(rest.is_empty());
            prop_assert_eq!(record.page, PageIndex(5));
            prop_assert_eq!(record.crc, page_digest(&new.0));
            prop_assert_eq!(record.block_bytes(), carried);
            record.overlay(&mut old);
            prop_assert!(old.0 == new.0);
        }

        #[test]
        fn no_bytes_make_a_record_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok((record, rest)) = Record::split_first(&bytes) {
                record.overlay(&mut PageBuf::default());
                prop_assert_eq!(
                    bytes.len(),
                    RECORD_HEADER_BYTES + record.block_bytes() + rest.len()
                );
            }
        }
    }

    #[test]
    fn a_zero_page_is_named_and_not_sent() {
        let mut bytes = Vec::new();
        let zero = [0; PAGE_BYTES];
        assert_eq!(
            append_difference(&mut bytes, PageIndex(1), &zero, &[1; 32]),
            0
        );
        assert_eq!(append_whole(&mut bytes, PageIndex(2), &zero), 0);
        assert_eq!(bytes.len(), 2 * RECORD_HEADER_BYTES);
        let (record, _) = Record::split_first(&bytes).expect("whole");
        let mut page = PageBuf([7; PAGE_BYTES]);
        record.overlay(&mut page);
        assert!(is_zero(&page.0));
    }

    #[test]
    fn pages_that_only_a_collision_makes_equal_are_sent_whole() {
        let page = [3; PAGE_BYTES];
        let mut bytes = Vec::new();
        let carried = append_difference(&mut bytes, PageIndex(1), &page, &block_digests(&page));
        assert_eq!(carried, PAGE_BYTES);
    }
}
