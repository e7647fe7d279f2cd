//! The input cursor: which packet of the committed log the guest is given next.
//!
//! The log itself is the queue, so that a copy can go back to an earlier position after a sync.

use arrayvec::ArrayVec;
use bytes::Bytes;
use plover_types::{LogIndex, Packet, PacketBurst, Position};

use crate::limits::RUN_PACKETS_MAX;

/// Walks the input entries of a log in order.
#[derive(Debug, Default)]
pub struct InputCursor {
    position: Position,
    /// The entry at `position.index`, decoded, if it holds input.
    burst: Option<PacketBurst>,
    /// Byte offset of packet `position.packet` in the encoded burst.
    offset: usize,
    /// Entries from this one on wait: a sync is in flight.
    barrier: Option<LogIndex>,
}

impl InputCursor {
    /// The next packet to deliver.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to a position, before or after the present one.
    pub fn seek(&mut self, position: Position) {
        self.position = Position::start_of(position.index);
        self.burst = None;
        self.offset = PacketBurst::FIRST_OFFSET;
        // Skipping to the packet happens when the entry is first read.
        self.position.packet = position.packet;
    }

    /// Delivers nothing from `barrier` on until it is lifted.
    pub fn set_barrier(&mut self, barrier: Option<LogIndex>) {
        self.barrier = barrier;
    }

    /// The entry from which on input waits.
    #[must_use]
    pub fn barrier(&self) -> Option<LogIndex> {
        self.barrier
    }

    /// Whether all input up to the barrier (or `applied`) was delivered.
    #[must_use]
    pub fn is_drained(&self, applied: LogIndex) -> bool {
        self.position.index > self.limit(applied)
    }

    fn limit(&self, applied: LogIndex) -> LogIndex {
        match self.barrier {
            Some(barrier) => applied.min(LogIndex(barrier.0.saturating_sub(1))),
            None => applied,
        }
    }

