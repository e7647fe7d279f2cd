//! Whole rounds between two hasher processes: after each applied sync the backup's memory is the
//! primary's at the sync point, byte for byte.

mod common;

use std::time::Instant;

use common::*;
use hasher::control::Side;
use plover_types::SyncKind::{Delta, Fill};

#[test]
fn a_fill_makes_an_empty_copy_equal() {
    let (mut one, mut two) = pair(600, false);
    let mut random = Random(11);
    scribble(&one, &mut random, 900);
    let outcome = round(&mut one, &mut two, 10, Fill);
    assert_equal(&one.ram.bytes(), &two.ram.bytes());
    assert!(outcome.primary.all_memory);
    assert_eq!(outcome.primary.union_pages, 600);
    assert_eq!(
        outcome.primary.divergent_pages,
        outcome.backup.divergent_pages
    );
    assert_eq!(
        outcome.primary.wire_sent_bytes,
        outcome.backup.wire_received_bytes
    );
    assert!(outcome.backup.times.verify_us > 0);
    let again = round(&mut one, &mut two, 11, Fill);
    assert_eq!(again.primary.divergent_pages, 0);
}

/// Many rounds, both guests writing in between and the primary's during the send; a third of the
/// rounds are given up at a random moment; roles change now and then.
fn many_rounds(tracked: bool, seed: u64) {
    let (mut one, mut two) = pair(2000, tracked);
    let mut random = Random(seed);
    scribble(&one, &mut random, 2000);
    round(&mut one, &mut two, 1, Fill);
    let mut deltas = 0;
    let mut index = 2;
    while index < 80 {
        if random.below(12) == 0 {
            std::mem::swap(&mut one, &mut two);
        }
        let writes = random.below(120);
        scribble(&one, &mut random, writes);
        scribble(&two, &mut random, writes / 2);
        let sync_point = one.ram.bytes();
        if random.below(3) == 0 {
            give_up(&mut one, &mut two, index, &mut random);
        } else {
            let run_on = random.bytes(5000);
            let at = random.below(1000) * 4096 + 17;
            let (stats, _) = stage(&mut one, &mut two, index, Delta, |ram| {
                ram.write(at, &run_on);
            });
            one.finish(sync(index));
            two.apply(sync(index));
            assert_equal(&sync_point, &two.ram.bytes());
            assert_eq!(stats.untracked_pages, 0, "sync {index}");
            deltas += u64::from(!stats.all_memory);
        }
        index += 1;
    }
    let last = round(&mut one, &mut two, index, Delta);
    assert_equal(&one.ram.bytes(), &two.ram.bytes());
    assert_eq!(tracked, !last.primary.all_memory);
    assert_eq!(tracked, deltas > 0);
}

/// Both nodes give a round up somewhere in its course.
fn give_up(one: &mut Host, two: &mut Host, index: u64, random: &mut Random) {
    let id = sync(index);
    match random.below(4) {
        0 => {
            stage(one, two, index, Delta, |_| {});
        }
        1 => one.begin(id, Side::Primary, Delta),
        2 => two.begin(id, Side::Backup, Delta),
        _ => {
            one.begin(id, Side::Primary, Delta);
            two.begin(id, Side::Backup, Delta);
            std::thread::sleep(std::time::Duration::from_micros(random.below(3000)));
        }
    }
    one.abort(id);
    two.abort(id);
}

#[test]
fn memories_are_equal_after_many_rounds_when_all_memory_is_compared() {
    many_rounds(false, 0x5eed);
}

#[test]
fn memories_are_equal_after_many_rounds_with_tracked_pages() {
    if !tracking_works() {
        return;
    }
    for seed in [1, 2, 3] {
        many_rounds(true, 0x1234_5678 + seed);
    }
}

fn tracking_works() -> bool {
    let mut host = Host::new(64, free_address(), free_address(), 1);
    host.start();
    let report = host.attach(true, false);
    let works = report.tracker == "userfaultfd";
    if !works {
        eprintln!("skipped: {}", report.reason.unwrap_or_default());
    }
    works
}

