//! A guest that rewrites what the device reads, while it reads: descriptors, heads, indexes, on
//! another core. Each field is read once, so what was checked is what is used: no access outside
//! of memory (the test would die of it), no panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plover_net_fuzz::race::{Arena, Device};

const SECONDS: u64 = 2;

#[test]
fn a_guest_that_rewrites_its_rings_while_they_are_read_stops_them_at_most() {
    let arena = Arc::new(Arena::new());
    let ended = Arc::new(AtomicBool::new(false));
    let (guests, end) = (Arc::clone(&arena), Arc::clone(&ended));
    let guest = std::thread::spawn(move || {
        let mut seed = 1;
        while !end.load(Ordering::Relaxed) {
            guests.rewrite(&mut seed);
        }
    });
    let mut device = Device::on(&arena);
    let deadline = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < deadline {
        device.turn();
    }
    ended.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    // Both went on all the time: packets pass, and rings break.
    let (packets, faults) = device.counts();
    assert!(
        packets > 100 && faults > 100,
        "{packets} packets, {faults} faults"
    );
}
