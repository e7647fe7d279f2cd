//! Packet buffers, owned: one ([`Mbuf`]), or up to [`BURST_PACKETS_MAX`] of them ([`Burst`]).
//! Nothing here allocates memory; buffers come from a [`crate::Mempool`] and go back on drop.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
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

    pub(crate) fn raw(&self) -> *mut sys::rte_mbuf {
        self.0.as_ptr()
    }

    /// The bytes of the first segment: the whole packet if [`Mbuf::is_contiguous`].
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.segment().data()
    }

    /// The bytes of the first segment, to be changed in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let segment = self.segment();
        // SAFETY: the mbuf is ours and borrowed for writing; the span is its initialised data.
        unsafe { slice::from_raw_parts_mut(segment.start(), segment.bytes()) }
    }

    /// Bytes in the packet, over all segments.
    #[inline]
    pub fn len(&self) -> usize {
        self.segment().field::<u32>(sys::PLOVER_MBUF_PKT_LEN) as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one segment holds the whole packet.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.segment().field::<u16>(sys::PLOVER_MBUF_NB_SEGS) == 1
    }

    /// The whole packet in one slice: its own bytes if it is contiguous, else copied to `scratch`.
    /// `None` if it is longer than `scratch`.
    pub fn linear<'a>(&'a self, scratch: &'a mut [u8]) -> Option<&'a [u8]> {
        if self.is_contiguous() {
            return Some(self.data());
        }
        let mut filled = 0;
        let mut next = Some(self.segment());
        while let Some(segment) = next {
            let bytes = segment.data();
            let end = filled + bytes.len();
            scratch.get_mut(filled..end)?.copy_from_slice(bytes);
            filled = end;
            next = segment.next();
        }
        Some(&scratch[..filled])
    }

    /// Bytes that [`Mbuf::append`] and [`Mbuf::write`] still take.
    #[inline]
    pub fn room(&self) -> usize {
        let segment = self.segment();
        let bytes = usize::from(segment.field::<u16>(sys::PLOVER_MBUF_BUF_LEN));
        let end = usize::from(segment.field::<u16>(sys::PLOVER_MBUF_DATA_OFF)) + segment.bytes();
        // An mbuf of several segments would grow in its first, before the others.
        if self.is_contiguous() {
            bytes.saturating_sub(end)
        } else {
            0
        }
    }

    /// Makes the packet `bytes` longer, if there is room, and gives the new bytes to be written.
    /// What is not written holds what an earlier packet left there.
    #[inline]
    pub fn append(&mut self, bytes: usize) -> Option<&mut [MaybeUninit<u8>]> {
        if bytes > self.room() {
            return None;
        }
        let segment = self.segment();
        let length = segment.bytes();
        // SAFETY: the mbuf is ours and borrowed for writing; the room was checked, so the new
        // bytes are in its buffer and both lengths fit their fields. DPDK mapped the buffer, so
        // the bytes are initialised, if to nothing of interest.
        unsafe {
            segment.set(sys::PLOVER_MBUF_DATA_LEN, (length + bytes) as u16);
            segment.set(sys::PLOVER_MBUF_PKT_LEN, (length + bytes) as u32);
            let start = segment.start().add(length).cast();
            Some(slice::from_raw_parts_mut(start, bytes))
        }
    }

    /// Appends the parts, in order: all of them, or none and an error.
    #[inline]
    pub fn write(&mut self, parts: &[&[u8]]) -> Result<(), TooLong> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let room = self.room();
        let mut to = self.append(bytes).ok_or(TooLong { bytes, room })?;
        for part in parts {
            let (now, later) = to.split_at_mut(part.len());
            now.write_copy_of_slice(part);
            to = later;
        }
        Ok(())
    }

    /// Appends another packet's segments; gives it back if that makes too many.
    pub fn chain(&mut self, tail: Mbuf) -> Result<(), Mbuf> {
        // SAFETY: both are ours; the chain owns the tail from here on, if there is room for it.
        match unsafe { sys::rte_pktmbuf_chain(self.0.as_ptr(), tail.0.as_ptr()) } {
            0 => {
                std::mem::forget(tail);
                Ok(())
            }
            _ => Err(tail),
        }
    }

    #[inline(always)]
    fn segment(&self) -> Segment<'_> {
        Segment(self.0, PhantomData)
    }
}

