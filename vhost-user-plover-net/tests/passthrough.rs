//! The passthrough core between a port that makes packets as fast as it can (`net_null`) and a
//! guest's driver in this process (`net_virtio_user`): packets go both ways, and the core's thread
//! allocates nothing for them.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use dpdk_config::{Burst, Eal, EalConfig, Mempool, Port, PortConfig};
use vhost_user_plover_net::passthrough::{
    PassthroughCommand, PassthroughConfig, PassthroughCore, PassthroughSetup, PassthroughStatus,
};
use vhost_user_plover_net::{CardConfig, EventFd, NicConfig, VhostUserServer, channel};

/// Counts what watched threads allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: all of it is the system's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WAIT: Duration = Duration::from_secs(10);

fn status(commands: &Sender<PassthroughCommand>) -> PassthroughStatus {
    let (reply, answer) = bounded(1);
    commands.send(PassthroughCommand::Status(reply)).unwrap();
    *answer.recv_timeout(WAIT).unwrap()
}

/// A guest that sends and receives.
struct Guest {
    port: Port,
    pool: Mempool,
    sending: Burst,
    received: Burst,
    sent: usize,
    taken: usize,
}

impl Guest {
    fn work(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let count = self.sending.room();
            if self.pool.alloc_bulk(&mut self.sending, count).is_ok() {
                for mbuf in self.sending.iter_mut().rev().take(count) {
                    mbuf.write(&[&[0x5a; 300]]).unwrap();
                }
            }
            self.sent += self.port.tx_burst(&mut self.sending);
            self.taken += self.port.rx_burst(&mut self.received);
            self.received.clear();
        }
    }
}

#[test]
fn packets_go_both_ways_without_an_allocation() {
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
        WATCHED.set(true);
        core.run(&its_stop);
    });

    let pool = Mempool::new(&eal, "guest", 4095, 256, 2048).unwrap();
    let device = format!("net_virtio_user0,path={},queues=1", socket.display());
    let mut guest = Guest {
        port: Port::open(&eal, &PortConfig::vdev(device), &pool).unwrap(),
        pool,
        sending: Burst::new(),
        received: Burst::new(),
        sent: 0,
        taken: 0,
    };
    // Rings are started, scratch memory is touched.
    guest.work(Duration::from_millis(300));
    assert_eq!(status(&commands).ring_fault, None);
    let (sent, taken) = (guest.sent, guest.taken);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    guest.work(Duration::from_millis(500));
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let (sent, taken) = (guest.sent - sent, guest.taken - taken);
    assert!(sent > 1000 && taken > 1000, "{sent} sent, {taken} received");
    assert_eq!(allocated, 0, "for {} packets", sent + taken);

    // The core has them all: the last may still be in the ring.
    guest.sending.clear();
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
