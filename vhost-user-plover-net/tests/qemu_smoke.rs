//! A stock QEMU with a stock kernel behind the card: pings answered in order, none lost, while
//! the VM is stopped, saved and continued again and again.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of a test: a panic is its failure"
)]

mod qemu;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use vhost_user_plover_net::{
    CardConfig, Delivery, GuestNic, MemoryEvent, NicConfig, VhostUserServer, channel,
};

use qemu::{GUEST_MAC, Qemu, missing};

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_IP: [u8; 4] = [10, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 0, 0, 2];
/// Pings on the way at once.
const WINDOW: u16 = 16;
/// Enough that a stop a few milliseconds later comes in the middle of them.
const PINGS_PER_ROUND: u16 = 3000;

/// What the poll core of this test does and has seen.
#[derive(Default)]
struct Seen {
    replies: Vec<u16>,
    arp_requests: u32,
}

struct Pinger {
    stop: AtomicBool,
    /// Pings to send in all, raised by the test.
    wanted: AtomicU16,
    seen: Mutex<Seen>,
}

/// A core that sends pings in order, answers ARP and notes the replies.
fn run_core(mut nic: GuestNic, pinger: &Pinger) -> GuestNic {
    let mut sent = 0;
    let mut answered = 0;
    let mut waiting: VecDeque<Vec<u8>> = VecDeque::new();
    while !pinger.stop.load(Ordering::Relaxed) {
        nic.take_commands();
        let taken = nic.take(32, &mut |frame| {
            let mut seen = pinger.seen.lock().unwrap();
            if let Some(reply) = arp_reply(frame) {
                seen.arp_requests += 1;
                waiting.push_back(reply);
            } else if let Some(number) = ping_reply(frame) {
                seen.replies.push(number);
                answered = number + 1;
            }
        });
        while sent < pinger.wanted.load(Ordering::Relaxed) && sent - answered < WINDOW {
            waiting.push_back(ping(sent));
            sent += 1;
        }
        let mut delivered = 0;
        while let Some(frame) = waiting.front()
            && nic.deliver(frame) == Delivery::Delivered
        {
            waiting.pop_front();
            delivered += 1;
        }
        nic.publish();
        if taken + delivered == 0 && nic.prepare_sleep() {
            sleep(&nic);
            nic.after_sleep();
        }
    }
    nic
}

fn sleep(nic: &GuestNic) {
    let mut fds: Vec<libc::pollfd> = nic
        .wake_fds()
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the array is ours and as long as said.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 20) };
}

