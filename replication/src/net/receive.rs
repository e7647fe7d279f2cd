//! A frame from the link, from its Ethernet header to the datagram in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use etherparse::{
    EtherType, Ethernet2Slice, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, UdpHeaderSlice,
};
use plover_types::NodeId;

use super::nd::{group_mac, solicited_node};
use super::{Mac, Net};

const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;

/// What an IP packet carries, once its header was found right.
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: IpNumber,
    hop_limit: u8,
    payload: Range<usize>,
}

enum Refused {
    Foreign,
    Malformed,
    Checksum,
}

impl Net {
    /// Takes a frame from the link. Returns where in it the datagram is, and from which peer's
    /// address it claims to come. Everything else is answered, or counted.
    #[inline]
    pub fn receive(&mut self, now: Duration, frame: &[u8]) -> Option<(NodeId, Range<usize>)> {
        let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else {
            self.counters.malformed += 1;
            return None;
        };
        let (from, to) = (ethernet.source(), ethernet.destination());
        if !self.is_for_us(to) {
            self.counters.foreign += 1;
            return None;
        }
        let packet = match ethernet.ether_type() {
            EtherType::IPV4 => ipv4(frame),
            EtherType::IPV6 => ipv6(frame),
            EtherType::ARP => {
                self.receive_arp(now, ethernet.payload_slice());
                return None;
            }
            _ => Err(Refused::Foreign),
        };
        let packet = match packet {
            Ok(packet) => packet,
            Err(why) => {
                self.refuse(&why);
                return None;
            }
        };
        if packet.protocol == IpNumber::UDP && packet.to == self.own.ip() {
            return self.receive_udp(now, from, &packet, frame);
        }
        self.receive_icmp(now, from, &packet, frame);
        None
    }

    fn is_for_us(&self, to: Mac) -> bool {
        to == self.own_mac
            || match self.own.ip() {
                IpAddr::V4(_) => to == [0xff; 6],
                IpAddr::V6(own) => to == group_mac(solicited_node(own)),
            }
    }

    fn refuse(&mut self, why: &Refused) {
        *match why {
            Refused::Foreign => &mut self.counters.foreign,
            Refused::Malformed => &mut self.counters.malformed,
            Refused::Checksum => &mut self.counters.checksums,
        } += 1;
    }

    fn receive_udp(
        &mut self,
        now: Duration,
        mac: Mac,
        packet: &Packet,
        frame: &[u8],
    ) -> Option<(NodeId, Range<usize>)> {
        let whole = &frame[packet.payload.clone()];
        let udp = match UdpHeaderSlice::from_slice(whole) {
            Ok(udp) if usize::from(udp.length()) == whole.len() => udp,
            _ => {
                self.counters.malformed += 1;
                return None;
            }
        };
        if udp.destination_port() != self.own.port() {
            self.counters.foreign += 1;
            return None;
        }
        let from = SocketAddr::new(packet.from, udp.source_port());
        let Some(peer) = self.peers.iter().find(|peer| peer.address == from).copied() else {
            self.counters.strangers += 1;
            return None;
        };
        let header = udp.to_header();
        let body = &whole[UDP_BYTES..];
        let checksum = match (packet.from, packet.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header.calc_checksum_ipv4_raw(from.octets(), to.octets(), body)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header.calc_checksum_ipv6_raw(from.octets(), to.octets(), body)
            }
            _ => return None,
        };
        // A missing one, allowed over IPv4, is 0; a calculated one never is.
        if checksum.ok() != Some(header.checksum) {
            self.counters.checksums += 1;
            return None;
        }
        self.neighbours.confirm(now, peer.hop, &mac);
        self.counters.datagrams_received += 1;
        Some((
            peer.node,
            packet.payload.start + UDP_BYTES..packet.payload.end,
        ))
    }

    fn receive_icmp(&mut self, now: Duration, mac: Mac, packet: &Packet, frame: &[u8]) {
        let message = &frame[packet.payload.clone()];
        match (packet.from, packet.to, self.own.ip(), packet.protocol) {
            (IpAddr::V4(from), IpAddr::V4(to), IpAddr::V4(own), IpNumber::ICMP)
                if to == own && may_be_answered(from) =>
            {
                self.receive_icmpv4(now, (mac, from), own, message);
            }
            (IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(own), IpNumber::IPV6_ICMP)
                if (to == own || to == solicited_node(own)) && !from.is_multicast() =>
            {
                self.receive_icmpv6(now, (mac, from), to, packet.hop_limit, message);
            }
            _ => self.counters.foreign += 1,
        }
    }
}

fn may_be_answered(from: Ipv4Addr) -> bool {
    !from.is_unspecified() && !from.is_multicast() && !from.is_broadcast()
}

#[inline]
fn ipv4(frame: &[u8]) -> Result<Packet, Refused> {
    let bytes = &frame[ETHERNET_BYTES..];
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Refused::Malformed)?;
    if header.to_header().calc_header_checksum() != header.header_checksum() {
        return Err(Refused::Checksum);
    }
    let (start, end) = (header.slice().len(), usize::from(header.total_len()));
    if end < start || end > bytes.len() || header.is_fragmenting_payload() {
        return Err(Refused::Malformed);
    }
    Ok(Packet {
        from: IpAddr::V4(Ipv4Addr::from(header.source())),
        to: IpAddr::V4(Ipv4Addr::from(header.destination())),
        protocol: header.protocol(),
        hop_limit: header.ttl(),
        payload: ETHERNET_BYTES + start..ETHERNET_BYTES + end,
    })
}

/// Extension headers are foreign: nobody of ours sends any.
#[inline]
fn ipv6(frame: &[u8]) -> Result<Packet, Refused> {
    let bytes = &frame[ETHERNET_BYTES..];
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Refused::Malformed)?;
    let start = header.header_len();
    let end = start + usize::from(header.payload_length());
    if end > bytes.len() {
        return Err(Refused::Malformed);
    }
    Ok(Packet {
        from: IpAddr::V6(Ipv6Addr::from(header.source())),
        to: IpAddr::V6(Ipv6Addr::from(header.destination())),
        protocol: header.next_header(),
        hop_limit: header.hop_limit(),
        payload: ETHERNET_BYTES + start..ETHERNET_BYTES + end,
    })
}