    /// Offers packets up to entry `applied` to `give`, in order and in runs: packets for one queue
    /// pair that follow each other in one entry, [`RUN_PACKETS_MAX`] at most. `give` answers how
    /// many it took, from the first on; with fewer than were offered (no buffer) the others stay
    /// next. `entry` reads an entry's bytes from the log; where it has none (compacted, or not an
    /// input entry) the cursor goes on to the next.
    ///
    /// Returns the number of packets given.
    pub fn deliver(
        &mut self,
        applied: LogIndex,
        entry: impl Fn(LogIndex) -> Option<Bytes>,
        mut give: impl FnMut(Position, &[Packet<'_>]) -> usize,
    ) -> usize {
        let limit = self.limit(applied);
        let mut given = 0;
        while self.position.index <= limit {
            if self.burst.is_none() && !self.open(&entry) {
                self.next_entry();
                continue;
            }
            let Some(burst) = &self.burst else { continue };
            let (offered, taken, next) = offer_run(burst, self.offset, |run| {
                give(self.position, run).min(run.len())
            });
            if offered == 0 {
                self.next_entry();
                continue;
            }
            self.offset = next;
            given += taken;
            self.position.packet += taken as u32;
            if taken < offered {
                break;
            }
        }
        given
    }

    /// Reads the entry at the cursor and skips to its packet. False if there is no input in it.
    fn open(&mut self, entry: &impl Fn(LogIndex) -> Option<Bytes>) -> bool {
        let Some(bytes) = entry(self.position.index) else {
            return false;
        };
        let Some(burst) = PacketBurst::of_log(bytes) else {
            return false;
        };
        let delivered = self.position.packet as usize;
        self.offset = skip(&burst, PacketBurst::FIRST_OFFSET, delivered);
        self.burst = Some(burst);
        true
    }

    fn next_entry(&mut self) {
        self.position = Position::start_of(self.position.index.next());
        self.burst = None;
        self.offset = PacketBurst::FIRST_OFFSET;
    }
}

/// Offers the run that starts at `offset`. Returns how many packets it has, how many of them were
/// taken, and where the one after these starts.
#[inline]
fn offer_run(
    burst: &PacketBurst,
    offset: usize,
    give: impl FnOnce(&[Packet<'_>]) -> usize,
) -> (usize, usize, usize) {
    let mut run = ArrayVec::<Packet<'_>, RUN_PACKETS_MAX>::new();
    let mut end = offset;
    while !run.is_full()
        && let Some((packet, next)) = burst.packet_at(end)
    {
        if run.first().is_some_and(|first| first.pair != packet.pair) {
            break;
        }
        run.push(packet);
        end = next;
    }
    if run.is_empty() {
        return (0, 0, offset);
    }
    match give(&run) {
        taken if taken == run.len() => (taken, taken, end),
        taken => (run.len(), taken, skip(burst, offset, taken)),
    }
}

/// Where the packet starts that follows `packets` of them from `offset` on.
fn skip(burst: &PacketBurst, mut offset: usize, packets: usize) -> usize {
    for _ in 0..packets {
        let Some((_, next)) = burst.packet_at(offset) else {
            break;
        };
        offset = next;
    }
    offset
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plover_types::{Generation, LogEntry, Offload, PacketBurstBuilder, SyncKind};

    use super::*;

    fn log() -> BTreeMap<LogIndex, Bytes> {
        let burst = |bytes: &[u8]| {
            let mut builder = PacketBurstBuilder::new();
            for byte in bytes {
                builder
                    .push(0, Offload::PLAIN, &[*byte; 20])
                    .expect("valid");
            }
            builder.finish().expect("not empty").encoded().clone()
        };
        let begin = LogEntry::SyncBegin {
            generation: Generation(1),
            kind: SyncKind::Delta,
        };
        BTreeMap::from([
            (LogIndex(2), burst(&[1, 2, 3])),
            (LogIndex(3), begin.encode()),
            (LogIndex(5), burst(&[4])),
        ])
    }

    fn run(cursor: &mut InputCursor, applied: u64, room: usize) -> Vec<u8> {
        let log = log();
        let mut got = Vec::new();
        cursor.deliver(
            LogIndex(applied),
            |index| log.get(&index).cloned(),
            |_, packets| {
                let taken = packets.len().min(room - got.len());
                got.extend(packets[..taken].iter().map(|packet| packet.bytes[0]));
                taken
            },
        );
        got
    }

    #[test]
    fn a_run_is_of_one_pair_and_ends_with_its_entry() {
        let mut builder = PacketBurstBuilder::new();
        for pair in [0, 0, 1, 0].into_iter().chain([2; 40]) {
            builder
                .push(pair, Offload::PLAIN, &[pair; 20])
                .expect("valid");
        }
        let entry = builder.finish().expect("not empty").encoded().clone();
        let mut runs = Vec::new();
        let mut cursor = InputCursor::default();
        cursor.seek(Position::start_of(LogIndex(1)));
        cursor.deliver(
            LogIndex(2),
            |_| Some(entry.clone()),
            |position, packets| {
                assert!(packets.iter().all(|packet| packet.pair == packets[0].pair));
                runs.push((position.index.0, position.packet, packets.len()));
                packets.len()
            },
        );
        let of_entry = [(0, 2), (2, 1), (3, 1), (4, 32), (36, 8)];
        let expected: Vec<_> = [1, 2]
            .into_iter()
            .flat_map(|index| of_entry.map(|(first, count)| (index, first, count)))
            .collect();
        assert_eq!(runs, expected);
    }

    #[test]
    fn packets_come_in_log_order_and_wait_for_room() {
        let mut cursor = InputCursor::default();
        assert_eq!(run(&mut cursor, 9, 2), [1, 2]);
        assert_eq!(
            cursor.position(),
            Position {
                index: LogIndex(2),
                packet: 2
            }
        );
        assert_eq!(run(&mut cursor, 9, 9), [3, 4]);
        assert!(cursor.is_drained(LogIndex(9)));
        assert_eq!(run(&mut cursor, 9, 9), []);
    }

    #[test]
    fn nothing_beyond_the_applied_index_or_the_barrier_is_given() {
        let mut cursor = InputCursor::default();
        assert_eq!(run(&mut cursor, 1, 9), []);
        cursor.set_barrier(Some(LogIndex(3)));
        assert_eq!(run(&mut cursor, 9, 9), [1, 2, 3]);
        assert!(cursor.is_drained(LogIndex(9)));
        cursor.set_barrier(None);
        assert_eq!(run(&mut cursor, 9, 9), [4]);
    }

    #[test]
    fn a_copy_goes_on_where_the_other_stood() {
        let mut cursor = InputCursor::default();
        run(&mut cursor, 9, 9);
        cursor.seek(Position {
            index: LogIndex(2),
            packet: 1,
        });
        assert_eq!(run(&mut cursor, 9, 9), [2, 3, 4]);
        cursor.seek(Position {
            index: LogIndex(2),
            packet: 3,
        });
        assert_eq!(run(&mut cursor, 9, 9), [4]);
    }
}
