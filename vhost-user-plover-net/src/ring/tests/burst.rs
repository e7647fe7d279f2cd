//! Bursts: several packets in one pass, part of a burst, a burst that meets a broken chain, headers
//! that say something, used entries with IN_ORDER, frames over many chains.

use plover_types::Offload;

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_ORDINARY, RING_BURST_MAX};
use crate::ring::{
    Frame, ReceiveScratch, RingFault, RingFeatures, SplitRing, TransmitScratch, Unlaid,
};
use crate::test_driver::{
    Copies, Driver, INDIRECT, NEXT, Used, WRITE, layout, memory, modern, plain, take_burst,
};

const SIZE: u16 = 64;
const BUFFERS: u64 = 0x10_0000;
const SLOT_BYTES: u64 = 0x800;
const HEADER: usize = 12;

const UNFINISHED: Offload = Offload {
    flags: 1,
    gso_type: 1,
    header_bytes: 54,
    gso_bytes: 1448,
    checksum_start: 34,
    checksum_offset: 16,
};

fn transmit(features: RingFeatures, start: u16) -> (Driver, SplitRing) {
    let mut driver = Driver::new(&memory(), layout(1, SIZE));
    driver.begin_at(start);
    let (ring, _) = driver.ring(features);
    (driver, ring)
}

fn receive(features: RingFeatures) -> (Driver, SplitRing) {
    let mut driver = Driver::new(&memory(), layout(0, SIZE));
    driver.begin_at(u16::MAX - 9);
    let (ring, _) = driver.ring(features);
    (driver, ring)
}

fn frame(number: u16) -> Vec<u8> {
    let bytes = 14 + usize::from(number) * 11 % 1400;
    (0..bytes).map(|at| (at as u16 ^ number) as u8).collect()
}

/// Sends a frame in one buffer, from the descriptor and the place of its number.
fn send(driver: &mut Driver, number: u16) {
    let packet = [&[0xEE; HEADER][..], &frame(number)].concat();
    let head = number % SIZE;
    let at = BUFFERS + SLOT_BYTES * u64::from(head);
    driver.write(at, &packet);
    driver.describe(head, (at, packet.len() as u32), 0, 0);
    driver.offer(head);
}

fn in_order() -> RingFeatures {
    RingFeatures {
        in_order: true,
        ..modern(true, true)
    }
}

#[test]
fn bursts_wrap_around_ring_and_index_and_lose_nothing() {
    for features in [modern(true, true), in_order()] {
        let (mut driver, mut ring) = transmit(features, u16::MAX - 40);
        let mut scratch = TransmitScratch::default();
        let (mut sent, mut taken) = (0, 0);
        for round in 0..40_u16 {
            let count = (round * 7 % 50).min(SIZE - (sent - taken));
            (0..count).for_each(|number| send(&mut driver, sent + number));
            sent += count;
            let room = usize::from(round % 5 * 9);
            let (burst, frames) = take_burst(&mut ring, &mut scratch, room);
            assert_eq!(burst.fault, None);
            assert_eq!(
                frames.len(),
                room.min(RING_BURST_MAX).min(usize::from(sent - taken))
            );
            for frame in frames {
                assert_eq!(frame, self::frame(taken));
                taken += 1;
            }
            ring.publish().unwrap();
            assert_eq!(driver.used_index(), (u16::MAX - 40).wrapping_add(taken));
        }
        assert!(taken > 300);
    }
}

#[test]
fn with_in_order_the_last_chains_entry_stands_where_the_first_ones_would() {
    let (mut driver, mut ring) = transmit(in_order(), 0);
    (0..20).for_each(|number| send(&mut driver, number));
    let (burst, _) = take_burst(&mut ring, &mut TransmitScratch::default(), 20);
    assert_eq!(burst.frames, 20);
    ring.publish().unwrap();
    let used = driver.collect();
    assert_eq!(used.len(), 20);
    assert_eq!(used[0], Used { head: 19, bytes: 0 });
    assert_eq!(
        used[1..],
        [Used { head: 0, bytes: 0 }; 19],
        "left as they were"
    );
}

