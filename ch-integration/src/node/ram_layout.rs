//! Where a VMM lays the guest's RAM file into the guest's address space. The hasher needs it before
//! the guest's driver is up and the VMM sends a memory table; the table is compared with it.

use hasher::guest_memory::RegionSpec;

use crate::vmm::VmmKind;

const GIB: u64 = 1 << 30;
/// Above the PCI hole, on both VMMs.
const HIGH_START: u64 = 4 * GIB;
/// QEMU's q35: a guest of up to 2.75 GiB has all of it below the hole, a larger one 2 GiB.
const Q35_ALL_LOW_MAX: u64 = 0xb000_0000;
const Q35_LOW: u64 = 2 * GIB;
/// Cloud Hypervisor keeps the last GiB below 4 GiB for devices.
const CLOUD_HYPERVISOR_LOW: u64 = 3 * GIB;

/// The regions of a RAM file of `bytes` bytes.
pub fn regions(kind: VmmKind, bytes: u64) -> Vec<RegionSpec> {
    let low = match kind {
        VmmKind::Qemu if bytes >= Q35_ALL_LOW_MAX => Q35_LOW,
        VmmKind::Qemu => bytes,
        VmmKind::CloudHypervisor => CLOUD_HYPERVISOR_LOW,
    }
    .min(bytes);
    let mut regions = vec![RegionSpec {
        guest_phys_addr: 0,
        size: low,
        mmap_offset: 0,
    }];
    if bytes > low {
        regions.push(RegionSpec {
            guest_phys_addr: HIGH_START,
            size: bytes - low,
            mmap_offset: low,
        });
    }
    regions
}

/// The end of guest memory.
pub fn guest_end(regions: &[RegionSpec]) -> u64 {
    regions
        .iter()
        .map(|region| region.guest_phys_addr + region.size)
        .max()
        .unwrap_or(0)
}

/// Whether a memory table agrees: each of its regions lies in one of ours, at the same place of
/// the file. A VMM may cut a region in two (QEMU does around the BIOS area).
pub fn agrees(ours: &[RegionSpec], theirs: &[RegionSpec]) -> bool {
    theirs.iter().all(|region| {
        ours.iter().any(|own| {
            region.guest_phys_addr >= own.guest_phys_addr
                && region.guest_phys_addr + region.size <= own.guest_phys_addr + own.size
                && region.mmap_offset.wrapping_sub(own.mmap_offset)
                    == region.guest_phys_addr - own.guest_phys_addr
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_is_one_region_and_a_large_one_two() {
        assert_eq!(regions(VmmKind::Qemu, 256 << 20).len(), 1);
        assert_eq!(regions(VmmKind::CloudHypervisor, 3 * GIB).len(), 1);
        let large = regions(VmmKind::Qemu, 4 * GIB);
        assert_eq!(large[0].size, 2 * GIB);
        assert_eq!(
            (large[1].guest_phys_addr, large[1].mmap_offset),
            (4 * GIB, 2 * GIB)
        );
        assert_eq!(guest_end(&large), 6 * GIB);
        assert_eq!(regions(VmmKind::CloudHypervisor, 4 * GIB)[1].size, GIB);
    }

    #[test]
    fn a_table_with_the_bios_area_cut_out_agrees_and_a_shifted_one_does_not() {
        let ours = regions(VmmKind::Qemu, 256 << 20);
        let cut = [
            RegionSpec {
                guest_phys_addr: 0,
                size: 0xa0000,
                mmap_offset: 0,
            },
            RegionSpec {
                guest_phys_addr: 0xc0000,
                size: 0x1000,
                mmap_offset: 0xc0000,
            },
        ];
        assert!(agrees(&ours, &cut));
        let shifted = [RegionSpec {
            guest_phys_addr: 0,
            size: 0x1000,
            mmap_offset: 0x1000,
        }];
        assert!(!agrees(&ours, &shifted));
        let outside = [RegionSpec {
            guest_phys_addr: GIB,
            size: 0x1000,
            mmap_offset: GIB,
        }];
        assert!(!agrees(&ours, &outside));
    }
}
