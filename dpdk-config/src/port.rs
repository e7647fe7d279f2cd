//! Ports: packets in and out, by bursts, on the thread that owns the [`Port`].
//!
//! `net_tap` and signals. The driver (22.11 to 25.11) asks the kernel for a realtime signal per
//! received packet; its handler sets a flag without which `rx_burst` reads nothing. The signal goes
//! to any thread that does not block it, as a rule the main one: blocking calls there return EINTR,
//! the poll core pays two context switches per packet, and if every thread blocks the signal the
//! port is deaf. When the driver finds no free signal it reads at each `rx_burst` instead, which
//! is what a poll core wants; so while a tap is opened no signal is free (`tap_signals`). Receiving
//! then works from any thread, nothing is interrupted, and an empty poll costs one `readv`. For a
//! sleep there is [`Port::rx_interrupt_fd`].
//!
//! Further habits of the drivers, seen in their source and tests:
//! - `net_tap` never sends an oversized packet and leaves it at the head; `net_af_packet` lets the
//!   kernel discard it. [`Port::tx_burst`] frees such packets first and counts them.
//! - `net_tap`'s interface has the MAC of `mac=`, which must not be the guest's: a bridge delivers
//!   frames for a member's own MAC to the host.
//! - `net_tap` drops what it has read when the pool is empty (`rx_no_mbuf`).
//! - `net_af_packet` sees what the host's own stack sends on that interface, and the kernel
//!   reassembles IP fragments for it: give it an interface without addresses. Frames from a stack
//!   on the same machine may come with unfinished checksums.
//! - `net_af_packet` cuts a packet that is longer than its slot (`framesz`, 2048) instead of
//!   dropping it.
//! - An interface that goes down or away turns into counters: nothing is received, `tx_errors`
//!   grows (`net_tap` keeps the packets with the caller, `net_af_packet` takes and drops them).

use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use dpdk_sys as sys;
use serde::Serialize;

use crate::af_packet;
use crate::attach::{Attached, QUEUE, is_driver};
use crate::config::{Device, PortConfig};
use crate::eal::Eal;
use crate::error::DpdkError;
use crate::kernel_interface::{KernelInterface, PacketSocket, packet_sockets};
use crate::limits::FRAME_OVERHEAD_BYTES;
use crate::mbuf::Burst;
use crate::mempool::Mempool;
use crate::offloads::PortOffloads;

/// What a port has counted since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that came while the receive queue was full.
    pub rx_missed: u64,
    /// Packets that came damaged or too long.
    pub rx_errors: u64,
    /// Packets lost, or left in the queue, because the mempool was empty.
    pub rx_no_mbuf: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the driver could not send, or not finish; `net_tap` counts each attempt.
    pub tx_errors: u64,
    /// Packets longer than the port's MTU allows, freed instead of sent.
    pub tx_oversize: u64,
}

/// An open, started port. Whoever owns it polls it; it may move to another thread, not be shared.
///
/// Control calls (`link_up`, `set_*`) go through the network namespace of the thread that makes
/// them for some drivers: make them where the port was opened.
pub struct Port {
    packet_socket: Option<PacketSocket>,
    tap_fd: Option<RawFd>,
    kernel: Option<KernelInterface>,
    device: Attached,
    driver: String,
    mac: [u8; 6],
    mtu: u16,
    tx_oversize: u64,
    tx_refused: u64,
    // The device's queue allocates from it.
    _pool: Mempool,
    _not_sync: PhantomData<Cell<()>>,
}

impl Port {
    /// Attaches the configured device, sets it up with one queue pair and starts it.
    pub fn open(eal: &Eal, config: &PortConfig, pool: &Mempool) -> Result<Port, DpdkError> {
        config.validate()?;
        let _control = Eal::control();
        let sockets_before = packet_sockets().unwrap_or_default();
        let device = Attached::open(eal, config, pool)?;
        let info = device.info()?;
        let kernel = (info.if_index > 0).then(|| KernelInterface::open(info.if_index));
        let kernel = kernel.and_then(Result::ok);
        let mac = mac_of(&device)?;
        let configured = config.device()?;
        let mtu = match (config.large_af_packet_mtu(&configured), &configured) {
            (Some(wanted), Device::Virtual(vdev)) => {
                af_packet::large_mtu(vdev, wanted, kernel.as_ref())?
            }
            _ => mtu_of(&device, kernel.as_ref())?,
        };
        Ok(Port {
            packet_socket: is_driver(&info, c"net_af_packet")
                .then(|| PacketSocket::find(info.if_index, &sockets_before))
                .flatten(),
            tap_fd: is_driver(&info, c"net_tap")
                .then(|| tap_fd(&device))
                .flatten(),
            driver: driver_of(&info),
            kernel,
            device,
            mac,
            mtu,
            tx_oversize: 0,
            tx_refused: 0,
            _pool: pool.clone(),
            _not_sync: PhantomData,
        })
    }

