//! The two DPDK ports of a node as the path uses them: the replication port, which takes frames in
//! two parts, and the uplink, which takes held packets.

use dpdk_config::{Burst, Mbuf, Mempool, Port, PortOffloads};
use replication::output_rule::HoldQueue;

use super::outgoing::{Outgoing, OutgoingSink};

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

    /// Receives one burst; see [`Self::received`]. Returns how many packets came.
    #[inline]
    pub fn receive(&mut self) -> usize {
        self.received.clear();
        self.port.rx_burst(&mut self.received)
    }

    /// Shows each packet of the burst that was received last to `see`, with the port's offloads.
    #[inline]
    pub fn received(&mut self, mut see: impl FnMut(&mut Mbuf, PortOffloads)) {
        let offloads = self.port.offloads();
        for mbuf in &mut self.received {
            see(mbuf, offloads);
        }
        self.received.clear();
    }

    /// As [`Self::received`], but `see` may take packets away: it answers with those that it does
    /// not.
    #[inline]
    pub fn take_received(&mut self, mut take: impl FnMut(Mbuf, PortOffloads) -> Option<Mbuf>) {
        let offloads = self.port.offloads();
        let mut left = Burst::new();
        for mbuf in self.received.drain() {
            if let Some(mbuf) = take(mbuf, offloads) {
                // There are no more than came.
                let _ = left.push(mbuf);
            }
        }
        left.clear();
    }

    /// Whether a packet of the burst that was received last has so many bytes.
    #[inline]
    #[must_use]
    pub fn has_received(&self, bytes: usize) -> bool {
        self.received.iter().any(|mbuf| mbuf.len() >= bytes)
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

    /// Sends up to one burst of what may leave; the driver may take less, and the rest keeps its
    /// place. Returns how many left.
    #[inline]
    pub fn release(&mut self, hold: &mut HoldQueue<Mbuf>) -> usize {
        self.flush();
        let sending = &mut self.sending;
        hold.take_agreed(sending.room(), |mbuf| {
            // It was asked for no more than there is room.
            let refused = sending.push(mbuf);
            debug_assert!(refused.is_ok());
        });
        let sent = self.port.tx_burst(sending);
        while let Some(mbuf) = sending.pop() {
            hold.unpop_agreed(mbuf);
        }
        sent
    }

    /// Frames that found no mbuf or no room in the driver.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What takes packets of a guest for this port.
    #[inline]
    pub fn sink<'a>(&'a self, outgoing: &'a mut Outgoing) -> OutgoingSink<'a> {
        outgoing.sink(&self.port, &self.pool)
    }

    /// The port itself.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }
}
