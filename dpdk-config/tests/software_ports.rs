//! Bursts, pools and ports over drivers that need nothing of the kernel: `net_null`, `net_ring`.

use std::sync::{Mutex, OnceLock};
use std::thread;

use dpdk_config::{
    AllocError, BURST_PACKETS_MAX, Burst, DpdkError, Eal, EalConfig, Mempool, Port, PortConfig,
    TooLong,
};

/// EAL starts once per process, and tests of one file share it.
fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| Eal::init(&EalConfig::default()).expect("EAL starts without hugepages"))
}

/// A pool is not freed while another thread is registered: tests of the two keep apart.
static REGISTERING: Mutex<()> = Mutex::new(());

fn pool(name: &str, mbufs: u32) -> Mempool {
    Mempool::new(eal(), name, mbufs, 0, 2048).expect("memory for a pool")
}

fn packets(pool: &Mempool, count: u8) -> Burst {
    let mut burst = Burst::new();
    pool.alloc_bulk(&mut burst, usize::from(count))
        .expect("mbufs");
    for (number, mbuf) in (0..count).zip(&mut burst) {
        mbuf.write(&[&[number; 60]]).expect("60 bytes fit");
    }
    burst
}

fn numbers(burst: &Burst) -> Vec<u8> {
    burst.iter().map(|mbuf| mbuf.data()[0]).collect()
}

#[test]
fn a_second_init_is_an_error() {
    eal();
    let second = Eal::init(&EalConfig::default());
    assert!(
        matches!(second, Err(DpdkError::AlreadyInitialised)),
        "{second:?}"
    );
}

#[test]
fn init_leaves_the_threads_affinity_and_the_signal_handlers_alone() {
    use nix::sched::{CpuSet, sched_getaffinity};
    // Threads inherit the affinity of the one that starts them: had EAL pinned the thread that
    // called it, this one would see it or not depending on the order of tests. So ask all.
    eal();
    let cores = |pid: i32| {
        let set = sched_getaffinity(nix::unistd::Pid::from_raw(pid)).unwrap();
        (0..CpuSet::count())
            .filter(|&core| set.is_set(core).unwrap())
            .count()
    };
    let main = cores(std::process::id() as i32);
    assert_eq!(main, cores(0));
    assert_eq!(main, thread::available_parallelism().unwrap().get());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    let realtime = caught >> (libc::SIGRTMIN() - 1);
    assert_eq!(realtime, 0, "signals caught: {caught:x}");
}

#[test]
fn what_is_sent_on_a_ring_comes_back_in_order() {
    let pool = pool("ring", 511);
    let mut port = Port::open(eal(), &PortConfig::vdev("net_ring0"), &pool).unwrap();
    assert_eq!(port.driver_name(), "net_ring");
    assert!(port.link_up());
    let mut out = packets(&pool, 20);
    assert_eq!(port.tx_burst(&mut out), 20);
    assert!(out.is_empty());
    let mut back = packets(&pool, 3);
    assert_eq!(port.rx_burst(&mut back), 20);
    assert_eq!(numbers(&back)[3..], (0..20).collect::<Vec<u8>>()[..]);
    assert_eq!(port.rx_burst(&mut back), 0);
    let stats = port.stats();
    assert_eq!((stats.tx_packets, stats.rx_packets), (20, 20));
}

#[test]
fn a_receive_takes_no_more_than_the_burst_has_room_for() {
    let pool = pool("room", 511);
    let mut port = Port::open(eal(), &PortConfig::vdev("net_ring1"), &pool).unwrap();
    assert_eq!(port.tx_burst(&mut packets(&pool, 32)), 32);
    let mut burst = packets(&pool, 30);
    assert_eq!(port.rx_burst(&mut burst), 2);
    assert!(burst.is_full());
    assert_eq!(port.rx_burst(&mut burst), 0);
    burst.clear();
    assert_eq!(port.rx_burst(&mut burst), 30);
    assert_eq!(numbers(&burst), (2..32).collect::<Vec<u8>>());
}

