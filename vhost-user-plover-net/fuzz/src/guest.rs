//! Guest memory with nothing beside it: each region lies between pages that no access survives,
//! and a second copy of it knows what the guest itself wrote. What differs was written by the
//! device, and must be in the log of written pages.

use std::ptr::NonNull;
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_plover_net::ring::{VmmMemory, WrittenPages};
use vm_memory::mmap::{MmapRegionBuilder, NewBitmap};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::input::Input;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a region, at most.
const REGION_PAGES_MAX: usize = 32;
/// Regions, at most.
const REGIONS_MAX: usize = 4;
/// First addresses worth a try: the last one is as high as a memory table may reach.
const BASES: [u64; 5] = [
    0,
    0x1000,
    0x10_0000,
    0xffff_f000,
    (1 << 47) - (REGIONS_MAX * (REGION_PAGES_MAX + 2) * PAGE_BYTES) as u64,
];

/// One region: its mapping, its guards, and what the guest wrote to it.
pub struct Region {
    start: u64,
    bytes: usize,
    reserved: NonNull<u8>,
    written_by_guest: Vec<u8>,
}

// SAFETY: the mapping belongs to this value; it is looked at through raw pointers only.
unsafe impl Send for Region {}
// SAFETY: as above; what two threads do to it at a time is what a guest does to its device.
unsafe impl Sync for Region {}

impl Region {
    fn new(start: u64, bytes: usize) -> Self {
        let mapped = bytes.next_multiple_of(PAGE_BYTES);
        // SAFETY: new mappings at an address of the kernel's choice, then inside of it.
        let reserved = unsafe {
            let reserved = libc::mmap(
                std::ptr::null_mut(),
                mapped + 2 * PAGE_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            assert_ne!(reserved, libc::MAP_FAILED, "no address space left");
            let inner = reserved.cast::<u8>().add(PAGE_BYTES).cast();
            let open = libc::mprotect(inner, mapped, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(open, 0, "can't open the region");
            reserved.cast::<u8>()
        };
        Self {
            start,
            bytes,
            reserved: NonNull::new(reserved).expect("mmap gives no null"),
            written_by_guest: vec![0; mapped],
        }
    }

    /// First guest address.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// First guest address behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.bytes as u64
    }

    fn host(&self) -> *mut u8 {
        // SAFETY: the page in front is part of what was reserved.
        unsafe { self.reserved.as_ptr().add(PAGE_BYTES) }
    }

    fn offset(&self, address: u64) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        (offset < self.bytes).then_some(offset)
    }

    /// From now on any access to it is a fault.
    fn close(&self) {
        // SAFETY: the range is ours; nobody holds a reference into it.
        let closed = unsafe {
            libc::mprotect(
                self.host().cast(),
                self.written_by_guest.len(),
                libc::PROT_NONE,
            )
        };
        assert_eq!(closed, 0, "can't close the region");
    }

    /// Asserts that what the device wrote is marked, and that it wrote nothing behind the end.
    fn check_marks(&self, pages: &WrittenPages) {
        // SAFETY: mapped and as long; the device runs on this thread, so nobody writes meanwhile.
        let now = unsafe { std::slice::from_raw_parts(self.host(), self.written_by_guest.len()) };
        assert!(
            now[self.bytes..].iter().all(|byte| *byte == 0),
            "written behind the end of a region"
        );
        let mut offset = 0;
        while offset < self.bytes {
            let page = (self.start + offset as u64) / PAGE_BYTES as u64;
            let page_end = (page + 1) * PAGE_BYTES as u64 - self.start;
            let end = self.bytes.min(page_end as usize);
            assert!(
                now[offset..end] == self.written_by_guest[offset..end] || pages.is_marked(page),
                "guest page {page:#x} was written and not marked"
            );
            offset = end;
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let bytes = self.written_by_guest.len() + 2 * PAGE_BYTES;
        // SAFETY: what `new` mapped; nothing borrows from it any more.
        unsafe { libc::munmap(self.reserved.as_ptr().cast(), bytes) };
    }
}

/// The regions of a guest. Not all of them need be in the memory table.
pub struct Guest {
    regions: Vec<Region>,
}

impl Guest {
    /// One to four regions, adjoining or with holes, some at odd addresses or of odd length.
    pub fn new(input: &mut Input<'_>) -> Self {
        let mut at = input.pick(&BASES);
        let mut regions = Vec::new();
        for _ in 0..=input.below(REGIONS_MAX) {
            let pages = 1 + input.below(REGION_PAGES_MAX);
            let shape = input.u8();
            if shape & 1 != 0 {
                at += PAGE_BYTES as u64;
            }
            // Control refuses both; the engine must not depend on it.
            let (shift, cut) = match shape >> 4 {
                1 => (u64::from(shape & 15), 0),
                2 => (0, usize::from(shape & 15)),
                _ => (0, 0),
            };
            let region = Region::new(at + shift, pages * PAGE_BYTES - cut);
            at = region.end();
            regions.push(region);
        }
        Self { regions }
    }

