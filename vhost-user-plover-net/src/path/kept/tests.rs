//! Mbufs that are kept go back to their pool, whatever becomes of their entries.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_config::{Eal, EalConfig, Mempool};
use plover_types::{Offload, PacketBurstBuilder, PacketHeader};

use super::*;

const MBUFS: u32 = 511;

struct Bench {
    pool: Mempool,
    kept: Kept,
    builder: PacketBurstBuilder,
    next: u8,
}

/// There is one EAL in a process, and tests may share a process.
fn pool() -> Mempool {
    static EAL: OnceLock<Eal> = OnceLock::new();
    static POOLS: AtomicU32 = AtomicU32::new(0);
    let eal = EAL.get_or_init(|| Eal::init(&EalConfig::default()).unwrap());
    let name = format!("kept{}", POOLS.fetch_add(1, Ordering::Relaxed));
    Mempool::new(eal, &name, MBUFS, 0, 2048).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self {
            pool: pool(),
            kept: Kept::default(),
            builder: PacketBurstBuilder::new(),
            next: 0,
        }
    }

    /// A stub of so many packets, each with its number in every byte.
    fn stub(&mut self, packets: usize) -> PacketBurst {
        for _ in 0..packets {
            let mut mbuf = self.pool.alloc().unwrap();
            mbuf.write(&[&[self.next; 300]]).unwrap();
            self.next += 1;
            let header = PacketHeader {
                pair: 0,
                offload: Offload::PLAIN,
                bytes: mbuf.len(),
            };
            self.builder.push_kept(header).unwrap();
            self.kept.push(mbuf).unwrap();
        }
        self.builder.finish().unwrap()
    }

    fn logged(&mut self, packets: usize, index: u64) -> PacketBurst {
        let stub = self.stub(packets);
        self.kept.logged(&stub, LogIndex(index));
        stub
    }

    /// Mbufs that are not in the pool.
    fn held(&self) -> usize {
        assert_eq!(
            self.kept.len(),
            (MBUFS - self.pool.available()) as usize,
            "the pool has all others"
        );
        self.kept.len()
    }

    fn mark_of(&self, index: u64) -> Option<u8> {
        let first = self.kept.first_of(LogIndex(index))?;
        self.kept.packet(first).map(|bytes| bytes[0])
    }
}

fn at(index: u64) -> Position {
    Position::start_of(LogIndex(index))
}

#[test]
fn what_is_delivered_goes_back_to_the_pool_and_the_rest_stays() {
    let mut bench = Bench::new();
    for (packets, index) in [(32, 5), (1, 6), (40, 9)] {
        bench.logged(packets, index);
    }
    assert_eq!(bench.held(), 73);
    bench.kept.delivered(at(5));
    assert_eq!((bench.held(), bench.mark_of(5)), (73, Some(0)));
    bench.kept.delivered(at(6));
    assert_eq!((bench.held(), bench.mark_of(5)), (41, None));
    assert_eq!((bench.mark_of(6), bench.mark_of(9)), (Some(32), Some(33)));
    bench.kept.delivered(at(10));
    assert_eq!(bench.held(), 0);
}

#[test]
fn a_stub_that_the_log_refuses_for_good_holds_nothing() {
    let mut bench = Bench::new();
    bench.logged(10, 3);
    let refused = bench.stub(20);
    let waiting = bench.stub(5);
    bench.kept.refused(&refused);
    // Its packets lie between others, and leave with the first of these.
    assert_eq!(bench.held(), 35);
    bench.kept.delivered(at(4));
    assert_eq!(bench.held(), 5);
    bench.kept.logged(&waiting, LogIndex(4));
    assert_eq!(bench.mark_of(4), Some(30));
    let last = bench.stub(7);
    bench.kept.delivered(at(5));
    bench.kept.refused(&last);
    assert_eq!(bench.held(), 0);
}

#[test]
fn entries_that_others_replaced_in_the_log_hold_nothing() {
    let mut bench = Bench::new();
    for index in 3..7 {
        bench.logged(10, index);
    }
    // The log was cut behind entry 3, and goes on.
    bench.logged(10, 4);
    assert_eq!((bench.mark_of(4), bench.mark_of(5)), (Some(40), None));
    bench.kept.delivered(at(4));
    assert_eq!((bench.held(), bench.mark_of(4)), (10, Some(40)));
    bench.kept.delivered(at(5));
    assert_eq!(bench.held(), 0);
}

#[test]
fn what_was_written_out_is_freed_and_what_is_not_in_the_log_stays() {
    let mut bench = Bench::new();
    bench.logged(10, 3);
    bench.logged(10, 4);
    let waiting = bench.stub(3);
    bench.kept.written_out();
    assert_eq!((bench.held(), bench.mark_of(3)), (3, None));
    let written = bench.kept.write_out(&waiting).expect("they were kept");
    let marks: Vec<_> = written.iter().map(|packet| packet.bytes[0]).collect();
    assert_eq!((marks, bench.held()), (vec![20, 21, 22], 0));
    bench.logged(2, 5);
    assert_eq!(bench.mark_of(5), Some(23));
}

#[test]
fn there_is_an_end_to_what_is_kept_and_all_of_it_is_freed_with_its_keeper() {
    let mut bench = Bench::new();
    assert!(bench.kept.has_room());
    bench.logged(100, 1);
    let waiting = bench.stub(20);
    assert_eq!((waiting.len(), bench.held()), (20, 120));
    bench.kept = Kept::default();
    assert_eq!(bench.held(), 0);
    let room = bench.kept.packets.room();
    assert_eq!(room, KEPT_PACKETS_MAX);
    const { assert!(KEPT_PACKETS_MAX.is_multiple_of(TAKEN_PER_TURN)) };
}
