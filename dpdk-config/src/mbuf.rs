//! Packet buffers, owned: one ([`Mbuf`]), or up to [`BURST_PACKETS_MAX`] of them ([`Burst`]).
//! Nothing here allocates memory; buffers come from a [`crate::Mempool`] and go back on drop.

use std::fmt;
use std::ptr::NonNull;
use std::slice;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::error::TooLong;
use crate::limits::BURST_PACKETS_MAX;

/// One packet, in one or more segments.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: an mbuf here is never shared (no clones, no attached data), and pools take mbufs back
// from any thread.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `raw` is an mbuf that nobody else uses or frees.
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Mbuf {
        Mbuf(raw)
    }

    /// The bytes of the first segment: the whole packet if [`Mbuf::is_contiguous`].
    pub fn data(&self) -> &[u8] {
        // SAFETY: the mbuf is ours, and what is borrowed from it cannot outlive it.
        unsafe { segment(self.0.as_ptr()) }
    }

    /// The bytes of the first segment, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mbuf is ours and borrowed for writing; the span is its initialised data.
        unsafe {
            let span = sys::plover_mbuf_segment(self.0.as_ptr());
            slice::from_raw_parts_mut(span.start, span.bytes as usize)
        }
    }

    /// Bytes in the packet, over all segments.
    pub fn len(&self) -> usize {
        // SAFETY: the mbuf is ours.
        unsafe { sys::plover_mbuf_packet_bytes(self.0.as_ptr()) as usize }
    }

    /// Whether the packet has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one segment holds the whole packet.
    pub fn is_contiguous(&self) -> bool {
        // SAFETY: the mbuf is ours.
        unsafe { sys::plover_mbuf_segments(self.0.as_ptr()) == 1 }
    }

    /// The whole packet in one slice: its own bytes if it is contiguous, else copied to `scratch`.
    /// `None` if it is longer than `scratch`.
    pub fn linear<'a>(&'a self, scratch: &'a mut [u8]) -> Option<&'a [u8]> {
        if self.is_contiguous() {
            return Some(self.data());
        }
        let mut filled = 0;
        let mut next = self.0.as_ptr();
        while !next.is_null() {
            // SAFETY: `next` is a segment of a chain that is ours.
            let bytes = unsafe { segment(next) };
            let end = filled + bytes.len();
            scratch.get_mut(filled..end)?.copy_from_slice(bytes);
            filled = end;
            // SAFETY: as above.
            next = unsafe { sys::plover_mbuf_next(next) };
        }
        Some(&scratch[..filled])
    }

    /// Bytes that [`Mbuf::write`] still takes.
    pub fn room(&self) -> usize {
        // SAFETY: the mbuf is ours.
        usize::from(unsafe { sys::rte_pktmbuf_tailroom(self.0.as_ptr()) })
    }

    /// Appends the parts, in order: all of them, or none and an error.
    pub fn write(&mut self, parts: &[&[u8]]) -> Result<(), TooLong> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let room = self.room();
        let start = match u16::try_from(bytes) {
            // SAFETY: the mbuf is ours; DPDK checks the room again.
            Ok(bytes) if usize::from(bytes) <= room => unsafe {
                sys::rte_pktmbuf_append(self.0.as_ptr(), bytes)
            },
            _ => return Err(TooLong { bytes, room }),
        };
        let mut to = start.cast::<u8>();
        if to.is_null() {
            return Err(TooLong { bytes, room });
        }
        for part in parts {
            // SAFETY: append gave `bytes` bytes at `start`, which the parts fill exactly; a part
            // cannot overlap a buffer that is borrowed for writing.
            unsafe {
                to.copy_from_nonoverlapping(part.as_ptr(), part.len());
                to = to.add(part.len());
            }
        }
        Ok(())
    }
}

/// The bytes of one segment.
///
/// # Safety
/// `mbuf` is a valid segment that nobody writes to while the slice lives.
unsafe fn segment<'a>(mbuf: *mut sys::rte_mbuf) -> &'a [u8] {
    // SAFETY: `start` and `bytes` of a valid segment lie in its buffer, which drivers and
    // `write` have filled.
    unsafe {
        let span = sys::plover_mbuf_segment(mbuf);
        slice::from_raw_parts(span.start, span.bytes as usize)
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: the mbuf is ours and not used again.
        unsafe { sys::rte_pktmbuf_free(self.0.as_ptr()) };
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mbuf({} bytes)", self.len())
    }
}

/// At most [`BURST_PACKETS_MAX`] packets, in order. Freed in bulk.
#[derive(Debug, Default)]
pub struct Burst(ArrayVec<Mbuf, BURST_PACKETS_MAX>);

