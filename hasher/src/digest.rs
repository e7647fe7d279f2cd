//! Digests of pages: CRC32C to find what differs, and in the same pass the certificate's tags.
//!
//! Each page is copied once into a buffer that stays in the first-level cache; both hashes read
//! that copy, so they speak of the same bytes even if the guest were to write meanwhile.

use plover_types::limits::PAGE_BYTES;
use plover_types::{PageDigest, PageIndex};

use crate::certificate::{Certifier, PageTag};
use crate::guest_memory::{GuestMemory, PageBuf};
use crate::limits::PAGES_PER_THREAD_MIN;
use crate::page_set::PageSet;

/// CRC32C of a page of zeros.
pub const ZERO_PAGE_DIGEST: PageDigest = PageDigest(0x98f9_4189);

/// The CRC32C of a page.
#[must_use]
pub fn page_digest(page: &[u8; PAGE_BYTES]) -> PageDigest {
    PageDigest(crc32c::crc32c(page))
}

/// Whether a page holds only zeros. Leaves at the first word that does not.
#[must_use]
pub fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    page.chunks_exact(64).all(|line| {
        let (words, _) = line.as_chunks::<8>();
        words
            .iter()
            .fold(0, |any, word| any | u64::from_ne_bytes(*word))
            == 0
    })
}

/// What is known of each page of a union, in its order.
#[derive(Debug, Default)]
pub struct Digests {
    /// To find what differs.
    pub crcs: Vec<PageDigest>,
    /// For the certificate.
    pub tags: Vec<PageTag>,
}

/// Digests `pages` with up to `threads` threads, in chunks in memory order. Pages in `holes`
/// hold zeros and are not read.
#[must_use]
pub fn digest_pages(
    memory: &GuestMemory,
    pages: &[PageIndex],
    holes: &PageSet,
    certifier: &Certifier,
    threads: usize,
) -> Digests {
    let mut digests = Digests {
        crcs: vec![PageDigest(0); pages.len()],
        tags: vec![PageTag::default(); pages.len()],
    };
    let chunk = chunk_length(pages.len(), threads);
    let parts = pages
        .chunks(chunk)
        .zip(digests.crcs.chunks_mut(chunk))
        .zip(digests.tags.chunks_mut(chunk));
    run_chunks(parts, |((pages, crcs), tags)| {
        let mut copy = PageBuf::default();
        for ((page, crc), tag) in pages.iter().zip(crcs).zip(tags) {
            (*crc, *tag) = if holes.contains(*page) {
                (ZERO_PAGE_DIGEST, PageTag::default())
            } else {
                memory.read_page(*page, &mut copy);
                digest_one(&copy.0, certifier)
            };
        }
    });
    digests
}

/// Both hashes of one page.
#[must_use]
pub fn digest_one(page: &[u8; PAGE_BYTES], certifier: &Certifier) -> (PageDigest, PageTag) {
    if is_zero(page) {
        return (ZERO_PAGE_DIGEST, PageTag::default());
    }
    (page_digest(page), certifier.page_tag(page))
}

/// Items per worker: few enough for `threads` workers, never so few that a thread is not worth
/// its start.
#[must_use]
pub fn chunk_length(items: usize, threads: usize) -> usize {
    items.div_ceil(threads.max(1)).max(PAGES_PER_THREAD_MIN)
}

/// Runs `work` on each part, the first on this thread, the others on their own.
pub fn run_chunks<P: Send, F: Fn(P) + Sync>(parts: impl IntoIterator<Item = P>, work: F) {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return };
    std::thread::scope(|scope| {
        for part in parts {
            let work = &work;
            scope.spawn(move || work(part));
        }
        work(first);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::CertificateKey;
    use crate::testing::guest;

    /// RFC 3720, appendix B.4, and the check value of CRC-32/ISCSI.
    #[test]
    fn the_digest_is_crc32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c::crc32c(&ascending), 0x46dd_794e);
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c::crc32c(&descending), 0x113f_db5c);
    }

    #[test]
    fn zero_pages_have_the_digests_that_hashing_gives() {
        let zero = [0; PAGE_BYTES];
        let certifier = Certifier::new(&CertificateKey::generate());
        assert_eq!(page_digest(&zero), ZERO_PAGE_DIGEST);
        assert_eq!(certifier.page_tag(&zero), PageTag::default());
        for at in [0, 63, 64, 4000, 4095] {
            let mut page = zero;
            assert!(is_zero(&page));
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
        }
    }

    #[test]
    fn threads_and_holes_do_not_change_the_digests() {
        let memory = guest(&[(0, 3000)]);
        for page in (0..3000).step_by(3) {
            memory.write(PageIndex(page), (page % 4000) as usize, &page.to_le_bytes());
        }
        let certifier = Certifier::new(&CertificateKey::generate());
        let pages: Vec<_> = memory.layout().all().iter().collect();
        let one = digest_pages(&memory, &pages, &memory.holes(), &certifier, 1);
        let four = digest_pages(&memory, &pages, &PageSet::new(), &certifier, 4);
        assert_eq!(one.crcs, four.crcs);
        assert_eq!(one.tags, four.tags);
        let mut copy = PageBuf::default();
        memory.read_page(PageIndex(2997), &mut copy);
        assert_eq!(one.crcs[2997], page_digest(&copy.0));
    }

    /// Prints the speed of one thread; asserts nothing.
    #[test]
    fn speed_is_printed() {
        let memory = guest(&[(0, 8192)]);
        for page in 0..8192u64 {
            memory.write(PageIndex(page), 0, &[page as u8 | 1; PAGE_BYTES]);
        }
        let certifier = Certifier::new(&CertificateKey::generate());
        let pages: Vec<_> = memory.layout().all().iter().collect();
        let bytes = (pages.len() * PAGE_BYTES) as f64;
        let mut copy = PageBuf::default();
        let mut measure = |what: &str, work: &mut dyn FnMut(&mut PageBuf)| {
            let best = (0..5)
                .map(|_| {
                    let start = std::time::Instant::now();
                    work(&mut copy);
                    start.elapsed()
                })
                .min()
                .unwrap_or_default();
            eprintln!("{what}: {:.2} GB/s", bytes / 1e9 / best.as_secs_f64());
        };
        let mut each = |what: &str, act: &dyn Fn(&PageBuf)| {
            measure(what, &mut |copy| {
                for page in &pages {
                    memory.read_page(*page, copy);
                    act(copy);
                }
            });
        };
        each("copy", &|_| {});
        each("copy, zero check", &|copy| {
            assert!(!is_zero(std::hint::black_box(&copy.0)));
        });
        each("copy, CRC32C", &|copy| {
            std::hint::black_box(page_digest(&copy.0));
        });
        each("copy, tag", &|copy| {
            std::hint::black_box(certifier.page_tag(&copy.0));
        });
        let holes = PageSet::new();
        measure("digest and certificate", &mut |_| {
            std::hint::black_box(digest_pages(&memory, &pages, &holes, &certifier, 1));
        });
    }
}
