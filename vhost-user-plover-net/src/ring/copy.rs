//! Bytes between our memory and the guest's, and what the cache is told beforehand. The guest may
//! write at any time: what is copied is data, looked at only in our copy.

use std::arch::asm;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Copies up to this length are made here, the others by the C library: a call costs as much as
/// moving a small frame.
const SHORT_BYTES_MAX: usize = 128;

/// Copies guest memory into `to`.
///
/// # Safety
/// `to.len()` bytes from `from` on are mapped.
#[inline(always)]
pub(super) unsafe fn from_guest(from: NonNull<u8>, to: &mut [MaybeUninit<u8>]) {
    // SAFETY: `from` as promised; `to` is ours, so they don't overlap.
    unsafe { copy(from.as_ptr(), to.as_mut_ptr().cast(), to.len()) };
}

/// Copies `from` into guest memory.
///
/// # Safety
/// `from.len()` bytes from `to` on are mapped and writable.
#[inline(always)]
pub(super) unsafe fn to_guest(from: &[u8], to: NonNull<u8>) {
    // SAFETY: `to` as promised; `from` is ours, so they don't overlap. No reference to guest
    // memory exists anywhere.
    unsafe { copy(from.as_ptr(), to.as_ptr(), from.len()) };
}

/// # Safety
/// Both are valid for `bytes` bytes and don't overlap.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    const STEP: usize = 16;
    if !(STEP..=SHORT_BYTES_MAX).contains(&bytes) {
        // SAFETY: promised by the caller.
        return unsafe { to.copy_from_nonoverlapping(from, bytes) };
    }
    let last = bytes - STEP;
    let mut at = 0;
    while at < last {
        // SAFETY: `at + STEP <= bytes`.
        unsafe { to.add(at).copy_from_nonoverlapping(from.add(at), STEP) };
        at += STEP;
    }
    // Overlaps the step before it where the length is no multiple of one.
    // SAFETY: ends with the last byte.
    unsafe { to.add(last).copy_from_nonoverlapping(from.add(last), STEP) };
}

/// Asks for the cache line at `address`, to be read soon. Any address will do.
#[inline(always)]
pub(super) fn prefetch_to_read(address: *const u8) {
    // SAFETY: a hint; it neither faults nor changes anything.
    unsafe {
        asm!("prefetcht0 [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}

/// Asks for the cache line at `address`, to be written soon. Any address will do. In assembly,
/// since the compiler makes a reading prefetch of it for processors of our baseline, to which it
/// is no more than a hint, too.
#[inline(always)]
pub(super) fn prefetch_to_write(address: *const u8) {
    // SAFETY: a hint; it neither faults nor changes what the memory holds.
    unsafe {
        asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}
