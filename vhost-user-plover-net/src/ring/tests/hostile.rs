//! What no driver may write: each is a named fault, nothing is returned, nothing panics.

use crate::ring::{ReceiveScratch, RingFault, SplitRing, TransmitScratch};
use crate::test_driver::{
    self, Driver, HOLE, INDIRECT, NEXT, Taken, WRITE, layout, memory, modern,
};

const SIZE: u16 = 8;
const BUFFER: u64 = 0x10_0000;
const TABLE: u64 = 0x11_0000;

fn driver() -> Driver {
    Driver::new(&memory(), layout(0, SIZE))
}

fn take(ring: &mut SplitRing) -> Result<usize, RingFault> {
    ring.offered()?;
    match test_driver::take(ring, &mut TransmitScratch::default())? {
        Taken::Frame(frame) => Ok(frame.len()),
        other => panic!("{other:?}"),
    }
}

fn deliver(ring: &mut SplitRing) -> Result<bool, RingFault> {
    test_driver::deliver(ring, &mut ReceiveScratch::default(), &[7; 60])
}

/// Offers descriptor 0 after `describe`, and takes it.
fn fault_of(describe: impl FnOnce(&Driver)) -> RingFault {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    describe(&driver);
    driver.offer(0);
    let fault = take(&mut ring).unwrap_err();
    ring.publish().unwrap();
    assert_eq!(driver.used_index(), 0, "a broken chain is not returned");
    fault
}

/// The same in the receive ring.
fn receive_fault_of(describe: impl FnOnce(&Driver)) -> RingFault {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    describe(&driver);
    driver.offer(0);
    let fault = deliver(&mut ring).unwrap_err();
    ring.publish().unwrap();
    assert_eq!(driver.used_index(), 0, "a broken chain is not returned");
    fault
}

#[test]
fn a_descriptor_loop_stops_the_ring() {
    let fault = fault_of(|d| {
        d.describe(0, (BUFFER, 1), NEXT, 1);
        d.describe(1, (BUFFER, 1), NEXT, 0);
    });
    assert_eq!(fault, RingFault::DescriptorLoop);
    // Empty buffers advance nothing, so only the bound ends this one.
    let fault = receive_fault_of(|d| d.describe(0, (BUFFER, 0), NEXT | WRITE, 0));
    assert_eq!(fault, RingFault::DescriptorLoop);
}

#[test]
fn a_loop_inside_an_indirect_table_stops_the_ring() {
    let fault = fault_of(|d| {
        d.describe(0, (TABLE, 32), INDIRECT, 0);
        d.describe_in(TABLE, 0, (BUFFER, 1), NEXT, 1);
        d.describe_in(TABLE, 1, (BUFFER, 1), NEXT, 0);
    });
    assert_eq!(fault, RingFault::DescriptorLoop);
}

#[test]
fn a_length_past_the_end_of_memory_stops_the_ring() {
    let buffer = (HOLE - 100, 200);
    let outside = RingFault::BufferOutsideMemory {
        address: buffer.0,
        bytes: buffer.1,
    };
    assert_eq!(fault_of(|d| d.describe(0, buffer, 0, 0)), outside);
    let fault = receive_fault_of(|d| d.describe(0, (HOLE - 10, 2000), WRITE, 0));
    assert_eq!(
        fault,
        RingFault::BufferOutsideMemory {
            address: HOLE - 10,
            bytes: 72
        }
    );
}

#[test]
fn an_address_that_overflows_stops_the_ring() {
    for address in [u64::MAX, u64::MAX - 5, u64::MAX - 100, 1 << 63, HOLE] {
        let outside = RingFault::BufferOutsideMemory {
            address,
            bytes: 200,
        };
        assert_eq!(fault_of(|d| d.describe(0, (address, 200), 0, 0)), outside);
        let fault = receive_fault_of(|d| d.describe(0, (address, u32::MAX), WRITE, 0));
        assert_eq!(fault, RingFault::BufferOutsideMemory { address, bytes: 72 });
    }
}

#[test]
fn a_length_of_four_gib_is_a_packet_too_long_and_nothing_is_read() {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    driver.describe(0, (BUFFER, u32::MAX), NEXT, 1);
    driver.describe(1, (BUFFER, u32::MAX), 0, 0);
    driver.offer(0);
    assert_eq!(
        test_driver::take(&mut ring, &mut TransmitScratch::default()),
        Ok(Taken::TooLong)
    );
    ring.publish().unwrap();
    assert_eq!(
        driver.used_index(),
        1,
        "it is returned, and dropped by counter"
    );
}

