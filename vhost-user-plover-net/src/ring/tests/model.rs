//! Any sequence of packets in any layout of descriptors comes out as it went in, and every page
//! that changed in guest memory is marked. The model is a queue of byte vectors.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, FRAME_BYTES_ORDINARY};
use crate::ring::{ReceiveScratch, SplitRing, TransmitScratch, WrittenPages};
use crate::test_driver::{
    Driver, INDIRECT, NEXT, SEAM, Taken, WRITE, deliver, layout, memory, modern, snapshot, take,
    unmarked_changes,
};

pub(super) const SIZE: u16 = 256;
pub(super) const HEADER: usize = 12;
/// Each chain gets its own place: no more bytes than this.
const SLOT_BYTES: u64 = 0x1000;
/// Chains with a place of their own.
const SLOTS: u64 = 48;
/// Bytes of the smallest receive chain behind a header: a packet needs fewer chains than there
/// are slots, and those fewer descriptors than the ring has.
pub(super) const POST_BYTES_MIN: usize = 30;

/// How a chain is laid out.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Bytes of its buffers, before the last.
    cuts: Vec<usize>,
    indirect: bool,
    /// Direct descriptors in front of an indirect one.
    direct_first: usize,
    /// Bytes that the buffers are moved by.
    shift: u64,
}

pub(super) fn shapes() -> impl Strategy<Value = Shape> {
    let cuts = prop::collection::vec(prop_oneof![0..20_usize, 1..700_usize], 0..6);
    (cuts, any::<bool>(), 0..3_usize, 0..64_u64).prop_map(
        |(cuts, indirect, direct_first, shift)| Shape {
            cuts,
            indirect,
            direct_first,
            shift,
        },
    )
}

pub(super) fn frames() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![
        Just(FRAME_BYTES_MIN),
        Just(FRAME_BYTES_ORDINARY),
        14..1519_usize
    ];
    (bytes, any::<u8>()).prop_map(|(bytes, seed)| {
        (0..bytes)
            .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
            .collect()
    })
}

/// Lays buffers of `lengths` bytes out as a chain; returns head and buffers.
#[derive(Clone, Default)]
pub(super) struct Layouter {
    next_descriptor: u16,
    next_slot: u64,
}

impl Layouter {
    pub(super) fn lay(
        &mut self,
        driver: &Driver,
        shape: &Shape,
        total: usize,
        flags: u16,
    ) -> (u16, Vec<(u64, u32)>) {
        let mut lengths = Vec::new();
        let mut left = total;
        for cut in &shape.cuts {
            lengths.push((*cut).min(left));
            left -= (*cut).min(left);
        }
        lengths.push(left);
        // Slots run over the seam of two regions, so some buffers span it.
        let mut at = SEAM - 20 * SLOT_BYTES - 700 + self.next_slot * SLOT_BYTES + shape.shift;
        let table = 0x2_0000 + self.next_slot * 256;
        self.next_slot = (self.next_slot + 1) % SLOTS;
        let buffers: Vec<(u64, u32)> = lengths
            .iter()
            .map(|bytes| {
                let buffer = (at, *bytes as u32);
                at += *bytes as u64 + 3;
                buffer
            })
            .collect();
        (
            self.describe(driver, shape, &buffers, table, flags),
            buffers,
        )
    }

    fn describe(
        &mut self,
        driver: &Driver,
        shape: &Shape,
        buffers: &[(u64, u32)],
        table: u64,
        flags: u16,
    ) -> u16 {
        let direct = if shape.indirect {
            shape.direct_first.min(buffers.len() - 1)
        } else {
            buffers.len()
        };
        let head = self.next_descriptor;
        let mut take = || {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % SIZE;
            index
        };
        for (number, buffer) in buffers[..direct].iter().enumerate() {
            let index = take();
            let last = number + 1 == buffers.len();
            let next = if last { 0 } else { NEXT };
            driver.describe(index, *buffer, flags | next, (index + 1) % SIZE);
        }
        let rest = &buffers[direct..];
        if !rest.is_empty() {
            // Odd tables lie at odd addresses.
            let table = table + shape.shift % 2;
            driver.describe(take(), (table, 16 * rest.len() as u32), INDIRECT, 0);
            for (number, buffer) in rest.iter().enumerate() {
                let next = if number + 1 == rest.len() { 0 } else { NEXT };
                driver.describe_in(
                    table,
                    number as u16,
                    *buffer,
                    flags | next,
                    number as u16 + 1,
                );
            }
        }
        head
    }
}

