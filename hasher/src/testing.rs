//! Small helpers of the crate's own unit tests.

use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::guest_memory::{GuestMemory, RegionSpec};

pub(crate) fn memfd(bytes: u64) -> OwnedFd {
    let file = memfd_create("test", MFdFlags::MFD_CLOEXEC).expect("memfd");
    nix::unistd::ftruncate(&file, bytes as i64).expect("truncate");
    file
}

/// A guest with these (first page, count) regions, one after the other in one memfd.
pub(crate) fn guest(ranges: &[(u64, u64)]) -> GuestMemory {
    let pages: u64 = ranges.iter().map(|range| range.1).sum();
    let file = memfd(pages * 4096);
    let mut offset = 0;
    let mut specs = Vec::new();
    let mut files = Vec::new();
    for (first, count) in ranges {
        specs.push(RegionSpec {
            guest_phys_addr: first * 4096,
            size: count * 4096,
            mmap_offset: offset,
        });
        files.push(file.try_clone().expect("dup"));
        offset += count * 4096;
    }
    GuestMemory::map(&specs, files).expect("map")
}