#[test]
fn a_next_out_of_range_stops_the_ring() {
    let fault = fault_of(|d| d.describe(0, (BUFFER, 1), NEXT, SIZE));
    assert_eq!(
        fault,
        RingFault::DescriptorOutOfRange {
            index: SIZE,
            count: SIZE
        }
    );
    let fault = fault_of(|d| {
        d.describe(0, (TABLE, 32), INDIRECT, 0);
        d.describe_in(TABLE, 0, (BUFFER, 1), NEXT, 2);
    });
    assert_eq!(
        fault,
        RingFault::DescriptorOutOfRange { index: 2, count: 2 }
    );
}

#[test]
fn a_head_out_of_range_stops_the_ring() {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    driver.offer(u16::MAX);
    let expected = RingFault::DescriptorOutOfRange {
        index: u16::MAX,
        count: SIZE,
    };
    assert_eq!(take(&mut ring), Err(expected));
    assert_eq!(deliver(&mut ring), Err(expected));
}

#[test]
fn an_index_that_jumps_stops_the_ring() {
    for index in [SIZE + 1, 1000, u16::MAX] {
        let mut driver = driver();
        let (mut ring, _) = driver.ring(modern(true, true));
        driver.set_available_index(index);
        let jump = RingFault::IndexJump {
            available: index,
            next: 0,
            size: SIZE,
        };
        assert_eq!(take(&mut ring), Err(jump));
        assert_eq!(deliver(&mut ring), Err(jump));
    }
}

#[test]
fn chains_offered_again_before_they_came_back_stop_the_ring() {
    // The used ring is the last thing in memory: nothing behind it can be marked.
    let mut layout = layout(0, 2);
    layout.used = 0x20_0000 - 24;
    let mut driver = Driver::new(&memory(), layout);
    let (mut ring, _) = driver.ring(modern(true, true));
    driver.describe(0, (BUFFER, 100), WRITE, 0);
    (0..2).for_each(|_| driver.offer(0));
    assert_eq!(deliver(&mut ring), Ok(true));
    assert_eq!(deliver(&mut ring), Ok(true));
    (0..2).for_each(|_| driver.offer(0));
    let jump = RingFault::IndexJump {
        available: 4,
        next: 2,
        size: 2,
    };
    assert_eq!(deliver(&mut ring), Err(jump));
    ring.publish().unwrap();
    assert_eq!(driver.used_index(), 2, "what was laid in before is shown");
}

#[test]
fn a_used_index_ahead_of_the_available_one_is_found_at_the_start() {
    let driver = driver();
    driver.set_used_index(3);
    let map = std::sync::Arc::new(crate::ring::GuestMap::new(driver.memory.clone()).unwrap());
    let pages = std::sync::Arc::new(crate::ring::WrittenPages::create(map.guest_end()).unwrap());
    let fault = SplitRing::start(&map, &pages, driver.layout, modern(true, true)).err();
    assert_eq!(
        fault,
        Some(RingFault::IndexJump {
            available: 0,
            next: 3,
            size: SIZE
        })
    );
}

#[test]
fn a_used_index_that_the_guest_rewrote_stops_the_ring() {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    driver.describe(0, (BUFFER, 100), 0, 0);
    driver.offer(0);
    take(&mut ring).unwrap();
    driver.set_used_index(77);
    let changed = RingFault::UsedIndexChanged {
        found: 77,
        published: 0,
    };
    assert_eq!(ring.publish(), Err(changed));
}

#[test]
fn an_indirect_table_of_a_wrong_length_stops_the_ring() {
    for bytes in [0, 8, 15, 17, 16 * 1025, u32::MAX] {
        let fault = fault_of(|d| d.describe(0, (TABLE, bytes), INDIRECT, 0));
        assert_eq!(fault, RingFault::IndirectLength { bytes });
    }
}

#[test]
fn an_indirect_table_outside_of_memory_stops_the_ring() {
    for address in [HOLE - 16, HOLE, u64::MAX - 8] {
        let fault = fault_of(|d| d.describe(0, (address, 32), INDIRECT, 0));
        assert_eq!(fault, RingFault::BufferOutsideMemory { address, bytes: 32 });
    }
}

