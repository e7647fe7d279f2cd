//! The passthrough core between a port that makes packets as fast as it can (`net_null`) and a
//! guest's driver in this process (`net_virtio_user`): packets go both ways, and the core's thread
//! allocates nothing for them and takes no lock.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod card;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use card::Guest;

use crossbeam_channel::{Sender, bounded, unbounded};
use dpdk_config::{Eal, EalConfig, Mempool, Port, PortConfig};
use vhost_user_plover_net::passthrough::{
    PassthroughCommand, PassthroughConfig, PassthroughCore, PassthroughSetup, PassthroughStatus,
};
use vhost_user_plover_net::{CardConfig, EventFd, NicConfig, VhostUserServer, channel};

const WAIT: Duration = Duration::from_secs(10);

fn status(commands: &Sender<PassthroughCommand>) -> PassthroughStatus {
    let (reply, answer) = bounded(1);
    commands.send(PassthroughCommand::Status(reply)).unwrap();
    *answer.recv_timeout(WAIT).unwrap()
}

#[test]
fn packets_go_both_ways_without_an_allocation_or_a_lock() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let eal = Eal::init(&EalConfig {
        memory_mib: 128,
        ..EalConfig::default()
    })
    .unwrap();
    let pool = Mempool::new(&eal, "uplink", 4095, 256, 2048).unwrap();
    let uplink = Port::open(&eal, &PortConfig::vdev("net_null0,size=200"), &pool).unwrap();
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(|_| ()),
        written_pages: None,
        card: CardConfig::default(),
    })
    .unwrap();
    let server = VhostUserServer::start(&socket, control).unwrap();
    let (commands, receiver) = unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    let core = PassthroughCore::new(PassthroughSetup {
        config: PassthroughConfig {
            is_busy: true,
            idle_sleep: Duration::from_micros(100),
            station: None,
            frame_bytes_max: uplink.frame_bytes_max(),
        },
        eal: eal.clone(),
        uplink,
        pool,
        nic,
        commands: receiver,
        wake: Arc::new(EventFd::new().unwrap()),
    });
    let its_stop = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        card::watch_this_thread();
        core.run(&its_stop);
    });

    let mut guest = Guest::on(&eal, &socket);
    // Rings are started, scratch memory is touched.
    guest.work(Duration::from_millis(300));
    assert_eq!(status(&commands).ring_fault, None);
    let (sent, taken) = (guest.sent, guest.taken);
    let before = card::counted();
    guest.exchange(10_000);
    let after = card::counted();
    let (sent, taken) = (guest.sent - sent, guest.taken - taken);
    assert_eq!(
        after,
        before,
        "allocations, locks; {} packets",
        sent + taken
    );

    // The core has them all: the last may still be in the ring.
    guest.rest();
    std::thread::sleep(Duration::from_millis(50));
    let status = status(&commands);
    assert_eq!(status.path.taken, guest.sent as u64);
    assert_eq!(status.path.sent, status.path.taken);
    assert!(status.path.delivered >= guest.taken as u64);
    assert_eq!(
        status.path.dropped_no_buffer + status.path.transmit_dropped,
        0
    );
    drop(guest);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    server.stop();
}