#[test]
fn received_frames_have_an_entry_each_with_in_order_too() {
    let (mut driver, mut ring) = receive(in_order());
    for head in 0..3 {
        let at = BUFFERS + SLOT_BYTES * u64::from(head);
        driver.describe(head, (at, SLOT_BYTES as u32), WRITE, 0);
        driver.offer(head);
    }
    let frames = [frame(1), frame(2), frame(3), frame(4)];
    let frames = frames.each_ref().map(|bytes| plain(bytes));
    let laid = ring.deliver_burst(&mut ReceiveScratch::default(), &frames);
    assert_eq!((laid.frames, laid.stop), (3, Some(Unlaid::NoBuffer)));
    ring.publish().unwrap();
    for (number, used) in driver.collect().into_iter().enumerate() {
        assert_eq!(used.head as usize, number);
        assert_eq!(used.bytes as usize, HEADER + frames[number].bytes.len());
    }
}

#[test]
fn what_comes_before_a_broken_chain_is_given_and_returned() {
    let (mut driver, mut ring) = transmit(modern(true, true), 0);
    (0..5).for_each(|number| send(&mut driver, number));
    driver.describe(5, (u64::MAX, 100), 0, 0);
    driver.offer(5);
    send(&mut driver, 6);
    let mut scratch = TransmitScratch::default();
    // The broken one is out of reach as long as there is no room for those before it.
    let (burst, _) = take_burst(&mut ring, &mut scratch, 2);
    assert_eq!((burst.frames, burst.fault), (2, None));
    let (burst, frames) = take_burst(&mut ring, &mut scratch, 32);
    assert_eq!(frames.len(), 3);
    let outside = RingFault::BufferOutsideMemory {
        address: u64::MAX,
        bytes: 100,
    };
    assert_eq!(burst.fault, Some(outside));
    ring.publish().unwrap();
    assert_eq!(driver.used_index(), 5);
}

#[test]
fn a_sink_that_takes_fewer_leaves_the_others_in_the_ring() {
    let (mut driver, mut ring) = transmit(modern(true, true), 0);
    (0..10).for_each(|number| send(&mut driver, number));
    driver.describe(10, (u64::MAX, 100), 0, 0);
    driver.offer(10);
    let mut scratch = TransmitScratch::default();
    let mut sink = Copies {
        room: 4,
        frames: Vec::new(),
    };
    let burst = ring.take_burst(3, &mut scratch, 32, &mut sink);
    assert_eq!((burst.frames, burst.fault), (4, None));
    assert!(sink.frames.iter().all(|(pair, _, _)| *pair == 3));
    ring.publish().unwrap();
    let (burst, frames) = take_burst(&mut ring, &mut scratch, 32);
    assert_eq!(frames, (4..10).map(frame).collect::<Vec<_>>());
    assert!(burst.fault.is_some());
}

#[test]
fn a_header_spread_over_descriptors_says_what_is_left_to_do() {
    let features = RingFeatures {
        offloads: true,
        ..modern(true, true)
    };
    let (mut driver, mut ring) = transmit(features, 0);
    let packet = [&UNFINISHED.to_bytes()[..], &[0; 2], &frame(9)].concat();
    driver.write(BUFFERS, &packet);
    // One buffer; then a byte, a header's middle, and the rest with the frame behind it.
    driver.describe(0, (BUFFERS, packet.len() as u32), 0, 0);
    driver.describe(1, (BUFFERS, 1), NEXT, 2);
    driver.describe(2, (BUFFERS + 1, 8), NEXT, 3);
    driver.describe(3, (BUFFERS + 9, packet.len() as u32 - 9), 0, 0);
    driver.describe(4, (0x2_0000, 32), INDIRECT, 0);
    driver.describe_in(0x2_0000, 0, (BUFFERS, HEADER as u32), NEXT, 1);
    let rest = (BUFFERS + HEADER as u64, (packet.len() - HEADER) as u32);
    driver.describe_in(0x2_0000, 1, rest, 0, 0);
    [0, 1, 4].into_iter().for_each(|head| driver.offer(head));
    let mut sink = Copies {
        room: 9,
        frames: Vec::new(),
    };
    ring.take_burst(0, &mut TransmitScratch::default(), 9, &mut sink);
    assert_eq!(sink.frames, vec![(0, UNFINISHED, frame(9)); 3]);
}

