//! Whatever dies, lies or is damaged in a round: the round fails by name, the service lives on,
//! the backup's memory is untouched until the commit, and the next round succeeds.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use common::*;
use hasher::control::{Event, Side};
use hasher::stats::Step;
use plover_types::SyncKind::{Delta, Fill};

const PAGES: u64 = 400;

fn filled_pair() -> (Host, Host) {
    let (mut one, mut two) = pair(PAGES, true);
    scribble(&one, &mut Random(21), 400);
    round(&mut one, &mut two, 1, Fill);
    (one, two)
}

fn diverge(one: &Host, two: &Host, seed: u64) {
    scribble(one, &mut Random(seed), 200);
    scribble(two, &mut Random(seed + 1), 100);
}

fn succeed(one: &mut Host, two: &mut Host, index: u64) {
    let (primary, _) = stage(one, two, index, Delta, |_| {});
    one.finish(sync(index));
    let point = one.ram.bytes();
    two.apply(sync(index));
    assert_equal(&point, &two.ram.bytes());
    assert_eq!(primary.untracked_pages, 0);
}

#[test]
fn a_peer_killed_at_any_step_fails_the_round_and_the_next_one_succeeds() {
    let (mut one, mut two) = filled_pair();
    let primary_steps = [
        Step::Collect,
        Step::Digest,
        Step::Exchange,
        Step::Compare,
        Step::Blocks,
        Step::Send,
    ];
    let backup_steps = [
        Step::Collect,
        Step::Digest,
        Step::Exchange,
        Step::Blocks,
        Step::Stage,
        Step::Verify,
    ];
    let mut index = 10;
    for (primary_dies, steps) in [(true, primary_steps), (false, backup_steps)] {
        for step in steps {
            index += 2;
            diverge(&one, &two, index);
            let id = sync(index);
            let untouched = two.ram.bytes();
            one.begin(id, Side::Primary, Delta);
            two.begin(id, Side::Backup, Delta);
            // Without the device state the round cannot end before the kill.
            let (victim, survivor) = if primary_dies {
                (&mut one, &mut two)
            } else {
                (&mut two, &mut one)
            };
            if step == Step::Verify {
                survivor.give_state(id, b"state");
            }
            victim.wait_step(id, step);
            victim.kill();
            // A verify can be over before the kill; then the primary has all it waits for.
            if step != Step::Verify {
                let reason = survivor.wait_failed(id);
                assert!(
                    reason.contains("peer") || reason.contains("connect"),
                    "{reason}"
                );
            }
            assert!(survivor.is_alive());
            survivor.abort(id);
            assert_equal(&untouched, &two.ram.bytes());
            let victim = if primary_dies { &mut one } else { &mut two };
            victim.start();
            victim.attach(true, false);
            two.abort(id);
            succeed(&mut one, &mut two, index + 1);
        }
    }
}

#[test]
fn a_hasher_killed_while_applying_finds_the_staged_set_and_applies_it_from_the_start() {
    let (mut one, mut two) = filled_pair();
    for index in 2..8 {
        diverge(&one, &two, index);
        let point = one.ram.bytes();
        stage(&mut one, &mut two, index, Delta, |_| {});
        one.finish(sync(index));
        two.client().apply(sync(index)).expect("apply");
        if index % 2 == 0 {
            two.wait_step(sync(index), Step::Apply);
        }
        two.kill();
        two.start();
        two.attach(true, false);
        let (_, _, state, _) = two.wait_staged(sync(index));
        assert!(state == index.to_le_bytes().repeat(5000));
        two.apply(sync(index));
        two.apply(sync(index));
        assert_equal(&point, &two.ram.bytes());
        two.ram.write(5, b"the guest runs");
    }
}

#[test]
fn after_a_mismatch_the_next_round_sends_its_union_whole() {
    let (mut one, mut two) = filled_pair();
    one.ram.write(3 * 4096, b"differs");
    let id = sync(2);
    one.begin(id, Side::Primary, Delta);
    two.begin(id, Side::Backup, Delta);
    two.wait_step(id, Step::Stage);
    // Something writes the backup's memory although it should be at rest.
    two.ram.write_unseen(3 * 4096 + 2000, b"planted");
    one.give_state(id, b"state");
    assert!(two.wait_failed(id).contains("not the primary's"));
    assert!(one.wait_failed(id).contains("not the primary's"));
    let outcome = round(&mut one, &mut two, 3, Delta);
    assert!(outcome.primary.whole && outcome.backup.whole);
    assert_eq!(outcome.primary.divergent_pages, outcome.primary.union_pages);
    assert_equal(&one.ram.bytes(), &two.ram.bytes());
    assert!(!round(&mut one, &mut two, 4, Delta).primary.whole);
}

