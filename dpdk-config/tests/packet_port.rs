//! `net_af_packet` over veth pairs, each test in a namespace of its own.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{HostEnd, PATIENCE, burst, eal, frame, ip, open, own_network, poll, pool, receive};
use dpdk_config::{Burst, DpdkError, Mempool, Port, PortConfig};

fn veth(a: &str, b: &str) {
    ip(&format!("link add {a} type veth peer name {b}"));
    ip(&format!("link set {a} up"));
    ip(&format!("link set {b} up"));
}

/// A veth's carrier follows its other end a moment later.
fn wait_for_links(a: &Port, b: &Port) {
    let end = Instant::now() + PATIENCE;
    while !(a.link_up() && b.link_up()) {
        assert!(Instant::now() < end, "{} {}", a.link_up(), b.link_up());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_go_both_ways_between_two_ports_over_a_veth_pair() {
    own_network();
    veth("plva0", "plvb0");
    let pool = pool("pair");
    let mut a = open("net_af_packet0,iface=plva0", &pool);
    let mut b = open("net_af_packet1,iface=plvb0", &pool);
    assert_eq!(a.driver_name(), "net_af_packet");
    wait_for_links(&a, &b);
    assert_ne!(a.mac(), b.mac());
    let frames: Vec<_> = (0..32).map(|number| frame(number, 1514)).collect();
    for _ in 0..20 {
        assert_eq!(a.tx_burst(&mut burst(&pool, &frames)), 32);
        assert_eq!(receive(&mut b, 32), frames);
        assert_eq!(b.tx_burst(&mut burst(&pool, &frames[..7])), 7);
        assert_eq!(receive(&mut a, 7), frames[..7]);
    }
    assert_eq!(
        a.rx_burst(&mut Burst::new()),
        0,
        "what it sends does not come back"
    );
    let (a, b) = (a.stats(), b.stats());
    assert_eq!((a.tx_packets, b.rx_packets), (640, 640));
    assert_eq!((b.tx_packets, a.rx_packets), (140, 140));
    assert_eq!(
        (a.rx_missed, b.rx_missed, a.tx_errors, b.tx_errors),
        (0, 0, 0, 0)
    );
}

#[test]
fn packets_that_nobody_takes_in_time_are_counted_as_missed() {
    own_network();
    veth("plva1", "plvb1");
    let pool = pool("missed");
    let mut port = open("net_af_packet2,iface=plva1", &pool);
    let host = HostEnd::new("plvb1");
    for number in 0..700u16 {
        host.send(&frame(number as u8, 60));
    }
    let received = receive(&mut port, 512);
    assert_eq!(received[0], frame(0, 60));
    for _ in 0..2 {
        let stats = port.stats();
        assert_eq!(
            (stats.rx_packets, stats.rx_missed),
            (512, 188),
            "counted once"
        );
    }
    host.send(&frame(1, 60));
    receive(&mut port, 1);
}

#[test]
fn a_packet_ports_descriptor_is_readable_while_a_frame_waits() {
    own_network();
    veth("plva2", "plvb2");
    let pool = pool("sleep");
    let mut port = open("net_af_packet3,iface=plva2", &pool);
    let host = HostEnd::new("plvb2");
    assert_eq!(poll(&port, Duration::ZERO), 0);
    let sleeper = thread::spawn(move || {
        assert_eq!(poll(&port, PATIENCE), libc::POLLIN);
        assert_eq!(receive(&mut port, 1), [frame(9, 60)]);
        assert_eq!(poll(&port, Duration::ZERO), 0);
    });
    thread::sleep(Duration::from_millis(20));
    host.send(&frame(9, 60));
    sleeper.join().unwrap();
}

#[test]
fn a_link_that_goes_down_and_comes_up_carries_on() {
    own_network();
    veth("plva3", "plvb3");
    let pool = pool("link");
    let mut a = open("net_af_packet4,iface=plva3", &pool);
    let mut b = open("net_af_packet5,iface=plvb3", &pool);
    a.set_promiscuous(true).unwrap();
    a.set_link_down().unwrap();
    assert!(!a.link_up());
    let send = |a: &mut Port, number| a.tx_burst(&mut burst(&pool, &[frame(number, 60)]));
    let sent: usize = (0..600).map(|_| send(&mut a, 1)).sum();
    assert_eq!(sent, 512, "its ring is full, and it does not block");
    assert_eq!(a.stats().tx_errors, 512);
    assert_eq!(a.rx_burst(&mut Burst::new()), 0);
    a.set_link_up().unwrap();
    wait_for_links(&a, &b);
    let end = Instant::now() + PATIENCE;
    let (mut received, mut late) = (Burst::new(), 0);
    while !received.iter().any(|mbuf| mbuf.data() == frame(2, 60)) {
        assert!(Instant::now() < end, "it never sends again");
        late += received.len();
        received.clear();
        send(&mut a, 2);
        b.rx_burst(&mut received);
    }
    assert!(
        late + received.len() > 480,
        "what its ring held leaves late: {late}"
    );
    received.clear();
    while b.rx_burst(&mut received) > 0 {
        received.clear();
    }
    b.tx_burst(&mut burst(&pool, &[frame(3, 60)]));
    assert_eq!(receive(&mut a, 1), [frame(3, 60)]);
}

#[test]
fn an_interface_that_vanishes_while_it_is_polled_ends_in_counters() {
    own_network();
    veth("plva4", "plvb4");
    let pool = pool("vanish");
    let mut port = open("net_af_packet6,iface=plva4", &pool);
    let deleting = thread::spawn(|| ip("link delete plvb4"));
    let (mut received, mut polls_after) = (Burst::new(), 0);
    while polls_after < 1000 {
        received.clear();
        port.rx_burst(&mut received);
        port.tx_burst(&mut burst(&pool, &[frame(2, 60)]));
        polls_after += u32::from(deleting.is_finished());
    }
    deleting.join().unwrap();
    assert!(!port.link_up());
    assert!(port.stats().tx_errors > 0, "{:?}", port.stats());
    assert_eq!(port.rx_burst(&mut received), 0);
    let error = Port::open(
        eal(),
        &PortConfig::vdev("net_af_packet7,iface=plva4"),
        &pool,
    );
    assert!(matches!(error, Err(DpdkError::NoInterface { .. })));
    drop(port);
    veth("plva4", "plvb4");
    let mut again = open("net_af_packet6,iface=plva4", &pool);
    HostEnd::new("plvb4").send(&frame(3, 60));
    assert_eq!(receive(&mut again, 1), [frame(3, 60)]);
}

#[test]
fn a_smaller_mtu_of_the_interface_bounds_what_is_sent() {
    own_network();
    veth("plva5", "plvb5");
    ip("link set plva5 mtu 1000");
    let pool = pool("mtu");
    let mut port = open("net_af_packet8,iface=plva5", &pool);
    assert_eq!((port.mtu(), port.frame_bytes_max()), (1000, 1018));
    let mut out = burst(&pool, &[frame(1, 1019), frame(2, 1014)]);
    assert_eq!(port.tx_burst(&mut out), 1);
    assert_eq!(port.stats().tx_oversize, 1);
    let config = PortConfig {
        mtu: Some(1400),
        ..PortConfig::vdev("net_af_packet9,iface=plvb5")
    };
    let port = Port::open(eal(), &config, &pool).unwrap();
    assert_eq!(port.mtu(), 1400);
}

#[test]
fn a_missing_interface_is_named() {
    own_network();
    let pool = pool("missing");
    let config = PortConfig::vdev("net_af_packet11,iface=plv-nosuch");
    let error = Port::open(eal(), &config, &pool).unwrap_err().to_string();
    assert!(
        error.contains("`plv-nosuch`") && error.contains("net_af_packet11"),
        "{error}"
    );
}

#[test]
fn a_pool_with_too_little_room_for_a_frame_slot_is_refused() {
    own_network();
    veth("plva6", "plvb6");
    let small = dpdk_config::Mempool::new(eal(), "small", 255, 0, 1024).unwrap();
    let config = PortConfig::vdev("net_af_packet12,iface=plva6");
    let error = Port::open(eal(), &config, &small).unwrap_err().to_string();
    assert!(error.contains("receive queue"), "{error}");
}

#[test]
fn frames_of_an_mtu_of_9000_go_both_ways_where_interface_and_slots_have_room() {
    own_network();
    veth("plva9", "plvb9");
    let small = pool("small");
    let jumbo = |device: &str| PortConfig {
        mtu: Some(9000),
        ..PortConfig::vdev(device)
    };
    let large = Mempool::new(eal(), "large", 1023, 0, 9216).unwrap();
    let open = |device: &str, pool| Port::open(eal(), &jumbo(device), pool);
    // The slots are larger than these buffers.
    let refused = open("net_af_packet20,iface=plva9", &small).unwrap_err();
    assert!(refused.to_string().contains("receive queue"), "{refused}");
    let refused = open("net_af_packet20,iface=plva9", &large).unwrap_err();
    assert!(
        refused.to_string().contains("ip link set plva9 mtu 9000"),
        "{refused}"
    );
    ip("link set plva9 mtu 9000");
    ip("link set plvb9 mtu 9000");
    let refused = open("net_af_packet20,iface=plva9,framesz=2048", &large).unwrap_err();
    assert!(refused.to_string().contains("leave framesz"), "{refused}");
    let mut a = open("net_af_packet20,iface=plva9", &large).unwrap();
    let mut b = open("net_af_packet21,iface=plvb9", &large).unwrap();
    assert_eq!((a.mtu(), a.frame_bytes_max()), (9000, 9018));
    wait_for_links(&a, &b);
    let frames: Vec<_> = (0..32).map(|number| frame(number, 9014)).collect();
    for _ in 0..40 {
        assert_eq!(a.tx_burst(&mut burst(&large, &frames)), 32);
        assert_eq!(receive(&mut b, 32), frames);
        assert_eq!(b.tx_burst(&mut burst(&large, &frames)), 32);
        assert_eq!(receive(&mut a, 32), frames);
    }
}
