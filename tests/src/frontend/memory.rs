//! Guest memory: one region on a memfd, which the backend maps too.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the pretended VMM has guest memory: the backend only translates it.
const VMM_BASE: u64 = 0x7000_0000_0000;

/// The memory of one guest.
pub(super) struct Memory {
    pub(super) map: GuestMemoryMmap,
    file: File,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Result<Self> {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes).context("size guest memory")?;
        let backing = FileOffset::new(file.try_clone()?, 0);
        let range = (GuestAddress(0), usize::try_from(bytes)?, Some(backing));
        let map = GuestMemoryMmap::from_ranges_with_files([range]).context("map guest memory")?;
        Ok(Self { map, file, bytes })
    }

    /// As a vhost-user message names it.
    pub(super) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.bytes,
            userspace_addr: VMM_BASE,
            mmap_offset: 0,
            mmap_handle: self.fd(),
        }
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A guest address as the VMM's.
pub(super) fn vmm_address(guest: u64) -> u64 {
    VMM_BASE + guest
}