    /// Receives packets into the room that `burst` has; returns how many came.
    pub fn rx_burst(&mut self, burst: &mut Burst) -> usize {
        let room = burst.room() as u16;
        // SAFETY: the port is started and used by its owner only; `spare` has room for `room`
        // pointers, and the driver stores as many packets as it returns.
        unsafe {
            let received = sys::rte_eth_rx_burst(self.device.port, QUEUE, burst.spare(), room);
            let received = usize::from(received);
            burst.grow(received);
            received
        }
    }

    /// Sends packets from the front of `burst`; returns how many the driver took. The others stay,
    /// in order. Packets that are too long are freed and counted.
    pub fn tx_burst(&mut self, burst: &mut Burst) -> usize {
        self.drop_oversize(burst);
        if self.device.offloads.any_tx() {
            self.prepare(burst);
        }
        let count = burst.len() as u16;
        // SAFETY: the port is started and used by its owner only; the first `count` pointers are
        // packets, and the driver frees as many as it returns.
        unsafe {
            let sent = sys::rte_eth_tx_burst(self.device.port, QUEUE, burst.pointers(), count);
            let sent = usize::from(sent);
            burst.forget_first(sent);
            sent
        }
    }

    /// Lets the driver bring packets with requests into the form that its device wants. What it
    /// can't send is freed and counted.
    fn prepare(&mut self, burst: &mut Burst) {
        let mut ready = 0;
        while ready < burst.len() {
            let count = (burst.len() - ready) as u16;
            // SAFETY: as in `tx_burst`; `ready` pointers were looked at, `count` are left.
            let more = unsafe {
                let next = burst.pointers().add(ready);
                sys::rte_eth_tx_prepare(self.device.port, QUEUE, next, count)
            };
            ready += usize::from(more);
            if ready < burst.len() {
                burst.remove(ready);
                self.tx_refused += 1;
            }
        }
    }

    fn drop_oversize(&mut self, burst: &mut Burst) {
        let longest = self.frame_bytes_max();
        if burst.longest() <= longest {
            return;
        }
        let before = burst.len();
        burst.retain(|mbuf| mbuf.len() <= longest || mbuf.is_to_be_cut());
        self.tx_oversize += (before - burst.len()) as u64;
    }

    /// The port's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// What the port finishes in packets.
    pub fn offloads(&self) -> PortOffloads {
        self.device.offloads
    }

    /// Bytes that the payload of a frame may have.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Bytes of the longest frame that [`Port::tx_burst`] sends: header and a VLAN tag, no FCS.
    pub fn frame_bytes_max(&self) -> usize {
        (u32::from(self.mtu) + FRAME_OVERHEAD_BYTES) as usize
    }

    /// The driver's name, e.g. `net_tap`.
    pub fn driver_name(&self) -> &str {
        &self.driver
    }

    /// The device as it was configured.
    pub fn device(&self) -> &str {
        &self.device.text
    }

    /// Whether the port is up and its link has a carrier.
    pub fn link_up(&self) -> bool {
        // SAFETY: the port exists.
        let driver_says = unsafe { sys::plover_link_up(self.device.port) } == 1;
        // net_af_packet always says yes.
        driver_says && self.kernel.as_ref().is_none_or(KernelInterface::is_running)
    }

    /// Takes the link up.
    pub fn set_link_up(&self) -> Result<(), DpdkError> {
        // SAFETY: the port is started.
        let status = unsafe { sys::rte_eth_dev_set_link_up(self.device.port) };
        self.link_status("taking the link up", status, true)
    }

    /// Takes the link down: nothing is sent or received until it is up again.
    pub fn set_link_down(&self) -> Result<(), DpdkError> {
        // SAFETY: the port is started.
        let status = unsafe { sys::rte_eth_dev_set_link_down(self.device.port) };
        self.link_status("taking the link down", status, false)
    }

