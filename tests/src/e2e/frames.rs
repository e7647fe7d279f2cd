//! Raw Ethernet frames onto a link of the test's own namespaces: what a broken or hostile machine
//! on the replication network may send.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use nix::net::if_::if_nametoindex;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Sends frames on the interface `name` of the namespace that the calling thread is in.
pub fn send(name: &str, frames: &[Vec<u8>]) -> Result<()> {
    let index = if_nametoindex(name).with_context(|| format!("find interface {name}"))?;
    // SAFETY: plain numbers; the descriptor is owned right away.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        ensure!(
            fd >= 0,
            "open a packet socket: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_ifindex = i32::try_from(index)?;
    for frame in frames {
        // SAFETY: both buffers live for the call, with their own lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                u32::try_from(size_of::<libc::sockaddr_ll>())?,
            )
        };
        ensure!(
            sent >= 0,
            "send a frame: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(())
}

/// How a frame of garbage is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// All of it is noise, but the addresses and the EtherType.
    Noise,
    /// A datagram whose checksum does not match.
    Checksum,
    /// A datagram of somebody who is no peer.
    Stranger,
    /// A datagram with a peer's address and a right checksum, and noise in it.
    Datagram,
}

/// Every kind.
pub const WRONG: [Wrong; 4] = [
    Wrong::Noise,
    Wrong::Checksum,
    Wrong::Stranger,
    Wrong::Datagram,
];

/// Where a node is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// IP address and UDP port.
    pub address: SocketAddrV4,
}

impl Place {
    /// A node's place.
    pub fn new(mac: &str, address: SocketAddr) -> Result<Self> {
        let bytes: Result<Vec<u8>, _> = mac
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect();
        let SocketAddr::V4(address) = address else {
            anyhow::bail!("{address} is not IPv4");
        };
        let mac = bytes?.try_into().ok().context("a MAC has six bytes")?;
        Ok(Self { mac, address })
    }
}

/// Frames of garbage from one node's place to another's.
pub fn garbage(wrong: Wrong, from: Place, to: Place, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut random = StdRng::seed_from_u64(count as u64);
    (0..count)
        .map(|_| one(wrong, from, to, &mut random))
        .collect()
}

fn one(wrong: Wrong, from: Place, to: Place, random: &mut StdRng) -> Result<Vec<u8>> {
    let mut noise = vec![0; random.random_range(100..1400)];
    random.fill_bytes(&mut noise);
    let (mut source, destination) = (from.address, to.address);
    if wrong == Wrong::Stranger {
        source.set_port(source.port() ^ 1);
    }
    let builder = PacketBuilder::ethernet2(from.mac, to.mac)
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .udp(source.port(), destination.port());
    let mut frame = Vec::with_capacity(builder.size(noise.len()));
    builder.write(&mut frame, &noise)?;
    match wrong {
        Wrong::Noise => random.fill_bytes(&mut frame[14..]),
        Wrong::Checksum => *frame.last_mut().context("a frame has bytes")? ^= 1,
        Wrong::Stranger | Wrong::Datagram => {}
    }
    Ok(frame)
}