#[test]
fn a_driver_without_offloads_is_told_nothing_and_says_nothing() {
    let (mut driver, mut ring) = transmit(modern(true, true), 0);
    send(&mut driver, 1);
    let mut sink = Copies {
        room: 9,
        frames: Vec::new(),
    };
    ring.take_burst(0, &mut TransmitScratch::default(), 9, &mut sink);
    assert_eq!(
        sink.frames[0].1,
        Offload::PLAIN,
        "though its header holds something"
    );

    for (guest_offloads, told) in [(false, Offload::PLAIN), (true, UNFINISHED)] {
        let features = RingFeatures {
            guest_offloads,
            ..modern(true, true)
        };
        let (mut driver, mut ring) = receive(features);
        driver.write(BUFFERS, &[0x77; HEADER]);
        driver.describe(0, (BUFFERS, 2000), WRITE, 0);
        driver.offer(0);
        let frame = Frame {
            offload: UNFINISHED,
            bytes: &frame(5),
        };
        let laid = ring.deliver_burst(&mut ReceiveScratch::default(), &[frame]);
        assert_eq!((laid.frames, laid.stop), (1, None));
        let header = [&told.to_bytes()[..], &1_u16.to_le_bytes()].concat();
        assert_eq!(driver.read(BUFFERS, HEADER), header);
    }
}

/// Posts buffers of 1536 bytes.
fn post(driver: &mut Driver, heads: std::ops::Range<u16>) {
    for head in heads {
        let at = BUFFERS + SLOT_BYTES * u64::from(head);
        driver.describe(head, (at, 1536), WRITE, 0);
        driver.offer(head);
    }
}

#[test]
fn the_longest_frame_goes_over_many_chains_or_waits_for_them() {
    let long: Vec<u8> = (0..FRAME_BYTES_MAX).map(|at| at as u8 ^ 0x3c).collect();
    let frames = [frame(1), long.clone(), frame(2)];
    let frames = frames.each_ref().map(|bytes| plain(bytes));
    let (mut driver, mut ring) = receive(modern(true, true));
    let mut scratch = ReceiveScratch::default();
    post(&mut driver, 0..43);
    let laid = ring.deliver_burst(&mut scratch, &frames);
    assert_eq!((laid.frames, laid.stop), (1, Some(Unlaid::NoBuffer)));
    post(&mut driver, 43..45);
    let laid = ring.deliver_burst(&mut scratch, &frames[1..]);
    assert_eq!((laid.frames, laid.stop), (2, None));
    ring.publish().unwrap();
    let used = driver.collect();
    assert_eq!(used.len(), 45);
    let found: Vec<u8> = used[1..44]
        .iter()
        .flat_map(|used| {
            driver.read(
                BUFFERS + SLOT_BYTES * u64::from(used.head),
                used.bytes as usize,
            )
        })
        .collect();
    assert_eq!(found[10..12], 43_u16.to_le_bytes());
    assert!(found[HEADER..] == long, "the frame as it was");
}

#[test]
fn a_long_frame_that_no_buffer_will_hold_is_left_out() {
    let long = vec![1; FRAME_BYTES_ORDINARY + 10];
    let frames = [frame(1), long, frame(2)];
    let frames = frames.each_ref().map(|bytes| plain(bytes));
    // One buffer for each packet.
    let (mut driver, mut ring) = receive(modern(true, false));
    post(&mut driver, 0..9);
    let laid = ring.deliver_burst(&mut ReceiveScratch::default(), &frames);
    assert_eq!((laid.frames, laid.too_long, laid.stop), (3, 1, None));
    ring.publish().unwrap();
    assert_eq!(driver.collect().len(), 2);
    // Small buffers, and all of them posted.
    let (mut driver, mut ring) = receive(modern(true, true));
    for head in 0..SIZE {
        driver.describe(head, (BUFFERS + SLOT_BYTES * u64::from(head), 20), WRITE, 0);
        driver.offer(head);
    }
    let laid = ring.deliver_burst(&mut ReceiveScratch::default(), &frames[1..2]);
    assert_eq!((laid.frames, laid.too_long, laid.stop), (1, 1, None));
}
