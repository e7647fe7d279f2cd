//! What ports finish in packets, so that nobody has to compute it: checksums, and cutting a large
//! TCP packet into frames. Which ports can ([`PortOffloads`]), what is asked of one for a packet
//! ([`TxRequest`]), and what one found out about a packet it received ([`RxChecksum`]).

use dpdk_sys as sys;
use serde::{Deserialize, Serialize};

use crate::mbuf::Mbuf;

/// Which offloads a port is opened with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffloadUse {
    /// None.
    Off,
    /// What the device does itself. `net_tap` computes in software, slower than Plover does: for
    /// it this is none.
    #[default]
    Hardware,
    /// All that the driver says it can.
    All,
}

/// What an open port does to packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PortOffloads {
    /// Finishes checksums of TCP and UDP.
    pub tx_checksum: bool,
    /// Cuts TCP packets, given in several mbufs, into frames; over IPv4 and IPv6.
    pub tx_tcp_segments: bool,
    /// Verifies checksums of TCP and UDP.
    pub rx_checksum: bool,
}

const TX_CHECKSUM: u64 = TX_TCP_CKSUM | TX_UDP_CKSUM;
const TX_SEGMENTS: u64 = TX_TCP_TSO | TX_MULTI_SEGS | TX_IPV4_CKSUM | TX_CHECKSUM;
const RX_CHECKSUM: u64 = RX_TCP_CKSUM | RX_UDP_CKSUM;

// DPDK's numbers; bindgen does not evaluate RTE_BIT64.
const RX_UDP_CKSUM: u64 = 1 << 2;
const RX_TCP_CKSUM: u64 = 1 << 3;
const TX_IPV4_CKSUM: u64 = 1 << 1;
const TX_UDP_CKSUM: u64 = 1 << 2;
const TX_TCP_CKSUM: u64 = 1 << 3;
const TX_TCP_TSO: u64 = 1 << 5;
const TX_MULTI_SEGS: u64 = 1 << 15;

impl PortOffloads {
    /// What is used of a port that has `capabilities` (receive, transmit).
    pub(crate) fn choose(wanted: OffloadUse, is_tap: bool, capabilities: (u64, u64)) -> Self {
        let (rx, tx) = match wanted {
            OffloadUse::Off => (0, 0),
            OffloadUse::Hardware if is_tap => (0, 0),
            OffloadUse::Hardware | OffloadUse::All => capabilities,
        };
        let has = |all: u64, wanted: u64| all & wanted == wanted;
        Self {
            tx_checksum: has(tx, TX_CHECKSUM),
            tx_tcp_segments: has(tx, TX_SEGMENTS),
            rx_checksum: has(rx, RX_CHECKSUM),
        }
    }

    /// The bits that the port is configured with (receive, transmit).
    pub(crate) fn bits(self) -> (u64, u64) {
        let when = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
        let tx = when(self.tx_checksum, TX_CHECKSUM) | when(self.tx_tcp_segments, TX_SEGMENTS);
        (when(self.rx_checksum, RX_CHECKSUM), tx)
    }

    /// Whether a packet may go out with a [`TxRequest`].
    pub(crate) fn any_tx(self) -> bool {
        self.tx_checksum || self.tx_tcp_segments
    }
}

/// What a port found out about the checksum of a received TCP or UDP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxChecksum {
    /// It did not look.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
    /// The packet is sound, but its checksum is not finished: it never was on a wire, and its
    /// field holds the pseudo-header's sum.
    Unfinished,
}

/// Which checksum a port is to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a port is asked to finish in a packet. Its headers are in the first mbuf.
///
/// The checksum's field holds the pseudo-header's sum; without the length in it where the packet
/// is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxRequest {
    /// Bytes of the Ethernet header with its tags.
    pub l2_bytes: u16,
    /// Bytes of the IP header with its extensions.
    pub l3_bytes: u16,
    /// Bytes of the transport header.
    pub l4_bytes: u16,
    /// IPv6 or IPv4.
    pub ipv6: bool,
    /// TCP or UDP.
    pub l4: L4,
    /// Payload of each frame, where the packet is to be cut: TCP only.
    pub segment_bytes: Option<u16>,
}

impl TxRequest {
    fn flags(self) -> u64 {
        let mut flags = if self.ipv6 {
            sys::PLOVER_TX_IPV6
        } else {
            sys::PLOVER_TX_IPV4
        };
        flags |= match self.l4 {
            L4::Tcp => sys::PLOVER_TX_TCP_CKSUM,
            L4::Udp => sys::PLOVER_TX_UDP_CKSUM,
        };
        if self.segment_bytes.is_some() {
            flags |= sys::PLOVER_TX_TCP_SEG;
            if !self.ipv6 {
                flags |= sys::PLOVER_TX_IP_CKSUM;
            }
        }
        flags
    }
}

impl Mbuf {
    /// Asks the port that sends this packet to finish it. Only where its [`PortOffloads`] say so:
    /// another port sends the packet as it is.
    pub fn request(&mut self, request: &TxRequest) {
        let segment_bytes = request.segment_bytes.unwrap_or(0);
        // SAFETY: the mbuf is ours; only its metadata is written.
        unsafe {
            sys::plover_mbuf_request(
                self.raw(),
                request.flags(),
                request.l2_bytes,
                request.l3_bytes,
                request.l4_bytes,
                segment_bytes,
            );
        }
    }

    /// What the port that received this packet found out about its checksum.
    pub fn rx_checksum(&self) -> RxChecksum {
        // SAFETY: the mbuf is ours.
        let found = unsafe { sys::plover_mbuf_rx_checksum(self.raw()) };
        match found {
            sys::PLOVER_CHECKSUM_GOOD => RxChecksum::Good,
            sys::PLOVER_CHECKSUM_BAD => RxChecksum::Bad,
            sys::PLOVER_CHECKSUM_UNFINISHED => RxChecksum::Unfinished,
            _ => RxChecksum::Unknown,
        }
    }

    /// Whether the port is to cut this packet into frames.
    pub(crate) fn is_to_be_cut(&self) -> bool {
        // SAFETY: the mbuf is ours.
        unsafe { sys::plover_mbuf_to_be_cut(self.raw()) != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: (u64, u64) = (u64::MAX, u64::MAX);

    #[test]
    fn a_tap_finishes_nothing_unless_told() {
        let none = PortOffloads::default();
        assert_eq!(
            PortOffloads::choose(OffloadUse::Hardware, true, EVERYTHING),
            none
        );
        assert_eq!(
            PortOffloads::choose(OffloadUse::Off, false, EVERYTHING),
            none
        );
        assert_eq!(none.bits(), (0, 0));
        let all = PortOffloads::choose(OffloadUse::All, true, EVERYTHING);
        assert!(all.tx_checksum && all.tx_tcp_segments && all.rx_checksum);
        assert_eq!(all.bits(), (RX_CHECKSUM, TX_SEGMENTS));
    }

    #[test]
    fn half_a_capability_is_none() {
        let capabilities = (RX_TCP_CKSUM, TX_TCP_CKSUM | TX_TCP_TSO);
        let found = PortOffloads::choose(OffloadUse::Hardware, false, capabilities);
        assert_eq!(found, PortOffloads::default());
        let checksums = (0, TX_CHECKSUM | TX_TCP_TSO);
        let found = PortOffloads::choose(OffloadUse::Hardware, false, checksums);
        assert!(found.tx_checksum && !found.tx_tcp_segments);
    }
}