#[test]
fn a_damaged_staging_file_is_not_applied() {
    use std::os::unix::fs::FileExt;
    let (mut one, mut two) = filled_pair();
    diverge(&one, &two, 3);
    stage(&mut one, &mut two, 2, Delta, |_| {});
    let untouched = two.ram.bytes();
    let file = std::fs::File::from(two.staging.try_clone().expect("dup"));
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).expect("read");
    file.write_all_at(&[byte[0] ^ 1], 5000).expect("write");
    two.client().apply(sync(2)).expect("apply");
    let reason = two.wait_failed(sync(2));
    assert!(reason.contains("damaged"), "{reason}");
    assert_equal(&untouched, &two.ram.bytes());
    // A new process does not take it for a staged set either.
    two.kill();
    two.start();
    two.attach(true, false);
    assert!(two.try_next(Duration::from_millis(200)).is_none());
}

#[test]
fn applying_what_is_not_staged_fails_by_name() {
    let (mut one, mut two) = filled_pair();
    two.client().apply(sync(77)).expect("apply");
    let reason = two.wait_failed(sync(77));
    assert!(reason.contains("staged"), "{reason}");
    stage(&mut one, &mut two, 2, Delta, |_| {});
    one.abort(sync(2));
    two.abort(sync(2));
    two.client().apply(sync(2)).expect("apply");
    assert!(two.wait_failed(sync(2)).contains("nothing is staged"));
    succeed(&mut one, &mut two, 3);
}

#[test]
fn a_node_that_goes_away_ends_the_round_and_another_one_can_come() {
    let (mut one, mut two) = filled_pair();
    for (index, primary_leaves) in [(10, true), (20, false)] {
        let id = sync(index);
        diverge(&one, &two, index);
        one.begin(id, Side::Primary, Delta);
        two.begin(id, Side::Backup, Delta);
        one.wait_copied_out(id);
        let (leaver, other) = if primary_leaves {
            (&mut one, &mut two)
        } else {
            (&mut two, &mut one)
        };
        leaver.disconnect();
        other.wait_failed(id);
        leaver.connect();
        assert!(leaver.is_alive());
        leaver.attach(true, false);
        succeed(&mut one, &mut two, index + 1);
    }
}

#[test]
fn a_backup_that_does_not_take_part_is_noticed_when_it_leaves() {
    let (mut one, mut two) = filled_pair();
    two.kill();
    let lost = |event: &hasher::client::Delivered| {
        matches!(event.event, Event::PeerLost { .. }).then_some(())
    };
    one.wait_for("peer lost", lost);
    one.begin(sync(5), Side::Primary, Delta);
    let reason = one.wait_failed(sync(5));
    assert!(reason.contains("cannot connect"), "{reason}");
    two.start();
    two.attach(true, false);
    succeed(&mut one, &mut two, 6);
}

/// Forwards bytes between two addresses, flipping one bit when a countdown of bytes ends.
struct Proxy {
    address: SocketAddr,
    /// Bytes until the flip, per direction (to the backup, to the primary); negative: none.
    countdown: [Arc<AtomicI64>; 2],
}

