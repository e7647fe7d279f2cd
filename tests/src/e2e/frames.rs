//! Raw Ethernet frames onto a link of the test's own namespaces: what a broken or hostile machine
//! on the replication network may send.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use replication::transport::{ETHERTYPE, HEADER, TRANSPORT_VERSION};

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
    /// All of it is noise, but the EtherType.
    Noise,
    /// A message longer than any may be.
    Length,
    /// No fragments.
    Fragments,
    /// The message's checksum.
    Checksum,
    /// The message: a whole one with its checksum, and noise in it.
    Message,
}

/// Every kind.
pub const WRONG: [Wrong; 5] = [
    Wrong::Noise,
    Wrong::Length,
    Wrong::Fragments,
    Wrong::Checksum,
    Wrong::Message,
];

/// Frames of garbage from one node's address to another's.
#[must_use]
pub fn garbage(wrong: Wrong, from: [u8; 6], to: [u8; 6], group: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(group);
    (0..count)
        .map(|_| one(wrong, from, to, group, &mut random))
        .collect()
}

fn one(wrong: Wrong, from: [u8; 6], to: [u8; 6], group: u64, random: &mut StdRng) -> Vec<u8> {
    let mut frame = vec![0; random.random_range(HEADER + 16..1400)];
    random.fill_bytes(&mut frame[14..]);
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    if wrong == Wrong::Noise {
        return frame;
    }
    let body = &frame[HEADER..];
    let mut length = u32::try_from(body.len()).unwrap_or(0);
    let mut checksum = crc32fast::hash(body);
    let mut fragments = 1u16;
    match wrong {
        Wrong::Length => length = u32::MAX,
        Wrong::Fragments => fragments = 0,
        Wrong::Checksum => checksum ^= 1,
        Wrong::Noise | Wrong::Message => {}
    }
    frame[14] = TRANSPORT_VERSION;
    frame[15] = 0;
    frame[16..18].fill(0);
    frame[18..20].copy_from_slice(&fragments.to_le_bytes());
    frame[20..24].copy_from_slice(&length.to_le_bytes());
    frame[24..28].copy_from_slice(&checksum.to_le_bytes());
    frame[28..36].copy_from_slice(&group.to_le_bytes());
    frame
}
