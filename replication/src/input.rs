//! The input cursor: which packet of the committed log the guest is given next.
//!
//! The log itself is the queue, so that a copy can go back to an earlier position after a sync.
//! Where the log holds a stub, the packets come from whom they are kept by ([`KeptPackets`]).

use arrayvec::ArrayVec;
use bytes::Bytes;
use plover_types::{LogIndex, Packet, PacketBurst, Position};

use crate::limits::RUN_PACKETS_MAX;

/// Who keeps packets for the log's stubs. They have numbers, those of an entry in a row.
pub trait KeptPackets {
    /// The number of the first one of the stub at `index`, if that stub's are kept.
    fn first_of(&self, index: LogIndex) -> Option<u64>;

    /// The packet of this number.
    fn packet(&self, number: u64) -> Option<&[u8]>;
}

/// Where every entry is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingKept;

impl KeptPackets for NothingKept {
    fn first_of(&self, _index: LogIndex) -> Option<u64> {
        None
    }

    fn packet(&self, _number: u64) -> Option<&[u8]> {
        None
    }
}

/// Walks the input entries of a log in order.
#[derive(Debug, Default)]
pub struct InputCursor {
    position: Position,
    /// The entry at `position.index`, if it holds input.
    open: Option<OpenEntry>,
    /// Entries from this one on wait: a sync is in flight.
    barrier: Option<LogIndex>,
}

/// An entry that is being delivered.
#[derive(Debug)]
struct OpenEntry {
    burst: PacketBurst,
    /// Byte offset of the next packet's header.
    offset: usize,
    /// Of a stub: the number of its next packet that is kept by somebody.
    kept: u64,
}

/// What became of an offer of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Packets that were taken.
    pub given: usize,
    /// The next entry is a stub whose packets nobody has: a copy cannot go on without them.
    pub is_lost: bool,
}

impl InputCursor {
    /// The next packet to deliver.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to a position, before or after the present one.
    pub fn seek(&mut self, position: Position) {
        // Skipping to the packet happens when the entry is first read.
        self.position = position;
        self.open = None;
    }

    /// The log's entries were changed in form: the one at the cursor is read anew.
    pub fn reread(&mut self) {
        self.open = None;
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
    /// input entry) the cursor goes on to the next. `kept` has the packets of stubs.
    pub fn deliver(
        &mut self,
        applied: LogIndex,
        entry: impl Fn(LogIndex) -> Option<Bytes>,
        kept: &impl KeptPackets,
        mut give: impl FnMut(Position, &[Packet<'_>]) -> usize,
    ) -> Offered {
        let limit = self.limit(applied);
        let mut given = 0;
        while self.position.index <= limit {
            if self.open.is_none() {
                match self.read(&entry, kept) {
                    Read::Input(open) => self.open = Some(open),
                    Read::Nothing => {
                        self.next_entry();
                        continue;
                    }
                    Read::Lost => {
                        return Offered {
                            given,
                            is_lost: true,
                        };
                    }
                }
            }
            let Some(open) = &mut self.open else { break };
            let run = open.offer(kept, |run| give(self.position, run).min(run.len()));
            if run.offered == 0 {
                if open.lacks_packets() {
                    return Offered {
                        given,
                        is_lost: true,
                    };
                }
                self.next_entry();
                continue;
            }
            given += run.taken;
            self.position.packet += run.taken as u32;
            if run.taken < run.offered {
                break;
            }
        }
        Offered {
            given,
            is_lost: false,
        }
    }

    /// Reads the entry at the cursor and skips to its packet.
    fn read(&self, entry: &impl Fn(LogIndex) -> Option<Bytes>, kept: &impl KeptPackets) -> Read {
        let Position { index, packet } = self.position;
        let Some(burst) = entry(index).and_then(PacketBurst::of_log) else {
            return Read::Nothing;
        };
        let mut open = OpenEntry {
            kept: 0,
            offset: PacketBurst::FIRST_OFFSET,
            burst,
        };
        if open.burst.is_stub() {
            match kept.first_of(index) {
                Some(first) => open.kept = first,
                None => return Read::Lost,
            }
        }
        open.skip(packet as usize);
        Read::Input(open)
    }

    fn next_entry(&mut self) {
        self.position = Position::start_of(self.position.index.next());
        self.open = None;
    }
}

/// What was found at the cursor.
enum Read {
    Input(OpenEntry),
    /// No entry, or none of input.
    Nothing,
    /// A stub whose packets are gone.
    Lost,
}

/// Packets offered at once, and how many of them were taken.
struct Run {
    offered: usize,
    taken: usize,
}

impl OpenEntry {
    /// Offers the run that comes next, and goes on behind what was taken of it.
    #[inline]
    fn offer(&mut self, kept: &impl KeptPackets, give: impl FnOnce(&[Packet<'_>]) -> usize) -> Run {
        let mut run = ArrayVec::<Packet<'_>, RUN_PACKETS_MAX>::new();
        let (mut end, mut number) = (self.offset, self.kept);
        while !run.is_full()
            && let Some(found) = self.burst.found_at(end, || kept.packet(number))
        {
            let pair = found.packet.pair;
            if run.first().is_some_and(|first| first.pair != pair) {
                break;
            }
            run.push(found.packet);
            end = found.next;
            number += u64::from(found.is_kept);
        }
        let offered = run.len();
        if offered == 0 {
            return Run { offered, taken: 0 };
        }
        let taken = give(&run);
        drop(run);
        if taken == offered {
            (self.offset, self.kept) = (end, number);
        } else {
            self.skip(taken);
        }
        Run { offered, taken }
    }

    /// Goes on behind the next `packets` packets.
    fn skip(&mut self, packets: usize) {
        for _ in 0..packets {
            let Some((is_kept, next)) = self.burst.skip_at(self.offset) else {
                break;
            };
            self.offset = next;
            self.kept += u64::from(is_kept);
        }
    }

    /// Whether packets are left that nobody has.
    fn lacks_packets(&self) -> bool {
        self.burst.is_stub() && self.burst.skip_at(self.offset).is_some()
    }
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
            &NothingKept,
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
            &NothingKept,
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
