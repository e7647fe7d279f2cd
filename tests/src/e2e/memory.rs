//! The whole memory of two VMs, compared byte by byte by way of the files it lives in.
//! Knows nothing of hashers, digests and written pages.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const PAGE_BYTES: usize = 4096;
/// Read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Where two memories differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages with at least one byte that differs, in order.
    pub pages: Vec<u64>,
    /// Bytes that differ.
    pub bytes: u64,
    /// Bytes compared.
    pub compared: u64,
}

/// Compares two files of guest memory.
pub fn compare(first: &Path, second: &Path) -> Result<Difference> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (first, second) = (open(first)?, open(second)?);
    let length = first.metadata()?.len();
    ensure!(
        length == second.metadata()?.len(),
        "the memories differ in size"
    );
    ensure!(length > 0, "the memories are empty");
    let mut difference = Difference {
        compared: length,
        ..Difference::default()
    };
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut offset = 0;
    while offset < length {
        let bytes = usize::try_from(length - offset)?.min(CHUNK_BYTES);
        first.read_exact_at(&mut left[..bytes], offset)?;
        second.read_exact_at(&mut right[..bytes], offset)?;
        if left[..bytes] != right[..bytes] {
            difference.add(offset, &left[..bytes], &right[..bytes]);
        }
        offset += bytes as u64;
    }
    Ok(difference)
}

impl Difference {
    fn add(&mut self, offset: u64, left: &[u8], right: &[u8]) {
        let pages = left.chunks(PAGE_BYTES).zip(right.chunks(PAGE_BYTES));
        for (number, (left, right)) in pages.enumerate() {
            let bytes = left
                .iter()
                .zip(right)
                .filter(|(left, right)| left != right)
                .count();
            if bytes > 0 {
                self.pages
                    .push((offset + (number * PAGE_BYTES) as u64) / PAGE_BYTES as u64);
                self.bytes += bytes as u64;
            }
        }
    }
}

/// Changes one byte of a page.
pub fn flip_byte(ram: &Path, page: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(ram)?;
    let offset = page * PAGE_BYTES as u64 + 1234;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset)
        .context("change a byte of guest memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: usize) -> (tempfile::TempDir, [std::path::PathBuf; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            File::create(path).unwrap().set_len(bytes as u64).unwrap();
        }
        (folder, paths)
    }

    #[test]
    fn one_byte_in_one_page_is_seen_and_named() {
        let (_folder, [a, b]) = memory(3 * CHUNK_BYTES + PAGE_BYTES);
        assert!(compare(&a, &b).unwrap().pages.is_empty());
        flip_byte(&b, 513).unwrap();
        flip_byte(&a, 768).unwrap();
        let difference = compare(&a, &b).unwrap();
        assert_eq!((difference.pages, difference.bytes), (vec![513, 768], 2));
    }

    #[test]
    fn memories_of_two_sizes_are_no_match() {
        let (_folder, [a, b]) = memory(PAGE_BYTES);
        File::options()
            .write(true)
            .open(&b)
            .unwrap()
            .set_len(1)
            .unwrap();
        assert!(compare(&a, &b).is_err());
    }
}
