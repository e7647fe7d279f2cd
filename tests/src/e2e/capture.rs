//! What passes a link of the test's namespaces, frame by frame, and whether each is whole: lengths
//! and checksums are computed again by etherparse.

use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::net::if_::if_nametoindex;

/// Bytes of the socket's buffer: a few seconds of a busy guest.
const BUFFER_BYTES: libc::c_int = 64 << 20;

/// A packet socket on an interface.
pub struct Capture {
    socket: OwnedFd,
    frame: Vec<u8>,
}

/// What a captured TCP packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Port that it came from.
    pub source_port: u16,
    /// Bytes of the frame.
    pub frame_bytes: usize,
    /// Bytes of its payload.
    pub payload_bytes: usize,
    /// Whether its checksums are right. Those of a packet that this machine sends may not be
    /// finished where it is captured.
    pub is_whole: bool,
}

impl Capture {
    /// Starts on the interface `name` of the namespace that the calling thread is in.
    pub fn start(name: &str) -> Result<Self> {
        let index = if_nametoindex(name).with_context(|| format!("find interface {name}"))?;
        let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
        // SAFETY: plain numbers; the descriptor is owned right away.
        let socket = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            ensure!(fd >= 0, "open a packet socket: {}", Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all zeros is a valid sockaddr_ll; what the calls are given outlives them.
        unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = protocol;
            address.sll_ifindex = i32::try_from(index)?;
            let bytes = u32::try_from(size_of::<libc::sockaddr_ll>())?;
            let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes);
            ensure!(bound == 0, "bind it: {}", Error::last_os_error());
            let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
            let (room, bytes) = (BUFFER_BYTES, u32::try_from(size_of::<libc::c_int>())?);
            let status = libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const room).cast(),
                bytes,
            );
            ensure!(
                status == 0,
                "enlarge its buffer: {}",
                Error::last_os_error()
            );
        }
        let frame = vec![0; 70_000];
        Ok(Self { socket, frame })
    }

    /// The TCP packets captured since the last call.
    pub fn tcp(&mut self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        while let Some(bytes) = self.next()? {
            seen.extend(checked(&self.frame[..bytes])?);
        }
        Ok(seen)
    }

    fn next(&mut self) -> Result<Option<usize>> {
        // SAFETY: receives into the vector.
        let received = unsafe {
            let (to, room) = (self.frame.as_mut_ptr().cast(), self.frame.len());
            libc::recv(self.socket.as_raw_fd(), to, room, 0)
        };
        match usize::try_from(received) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => match Error::last_os_error() {
                error if error.kind() == ErrorKind::WouldBlock => Ok(None),
                error => Err(error).context("read captured frames"),
            },
        }
    }
}

/// `None` for what is not TCP over IPv4.
fn checked(frame: &[u8]) -> Result<Option<Seen>> {
    let sliced = SlicedPacket::from_ethernet(frame).context("take a frame apart")?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport)
    else {
        return Ok(None);
    };
    let header = ip.header().to_header();
    let sum = tcp.calc_checksum_ipv4(header.source, header.destination)?;
    let is_whole = header.header_checksum == header.calc_header_checksum() && tcp.checksum() == sum;
    Ok(Some(Seen {
        source_port: tcp.source_port(),
        frame_bytes: frame.len(),
        payload_bytes: tcp.payload().len(),
        is_whole,
    }))
}