#[test]
fn a_vmm_that_maps_its_memory_anew_can_go_on_with_its_account() {
    if !tracking_works() {
        return;
    }
    let (mut one, mut two) = pair(500, true);
    scribble(&one, &mut Random(3), 300);
    round(&mut one, &mut two, 1, Fill);
    for index in 2..6 {
        two.ram.remap();
        two.attach(true, true);
        scribble(&one, &mut Random(index), 20);
        scribble(&two, &mut Random(index + 100), 20);
        let outcome = round(&mut one, &mut two, index, Delta);
        assert!(!outcome.primary.all_memory);
        assert_equal(&one.ram.bytes(), &two.ram.bytes());
    }
    // Without the node's word the next union is all memory, and so it is if nobody tells of it.
    two.ram.remap();
    two.attach(true, false);
    assert!(round(&mut one, &mut two, 6, Delta).primary.all_memory);
    two.ram.remap();
    assert!(round(&mut one, &mut two, 7, Delta).primary.all_memory);
    assert!(!round(&mut one, &mut two, 8, Delta).primary.all_memory);
}

#[test]
fn a_page_that_nobody_logged_is_found_within_the_announced_rounds() {
    if !tracking_works() {
        return;
    }
    let (mut one, mut two) = pair(640, true);
    let report = one.attach(true, false);
    scribble(&one, &mut Random(5), 500);
    round(&mut one, &mut two, 1, Fill);
    // After roles changed, the rotation is the other side's.
    for (victim_is_backup, page) in [(true, 0), (false, 639), (true, 320)] {
        let victim = if victim_is_backup { &two } else { &one };
        victim.ram.write_unseen(page * 4096 + 77, b"planted");
        assert!(first_difference(&one.ram.bytes(), &two.ram.bytes()).is_some());
        let start = 100 * (page + 1);
        let found = (0..report.slice_rounds).find(|n| {
            let outcome = round(&mut one, &mut two, start + n, Delta);
            assert!(!outcome.primary.all_memory);
            outcome.primary.untracked_pages == 1
        });
        eprintln!(
            "page {page}: found in round {found:?} of {}",
            report.slice_rounds
        );
        assert!(found.is_some());
        assert_equal(&one.ram.bytes(), &two.ram.bytes());
    }
}

#[test]
fn small_differences_cost_few_bytes() {
    if !tracking_works() {
        return;
    }
    let (mut one, mut two) = pair(4000, true);
    scribble(&one, &mut Random(7), 4000);
    round(&mut one, &mut two, 1, Fill);
    for page in 0..1000u64 {
        one.ram.write(page * 4096 + 100, &[page as u8; 50]);
        two.ram.write(page * 4096 + 100, &[page as u8; 50]);
    }
    for page in 0..100u64 {
        two.ram.write(page * 4096 + 100, b"other");
    }
    let stats = round(&mut one, &mut two, 2, Delta).primary;
    let sent = stats.wire_sent_bytes + stats.wire_received_bytes;
    eprintln!(
        "{sent} bytes on the wire, {} of dirty pages",
        stats.primary_dirty_bytes
    );
    assert_eq!(stats.divergent_pages, 100);
    assert!(sent * 20 < stats.primary_dirty_bytes, "{stats:?}");
}

/// Prints times, asserts none: run with `--nocapture` on a quiet machine.
#[test]
fn a_fill_of_256_mib_prints_its_times() {
    let (mut one, mut two) = pair(65_536, false);
    let mut random = Random(99);
    let megabyte = random.bytes(1 << 20);
    for at in 0..256u64 {
        one.ram.write(at << 20, &megabyte);
        one.ram.write(at << 20, &at.to_le_bytes());
    }
    for (index, what) in [(1, "fill of an empty copy"), (2, "all memory, equal")] {
        let start = Instant::now();
        let outcome = round(&mut one, &mut two, index, Fill);
        let whole = start.elapsed();
        eprintln!("{what}: {whole:?}, apply {} us", outcome.apply_us);
        eprintln!(
            "  primary {}",
            serde_json::to_string(&outcome.primary).expect("json")
        );
        eprintln!(
            "  backup  {}",
            serde_json::to_string(&outcome.backup).expect("json")
        );
        let gigabytes = (65_536.0 * 4096.0) / 1e9;
        let seconds = outcome.primary.times.digest_us as f64 / 1e6;
        eprintln!("  digest and certificate: {:.1} GB/s", gigabytes / seconds);
    }
    assert_equal(&one.ram.bytes(), &two.ram.bytes());
}
