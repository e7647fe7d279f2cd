//! The kernel's network interface below a software port: what DPDK's drivers do not tell of it.

use std::cell::Cell;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_ulong};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// An interface, and a socket of its network namespace to ask for it.
#[derive(Debug)]
pub(crate) struct KernelInterface {
    index: u32,
    socket: OwnedFd,
}

impl KernelInterface {
    /// The interface with this index in the calling thread's network namespace.
    pub fn open(index: u32) -> Result<KernelInterface, Errno> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(KernelInterface { index, socket })
    }

    /// The interface's MTU in bytes.
    pub fn mtu(&self) -> Result<u32, Errno> {
        let request = self.ask(libc::SIOCGIFMTU)?;
        // SAFETY: this request fills in ifru_mtu.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    /// Whether the interface is up and has a carrier.
    pub fn is_running(&self) -> bool {
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        self.flags()
            .is_ok_and(|flags| c_int::from(flags) & wanted == wanted)
    }

    /// Takes the interface up or down.
    pub fn set_up(&self, up: bool) -> Result<(), Errno> {
        let mut request = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: the request above filled in ifru_flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let bit = libc::IFF_UP as i16;
        request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    fn flags(&self) -> Result<i16, Errno> {
        let request = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: this request fills in ifru_flags.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    /// One request about the interface, found by its index: it may have been renamed.
    fn ask(&self, request: c_ulong) -> Result<libc::ifreq, Errno> {
        // SAFETY: an all-zero ifreq is valid.
        let mut data: libc::ifreq = unsafe { mem::zeroed() };
        data.ifr_ifru.ifru_ifindex = self.index as c_int;
        self.ioctl(libc::SIOCGIFNAME, &mut data)?;
        self.ioctl(request, &mut data)?;
        Ok(data)
    }

    fn ioctl(&self, request: c_ulong, data: &mut libc::ifreq) -> Result<(), Errno> {
        // SAFETY: these requests read and write one ifreq.
        let status = unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &raw mut *data) };
        Errno::result(status).map(drop)
    }
}

/// The packet sockets of this process: `(fd, interface index)`.
///
/// `net_af_packet` keeps its socket to itself; what is there after opening a port and was not
/// before is it.
pub(crate) fn packet_sockets() -> io::Result<Vec<(RawFd, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(index) = bound_interface(fd) {
            found.push((fd, index));
        }
    }
    Ok(found)
}

/// The interface that `fd` is bound to, if it is a packet socket.
fn bound_interface(fd: RawFd) -> Option<u32> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes; a wrong kind of fd is an error. Other
    // families have shorter or other addresses, told apart below.
    let status = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut bytes) };
    let is_packet = status == 0 && c_int::from(address.sll_family) == libc::AF_PACKET;
    (is_packet && address.sll_ifindex > 0).then_some(address.sll_ifindex as u32)
}

/// Counts what the kernel dropped because nobody took packets from a packet socket in time.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    drops: Cell<u64>,
}

impl PacketSocket {
    /// The socket on interface `index` that is not among those that were there `before`. Works on
    /// a duplicate, so that the driver may close its own.
    pub fn find(index: u32, before: &[(RawFd, u32)]) -> Option<PacketSocket> {
        let sockets = packet_sockets().ok()?;
        let is_new = |socket: &&(RawFd, u32)| socket.1 == index && !before.contains(socket);
        let &(fd, _) = sockets.iter().find(is_new)?;
        // SAFETY: duplicating does not touch the original, which the driver keeps open.
        let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a descriptor that was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Some(PacketSocket {
            fd,
            drops: Cell::new(0),
        })
    }

    /// Readable while a packet waits.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Packets dropped since the port was opened. The kernel's own count restarts when it is read.
    pub fn drops(&self) -> u64 {
        let mut counts = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut bytes = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes of `counts`.
        let status = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut bytes,
            )
        };
        if status == 0 {
            self.drops
                .set(self.drops.get() + u64::from(counts.tp_drops));
        }
        self.drops.get()
    }
}
