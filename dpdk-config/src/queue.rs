//! More packets than a burst holds, in order: taken in at the back, freed at the front.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;

use dpdk_sys as sys;

use crate::mbuf::Mbuf;

/// A bounded queue of packets, which are freed in bulk. Its memory is allocated once.
#[derive(Debug)]
pub struct MbufQueue {
    /// Each is freed when it leaves.
    packets: VecDeque<ManuallyDrop<Mbuf>>,
    capacity: usize,
}

impl MbufQueue {
    /// A queue of at most `capacity` packets.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            packets: VecDeque::with_capacity(capacity),
            capacity,
        }
    }

    /// Packets held.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is no packet.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Packets that still fit.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.packets.len()
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// Gives it back if the queue is full.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        if self.room() == 0 {
            return Err(mbuf);
        }
        self.packets.push_back(ManuallyDrop::new(mbuf));
        Ok(())
    }

    /// The packet at `place`, counted from the front.
    #[inline]
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&Mbuf> {
        self.packets.get(place).map(|mbuf| &**mbuf)
    }

    /// Frees the first `count` packets, in bulk; all, if there are fewer.
    pub fn free_first(&mut self, count: usize) {
        let mut left = count.min(self.packets.len());
        while left > 0 {
            // The queue wraps around once at most, so this is done twice at most.
            let front = self.packets.as_mut_slices().0;
            let run = left.min(front.len());
            // SAFETY: `ManuallyDrop<Mbuf>` is a transparent pointer, as `Mbuf` is; these are `run`
            // packets of ours. They leave the queue below without being dropped.
            unsafe { sys::rte_pktmbuf_free_bulk(front.as_mut_ptr().cast(), run as u32) };
            self.packets.drain(..run);
            left -= run;
        }
    }
}

impl Drop for MbufQueue {
    fn drop(&mut self) {
        self.free_first(self.len());
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::eal;
    use crate::{MbufQueue, Mempool};

    #[test]
    fn packets_leave_in_order_and_none_is_lost_to_the_pool() {
        let pool = Mempool::new(eal(), "queue", 63, 0, 64).unwrap();
        let mut queue = MbufQueue::new(40);
        let mut number = 0_u8;
        let mut fill = |queue: &mut MbufQueue| {
            while queue.room() > 0 {
                let mut mbuf = pool.alloc().unwrap();
                mbuf.write(&[&[number]]).unwrap();
                queue.push(mbuf).unwrap();
                number += 1;
            }
        };
        let first = |queue: &MbufQueue| queue.get(0).unwrap().data()[0];
        fill(&mut queue);
        assert!(queue.push(pool.alloc().unwrap()).is_err());
        queue.free_first(30);
        assert_eq!((queue.len(), first(&queue), pool.available()), (10, 30, 53));
        fill(&mut queue);
        assert_eq!(queue.get(39).unwrap().data()[0], 69);
        assert!(queue.get(40).is_none());
        // Over the place where it wraps around.
        queue.free_first(35);
        assert_eq!((queue.len(), first(&queue), pool.available()), (5, 65, 58));
        queue.free_first(100);
        assert!(queue.is_empty());
        fill(&mut queue);
        assert_eq!(pool.available(), 23);
        drop(queue);
        assert_eq!(pool.available(), 63);
    }
}
