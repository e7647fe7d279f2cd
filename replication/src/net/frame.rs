//! The headers before a datagram, as `etherparse` writes them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use arrayvec::ArrayVec;
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};

use super::Mac;

/// Ethernet, IPv6 and UDP: the longest headers that a datagram gets.
pub(super) const HEADERS_BYTES_MAX: usize = Ethernet2Header::LEN + Ipv6Header::LEN + UdpHeader::LEN;

/// Routers that a datagram may pass.
const HOP_LIMIT: u8 = 64;

/// Headers of a datagram.
pub(super) type Headers = ArrayVec<u8, HEADERS_BYTES_MAX>;

/// Ethernet's, IP's and UDP's header, with both checksums. IPv4 packets are not to be cut by a
/// router: `dont_fragment` is etherparse's default. None if the datagram is too long.
#[inline]
pub(super) fn udp_headers(
    (from_mac, to_mac): (Mac, Mac),
    (from, to): (SocketAddr, SocketAddr),
    datagram: &[u8],
) -> Option<Headers> {
    let mut headers = Headers::new();
    let bytes = u16::try_from(UdpHeader::LEN + datagram.len()).ok()?;
    let ports = (from.port(), to.port());
    let udp = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let ip = ipv4(bytes, IpNumber::UDP, *from.ip(), *to.ip())?;
            push(&mut headers, &ethernet(from_mac, to_mac, EtherType::IPV4))?;
            push(&mut headers, &ip.to_bytes())?;
            UdpHeader::with_ipv4_checksum(ports.0, ports.1, &ip, datagram)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let ip = ipv6(bytes, IpNumber::UDP, HOP_LIMIT, *from.ip(), *to.ip());
            push(&mut headers, &ethernet(from_mac, to_mac, EtherType::IPV6))?;
            push(&mut headers, &ip.to_bytes())?;
            UdpHeader::with_ipv6_checksum(ports.0, ports.1, &ip, datagram)
        }
        _ => return None,
    };
    push(&mut headers, &udp.ok()?.to_bytes())?;
    Some(headers)
}

fn push(headers: &mut Headers, bytes: &[u8]) -> Option<()> {
    headers.try_extend_from_slice(bytes).ok()
}

pub(super) fn ethernet(source: Mac, destination: Mac, ether_type: EtherType) -> [u8; 14] {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    header.to_bytes()
}

/// An IPv4 header with its checksum.
pub(super) fn ipv4(
    payload_bytes: u16,
    protocol: IpNumber,
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> Option<Ipv4Header> {
    let (from, to) = (from.octets(), to.octets());
    let mut header = Ipv4Header::new(payload_bytes, HOP_LIMIT, protocol, from, to).ok()?;
    header.header_checksum = header.calc_header_checksum();
    Some(header)
}

pub(super) fn ipv6(
    payload_length: u16,
    next_header: IpNumber,
    hop_limit: u8,
    from: Ipv6Addr,
    to: Ipv6Addr,
) -> Ipv6Header {
    Ipv6Header {
        payload_length,
        next_header,
        hop_limit,
        source: from.octets(),
        destination: to.octets(),
        ..Ipv6Header::default()
    }
}