#[test]
fn what_a_full_port_does_not_take_stays_in_order() {
    let pool = pool("full", 2047);
    let mut port = Port::open(eal(), &PortConfig::vdev("net_ring2"), &pool).unwrap();
    let mut taken = 0;
    let left = loop {
        let mut burst = packets(&pool, 32);
        let sent = port.tx_burst(&mut burst);
        assert_eq!(sent + burst.len(), 32);
        taken += sent;
        if !burst.is_empty() {
            break burst;
        }
    };
    assert!(taken >= 256, "{taken}");
    assert_eq!(
        numbers(&left),
        ((32 - left.len() as u8)..32).collect::<Vec<u8>>()
    );
}

#[test]
fn too_long_packets_are_counted_and_do_not_block_the_others() {
    let pool = pool("long", 511);
    let mut port = Port::open(eal(), &PortConfig::vdev("net_ring3"), &pool).unwrap();
    let longest = port.frame_bytes_max();
    assert_eq!(longest, 1518);
    let mut burst = packets(&pool, 3);
    for (bytes, mbuf) in [longest + 1, longest, longest + 100]
        .into_iter()
        .zip(&mut burst)
    {
        mbuf.write(&[&vec![0; bytes - 60]]).unwrap();
    }
    assert_eq!(port.tx_burst(&mut burst), 1);
    assert!(burst.is_empty());
    assert_eq!(port.stats().tx_oversize, 2);
    assert_eq!(port.rx_burst(&mut burst), 1);
    assert_eq!(numbers(&burst), [1]);
}

#[test]
fn a_port_works_on_another_thread_than_the_one_that_opened_it() {
    let _apart = REGISTERING.lock().unwrap();
    let pool = pool("thread", 511);
    let mut port = Port::open(eal(), &PortConfig::vdev("net_null0,size=100"), &pool).unwrap();
    let received = thread::spawn(move || {
        let _registered = eal().register_thread().unwrap();
        assert!(eal().register_thread().is_err(), "twice on one thread");
        let mut burst = Burst::new();
        let mut received = 0;
        for _ in 0..100 {
            received += port.rx_burst(&mut burst);
            assert!(
                burst
                    .iter()
                    .all(|mbuf| mbuf.len() == 100 && mbuf.is_contiguous())
            );
            assert_eq!(port.tx_burst(&mut burst), BURST_PACKETS_MAX);
        }
        received
    });
    assert_eq!(received.join().unwrap(), 100 * BURST_PACKETS_MAX);
    assert_eq!(pool.available(), 511);
}

#[test]
fn a_port_can_be_opened_again_after_it_was_dropped() {
    let pool = pool("again", 511);
    for _ in 0..3 {
        let mut port = Port::open(eal(), &PortConfig::vdev("net_null7"), &pool).unwrap();
        let twice = Port::open(eal(), &PortConfig::vdev("net_null7"), &pool).unwrap_err();
        assert!(matches!(twice, DpdkError::AlreadyOpen { .. }), "{twice}");
        assert_eq!(
            port.rx_burst(&mut Burst::new()),
            BURST_PACKETS_MAX,
            "the first is untouched"
        );
    }
}

#[test]
fn all_buffers_come_back_to_the_pool() {
    let pool = pool("back", 127);
    let free = pool.available();
    let mut burst = packets(&pool, 32);
    assert_eq!(pool.available(), free - 32);
    let one = pool.alloc().unwrap();
    assert!(
        burst.push(one).is_err(),
        "the burst is full, and the packet comes back"
    );
    drop(burst.drain().take(5));
    assert_eq!(pool.available(), free);
    pool.alloc_bulk(&mut burst, 9).unwrap();
    burst.retain(|_| false);
    pool.alloc_bulk(&mut burst, 9).unwrap();
    let mut held: Vec<_> = burst.drain().collect();
    assert!(burst.is_empty());
    assert_eq!(pool.available(), free - 9);
    held.truncate(4);
    thread::spawn(move || drop(held)).join().unwrap();
    assert_eq!(pool.available(), free);
}

