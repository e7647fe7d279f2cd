//! Frames of the guest's into packet buffers: all buffers of a burst at once, each frame copied
//! once, straight out of guest memory.

use dpdk_config::{BURST_PACKETS_MAX, Burst, Mbuf, Mempool};

use crate::ring::{FrameSink, GuestFrame};

/// Fills a burst.
pub struct MbufSink<'a> {
    pool: &'a Mempool,
    burst: &'a mut Burst,
    /// Frames in the burst; behind them come empty buffers.
    filled: usize,
    /// Frames of the burst that found no memory, a bit each.
    dropped: u32,
}

const _: () = assert!(BURST_PACKETS_MAX <= u32::BITS as usize);

impl<'a> MbufSink<'a> {
    /// Appends to `burst`, with buffers of `pool`.
    #[inline]
    #[must_use]
    pub fn new(pool: &'a Mempool, burst: &'a mut Burst) -> Self {
        let filled = burst.len();
        Self {
            pool,
            burst,
            filled,
            dropped: 0,
        }
    }

    /// Leaves the burst with whole frames only. Returns how many found no memory.
    #[inline]
    pub fn finish(self) -> usize {
        if self.dropped != 0 {
            let mut number = 0;
            self.burst.retain(|_| {
                number += 1;
                self.dropped & 1 << (number - 1) == 0
            });
        }
        self.dropped.count_ones() as usize
    }
}

impl FrameSink for MbufSink<'_> {
    #[inline]
    fn prepare(&mut self, frames: usize) -> usize {
        let mut count = frames.min(self.burst.room());
        // All or none: where the pool is nearly empty, fewer.
        while count > 0 && self.pool.alloc_bulk(self.burst, count).is_err() {
            count /= 2;
        }
        count
    }

    #[inline(always)]
    fn take(&mut self, mut frame: GuestFrame<'_>) {
        let number = self.filled;
        self.filled += 1;
        // No more frames come than were prepared for.
        let Some(mbuf) = self.burst.iter_mut().nth(number) else {
            return;
        };
        if let Some(room) = mbuf.append(frame.len()) {
            frame.read(room);
        } else if !fill_chain(self.pool, mbuf, frame) {
            self.dropped |= 1 << number;
        }
    }
}

/// A frame that is longer than a buffer goes over several. False, and part of it in `first`, if
/// there are not enough of them.
#[cold]
fn fill_chain(pool: &Mempool, first: &mut Mbuf, mut frame: GuestFrame<'_>) -> bool {
    fill(first, &mut frame);
    while !frame.is_empty() {
        let Ok(mut next) = pool.alloc() else {
            return false;
        };
        fill(&mut next, &mut frame);
        if next.is_empty() || first.chain(next).is_err() {
            return false;
        }
    }
    true
}

fn fill(mbuf: &mut Mbuf, frame: &mut GuestFrame<'_>) {
    let bytes = mbuf.room().min(frame.len());
    if let Some(room) = mbuf.append(bytes) {
        frame.read(room);
    }
}