impl Burst {
    /// No packets.
    pub fn new() -> Burst {
        Burst::default()
    }

    /// Appends a packet; gives it back if the burst is full.
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        self.0
            .try_push(mbuf)
            .map_err(arrayvec::CapacityError::element)
    }

    /// Packets held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Packets that still fit.
    pub fn room(&self) -> usize {
        self.0.remaining_capacity()
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no further packet fits.
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// The packets, in order.
    pub fn iter(&self) -> slice::Iter<'_, Mbuf> {
        self.0.iter()
    }

    /// The packets, in order, to be changed.
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, Mbuf> {
        self.0.iter_mut()
    }

    /// Takes all packets out, in order. Those that are not consumed are freed.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = Mbuf> + '_ {
        self.0.drain(..)
    }

    /// Keeps the packets that `keep` accepts, in order, and frees the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&Mbuf) -> bool) {
        self.0.retain(|mbuf| keep(mbuf));
    }

    /// Frees all packets, in bulk.
    pub fn clear(&mut self) {
        let count = self.0.len();
        if count == 0 {
            return;
        }
        // SAFETY: the first `count` pointers are packets of ours, forgotten before they are freed.
        unsafe {
            self.0.set_len(0);
            sys::rte_pktmbuf_free_bulk(self.pointers(), count as u32);
        }
    }

    /// Bytes of the longest packet, in one call.
    pub(crate) fn longest(&mut self) -> usize {
        let count = self.0.len() as u16;
        // SAFETY: the first `count` pointers are packets of ours.
        unsafe { sys::plover_burst_longest(self.pointers(), count) as usize }
    }

    /// The array as DPDK takes it: `Mbuf` is a transparent pointer.
    pub(crate) fn pointers(&mut self) -> *mut *mut sys::rte_mbuf {
        self.0.as_mut_ptr().cast()
    }

    /// Where the next [`Burst::room`] pointers go.
    pub(crate) fn spare(&mut self) -> *mut *mut sys::rte_mbuf {
        self.0.spare_capacity_mut().as_mut_ptr().cast()
    }

    /// Takes in what was stored at [`Burst::spare`].
    ///
    /// # Safety
    /// `count` fit into the room, and that many mbufs that nobody else owns were stored there.
    pub(crate) unsafe fn grow(&mut self, count: usize) {
        debug_assert!(count <= self.room());
        // SAFETY: promised by the caller.
        unsafe { self.0.set_len(self.0.len() + count) };
    }

    /// Forgets the first `count` packets, which someone else owns now.
    ///
    /// # Safety
    /// `count <= len()`, and they are freed by their new owner.
    pub(crate) unsafe fn forget_first(&mut self, count: usize) {
        let left = self.0.len() - count;
        // SAFETY: the pointers that stay move to the front; no one is dropped or duplicated.
        unsafe {
            let start = self.0.as_mut_ptr();
            self.0.set_len(0);
            start.copy_from(start.add(count), left);
            self.0.set_len(left);
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<'a> IntoIterator for &'a Burst {
    type Item = &'a Mbuf;
    type IntoIter = slice::Iter<'a, Mbuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Burst {
    type Item = &'a mut Mbuf;
    type IntoIter = slice::IterMut<'a, Mbuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

const _: () = assert!(size_of::<Mbuf>() == size_of::<*mut sys::rte_mbuf>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Eal, EalConfig, Mempool};

    #[test]
    fn a_packet_in_segments_is_read_whole_through_scratch() {
        let eal = Eal::init(&EalConfig::default()).unwrap();
        let pool = Mempool::new(&eal, "segments", 31, 0, 64).unwrap();
        let mut packet = pool.alloc().unwrap();
        packet.write(&[b"one "]).unwrap();
        for part in ["two ", "three"] {
            let mut segment = pool.alloc().unwrap();
            segment.write(&[part.as_bytes()]).unwrap();
            // SAFETY: both are ours; the chain owns the segment from here on.
            let status = unsafe { sys::rte_pktmbuf_chain(packet.0.as_ptr(), segment.0.as_ptr()) };
            assert_eq!(status, 0);
            std::mem::forget(segment);
        }
        assert!(!packet.is_contiguous());
        assert_eq!((packet.data(), packet.len()), (&b"one "[..], 13));
        assert_eq!(packet.linear(&mut [0; 64]).unwrap(), b"one two three");
        assert_eq!(packet.linear(&mut [0; 13]).unwrap(), b"one two three");
        assert_eq!(packet.linear(&mut [0; 12]), None);
        assert_eq!(pool.available(), 28);
        drop(packet);
        assert_eq!(pool.available(), 31);
    }
}