#[test]
fn an_empty_pool_gives_all_or_nothing() {
    let pool = pool("empty", 31);
    let mut burst = Burst::new();
    assert_eq!(pool.alloc_bulk(&mut burst, 32), Err(AllocError::Empty));
    assert!(burst.is_empty());
    assert_eq!(pool.alloc_bulk(&mut burst, 33), Err(AllocError::BurstFull));
    pool.alloc_bulk(&mut burst, 31).unwrap();
    assert_eq!(pool.alloc().unwrap_err(), AllocError::Empty);
    burst.clear();
    assert!(pool.alloc().is_ok());
}

#[test]
fn writing_appends_all_parts_or_none() {
    let pool = Mempool::new(eal(), "write", 31, 0, 100).unwrap();
    let mut mbuf = pool.alloc().unwrap();
    assert!(mbuf.is_empty());
    mbuf.write(&[b"head", b"", b"er"]).unwrap();
    mbuf.write(&[&[7; 90]]).unwrap();
    assert_eq!(
        mbuf.write(&[b"four", b"bye"]),
        Err(TooLong { bytes: 7, room: 4 })
    );
    assert_eq!(
        mbuf.write(&[&[0; 70_000]]),
        Err(TooLong {
            bytes: 70_000,
            room: 4
        })
    );
    assert_eq!(mbuf.len(), 96);
    assert_eq!(&mbuf.data()[..7], b"header\x07");
    mbuf.data_mut()[0] = b'H';
    assert_eq!(mbuf.linear(&mut []).unwrap()[..6], *b"Header");
}

#[test]
fn a_pool_outlives_its_handle_while_a_packet_of_it_is_held() {
    let pool = pool("held", 31);
    let mut mbuf = pool.alloc().unwrap();
    drop(pool);
    mbuf.write(&[b"still here"]).unwrap();
    assert_eq!(mbuf.data(), b"still here");
    drop(mbuf);
    let again = Mempool::new(eal(), "held", 31, 0, 64);
    assert!(
        again.unwrap_err().to_string().contains("`held`"),
        "the name is still taken"
    );
}

#[test]
fn a_pool_is_freed_with_its_last_handle() {
    let _apart = REGISTERING.lock().unwrap();
    for _ in 0..200 {
        let pool = Mempool::new(eal(), "freed", 1023, 0, 2048).unwrap();
        drop(pool.clone());
        let _packets = packets(&pool, 32);
    }
}

#[test]
fn bad_pools_and_ports_are_refused_by_name() {
    let error = Mempool::new(eal(), "a-name-that-is-much-too-long", 31, 0, 64).unwrap_err();
    assert!(error.to_string().contains("a-name-that"), "{error}");
    let error = Mempool::new(eal(), "huge", 10_000_000, 0, 2048).unwrap_err();
    assert!(error.to_string().contains("memory_mib"), "{error}");
    let pool = pool("refused", 31);
    for device in ["net_nosuch0", "net_null3,nosuch=1"] {
        let error = Port::open(eal(), &PortConfig::vdev(device), &pool).unwrap_err();
        assert!(matches!(error, DpdkError::Attach { .. }), "{error}");
        assert!(error.to_string().contains(device), "{error}");
    }
    let nic = PortConfig {
        vdev: None,
        pci: Some("0000:99:00.0".into()),
        ..PortConfig::vdev("")
    };
    let error = Port::open(eal(), &nic, &pool).unwrap_err().to_string();
    assert!(error.contains("`pci = true`"), "{error}");
    let error = Port::open(
        eal(),
        &PortConfig {
            rx_descriptors: 1,
            ..PortConfig::vdev("net_null4")
        },
        &pool,
    );
    assert!(error.unwrap_err().to_string().contains("rx_descriptors"));
}