    /// One region of `bytes` bytes from address 0 on.
    pub fn of_one_region(bytes: usize) -> Self {
        Self {
            regions: vec![Region::new(0, bytes)],
        }
    }

    /// The regions, in order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// A memory table of the regions that `mask` names, at least one.
    #[must_use]
    pub fn table(&self, mask: u8) -> Arc<VmmMemory> {
        let mask = if u32::from(mask).trailing_zeros() as usize >= self.regions.len() {
            u8::MAX
        } else {
            mask
        };
        let chosen = self.regions.iter().enumerate();
        let regions = chosen
            .filter(|(number, _)| mask & (1 << number) != 0)
            .map(|(_, region)| map(region))
            .collect();
        Arc::new(VmmMemory::from_regions(regions).expect("in order and apart"))
    }

    /// The guest writes; what reaches out of its region is cut off.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        for region in &mut self.regions {
            let Some(offset) = region.offset(address) else {
                continue;
            };
            let bytes = &bytes[..bytes.len().min(region.bytes - offset)];
            region.written_by_guest[offset..offset + bytes.len()].copy_from_slice(bytes);
            // SAFETY: inside of the region; the device runs on this thread.
            unsafe {
                region
                    .host()
                    .add(offset)
                    .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            };
        }
    }

    /// The guest writes the low `N` bytes of `value`, while the device may read them: not
    /// remembered, so nothing can be said of marks any more.
    pub fn write_racing<const N: usize>(&self, address: u64, value: u64) {
        let Some(region) = self.regions.iter().find(|r| r.offset(address).is_some()) else {
            return;
        };
        let offset = region.offset(address).unwrap_or(0);
        if offset + N > region.bytes {
            return;
        }
        // SAFETY: inside of the region. The device reads it at the same time, by volatile reads
        // and copies, as it has to with any guest.
        unsafe {
            let to = region.host().add(offset);
            match N {
                2 => to.cast::<u16>().write_volatile(value as u16),
                4 => to.cast::<u32>().write_volatile(value as u32),
                _ => to.cast::<u64>().write_volatile(value),
            }
        }
    }

    /// The guest reads a number; `None` outside of memory.
    #[must_use]
    pub fn read_u16(&self, address: u64) -> Option<u16> {
        let region = self.regions.iter().find(|r| r.offset(address).is_some())?;
        let offset = region.offset(address)?;
        // SAFETY: both bytes are inside of the region.
        (offset + 2 <= region.bytes)
            .then(|| unsafe { region.host().add(offset).cast::<[u8; 2]>().read_volatile() })
            .map(u16::from_le_bytes)
    }

    /// Asserts that all writes of the device are in the log.
    pub fn check_marks(&self, pages: &WrittenPages) {
        self.regions
            .iter()
            .for_each(|region| region.check_marks(pages));
    }

    /// The device has let go of this memory: any access from now on is a fault.
    pub fn close(&self) {
        self.regions.iter().for_each(Region::close);
    }
}

fn map(region: &Region) -> GuestRegionMmap<BitmapMmapRegion> {
    let bitmap = BitmapMmapRegion::with_len(region.bytes);
    // SAFETY: the range is mapped until the region is dropped, which is after the card is.
    let mapping = unsafe {
        MmapRegionBuilder::new_with_bitmap(region.bytes, bitmap)
            .with_raw_mmap_pointer(region.host())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE)
    }
    .build()
    .expect("the pointer is aligned to a page");
    GuestRegionMmap::new(mapping, GuestAddress(region.start)).expect("the end does not overflow")
}
