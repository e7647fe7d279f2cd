//! A network namespace of a test's own, and the kernel's end of a link in it.

// Each test file takes what it needs.
#![allow(dead_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dpdk_config::{Burst, Eal, EalConfig, Mempool, Port, PortConfig};
use nix::sched::{CloneFlags, unshare};

/// Long enough for a loaded machine, short enough to end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// EAL starts once per process, and tests of one file share it.
pub fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| Eal::init(&EalConfig::default()).expect("EAL starts without hugepages"))
}

pub fn pool(name: &str) -> Mempool {
    Mempool::new(eal(), name, 2047, 0, 2048).expect("memory for a pool")
}

pub fn open(device: &str, pool: &Mempool) -> Port {
    Port::open(eal(), &PortConfig::vdev(device), pool).unwrap_or_else(|e| panic!("{e}: {e:?}"))
}

/// Moves the calling thread, and what it starts, into a new network namespace where nothing is
/// sent unasked.
pub fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
    for interface in ["all", "default"] {
        // Absent where the kernel has no IPv6, which is as good.
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        let _ = std::fs::write(path, "1");
    }
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// A frame that no stack answers: an experimental Ethertype.
pub fn frame(number: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![number; bytes];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    frame
}

pub fn burst(pool: &Mempool, frames: &[Vec<u8>]) -> Burst {
    let mut burst = Burst::new();
    pool.alloc_bulk(&mut burst, frames.len()).expect("mbufs");
    for (frame, mbuf) in frames.iter().zip(&mut burst) {
        mbuf.write(&[frame]).expect("frames fit");
    }
    burst
}

/// Polls until `count` frames came.
pub fn receive(port: &mut Port, count: usize) -> Vec<Vec<u8>> {
    let (mut frames, mut burst) = (Vec::new(), Burst::new());
    let end = Instant::now() + PATIENCE;
    while frames.len() < count && Instant::now() < end {
        port.rx_burst(&mut burst);
        frames.extend(burst.iter().map(|mbuf| mbuf.data().to_vec()));
        burst.clear();
    }
    assert_eq!(frames.len(), count, "{:?}", port.stats());
    frames
}

/// A raw packet socket on an interface: what the host sends and receives there.
pub struct HostEnd(pub OwnedFd);

impl HostEnd {
    pub fn new(interface: &str) -> HostEnd {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let index = nix::net::if_::if_nametoindex(interface).expect("interface exists");
        // SAFETY: plain system calls; the address outlives bind.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as i32;
            let bytes = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), bytes), 0);
            let limit = libc::timeval {
                tv_sec: PATIENCE.as_secs() as i64,
                tv_usec: 0,
            };
            let bytes = size_of::<libc::timeval>() as u32;
            let limit = (&raw const limit).cast();
            assert_eq!(
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, limit, bytes),
                0
            );
            HostEnd(OwnedFd::from_raw_fd(fd))
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: sends the slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// What polling the port's descriptor says within `limit`.
pub fn poll(port: &Port, limit: Duration) -> i16 {
    let fd = port.rx_interrupt_fd().expect("the port has a descriptor");
    let mut request = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut request, 1, limit.as_millis() as i32) };
    request.revents
}
