//! The log of written pages, and the test that every changed page is in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::ring::WrittenPages;
use crate::test_driver::{Driver, layout, memory, modern, snapshot, unmarked_changes};

const MIB: u64 = 1 << 20;

fn mark_in_file(file: &File, page: u64) -> bool {
    let mut byte = [0];
    file.read_exact_at(&mut byte, page).unwrap();
    byte[0] != 0
}

#[test]
fn byte_n_is_page_n() {
    let pages = WrittenPages::create(MIB).unwrap();
    pages.mark(4095, 2);
    pages.mark(100 * 4096, 0);
    pages.mark(200 * 4096, 1);
    pages.mark(210 * 4096 + 4095, 2 * 4096);
    for page in 0..256 {
        let expected = [0, 1, 200, 210, 211, 212].contains(&page);
        assert_eq!(mark_in_file(pages.file(), page), expected, "page {page}");
        assert_eq!(pages.is_marked(page), expected, "page {page}");
    }
    assert!(pages.collect(200) && !pages.collect(200));
    assert!(!pages.is_marked(200) && pages.is_marked(0));
    pages.collect_all();
    assert!((0..256).all(|page| !pages.is_marked(page)));
}

#[test]
fn what_has_grown_keeps_its_marks_and_its_file() {
    let pages = WrittenPages::create(MIB).unwrap();
    pages.mark(5 * 4096, 1);
    assert!(!pages.covers(1 << 30));
    let grown = pages.grown(1 << 40).unwrap();
    assert!(grown.covers(1 << 40));
    assert!(grown.is_marked(5));
    // Marks through the shorter one, still in use by a ring, are not lost.
    pages.mark(6 * 4096, 1);
    assert!(grown.is_marked(6));
    grown.mark((1 << 40) - 1, 1);
    assert!(mark_in_file(pages.file(), (1 << 28) - 1));
    assert!(
        pages.file().set_len(0).is_err(),
        "nobody can cut it short under us"
    );
}

#[test]
fn an_unmarked_change_is_found_by_the_check() {
    let memory = memory();
    let driver = Driver::new(&memory, layout(0, 8));
    let (_ring, pages) = driver.ring(modern(true, true));
    let before = snapshot(&memory);
    assert_eq!(unmarked_changes(&before, &memory, &pages), [0; 0]);
    driver.write(0x10_0000 + 4095, &[1, 2]);
    assert_eq!(unmarked_changes(&before, &memory, &pages), [0x100, 0x101]);
}

#[test]
fn the_vmms_own_log_is_kept_only_when_it_asks() {
    use vhost_user_backend::bitmap::BitmapMmapRegion;
    use vm_memory::GuestMemoryBackend;
    use vm_memory::bitmap::Bitmap;

    // Without a log set by the VMM, asking for one marks nothing and harms nothing.
    let memory = memory();
    let map = crate::ring::GuestMap::new(Arc::clone(&memory)).unwrap();
    map.set_log_for_vmm(true);
    map.log_for_vmm(0x10_0000, 5000);
    map.log_for_vmm(u64::MAX, 1);
    let marked = |region: &vm_memory::GuestRegionMmap<BitmapMmapRegion>| {
        vm_memory::GuestMemoryRegion::bitmap(region).dirty_at(0)
    };
    assert!(!memory.iter().any(marked));
}

#[test]
fn what_is_off_takes_no_marks() {
    let pages = WrittenPages::off().unwrap().grown(64 * 4096).unwrap();
    pages.mark(3 * 4096, 10);
    assert!((0..64).all(|page| !pages.is_marked(page)));
}