/// Raises the number of pings and waits for all replies.
fn ping_to(pinger: &Pinger, wanted: u16) {
    pinger.wanted.store(wanted, Ordering::Relaxed);
    wait_until(&format!("{wanted} replies came"), || {
        pinger.seen.lock().unwrap().replies.len() >= usize::from(wanted)
    });
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn pings_are_answered_in_order_and_none_is_lost_while_the_vm_is_stopped_saved_and_continued() {
    if let Some(what) = missing() {
        println!("skipped: no {what}");
        return;
    }
    let _ = tracing_subscriber::fmt()
        .with_env_filter("debug")
        .with_test_writer()
        .try_init();
    let folder = tempfile::tempdir().unwrap();
    let tables = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&tables);
    let gone = Arc::new(AtomicBool::new(false));
    let its_gone = Arc::clone(&gone);
    let on_memory = Box::new(move |event| match event {
        MemoryEvent::Mapped(map) => {
            let end = map.regions.iter().map(|r| r.guest_phys_addr + r.size).max();
            assert!(map.written_pages.covers(end.unwrap()));
            *counted.lock().unwrap() += 1;
        }
        MemoryEvent::Unmapped => its_gone.store(true, Ordering::Relaxed),
    });
    let (control, nic) = channel(NicConfig {
        on_memory,
        written_pages: None,
        card: CardConfig::default(),
    })
    .unwrap();
    let socket = folder.path().join("nic");
    let server = VhostUserServer::start(&socket, control).unwrap();
    let pinger = Arc::new(Pinger {
        stop: AtomicBool::new(false),
        wanted: AtomicU16::new(0),
        seen: Mutex::default(),
    });
    let its_pinger = Arc::clone(&pinger);
    let core = std::thread::spawn(move || run_core(nic, &its_pinger));

    let mut qemu = Qemu::start(folder.path(), &socket);
    qemu.wait_for_console("guest is up");
    ping_to(&pinger, 100);
    let mut wanted = 100;
    let mut stops_in_traffic = 0;
    for round in 0..8 {
        // Pings are on the way while the VM stops.
        wanted += PINGS_PER_ROUND;
        pinger.wanted.store(wanted, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5 + round));
        if round % 4 == 1 {
            // A migration of a running VM: it asks for a log of our writes, then stops the VM.
            qemu.save_state_without_memory();
        } else {
            qemu.command("stop", &json!({}));
        }
        let replies_at_stop = pinger.seen.lock().unwrap().replies.len();
        stops_in_traffic += u32::from(replies_at_stop < usize::from(wanted));
        if round % 4 == 3 {
            qemu.save_state_without_memory();
        }
        std::thread::sleep(Duration::from_millis(20));
        let replies = pinger.seen.lock().unwrap().replies.len();
        assert_eq!(replies, replies_at_stop, "a stopped VM sends nothing");
        qemu.resume();
        ping_to(&pinger, wanted);
    }
    let replies = std::mem::take(&mut pinger.seen.lock().unwrap().replies);
    assert_eq!(replies, (0..wanted).collect::<Vec<_>>(), "all, in order");
    assert!(pinger.seen.lock().unwrap().arp_requests > 0);
    assert!(
        stops_in_traffic > 0,
        "no stop came while pings were on the way"
    );

    drop(qemu);
    wait_until("the VMM is gone", || gone.load(Ordering::Relaxed));
    pinger.stop.store(true, Ordering::Relaxed);
    let nic = core.join().unwrap();
    assert!(*tables.lock().unwrap() > 0);
    assert_eq!(nic.counters().ring_faults.get(), 0);
    assert_eq!(server.counters().connections_refused.get(), 0);
    assert!(
        nic.counters().ring_starts.get() >= 18,
        "each continue starts both rings"
    );
    server.stop();
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&GUEST_MAC[..], &HOST_MAC, &kind.to_be_bytes(), payload].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// Ping `number`, of a length that depends on it.
fn ping(number: u16) -> Vec<u8> {
    let data = vec![number as u8; 32 + usize::from(number) * 7 % 1400];
    let mut icmp = [&[8, 0, 0, 0, 0, 7][..], &number.to_be_bytes(), &data].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let length = (20 + icmp.len()) as u16;
    let mut ip = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 0, 0, 0, 64, 1, 0, 0],
    ]
    .concat();
    ip.extend([HOST_IP, GUEST_IP].concat());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    ethernet(0x0800, &[ip, icmp].concat())
}

/// The number of the ping that `frame` replies to; the data must be what was sent.
fn ping_reply(frame: &[u8]) -> Option<u16> {
    let icmp = (frame.get(12..14)? == [8, 0] && *frame.get(23)? == 1).then(|| &frame[34..])?;
    (icmp[0] == 0).then_some(())?;
    let number = u16::from_be_bytes([icmp[6], icmp[7]]);
    let sent = ping(number);
    let end = sent.len();
    assert_eq!(
        frame[42..end],
        sent[42..],
        "ping {number} came back changed"
    );
    Some(number)
}

fn arp_reply(frame: &[u8]) -> Option<Vec<u8>> {
    let arp = (frame.get(12..14)? == [8, 6]).then(|| &frame[14..42])?;
    (arp[7] == 1 && arp[24..28] == HOST_IP).then(|| {
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        ethernet(
            0x0806,
            &[&head[..], &HOST_MAC, &HOST_IP, &arp[8..18]].concat(),
        )
    })
}
