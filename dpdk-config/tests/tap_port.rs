//! `net_tap` against the host's own network stack, each test in a namespace of its own.

mod common;

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;
use std::thread;
use std::time::Duration;

use common::{HostEnd, PATIENCE, burst, eal, frame, ip, open, own_network, poll, pool, receive};
use dpdk_config::{Burst, DpdkError, Port, PortConfig};

/// The next frame that the host's stack received.
fn on_host(host: &HostEnd) -> Vec<u8> {
    let mut frame = vec![0; 4096];
    // SAFETY: receives into the vector.
    let bytes = unsafe {
        libc::recv(
            host.0.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            0,
        )
    };
    assert!(bytes > 0, "{}", std::io::Error::last_os_error());
    frame.truncate(bytes as usize);
    frame
}

#[test]
fn frames_go_both_ways_between_a_tap_and_the_host() {
    own_network();
    let pool = pool("both");
    let mut port = open("net_tap0,iface=plv0,mac=02:00:00:00:00:aa", &pool);
    assert_eq!(port.driver_name(), "net_tap");
    assert_eq!(port.mac(), [2, 0, 0, 0, 0, 0xaa]);
    assert_eq!((port.mtu(), port.link_up()), (1500, true));
    let host = HostEnd::new("plv0");
    for (number, bytes) in [(1, 60), (2, 1514), (3, 14)] {
        host.send(&frame(number, bytes));
    }
    assert_eq!(
        receive(&mut port, 3),
        [frame(1, 60), frame(2, 1514), frame(3, 14)]
    );
    let mut out = burst(&pool, &[frame(4, 60), frame(5, 1514), frame(6, 1519)]);
    assert_eq!(port.tx_burst(&mut out), 2);
    assert!(out.is_empty());
    assert_eq!(
        [on_host(&host), on_host(&host)],
        [frame(4, 60), frame(5, 1514)]
    );
    let stats = port.stats();
    assert_eq!(
        (stats.rx_packets, stats.tx_packets, stats.tx_oversize),
        (3, 2, 1)
    );
    assert_eq!((stats.rx_errors, stats.tx_errors), (0, 0));
}

#[test]
fn a_tap_receives_on_a_thread_that_did_not_open_it_and_blocks_all_signals() {
    own_network();
    let pool = pool("thread");
    let mut port = open("net_tap1,iface=plv1", &pool);
    let host = HostEnd::new("plv1");
    let polling = thread::spawn(move || {
        // SAFETY: masks signals of this thread only.
        unsafe {
            let mut all = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
        }
        receive(&mut port, 50)
    });
    for number in 1..=50 {
        host.send(&frame(number, 100));
        thread::sleep(Duration::from_micros(200));
    }
    let received = polling.join().unwrap();
    assert_eq!(
        received,
        (1..=50)
            .map(|number| frame(number, 100))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_taps_descriptor_is_readable_while_a_frame_waits() {
    own_network();
    let pool = pool("sleep");
    let mut port = open("net_tap3,iface=plv3", &pool);
    let host = HostEnd::new("plv3");
    assert_eq!(poll(&port, Duration::ZERO), 0);
    let sleeper = thread::spawn(move || {
        assert_eq!(poll(&port, PATIENCE), libc::POLLIN);
        assert_eq!(
            poll(&port, Duration::ZERO),
            libc::POLLIN,
            "until it is taken"
        );
        assert_eq!(receive(&mut port, 1), [frame(9, 60)]);
        assert_eq!(poll(&port, Duration::ZERO), 0);
    });
    thread::sleep(Duration::from_millis(20));
    host.send(&frame(9, 60));
    sleeper.join().unwrap();
}

#[test]
fn several_taps_are_open_at_once_and_one_can_be_closed() {
    own_network();
    let pool = pool("several");
    let mut first = open("net_tap4,iface=plv4", &pool);
    let second = open("net_tap5,iface=plv5", &pool);
    let mut third = open("net_tap6,iface=plv6", &pool);
    drop(second);
    assert!(
        nix::net::if_::if_nametoindex("plv5").is_err(),
        "its interface is gone"
    );
    for (port, interface) in [(&mut first, "plv4"), (&mut third, "plv6")] {
        HostEnd::new(interface).send(&frame(7, 64));
        assert_eq!(receive(port, 1), [frame(7, 64)]);
    }
    let _again = open("net_tap5,iface=plv5", &pool);
}

#[test]
fn a_tap_whose_link_is_down_neither_sends_nor_receives() {
    own_network();
    let pool = pool("link");
    let mut port = open("net_tap7,iface=plv7", &pool);
    port.set_promiscuous(true).unwrap();
    port.set_link_down().unwrap();
    assert!(!port.link_up());
    let mut out = burst(&pool, &[frame(1, 60), frame(2, 60)]);
    assert_eq!(port.tx_burst(&mut out), 0);
    assert_eq!(
        out.iter().map(|m| m.data()[20]).collect::<Vec<_>>(),
        [1, 2],
        "kept, in order"
    );
    assert!(port.stats().tx_errors > 0);
    assert_eq!(port.rx_burst(&mut Burst::new()), 0);
    port.set_link_up().unwrap();
    assert!(port.link_up());
    assert_eq!(port.tx_burst(&mut out), 2);
}

#[test]
fn an_interface_that_vanishes_while_it_is_polled_ends_in_counters() {
    own_network();
    let pool = pool("vanish");
    let mut port = open("net_tap8,iface=plv8", &pool);
    HostEnd::new("plv8").send(&frame(1, 60));
    assert_eq!(receive(&mut port, 1), [frame(1, 60)]);
    let deleting = thread::spawn(|| ip("link delete plv8"));
    let (mut received, mut out) = (Burst::new(), Burst::new());
    let mut polls_after = 0;
    while polls_after < 1000 {
        received.clear();
        port.rx_burst(&mut received);
        if out.is_empty() {
            out = burst(&pool, &[frame(2, 60)]);
        }
        port.tx_burst(&mut out);
        polls_after += u32::from(deleting.is_finished());
    }
    deleting.join().unwrap();
    assert!(!port.link_up());
    assert_eq!(out.len(), 1, "not sent");
    assert!(port.stats().tx_errors >= 1000);
    let events = poll(&port, Duration::from_millis(1));
    assert_ne!(events & libc::POLLERR, 0, "{events:x}");
    drop(port);
    let mut again = open("net_tap8,iface=plv8", &pool);
    HostEnd::new("plv8").send(&frame(3, 60));
    assert_eq!(receive(&mut again, 1), [frame(3, 60)]);
}

#[test]
fn a_tap_that_cannot_be_made_is_an_error_that_names_it() {
    own_network();
    let pool = pool("cannot");
    ip("link add plv9 type veth peer name plv9b");
    let error = Port::open(eal(), &PortConfig::vdev("net_tap9,iface=plv9"), &pool).unwrap_err();
    assert!(matches!(error, DpdkError::Attach { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("net_tap9,iface=plv9"), "{text}");
    assert!(
        text.contains("TUNSETIFF") && !text.contains("rt-signal"),
        "{text}"
    );
    let small = PortConfig {
        rx_descriptors: 4096,
        ..PortConfig::vdev("net_tap10,iface=plv10")
    };
    let few = dpdk_config::Mempool::new(eal(), "few", 63, 0, 2048).unwrap();
    let error = Port::open(eal(), &small, &few).unwrap_err();
    assert!(
        error.to_string().contains("mempool large enough"),
        "{error}"
    );
    drop(open("net_tap10,iface=plv10", &pool));
}