impl Proxy {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let countdown = [(); 2].map(|()| Arc::new(AtomicI64::new(-1)));
        let shared = countdown.clone();
        thread::spawn(move || {
            for inbound in listener.incoming().flatten() {
                let Ok(outbound) = TcpStream::connect(target) else {
                    continue;
                };
                let pairs = [
                    (inbound.try_clone(), outbound.try_clone()),
                    (Ok(outbound), Ok(inbound)),
                ];
                for ((from, to), countdown) in pairs.into_iter().zip(shared.clone()) {
                    let (from, to) = (from.expect("dup"), to.expect("dup"));
                    thread::spawn(move || forward(from, to, &countdown));
                }
            }
        });
        Self { address, countdown }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, countdown: &AtomicI64) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let left = countdown.fetch_sub(count as i64, Ordering::SeqCst);
        if (0..count as i64).contains(&left) {
            bytes[left as usize] ^= 1 << (left % 8);
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_bit_flipped_in_flight_fails_the_round_and_the_next_one_succeeds() {
    // Not in a record's header: TLS has no checksum over its length, and a longer one would be
    // waited for as long as a peer may be silent.
    let known = ["broke", "gave the round up", "silent"];
    flip_bits(|host| host, 5, [5_000..40_000, 950..1_300], &known);
}

#[test]
fn a_bit_flipped_in_flight_without_tls_is_found_by_checksums() {
    let known = [
        "checksum",
        "magic",
        "version",
        "kind",
        "gave the round up",
        "broke",
    ];
    flip_bits(Host::insecure, 25, [0..40_000, 0..2_000], &known);
}

fn flip_bits(secure: impl Fn(Host) -> Host, flips: u32, places: [Range<u64>; 2], known: &[&str]) {
    let (at_one, at_two) = (free_address(), free_address());
    let proxy = Proxy::to(at_two);
    let one = secure(Host::new(PAGES, at_one, proxy.address, 1));
    let two = secure(Host::new(PAGES, at_two, at_one, 2));
    let (mut one, mut two) = started([one, two], true);
    scribble(&one, &mut Random(21), 400);
    round(&mut one, &mut two, 1, Fill);
    let mut random = Random(77);
    let mut index = 10;
    for (direction, places) in places.into_iter().enumerate() {
        for _ in 0..flips {
            index += 2;
            diverge(&one, &two, index);
            let untouched = two.ram.bytes();
            let id = sync(index);
            let place = places.start + random.below(places.end - places.start);
            let place = place as i64;
            proxy.countdown[direction].store(place, Ordering::SeqCst);
            one.begin(id, Side::Primary, Delta);
            two.begin(id, Side::Backup, Delta);
            one.give_state(id, &[9; 50_000]);
            let reason = one.wait_failed(id);
            assert!(
                known.iter().any(|word| reason.contains(word)),
                "byte {place}: {reason}"
            );
            assert_equal(&untouched, &two.ram.bytes());
            proxy.countdown[direction].store(-1, Ordering::SeqCst);
            two.abort(id);
            succeed(&mut one, &mut two, index + 1);
        }
    }
}

#[test]
fn a_primary_that_is_ahead_is_waited_for_by_the_next_round() {
    let (mut one, mut two) = filled_pair();
    two.begin(sync(5), Side::Backup, Delta);
    one.begin(sync(6), Side::Primary, Delta);
    let reason = two.wait_failed(sync(5));
    assert!(reason.contains("at sync 6"), "{reason}");
    two.begin(sync(6), Side::Backup, Delta);
    one.give_state(sync(6), b"state");
    two.wait_staged(sync(6));
    one.wait_sent(sync(6));
}

#[test]
fn peers_of_another_group_or_memory_layout_do_not_meet() {
    let (mut one, mut two) = pair(PAGES, false);
    two.attach_as("another group");
    one.begin(sync(5), Side::Primary, Fill);
    let reason = one.wait_failed(sync(5));
    assert!(reason.contains("peer"), "{reason}");
    let smaller = Host::new(PAGES / 2, free_address(), free_address(), 2);
    two.ram = smaller
        .ram
        .file
        .try_clone()
        .map(|_| Ram::new(PAGES / 2))
        .expect("ram");
    two.attach(false, false);
    one.begin(sync(6), Side::Primary, Fill);
    two.begin(sync(6), Side::Backup, Fill);
    assert!(two.wait_failed(sync(6)).contains("layout"));
    one.wait_failed(sync(6));
}

#[test]
fn bad_requests_are_refused_and_the_service_lives_on() {
    let mut host = Host::new(PAGES, free_address(), free_address(), 1);
    host.start();
    host.begin(sync(5), Side::Primary, Fill);
    assert!(host.wait_failed(sync(5)).contains("no guest memory"));
    let short = memfd(100);
    let file = host.ram.file.try_clone().expect("dup");
    let staging = host.staging.try_clone().expect("dup");
    let regions = host.ram.regions().map(|spec| (spec, file.as_fd()));
    let fds = hasher::client::AttachFds {
        regions: regions.to_vec(),
        backend_log: short.as_fd(),
        staging: staging.as_fd(),
        tracker: None,
    };
    for group in ["", "g0"] {
        let mut fds = fds.clone();
        if !group.is_empty() {
            fds.regions[0].1 = short.as_fd();
        }
        let refused = host
            .client()
            .attach(group, &fds, false, WAIT)
            .expect_err("refused");
        assert!(refused.to_string().contains("attach"), "{refused}");
    }
    assert!(host.is_alive());
    host.attach(false, false);
}

#[test]
fn bad_arguments_are_named_and_exit_non_zero() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_plover-hasher"))
            .args(arguments)
            .output()
            .expect("run");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&[]).contains("--socket"));
    let base = [
        "--socket",
        "/nonexistent/x",
        "--listen",
        "127.0.0.1:0",
        "--node-id",
        "1",
        "--insecure",
        "--peer",
    ];
    let with = |peer| run(&[&base[..], &[peer]].concat());
    let keyless = run(&[&base[..6], &["--peer", "127.0.0.1:5"]].concat());
    assert!(keyless.contains("--key-file"), "{keyless}");
    assert!(with("127.0.0.1").contains("--peer"));
    assert!(with("0.0.0.0:5").contains("no host and port"));
    assert!(with("127.0.0.1:5").contains("/nonexistent/x"));
}

#[test]
fn a_round_that_the_primary_never_begins_fails_in_time() {
    let mut host = Host::new(PAGES, free_address(), free_address(), 2);
    host.start();
    host.attach(false, false);
    let start = std::time::Instant::now();
    host.begin(sync(5), Side::Backup, Fill);
    assert!(host.wait_failed(sync(5)).contains("not begun"));
    assert!(start.elapsed() < hasher::limits::PEER_BEGIN_MAX * 2);
}
