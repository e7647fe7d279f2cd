//! The two DPDK ports of a node as the path uses them: the replication port, which takes frames in
//! two parts, and the uplink, which takes held packets.

use dpdk_config::{BURST_PACKETS_MAX, Burst, Mbuf, Mempool, Port};
use replication::output_rule::HoldQueue;

/// A port and the pool that its outgoing packets come from.
pub struct NodePort {
    port: Port,
    pool: Mempool,
    received: Burst,
    sending: Burst,
    /// Frames that found no mbuf or no room in the driver.
    lost: u64,
}

impl NodePort {
    /// Wraps a port.
    #[must_use]
    pub fn new(port: Port, pool: Mempool) -> Self {
        Self {
            port,
            pool,
            received: Burst::new(),
            sending: Burst::new(),
            lost: 0,
        }
    }

    /// Receives one burst and shows each frame to `see`. Returns how many came.
    #[inline]
    pub fn receive(&mut self, mut see: impl FnMut(&[u8])) -> usize {
        let count = self.port.rx_burst(&mut self.received);
        for mbuf in &self.received {
            // A chain of mbufs is longer than any frame that is valid here.
            if mbuf.is_contiguous() {
                see(mbuf.data());
            }
        }
        self.received.clear();
        count
    }

    /// Queues a frame made of parts; [`Self::flush`] sends it. A frame for which there is no
    /// memory is lost, as on a wire, and counted.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) {
        if self.sending.is_full() {
            self.flush();
        }
        let filled = self.pool.alloc().ok().and_then(|mut mbuf| {
            mbuf.write(parts).ok()?;
            Some(mbuf)
        });
        match filled.map(|mbuf| self.sending.push(mbuf)) {
            Some(Ok(())) => {}
            _ => self.lost += 1,
        }
    }

    /// Sends what is queued. What the driver does not take is lost and counted: the protocol above
    /// repairs it.
    #[inline]
    pub fn flush(&mut self) {
        if !self.sending.is_empty() {
            self.port.tx_burst(&mut self.sending);
            self.lost += self.sending.len() as u64;
            self.sending.clear();
        }
    }

    /// A copy of a frame in an mbuf of this port's pool.
    #[inline]
    pub fn copy(&self, frame: &[u8]) -> Option<Mbuf> {
        let mut mbuf = self.pool.alloc().ok()?;
        mbuf.write(&[frame]).ok()?;
        Some(mbuf)
    }

    /// Sends up to one burst of what may leave; the driver may take less, and the rest keeps its
    /// place. Returns how many left.
    #[inline]
    pub fn release(&mut self, hold: &mut HoldQueue<Mbuf>) -> usize {
        self.flush();
        while !self.sending.is_full() {
            let Some(mbuf) = hold.pop_agreed() else { break };
            if let Err(mbuf) = self.sending.push(mbuf) {
                hold.unpop_agreed(mbuf);
                break;
            }
        }
        let sent = self.port.tx_burst(&mut self.sending);
        let mut refused: arrayvec::ArrayVec<Mbuf, BURST_PACKETS_MAX> =
            self.sending.drain().collect();
        while let Some(mbuf) = refused.pop() {
            hold.unpop_agreed(mbuf);
        }
        sent
    }

    /// Frames that found no mbuf or no room in the driver.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Buffers left in the pool.
    #[must_use]
    pub fn buffers_left(&self) -> u32 {
        self.pool.available()
    }

    /// The port itself.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }
}
