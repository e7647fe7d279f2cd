//! Packets that stay in the mbufs in which they were received until they are delivered, while the
//! log holds stubs of their entries ([`PacketBurst::is_stub`]).
//!
//! ```text
//!   front                                                        back
//!   | entry 7 | entry 8 | ... | admitted, and not in the log yet |
//! ```
//! The order is the log's, so packets leave at the front as the copy goes on. An entry without
//! such packets is not known here.

use std::collections::VecDeque;

use dpdk_config::{Mbuf, MbufQueue};
use plover_types::{LogIndex, PacketBurst, Position};
use replication::input::KeptPackets;

use crate::limits::{KEPT_PACKETS_MAX, TAKEN_PER_TURN};

/// The packets of the log's stubs, and of those that are on their way into it.
#[derive(Debug)]
pub struct Kept {
    packets: MbufQueue,
    /// Number of the packet at the front.
    first: u64,
    entries: VecDeque<KeptEntry>,
    /// Number of the first packet that is in no entry.
    unlogged: u64,
}

#[derive(Clone, Copy, Debug)]
struct KeptEntry {
    /// None: it did not get into the log.
    index: Option<LogIndex>,
    first: u64,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            packets: MbufQueue::new(KEPT_PACKETS_MAX),
            first: 0,
            entries: VecDeque::new(),
            unlogged: 0,
        }
    }
}

impl Kept {
    /// Whether the packets of a whole turn can be kept.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.packets.room() >= TAKEN_PER_TURN
    }

    /// Packets kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Keeps a packet whose header went into a stub.
    ///
    /// # Errors
    /// Gives it back if there is no room; see [`Self::has_room`].
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        self.packets.push(mbuf)
    }

    /// The oldest stub that was not in the log is there now. What was kept for entries that it
    /// replaced is kept for nothing.
    pub fn logged(&mut self, stub: &PacketBurst, index: LogIndex) {
        for entry in self.entries.iter_mut().rev() {
            match entry.index {
                Some(replaced) if replaced >= index => entry.index = None,
                Some(_) => break,
                None => {}
            }
        }
        self.end_entry(stub, Some(index));
    }

    /// The oldest stub that was not in the log never will be.
    pub fn refused(&mut self, stub: &PacketBurst) {
        self.end_entry(stub, None);
        self.free_passed(LogIndex(0));
    }

    fn end_entry(&mut self, stub: &PacketBurst, index: Option<LogIndex>) {
        let first = self.unlogged;
        self.unlogged += stub.kept_packets() as u64;
        self.entries.push_back(KeptEntry { index, first });
    }

    /// The copy goes on at `position`: frees the packets of entries before it.
    #[inline]
    pub fn delivered(&mut self, position: Position) {
        self.free_passed(position.index);
    }

    fn free_passed(&mut self, next: LogIndex) {
        let passed = |entry: &KeptEntry| entry.index.is_none_or(|index| index < next);
        let mut free = false;
        while self.entries.front().is_some_and(passed) {
            self.entries.pop_front();
            free = true;
        }
        if free {
            self.free_to(
                self.entries
                    .front()
                    .map_or(self.unlogged, |next| next.first),
            );
        }
    }

    /// Forgets all entries in the log: they were written out.
    pub fn written_out(&mut self) {
        self.entries.clear();
        self.free_to(self.unlogged);
    }

    fn free_to(&mut self, number: u64) {
        self.packets.free_first((number - self.first) as usize);
        self.first = number;
    }

    /// The entry of the oldest stub that is not in the log, whose packets are no longer kept.
    #[must_use]
    pub fn write_out(&mut self, stub: &PacketBurst) -> Option<PacketBurst> {
        let first = self.unlogged;
        let written = stub.written_out(|number| self.packet(first + number as u64));
        self.refused(stub);
        written
    }
}

impl KeptPackets for Kept {
    #[inline]
    fn first_of(&self, index: LogIndex) -> Option<u64> {
        let mut entries = self.entries.iter();
        entries
            .find(|entry| entry.index == Some(index))
            .map(|entry| entry.first)
    }

    #[inline]
    fn packet(&self, number: u64) -> Option<&[u8]> {
        let place = number.checked_sub(self.first)?;
        self.packets.get(place as usize).map(Mbuf::data)
    }
}

#[cfg(test)]
mod tests;