#[test]
fn nested_and_continued_indirect_tables_stop_the_ring() {
    let fault = fault_of(|d| {
        d.describe(0, (TABLE, 16), INDIRECT, 0);
        d.describe_in(TABLE, 0, (TABLE, 16), INDIRECT, 0);
    });
    assert_eq!(fault, RingFault::IndirectNested);
    let fault = fault_of(|d| d.describe(0, (TABLE, 16), INDIRECT | NEXT, 1));
    assert_eq!(fault, RingFault::IndirectWithNext);
}

#[test]
fn an_indirect_table_without_the_feature_stops_the_ring() {
    let mut driver = driver();
    let features = crate::ring::RingFeatures {
        indirect: false,
        ..modern(true, true)
    };
    let (mut ring, _) = driver.ring(features);
    driver.describe(0, (TABLE, 16), INDIRECT, 0);
    driver.offer(0);
    assert_eq!(take(&mut ring), Err(RingFault::IndirectNotNegotiated));
}

#[test]
fn buffers_of_the_wrong_direction_stop_the_ring() {
    let fault = fault_of(|d| d.describe(0, (BUFFER, 100), WRITE, 0));
    assert_eq!(fault, RingFault::WriteOnlyBuffer);
    let fault = receive_fault_of(|d| d.describe(0, (BUFFER, 100), 0, 0));
    assert_eq!(fault, RingFault::ReadOnlyBuffer);
}

#[test]
fn an_empty_chain_stops_the_ring() {
    assert_eq!(
        fault_of(|d| d.describe(0, (BUFFER, 0), 0, 0)),
        RingFault::EmptyChain
    );
    assert_eq!(
        receive_fault_of(|d| d.describe(0, (BUFFER, 0), WRITE, 0)),
        RingFault::EmptyChain
    );
}

#[test]
fn a_chain_without_room_for_the_header_stops_the_ring() {
    let fault = fault_of(|d| d.describe(0, (BUFFER, 11), 0, 0));
    assert_eq!(fault, RingFault::HeaderDoesNotFit { bytes: 11 });
    let fault = receive_fault_of(|d| d.describe(0, (BUFFER, 11), WRITE, 0));
    assert_eq!(fault, RingFault::HeaderDoesNotFit { bytes: 11 });
}

#[test]
fn receive_buffers_that_can_never_hold_a_frame_stop_the_ring() {
    let mut driver = driver();
    let (mut ring, _) = driver.ring(modern(true, false));
    driver.describe(0, (BUFFER, 71), WRITE, 0);
    driver.offer(0);
    let small = RingFault::BuffersTooSmall {
        bytes: 71,
        wanted: 72,
    };
    assert_eq!(deliver(&mut ring), Err(small));

    // Mergeable, but the whole ring together is too small.
    let mut driver = self::driver();
    let (mut ring, _) = driver.ring(modern(true, true));
    (1..SIZE).for_each(|index| driver.describe(index, (BUFFER, 1), WRITE, 0));
    driver.describe(0, (BUFFER, 12), WRITE, 0);
    (0..SIZE - 1).for_each(|head| driver.offer(head));
    assert_eq!(
        deliver(&mut ring),
        Ok(false),
        "one more chain might be the big one"
    );
    driver.offer(SIZE - 1);
    let small = RingFault::BuffersTooSmall {
        bytes: 19,
        wanted: 72,
    };
    assert_eq!(deliver(&mut ring), Err(small));
}

#[test]
fn a_ring_outside_of_memory_or_misaligned_does_not_start() {
    let memory = memory();
    let map = std::sync::Arc::new(crate::ring::GuestMap::new(memory).unwrap());
    let good = layout(0, 256);
    assert!(good.locate(&map).is_ok());
    for (part, address, outside) in [
        ("descriptor table", HOLE - 16 * 255, true),
        ("descriptor table", 0x1008, false),
        ("available ring", HOLE - 4, true),
        ("available ring", 0x5001, false),
        ("used ring", u64::MAX - 3, true),
        ("used ring", 0x6002, false),
        ("used ring", HOLE - 4 - 8 * 256, true),
    ] {
        let mut bad = good;
        match part {
            "descriptor table" => bad.descriptors = address,
            "available ring" => bad.available = address,
            _ => bad.used = address,
        }
        let expected = if outside {
            RingFault::RingOutsideMemory { part, address }
        } else {
            RingFault::RingMisaligned { part, address }
        };
        assert_eq!(bad.locate(&map).err(), Some(expected));
    }
}
