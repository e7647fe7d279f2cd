//! Echo, so that an operator can ping a node; at a bounded rate. And the complaints of routers
//! about datagrams that are too long for the way, which are counted.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    EtherType, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    IpNumber,
};

use super::{Mac, Net, frame};

impl Net {
    /// An ICMP message to us.
    pub(super) fn receive_icmpv4(
        &mut self,
        now: Duration,
        (mac, from): (Mac, Ipv4Addr),
        own: Ipv4Addr,
        message: &[u8],
    ) {
        let Ok(message) = Icmpv4Slice::from_slice(message) else {
            self.counters.malformed += 1;
            return;
        };
        let icmp_type = message.icmp_type();
        if icmp_type.calc_checksum(message.payload()) != message.checksum() {
            self.counters.checksums += 1;
            return;
        }
        match icmp_type {
            Icmpv4Type::EchoRequest(echo) => {
                let body = message.payload();
                let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoReply(echo), body);
                let bytes = u16::try_from(header.header_len() + body.len()).ok();
                let ip = bytes.and_then(|bytes| frame::ipv4(bytes, IpNumber::ICMP, own, from));
                if let Some(ip) = ip {
                    let ethernet = frame::ethernet(self.own_mac, mac, EtherType::IPV4);
                    self.echo(now, &[&ethernet, &ip.to_bytes(), &header.to_bytes(), body]);
                }
            }
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                ..
            }) => self.counters.too_big += 1,
            _ => self.counters.foreign += 1,
        }
    }

    /// An ICMP message to us, or to a group that we are in.
    pub(super) fn receive_icmpv6(
        &mut self,
        now: Duration,
        (mac, from): (Mac, Ipv6Addr),
        to: Ipv6Addr,
        hop_limit: u8,
        message: &[u8],
    ) {
        let Ok(message) = Icmpv6Slice::from_slice(message) else {
            self.counters.malformed += 1;
            return;
        };
        if !message.is_checksum_valid(from.octets(), to.octets()) {
            self.counters.checksums += 1;
            return;
        }
        match message.icmp_type() {
            Icmpv6Type::NeighborSolicitation | Icmpv6Type::NeighborAdvertisement(_)
                if hop_limit == super::nd::HOP_LIMIT_ND =>
            {
                self.receive_nd(now, from, &message);
            }
            Icmpv6Type::EchoRequest(echo) if !to.is_multicast() && !from.is_unspecified() => {
                let body = message.payload();
                let reply = Icmpv6Type::EchoReply(echo);
                let header =
                    Icmpv6Header::with_checksum(reply, to.octets(), from.octets(), body).ok();
                let Some(header) = header else { return };
                let Ok(bytes) = u16::try_from(header.header_len() + body.len()) else {
                    return;
                };
                let ip = frame::ipv6(bytes, IpNumber::IPV6_ICMP, 64, to, from);
                let ethernet = frame::ethernet(self.own_mac, mac, EtherType::IPV6);
                self.echo(now, &[&ethernet, &ip.to_bytes(), &header.to_bytes(), body]);
            }
            Icmpv6Type::PacketTooBig { .. } => self.counters.too_big += 1,
            _ => self.counters.foreign += 1,
        }
    }

    fn echo(&mut self, now: Duration, parts: &[&[u8]]) {
        if self.echoes.allows(now) && self.outbox.push(&parts.concat()) {
            self.counters.echoes_answered += 1;
        } else {
            self.counters.answers_withheld += 1;
        }
    }
}
