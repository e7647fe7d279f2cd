//! Calls and kicks: who is told, and when.

use crate::ring::{ReceiveScratch, SplitRing, TransmitScratch};
use crate::test_driver::{Driver, WRITE, deliver, layout, memory, modern, take};

const SIZE: u16 = 8;

fn started(event_idx: bool) -> (Driver, SplitRing) {
    let mut driver = Driver::new(&memory(), layout(0, SIZE));
    driver.begin_at(u16::MAX - 2);
    let (ring, _) = driver.ring(modern(event_idx, true));
    (driver, ring)
}

fn deliver_one(driver: &mut Driver, ring: &mut SplitRing) -> bool {
    driver.describe(0, (0x10_0000, 2000), WRITE, 0);
    driver.offer(0);
    assert!(deliver(ring, &mut ReceiveScratch::default(), &[1; 60]).unwrap());
    ring.publish().unwrap()
}

#[test]
fn a_call_is_sent_when_the_used_index_passes_the_one_that_the_guest_named() {
    let (mut driver, mut ring) = started(true);
    // Whatever the guest wrote before the start may be older than what it has seen.
    driver.want_call_at(1000);
    assert!(
        deliver_one(&mut driver, &mut ring),
        "the first one always calls"
    );
    driver.want_call_at(1);
    // Indexes now 65534, so 65535, 0 and 1 pass without a call, 2 is past 1.
    let calls: Vec<bool> = (0..5)
        .map(|_| deliver_one(&mut driver, &mut ring))
        .collect();
    assert_eq!(calls, [false, false, false, true, false]);
}

#[test]
fn without_event_idx_the_flag_decides() {
    let (mut driver, mut ring) = started(false);
    assert_eq!(
        driver.get::<u16>(driver.layout.used),
        1,
        "no kicks while polling"
    );
    assert!(deliver_one(&mut driver, &mut ring));
    driver.put(driver.layout.available, 1_u16);
    assert!(!deliver_one(&mut driver, &mut ring));
    ring.want_kicks(true);
    assert_eq!(driver.get::<u16>(driver.layout.used), 0);
}

#[test]
fn nothing_returned_is_nothing_published_and_no_call() {
    let (_, mut ring) = started(true);
    assert!(!ring.publish().unwrap());
}

#[test]
fn a_wish_for_kicks_names_the_next_chain() {
    let (mut driver, mut ring) = started(true);
    driver.describe(0, (0x10_0000, 100), 0, 0);
    driver.offer(0);
    take(&mut ring, &mut TransmitScratch::default()).unwrap();
    ring.publish().unwrap();
    ring.want_kicks(true);
    assert_eq!(driver.available_event(), u16::MAX - 1);
}

#[test]
fn a_ring_starts_at_the_used_index_in_guest_memory() {
    let (mut driver, mut ring) = started(true);
    assert_eq!(ring.index(), u16::MAX - 2);
    deliver_one(&mut driver, &mut ring);
    let (again, _) = driver.ring(modern(true, true));
    assert_eq!(again.index(), u16::MAX - 1);
    // Chains that wait in the ring wait on: a restored VMM would name the index behind them.
    driver.describe(3, (0x10_0000, 100), 0, 0);
    driver.offer(3);
    let (mut again, _) = driver.ring(modern(true, true));
    assert_eq!(again.offered(), Ok(1));
    take(&mut again, &mut TransmitScratch::default()).unwrap();
}
