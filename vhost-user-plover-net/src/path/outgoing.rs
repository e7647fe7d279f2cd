//! Packets on their way from a transmit ring to the queue of held output: copied once, straight out
//! of guest memory into mbufs that were allocated for the whole burst, and finished there.

use dpdk_config::{BURST_PACKETS_MAX, Burst, Mbuf, Mempool, Port, PortOffloads};
use plover_types::Offload;

use super::announce::Learned;
use crate::limits::FRAME_BYTES_MAX;
use crate::offload::{Egress, EgressError, finish_mbuf};
use crate::ring::{FrameSink, GuestFrame};

/// Why packets of a guest did not get as far as the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingCounters {
    /// Longer than the uplink can send.
    pub too_long: u64,
    /// With an offload that does not fit the packet.
    pub malformed: u64,
    /// Larger than a frame, and cut.
    pub cut: u64,
    /// To be cut, and no mbufs were left for all of its frames.
    pub no_mbuf: u64,
}

/// Takes packets from transmit rings.
pub struct Outgoing {
    /// Empty mbufs for the burst that is being taken.
    empty: Burst,
    /// Packets ready to be held.
    ready: Vec<Mbuf>,
    /// A packet that is to be cut, in one piece.
    whole: Box<[u8]>,
    learned: Learned,
    counters: OutgoingCounters,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            empty: Burst::new(),
            ready: Vec::new(),
            whole: vec![0; FRAME_BYTES_MAX].into(),
            learned: Learned::default(),
            counters: OutgoingCounters::default(),
        }
    }
}

impl Outgoing {
    /// What takes packets for `port` into mbufs of `pool`.
    pub fn sink<'a>(&'a mut self, port: &Port, pool: &'a Mempool) -> OutgoingSink<'a> {
        OutgoingSink {
            outgoing: self,
            pool,
            offloads: port.offloads(),
            mtu: port.mtu(),
        }
    }

    /// The packets that were taken, in order.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = Mbuf> + '_ {
        self.ready.drain(..)
    }

    /// The guest's addresses, as its packets show them.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// What was dropped.
    #[must_use]
    pub fn counters(&self) -> OutgoingCounters {
        self.counters
    }
}

/// A [`FrameSink`] that fills mbufs.
pub struct OutgoingSink<'a> {
    outgoing: &'a mut Outgoing,
    pool: &'a Mempool,
    offloads: PortOffloads,
    mtu: u16,
}

impl FrameSink for OutgoingSink<'_> {
    /// No mbufs: the guest waits.
    #[inline]
    fn prepare(&mut self, frames: usize) -> usize {
        let frames = frames.min(BURST_PACKETS_MAX);
        let empty = &mut self.outgoing.empty;
        let missing = frames.saturating_sub(empty.len());
        // All of them or none; what is left of an earlier burst is there in any case.
        if missing > 0 && self.pool.alloc_bulk(empty, missing).is_err() {
            return empty.len();
        }
        frames
    }

    #[inline]
    fn take(&mut self, frame: GuestFrame<'_>) {
        let offload = frame.offload();
        if offload.needs_segmentation() {
            self.cut(frame, &offload);
        } else {
            self.copy(frame, &offload);
        }
    }
}

impl OutgoingSink<'_> {
    #[inline]
    fn copy(&mut self, mut frame: GuestFrame<'_>, offload: &Offload) {
        let outgoing = &mut *self.outgoing;
        let spare = || self.pool.alloc().ok();
        let Some(mut mbuf) = outgoing.empty.pop().or_else(spare) else {
            outgoing.counters.no_mbuf += 1;
            return;
        };
        let Some(to) = mbuf.append(frame.len()) else {
            outgoing.counters.too_long += 1;
            return;
        };
        frame.read(to);
        if finish_mbuf(&mut mbuf, offload, self.offloads).is_err() {
            outgoing.counters.malformed += 1;
            return;
        }
        outgoing.learned.look_at(mbuf.data());
        outgoing.ready.push(mbuf);
    }

    /// A packet larger than a frame: all of its frames, or none and a counter.
    #[cold]
    fn cut(&mut self, mut frame: GuestFrame<'_>, offload: &Offload) {
        let outgoing = &mut *self.outgoing;
        let whole = &mut outgoing.whole[..frame.len()];
        frame.read_initialised(whole);
        let Ok(mut egress) = Egress::new(whole, offload, self.offloads, self.mtu) else {
            outgoing.counters.malformed += 1;
            return;
        };
        let before = outgoing.ready.len();
        let (empty, pool) = (&mut outgoing.empty, self.pool);
        let mut mbuf = || empty.pop().or_else(|| pool.alloc().ok());
        while let Some(written) = egress.next_frame(&mut mbuf) {
            match written {
                Ok(mbuf) => outgoing.ready.push(mbuf),
                Err(error) => {
                    outgoing.ready.truncate(before);
                    match error {
                        EgressError::NoMbuf => outgoing.counters.no_mbuf += 1,
                        EgressError::TooLong(_) => outgoing.counters.too_long += 1,
                    }
                    return;
                }
            }
        }
        outgoing.counters.cut += 1;
    }
}