fn check_marks(before: &[(u64, Vec<u8>)], driver: &Driver, pages: &WrittenPages) {
    let unmarked = unmarked_changes(before, &driver.memory, pages);
    assert!(unmarked.is_empty(), "changed but not marked: {unmarked:x?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn frames_sent_in_any_layout_come_out_in_order(
        packets in prop::collection::vec((frames(), shapes()), 1..40),
        burst in 1..7_usize,
        start in any::<u16>(),
        event_idx in any::<bool>(),
    ) {
        let memory = memory();
        let mut driver = Driver::new(&memory, layout(1, SIZE));
        driver.begin_at(start);
        let (mut ring, pages) = driver.ring(modern(event_idx, true));
        let mut layouter = Layouter::default();
        let mut scratch = TransmitScratch::default();
        for burst in packets.chunks(burst) {
            let mut heads = Vec::new();
            for (frame, shape) in burst {
                let packet = [&[0xAA; HEADER][..], frame].concat();
                let (head, buffers) = layouter.lay(&driver, shape, packet.len(), 0);
                let mut from = 0;
                for (address, bytes) in buffers {
                    driver.write(address, &packet[from..from + bytes as usize]);
                    from += bytes as usize;
                }
                driver.offer(head);
                heads.push(u32::from(head));
            }
            pages.collect_all();
            let before = snapshot(&memory);
            prop_assert_eq!(ring.offered(), Ok(burst.len() as u16));
            for (frame, _) in burst {
                prop_assert_eq!(take(&mut ring, &mut scratch), Ok(Taken::Frame(frame.clone())));
            }
            ring.publish().unwrap();
            check_marks(&before, &driver, &pages);
            let returned: Vec<u32> = driver.collect().iter().map(|used| used.head).collect();
            prop_assert_eq!(returned, heads);
            prop_assert_eq!(ring.offered(), Ok(0));
        }
    }

    #[test]
    fn frames_received_in_any_layout_come_out_in_order(
        packets in prop::collection::vec(frames(), 1..30),
        posts in prop::collection::vec((POST_BYTES_MIN..900_usize, shapes()), 1..60),
        start in any::<u16>(),
        mergeable in any::<bool>(),
    ) {
        let memory = memory();
        let mut driver = Driver::new(&memory, layout(0, SIZE));
        driver.begin_at(start);
        let (mut ring, pages) = driver.ring(modern(true, mergeable));
        let mut guest = ReceivingGuest {
            layouter: Layouter::default(),
            posted: VecDeque::new(),
            posts: posts.into_iter().cycle(),
            mergeable,
        };
        let mut scratch = ReceiveScratch::default();
        for frame in &packets {
            let mut refusals = 0;
            pages.collect_all();
            let mut before = snapshot(&memory);
            while !deliver(&mut ring, &mut scratch, frame).unwrap() {
                prop_assert_eq!(snapshot(&memory), before, "a refused frame leaves no trace");
                guest.post(&mut driver);
                before = snapshot(&memory);
                refusals += 1;
                prop_assert!(refusals < 200, "no progress");
            }
            prop_assert!(driver.collect().is_empty(), "not visible before it is published");
            ring.publish().unwrap();
            check_marks(&before, &driver, &pages);
            prop_assert_eq!(guest.receive(&mut driver), frame.clone());
        }
    }
}

struct ReceivingGuest<I> {
    layouter: Layouter,
    posted: VecDeque<(u16, Vec<(u64, u32)>)>,
    posts: I,
    mergeable: bool,
}

impl<I: Iterator<Item = (usize, Shape)>> ReceivingGuest<I> {
    fn post(&mut self, driver: &mut Driver) {
        let (bytes, shape) = self.posts.next().unwrap();
        // Without mergeable buffers each one must hold a whole packet.
        let bytes = if self.mergeable {
            HEADER + bytes
        } else {
            HEADER + FRAME_BYTES_ORDINARY + bytes
        };
        let (head, buffers) = self.layouter.lay(driver, &shape, bytes, WRITE);
        driver.offer(head);
        self.posted.push_back((head, buffers));
    }

    /// Puts the one packet that came together.
    fn receive(&mut self, driver: &mut Driver) -> Vec<u8> {
        let mut packet = Vec::new();
        let used = driver.collect();
        for used in &used {
            let (head, buffers) = self.posted.pop_front().unwrap();
            assert_eq!(used.head, u32::from(head));
            let mut left = used.bytes as usize;
            for (address, bytes) in buffers {
                let run = left.min(bytes as usize);
                packet.extend(driver.read(address, run));
                left -= run;
            }
            assert_eq!(left, 0, "more written than the chain holds");
        }
        let chains = u16::from_le_bytes([packet[10], packet[11]]);
        assert_eq!(usize::from(chains), used.len());
        assert_eq!(packet[..10], [0; 10], "no offloads");
        packet.split_off(HEADER)
    }
}

#[test]
fn a_legacy_header_is_two_bytes_shorter() {
    let memory = memory();
    let mut driver = Driver::new(&memory, layout(0, 8));
    let features = crate::ring::RingFeatures {
        header_bytes: 10,
        ..modern(false, false)
    };
    let (mut ring, _) = driver.ring(features);
    driver.describe(0, (0x10_0000, 2000), WRITE, 0);
    driver.offer(0);
    let frame = [9; 60];
    let delivered = |ring: &mut SplitRing| deliver(ring, &mut ReceiveScratch::default(), &frame);
    assert!(delivered(&mut ring).unwrap());
    ring.publish().unwrap();
    assert_eq!(driver.collect()[0].bytes, 70);
    assert_eq!(driver.read(0x10_0000 + 10, 60), frame);
}

#[test]
fn frames_beyond_the_limits_are_returned_but_not_given_on() {
    let memory = memory();
    let mut driver = Driver::new(&memory, layout(1, 8));
    let (mut ring, _) = driver.ring(modern(true, true));
    let mut scratch = TransmitScratch::default();
    for (frame_bytes, expected) in [
        (FRAME_BYTES_MIN - 1, Taken::TooShort),
        (0, Taken::TooShort),
        (FRAME_BYTES_MAX + 1, Taken::TooLong),
        (100_000, Taken::TooLong),
    ] {
        driver.describe(0, (0x10_0000, (HEADER + frame_bytes) as u32), 0, 0);
        driver.offer(0);
        assert_eq!(take(&mut ring, &mut scratch), Ok(expected));
    }
    ring.publish().unwrap();
    assert_eq!(driver.collect().len(), 4);
}
