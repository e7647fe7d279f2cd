//! Pages that the VMM and its vCPUs wrote, from outside a stock VMM: its memory is
//! write-protected asynchronously through a userfaultfd of its address space, and the
//! PAGEMAP_SCAN ioctl tells and clears what was written since. Linux 6.7 or newer.
//!
//! How the descriptor was obtained (at the VMM's exec stop) is not known here.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use plover_types::limits::PAGE_BYTES;

use crate::error::TrackerError;
use crate::guest_memory::FileExtent;
use crate::limits::SCAN_RANGES;
use crate::page_set::PageSet;

// From Linux 6.7's include/uapi/linux/userfaultfd.h and fs.h; Debian 12's headers are older.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// What a scan looks for.
#[derive(Clone, Copy)]
enum Scan {
    /// Pages that the mapping has, touched in whatever way: before it is registered.
    Populated,
    /// Pages written since they were protected; they are protected again. Fails where that cannot
    /// be.
    Written,
}

#[repr(C)]
#[derive(Default)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

mod calls {
    use super::{PmScanArg, UffdioApi, UffdioRegister, UffdioWriteprotect};
    nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, UffdioApi);
    nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, UffdioRegister);
    nix::ioctl_readwrite!(uffdio_writeprotect, 0xaa, 0x06, UffdioWriteprotect);
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);
}

/// A stretch of the VMM's addresses that maps guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    start: u64,
    end: u64,
    first_page: u64,
}

/// Tracks one VMM process.
#[derive(Debug)]
pub struct UffdTracker {
    uffd: OwnedFd,
    pidfd: OwnedFd,
    pid: u32,
    pagemap: File,
    extents: Vec<FileExtent>,
    windows: Vec<Window>,
    /// Written before the proving scan, as far as the mapping shows it.
    early: PageSet,
}

impl UffdTracker {
    /// Starts tracking the mappings that the process has of these extents. What is populated in
    /// them counts as written: a VMM that maps its memory anew to load a state may write some of it
    /// before anyone can track it (KVM does, with the pages of its paravirtual clocks).
    ///
    /// # Errors
    /// If the kernel lacks a feature, the process has ended, or has not mapped all extents.
    pub fn start(
        uffd: OwnedFd,
        pidfd: OwnedFd,
        pid: u32,
        extents: Vec<FileExtent>,
    ) -> Result<Self, TrackerError> {
        enable(&uffd)?;
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(path).map_err(proc_error("open the pagemap", pid))?;
        let mut tracker = Self {
            uffd,
            pidfd,
            pid,
            pagemap,
            extents,
            windows: Vec::new(),
            early: PageSet::new(),
        };
        tracker.check_alive()?;
        let mut early = PageSet::new();
        for window in tracker.find_windows()? {
            tracker.scan(window, Scan::Populated, &mut early)?;
        }
        tracker.protect_anew()?;
        // Proves that the tracking is the asynchronous one, whoever enabled it.
        tracker.take_into(&mut early)?;
        tracker.early = early;
        Ok(tracker)
    }

    /// Finds the mappings, registers and write-protects them: from here on writes are seen.
    ///
    /// # Errors
    /// As for [`UffdTracker::start`].
    pub fn protect_anew(&mut self) -> Result<(), TrackerError> {
        self.windows = self.find_windows()?;
        for window in &self.windows {
            register(&self.uffd, *window)?;
        }
        Ok(())
    }

    /// Adds the pages written since the last call, and clears their marks.
    ///
    /// # Errors
    /// If tracking was lost: the process ended or mapped its memory anew.
    pub fn take_into(&mut self, pages: &mut PageSet) -> Result<(), TrackerError> {
        self.check_alive()?;
        if self.find_windows()? != self.windows {
            return Err(TrackerError::Remapped(self.pid));
        }
        pages.union_with(&std::mem::take(&mut self.early));
        self.windows
            .iter()
            .try_for_each(|window| self.scan(*window, Scan::Written, pages))
    }

    fn scan(&self, window: Window, what: Scan, pages: &mut PageSet) -> Result<(), TrackerError> {
        let (flags, category) = match what {
            Scan::Populated => (0, PAGE_IS_PRESENT),
            Scan::Written => (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, PAGE_IS_WRITTEN),
        };
        let mut found = [PageRegion::default(); SCAN_RANGES];
        let mut at = window.start;
        while at < window.end {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags,
                start: at,
                end: window.end,
                vec: found.as_mut_ptr() as u64,
                vec_len: found.len() as u64,
                category_mask: category,
                return_mask: category,
                ..PmScanArg::default()
            };
            // SAFETY: the structure has the kernel's layout and size, and names an array of ours
            // with its true length.
            let count = unsafe { calls::pagemap_scan(self.pagemap.as_raw_fd(), &raw mut arg) }
                .map_err(unsupported("PAGEMAP_SCAN"))?;
            for region in found.iter().take(count as usize) {
                let start = region.start.clamp(window.start, window.end) - window.start;
                let end = region.end.clamp(window.start, window.end) - window.start;
                let page = PAGE_BYTES as u64;
                pages.insert_range(window.first_page + start / page, (end - start) / page);
            }
            if arg.walk_end <= at {
                return Err(unsupported("PAGEMAP_SCAN that advances")(nix::Error::EIO));
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    fn check_alive(&self) -> Result<(), TrackerError> {
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => Err(TrackerError::Gone(self.pid)),
        }
    }

    fn find_windows(&self) -> Result<Vec<Window>, TrackerError> {
        let pid = self.pid;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
            .map_err(proc_error("read the maps", pid))?;
        let mut windows: Vec<_> = maps
            .lines()
            .filter_map(MapsLine::parse)
            .flat_map(|line| {
                self.extents
                    .iter()
                    .filter_map(move |extent| line.window(extent))
            })
            .collect();
        windows.sort_unstable();
        let mut mapped = PageSet::new();
        for window in &windows {
            mapped.insert_range(window.first_page, window.pages());
        }
        let pages = self.extents.iter().map(|extent| extent.pages).sum();
        let mapped = mapped.len();
        if mapped < pages {
            return Err(TrackerError::NotMapped { pid, mapped, pages });
        }
        Ok(windows)
    }
}

impl Window {
    fn pages(self) -> u64 {
        (self.end - self.start) / PAGE_BYTES as u64
    }
}

/// What matters of a line of /proc/PID/maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapsLine {
    start: u64,
    end: u64,
    offset: u64,
    device: u64,
    inode: u64,
}