/// A segment of an mbuf, borrowed from it.
#[derive(Clone, Copy)]
struct Segment<'a>(NonNull<sys::rte_mbuf>, PhantomData<&'a Mbuf>);

impl<'a> Segment<'a> {
    /// The field at an offset that `dpdk-sys` names, of the type that it has there.
    #[inline(always)]
    fn field<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the mbuf is valid while the segment is borrowed. Offsets and sizes come from
        // DPDK's own header; a call per field would cost more than copying a small packet.
        unsafe { self.0.cast::<u8>().add(offset as usize).cast::<T>().read() }
    }

    /// # Safety
    /// The mbuf is borrowed for writing, and the value is one that the field may have.
    #[inline(always)]
    unsafe fn set<T: Copy>(self, offset: u32, value: T) {
        // SAFETY: as in `field`.
        unsafe {
            let field = self.0.cast::<u8>().add(offset as usize).cast::<T>();
            field.write(value);
        }
    }

    #[inline(always)]
    fn start(self) -> *mut u8 {
        let buffer: *mut u8 = self.field(sys::PLOVER_MBUF_BUF_ADDR);
        buffer.wrapping_add(usize::from(self.field::<u16>(sys::PLOVER_MBUF_DATA_OFF)))
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        usize::from(self.field::<u16>(sys::PLOVER_MBUF_DATA_LEN))
    }

    #[inline(always)]
    fn data(self) -> &'a [u8] {
        // SAFETY: start and length of a valid segment lie in its buffer, which drivers and
        // `append` have filled; what is borrowed from it cannot outlive the mbuf.
        unsafe { slice::from_raw_parts(self.start(), self.bytes()) }
    }

    fn next(self) -> Option<Self> {
        let next = self.field::<*mut sys::rte_mbuf>(sys::PLOVER_MBUF_NEXT);
        NonNull::new(next).map(|next| Segment(next, PhantomData))
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
    pub const fn new() -> Burst {
        Burst(ArrayVec::new_const())
    }

    /// Appends a packet; gives it back if the burst is full.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        self.0
            .try_push(mbuf)
            .map_err(arrayvec::CapacityError::element)
    }

    /// Takes the last packet out.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.0.pop()
    }

    /// Packets held.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Packets that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.0.remaining_capacity()
    }

    /// Whether there is no packet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no further packet fits.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// The packets, in order.
    #[inline]
    pub fn iter(&self) -> slice::Iter<'_, Mbuf> {
        self.0.iter()
    }

    /// The packets, in order, to be changed.
    #[inline]
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

    /// Frees the packet at `index`; the others keep their order.
    pub(crate) fn remove(&mut self, index: usize) {
        drop(self.0.remove(index));
    }

    /// Frees all packets, in bulk.
    #[inline]
    pub fn clear(&mut self) {
        self.free_first(self.len());
    }

    /// Frees the first `count` packets, in bulk; all, if there are fewer.
    #[inline]
    pub fn free_first(&mut self, count: usize) {
        let count = count.min(self.0.len());
        if count == 0 {
            return;
        }
        // SAFETY: the first `count` pointers are packets of ours, and forgotten at once.
        unsafe {
            sys::rte_pktmbuf_free_bulk(self.pointers(), count as u32);
            self.forget_first(count);
        }
    }

    /// Bytes of the longest packet.
    #[inline]
    pub(crate) fn longest(&self) -> usize {
        self.0.iter().map(Mbuf::len).max().unwrap_or(0)
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
    use crate::Mempool;
    use crate::testing::eal;

    #[test]
    fn a_packet_in_segments_is_read_whole_through_scratch() {
        let pool = Mempool::new(eal(), "segments", 31, 0, 64).unwrap();
        let mut packet = pool.alloc().unwrap();
        packet.write(&[b"one "]).unwrap();
        for part in ["two ", "three"] {
            let mut segment = pool.alloc().unwrap();
            segment.write(&[part.as_bytes()]).unwrap();
            packet.chain(segment).unwrap();
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
