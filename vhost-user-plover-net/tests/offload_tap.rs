//! What we compute and what `net_tap` computes in software is the same on the wire: a packet goes
//! through a tap that finishes everything itself, and through one that finishes nothing.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use dpdk_config::{
    Burst, Eal, EalConfig, Mempool, OffloadUse, Port, PortConfig, PortOffloads, RxChecksum,
};
use etherparse::PacketBuilder;
use nix::sched::{CloneFlags, unshare};
use plover_types::Offload;
use plover_types::offload::{GSO_NONE, GSO_TCP_IPV4, NEEDS_CHECKSUM};
use vhost_user_plover_net::offload::{Egress, finish_mbuf};

const PAYLOAD_BYTES: usize = 20_000;
const SEGMENT_BYTES: u16 = 1400;

struct Tap {
    port: Port,
    host: OwnedFd,
}

impl Tap {
    fn open(eal: &Eal, pool: &Mempool, name: &str, offloads: OffloadUse) -> Self {
        let config = PortConfig {
            offloads,
            ..PortConfig::vdev(format!("net_{name},iface={name}"))
        };
        let port = Port::open(eal, &config, pool).expect("a tap opens");
        Self {
            port,
            host: packet_socket(name),
        }
    }

    fn send(&mut self, pool: &Mempool, frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
        let (offloads, mtu) = (self.port.offloads(), self.port.mtu());
        let mut egress =
            Egress::new(frame, offload, offloads, mtu).expect("the packet fits its offload");
        let mut burst = Burst::new();
        let mbufs = egress.mbufs(pool.data_room_bytes().into());
        let before = pool.available();
        while let Some(mbuf) = egress.next_frame(&mut || pool.alloc().ok()) {
            let mbuf = mbuf.expect("the pool is large enough");
            burst.push(mbuf).expect("few frames");
        }
        assert_eq!((before - pool.available()) as usize, mbufs);
        assert_eq!(egress.mbufs(2048), 0);
        while !burst.is_empty() {
            assert!(self.port.tx_burst(&mut burst) > 0);
        }
        std::iter::from_fn(|| self.on_host()).collect()
    }

    /// What the host's end of the tap received, until nothing more comes.
    fn on_host(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        // SAFETY: receives into the vector.
        let bytes = unsafe {
            let (to, room) = (frame.as_mut_ptr().cast(), frame.len());
            libc::recv(self.host.as_raw_fd(), to, room, 0)
        };
        frame.truncate(usize::try_from(bytes).ok()?);
        Some(frame)
    }
}

fn packet_socket(interface: &str) -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(interface).expect("the tap is there");
    // SAFETY: plain system calls; what they are given outlives them.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let bytes = size_of::<libc::sockaddr_ll>() as u32;
        let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), bytes);
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        let limit = libc::timeval {
            tv_sec: 0,
            tv_usec: 20_000,
        };
        let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVTIMEO);
        let bytes = size_of::<libc::timeval>() as u32;
        let limit = (&raw const limit).cast();
        assert_eq!(
            libc::setsockopt(fd.as_raw_fd(), level, option, limit, bytes),
            0
        );
        fd
    }
}

/// A packet with the pseudo-header's sum where the checksum belongs.
fn unfinished(v6: bool, udp: bool, payload: &[u8]) -> (Vec<u8>, Offload) {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 {
        ethernet.ipv6([0x20; 16], [0xfd; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    if udp {
        ip.udp(1000, 2000)
            .write(&mut frame, payload)
            .expect("a vector takes all");
    } else {
        let tcp = ip.tcp(1000, 2000, 0x1234_5678, 4096).ack(9).psh();
        tcp.write(&mut frame, payload).expect("a vector takes all");
    }
    let start = if v6 { 54 } else { 34 };
    let offset = if udp { 6 } else { 16 };
    let addresses = if v6 { 22..54 } else { 26..34 };
    let protocol = if udp { 17 } else { 6 };
    let bytes = (frame.len() - start) as u16;
    let mut sum = u32::from(bytes) + protocol;
    for pair in frame[addresses].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[start + offset..start + offset + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    let offload = Offload {
        flags: NEEDS_CHECKSUM,
        gso_type: GSO_NONE,
        header_bytes: 0,
        gso_bytes: 0,
        checksum_start: start as u16,
        checksum_offset: offset as u16,
    };
    (frame, offload)
}

#[test]
fn a_tap_and_we_finish_packets_alike() {
    unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let eal = Eal::init(&EalConfig::default()).unwrap();
    let pool = Mempool::new(&eal, "offload", 2047, 0, 2048).unwrap();
    let mut ours = Tap::open(&eal, &pool, "tap0", OffloadUse::Hardware);
    let mut its = Tap::open(&eal, &pool, "tap1", OffloadUse::All);
    assert_eq!(ours.port.offloads(), PortOffloads::default());
    let all = its.port.offloads();
    assert!(all.tx_checksum && all.tx_tcp_segments && all.rx_checksum);
    let payload: Vec<u8> = (0..PAYLOAD_BYTES).map(|i| (i * 7) as u8).collect();

    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        for bytes in [0, 1, 2, 19, 1333] {
            let (frame, offload) = unfinished(v6, udp, &payload[..bytes]);
            let a = ours.send(&pool, &frame, &offload);
            let b = its.send(&pool, &frame, &offload);
            assert_eq!(a.len(), 1);
            assert_eq!(a, b, "v6: {v6}, udp: {udp}, {bytes} bytes");
            assert_ne!(a[0], frame);

            let mut mbuf = pool.alloc().unwrap();
            mbuf.write(&[&frame]).unwrap();
            finish_mbuf(&mut mbuf, &offload, ours.port.offloads()).unwrap();
            assert_eq!(mbuf.data(), a[0]);
            assert_eq!(mbuf.rx_checksum(), RxChecksum::Unknown);
        }
    }

    // net_tap of 22.11 cuts IPv4 only.
    let (frame, offload) = unfinished(false, false, &payload);
    let offload = Offload {
        gso_type: GSO_TCP_IPV4,
        gso_bytes: SEGMENT_BYTES,
        ..offload
    };
    let a = ours.send(&pool, &frame, &offload);
    let b = its.send(&pool, &frame, &offload);
    assert_eq!(a.len(), PAYLOAD_BYTES.div_ceil(SEGMENT_BYTES.into()));
    assert_eq!(a, b);
    let joined: Vec<u8> = a.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(joined, payload);
}