impl MapsLine {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = fields.next()?.split_once('-')?;
        let shared = fields.next()?.as_bytes().get(3) == Some(&b's');
        let offset = hex(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = nix::sys::stat::makedev(hex(major)?, hex(minor)?);
        let inode = fields.next()?.parse().ok()?;
        let line = Self {
            start: hex(start)?,
            end: hex(end)?,
            offset,
            device,
            inode,
        };
        (shared && line.start < line.end).then_some(line)
    }

    /// The part of this mapping that shows a part of the extent.
    fn window(self, extent: &FileExtent) -> Option<Window> {
        let page = PAGE_BYTES as u64;
        let extent_end = extent.offset + extent.pages * page;
        let from = self.offset.max(extent.offset);
        let to = self
            .offset
            .checked_add(self.end - self.start)?
            .min(extent_end);
        let same_file = (self.device, self.inode) == (extent.device, extent.inode);
        (same_file && from < to).then(|| Window {
            start: self.start + (from - self.offset),
            end: self.start + (to - self.offset),
            first_page: extent.first_page + (from - extent.offset) / page,
        })
    }
}

fn enable(uffd: &OwnedFd) -> Result<(), TrackerError> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features: UFFD_FEATURE_WP_HUGETLBFS_SHMEM
            | UFFD_FEATURE_WP_UNPOPULATED
            | UFFD_FEATURE_WP_ASYNC,
        ioctls: 0,
    };
    // SAFETY: the structure has the kernel's layout and is ours.
    match unsafe { calls::uffdio_api(uffd.as_raw_fd(), &raw mut api) } {
        // EINVAL: a feature is unknown, or it was enabled before (by a hasher before us, for the
        // node keeps the descriptor). Registering, and the first scan, tell the two apart.
        Ok(_) | Err(nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(unsupported("UFFDIO_API with WP_ASYNC")(error)),
    }
}

fn register(uffd: &OwnedFd, window: Window) -> Result<(), TrackerError> {
    let (start, len) = (window.start, window.end - window.start);
    let mut range = UffdioRegister {
        start,
        len,
        mode: UFFDIO_REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: the structure has the kernel's layout; the addresses are the VMM's, not ours, and
    // write protection with WP_ASYNC changes nothing that it can see.
    unsafe { calls::uffdio_register(uffd.as_raw_fd(), &raw mut range) }
        .map_err(unsupported("UFFDIO_REGISTER for write protection"))?;
    let mut protect = UffdioWriteprotect {
        start,
        len,
        mode: UFFDIO_WRITEPROTECT_MODE_WP,
    };
    // SAFETY: as above.
    unsafe { calls::uffdio_writeprotect(uffd.as_raw_fd(), &raw mut protect) }
        .map_err(unsupported("UFFDIO_WRITEPROTECT"))?;
    Ok(())
}

fn unsupported(doing: &'static str) -> impl Fn(nix::Error) -> TrackerError {
    move |error| TrackerError::Unsupported {
        doing,
        source: error.into(),
    }
}

fn proc_error(doing: &'static str, pid: u32) -> impl Fn(io::Error) -> TrackerError {
    move |source| TrackerError::Proc { doing, pid, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let line = "7f10-7f30 rw-s 00002000 00:1b 1234    /dev/shm/vm 0 (deleted)";
        let parsed = MapsLine::parse(line).expect("shared");
        assert_eq!(
            (parsed.start, parsed.end, parsed.offset),
            (0x7f10, 0x7f30, 0x2000)
        );
        assert_eq!(
            (parsed.device, parsed.inode),
            (nix::sys::stat::makedev(0, 0x1b), 1234)
        );
        assert!(MapsLine::parse("7f10-7f30 rw-p 00000000 00:1b 1234 /x").is_none());
        assert!(MapsLine::parse("").is_none());
        assert!(MapsLine::parse("garbage-x y z").is_none());
    }

    #[test]
    fn a_mapping_shows_its_part_of_a_region() {
        let extent = FileExtent {
            device: 1,
            inode: 2,
            offset: 0x4000,
            first_page: 100,
            pages: 8,
        };
        let line = |offset, pages: u64| MapsLine {
            start: 0x10_0000,
            end: 0x10_0000 + pages * 0x1000,
            offset,
            device: 1,
            inode: 2,
        };
        let inside = line(0x6000, 2).window(&extent).expect("overlaps");
        assert_eq!(
            (inside.start, inside.first_page, inside.pages()),
            (0x10_0000, 102, 2)
        );
        let around = line(0, 64).window(&extent).expect("overlaps");
        assert_eq!(
            (around.start, around.first_page, around.pages()),
            (0x10_4000, 100, 8)
        );
        assert!(line(0xc000, 4).window(&extent).is_none());
        assert!(
            MapsLine {
                inode: 3,
                ..line(0x6000, 2)
            }
            .window(&extent)
            .is_none()
        );
    }
}
