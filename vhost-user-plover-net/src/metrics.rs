//! What is counted. Each counter has one writer; any thread may read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts upwards. One writer, so no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the counter's one writer calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(count),
            Ordering::Relaxed,
        );
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Written by the poll core.
#[derive(Debug, Default)]
pub struct NicCounters {
    /// Packets laid into the receive ring.
    pub received_packets: Counter,
    /// Bytes of those, without virtio headers.
    pub received_bytes: Counter,
    /// Times that packets waited because the guest had posted no buffer.
    pub receive_waits: Counter,
    /// Packets dropped: longer than any buffer that the guest posts.
    pub receive_too_long: Counter,
    /// Packets taken from the transmit ring.
    pub transmitted_packets: Counter,
    /// Bytes of those, without virtio headers.
    pub transmitted_bytes: Counter,
    /// Guest packets dropped: longer than the limit.
    pub transmit_too_long: Counter,
    /// Guest packets dropped: shorter than an Ethernet header.
    pub transmit_too_short: Counter,
    /// Calls (interrupts) sent to the guest.
    pub calls: Counter,
    /// Rings stopped because guest memory held what it may not.
    pub ring_faults: Counter,
    /// Rings that began to run: starts, and continuations after a pause.
    pub ring_starts: Counter,
    /// Times that rings were read afresh because memory was replaced.
    pub resyncs: Counter,
    /// Answers that the control thread no longer waited for.
    pub answers_lost: Counter,
}

/// Written by the control thread.
#[derive(Debug, Default)]
pub struct ControlCounters {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections dropped by us: a malformed or refused message.
    pub connections_refused: Counter,
    /// Panics of the message handler, contained to their connection.
    pub handler_panics: Counter,
    /// Memory tables taken into use.
    pub memory_tables: Counter,
}
