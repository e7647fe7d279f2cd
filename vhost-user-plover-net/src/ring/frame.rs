//! Frames on their way into a ring and out of it.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use plover_types::{Offload, Packet};

use super::copy;
use super::guest_map::Piece;

/// A frame to be laid into a receive ring.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What the guest is told of it.
    pub offload: Offload,
    /// Its bytes, without a virtio header.
    pub bytes: &'a [u8],
}

/// What can be laid into a receive ring as it is, so that nobody makes a list of frames of a list
/// of something else.
pub trait ToLay {
    /// What the guest is told of it.
    fn offload(&self) -> Offload;

    /// Its bytes, without a virtio header.
    fn bytes(&self) -> &[u8];
}

impl ToLay for Frame<'_> {
    #[inline(always)]
    fn offload(&self) -> Offload {
        self.offload
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

impl ToLay for Packet<'_> {
    #[inline(always)]
    fn offload(&self) -> Offload {
        self.offload
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

/// A frame that still lies in guest memory. Where it lies was checked; what it holds was not.
#[derive(Clone, Copy)]
pub struct GuestFrame<'a> {
    pub(super) pair: u8,
    pub(super) offload: Offload,
    /// Bytes not read yet.
    pub(super) bytes: usize,
    /// What is left of the present piece.
    pub(super) host: NonNull<u8>,
    pub(super) piece_bytes: usize,
    pub(super) more: &'a [Piece],
}

// The slow ways take and give the frame by value: on the fast one it then stays in registers.
impl GuestFrame<'_> {
    /// The queue pair that it was sent on.
    #[inline]
    #[must_use]
    pub fn pair(&self) -> u8 {
        self.pair
    }

    /// What the guest left to be done with it. As the guest wrote it: not yet compared with the
    /// frame.
    #[inline]
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Bytes that were not read yet; at first the length of the frame.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether all of it was read.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies its next bytes into `to`, which they fill.
    ///
    /// # Panics
    /// If `to` is longer than what is left.
    #[inline(always)]
    pub fn read(&mut self, to: &mut [MaybeUninit<u8>]) {
        assert!(to.len() <= self.bytes, "more is read than the frame has");
        if to.len() > self.piece_bytes {
            *self = self.read_pieces(to);
            return;
        }
        // SAFETY: a piece is mapped for its whole length, for as long as the ring lives, from
        // which this frame is borrowed.
        unsafe { copy::from_guest(self.host, to) };
        self.advance(to.len());
    }

    /// As [`Self::read`], into bytes that hold something already.
    ///
    /// # Panics
    /// As [`Self::read`].
    #[inline]
    pub fn read_initialised(&mut self, to: &mut [u8]) {
        // SAFETY: the same bytes; what is written through the result is initialised.
        self.read(unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<u8>]) });
    }

    /// Leaves out its next bytes, as many as it has or fewer.
    #[inline(always)]
    pub(super) fn skip(&mut self, bytes: usize) {
        if bytes > self.piece_bytes {
            *self = self.skip_pieces(bytes);
            return;
        }
        self.advance(bytes);
    }

    #[cold]
    fn skip_pieces(mut self, mut bytes: usize) -> Self {
        while bytes > 0 && self.bytes > 0 {
            let run = bytes.min(self.piece_bytes);
            self.advance(run);
            bytes -= run;
            self.next_piece();
        }
        self
    }

    #[cold]
    fn read_pieces(mut self, mut to: &mut [MaybeUninit<u8>]) -> Self {
        while !to.is_empty() {
            let run = to.len().min(self.piece_bytes);
            let (now, later) = to.split_at_mut(run);
            // SAFETY: as in `read`.
            unsafe { copy::from_guest(self.host, now) };
            self.advance(run);
            to = later;
            self.next_piece();
        }
        self
    }

    fn next_piece(&mut self) {
        if let (0, [next, more @ ..]) = (self.piece_bytes, self.more) {
            (self.host, self.piece_bytes, self.more) = (next.host, next.bytes, more);
        }
    }

    #[inline(always)]
    fn advance(&mut self, bytes: usize) {
        // SAFETY: at most the piece's length, which is in one mapping.
        self.host = unsafe { self.host.add(bytes) };
        self.piece_bytes -= bytes;
        self.bytes -= bytes;
    }
}

/// Who takes frames from a transmit ring.
pub trait FrameSink {
    /// `frames` of them wait: time to get buffers for all at once. Returns how many it takes; the
    /// others stay in the ring.
    fn prepare(&mut self, frames: usize) -> usize;

    /// One of them. It is returned to the guest whatever is done with it.
    fn take(&mut self, frame: GuestFrame<'_>);
}