    /// Falls back to the kernel's interface where the driver cannot (`net_af_packet`).
    fn link_status(&self, step: &'static str, status: i32, up: bool) -> Result<(), DpdkError> {
        match &self.kernel {
            Some(kernel) if status == -libc::ENOTSUP => {
                kernel.set_up(up).map_err(|source| DpdkError::Port {
                    device: self.device.text.clone(),
                    step,
                    source,
                })
            }
            _ => self.device.check(step, status),
        }
    }

    /// Whether frames for other MAC addresses are received, too.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), DpdkError> {
        // SAFETY: the port is started.
        let status = unsafe {
            if on {
                sys::rte_eth_promiscuous_enable(self.device.port)
            } else {
                sys::rte_eth_promiscuous_disable(self.device.port)
            }
        };
        self.device.check("changing promiscuous mode", status)
    }

    /// What the port has counted. Some drivers ask the kernel: not for each burst.
    pub fn stats(&self) -> PortStats {
        let mut raw = sys::rte_eth_stats::default();
        // SAFETY: the port exists, and `raw` is filled in.
        if unsafe { sys::rte_eth_stats_get(self.device.port, &raw mut raw) } != 0 {
            return PortStats {
                tx_oversize: self.tx_oversize,
                ..PortStats::default()
            };
        }
        PortStats {
            rx_packets: raw.ipackets,
            rx_bytes: raw.ibytes,
            rx_missed: raw.imissed + self.packet_socket.as_ref().map_or(0, PacketSocket::drops),
            rx_errors: raw.ierrors,
            rx_no_mbuf: raw.rx_nombuf,
            tx_packets: raw.opackets,
            tx_bytes: raw.obytes,
            tx_errors: raw.oerrors + self.tx_refused,
            tx_oversize: self.tx_oversize,
        }
    }

    /// A descriptor that polls readable while a packet waits, for `net_tap` and `net_af_packet`.
    /// Only to be polled; valid while the port is open. It also polls as an error when the
    /// interface goes down or away: bound the sleep and the rate of wake-ups.
    pub fn rx_interrupt_fd(&self) -> Option<RawFd> {
        self.tap_fd
            .or_else(|| self.packet_socket.as_ref().map(PacketSocket::fd))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _control = Eal::control();
        // A duplicate of the driver's socket; nothing of it shall outlive the driver's own.
        self.packet_socket = None;
        self.device.close();
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("device", &self.device.text)
            .field("port", &self.device.port)
            .finish_non_exhaustive()
    }
}

fn driver_of(info: &sys::rte_eth_dev_info) -> String {
    if info.driver_name.is_null() {
        return "unknown".into();
    }
    // SAFETY: a driver's name is a C string in the driver, which stays loaded.
    unsafe { CStr::from_ptr(info.driver_name) }
        .to_string_lossy()
        .into_owned()
}

fn mac_of(device: &Attached) -> Result<[u8; 6], DpdkError> {
    let mut mac = sys::rte_ether_addr::default();
    // SAFETY: the port exists, and `mac` is filled in.
    let status = unsafe { sys::rte_eth_macaddr_get(device.port, &raw mut mac) };
    device.check("asking for the MAC address", status)?;
    Ok(mac.addr_bytes)
}

/// The port's MTU, or the kernel interface's where that is smaller: the kernel discards longer
/// frames without a word.
fn mtu_of(device: &Attached, kernel: Option<&KernelInterface>) -> Result<u16, DpdkError> {
    let mut mtu = 0;
    // SAFETY: the port exists, and `mtu` is filled in.
    let status = unsafe { sys::rte_eth_dev_get_mtu(device.port, &raw mut mtu) };
    device.check("asking for the mtu", status)?;
    let kernel_mtu = kernel
        .and_then(|kernel| kernel.mtu().ok())
        .map(u16::try_from);
    Ok(kernel_mtu
        .and_then(Result::ok)
        .map_or(mtu, |kernel_mtu| mtu.min(kernel_mtu)))
}

/// The descriptor that `net_tap` reads packets from.
fn tap_fd(device: &Attached) -> Option<RawFd> {
    // SAFETY: the port is started with receive interrupts on its one queue.
    let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(device.port, QUEUE) };
    (fd >= 0).then_some(fd)
}
