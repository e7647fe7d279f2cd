//! Frames that get past the first checks, and then say anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;
use plover_types::NodeId;
use replication::transport::TRANSPORT_VERSION;

use super::{GROUP, OWN, PEER, mac};
use crate::input::Input;

const PORT: u16 = 7401;
/// Version, flags, group, the sender's boot and the receiver's, as far as a peer can know them.
const FLAGS_OFFSET: usize = 1;

/// A node's address.
pub fn address(node: NodeId, is_ipv6: bool) -> SocketAddr {
    let last = u8::try_from(node.0).unwrap_or(0xff);
    let ip = if is_ipv6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    };
    SocketAddr::new(ip, PORT)
}

/// A datagram of the peer's: its addresses and checksums are right.
pub fn datagram(input: &mut Input<'_>, is_ipv6: bool) -> Vec<u8> {
    let mut body = vec![TRANSPORT_VERSION, input.u8() & 0x1f];
    body.extend(GROUP.0.to_le_bytes());
    body.extend(u64::from(input.u8()).to_le_bytes());
    body.extend(u64::from(input.u8() & 1).to_le_bytes());
    debug_assert_eq!(body[0], TRANSPORT_VERSION);
    if body[FLAGS_OFFSET] & 1 != 0 {
        body.extend(u64::from(input.u16()).to_le_bytes());
        body.extend(input.u16().to_le_bytes());
        body.extend(input.u16().to_le_bytes());
    }
    if body[FLAGS_OFFSET] & 4 != 0 {
        body.extend(u64::from(input.u8()).to_le_bytes());
        body.extend(input.u32().to_le_bytes());
        let words = input.u8() % 10;
        body.push(words);
        (0..words).for_each(|_| body.extend(input.u64().to_le_bytes()));
    }
    if body[FLAGS_OFFSET] & 2 != 0 {
        let length = input.below(1200);
        let count = 1 + u16::from(input.u8());
        body.extend(u64::from(input.u16()).to_le_bytes());
        body.extend((input.u16() % count).to_le_bytes());
        body.extend(count.to_le_bytes());
        let total = match input.u8() {
            0 => input.u32(),
            _ => u32::try_from(length).unwrap_or(0) * u32::from(count),
        };
        body.extend(total.to_le_bytes());
        body.resize(body.len() + length, input.u8());
    }
    udp(&body, is_ipv6)
}

fn udp(body: &[u8], is_ipv6: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(PEER), mac(OWN));
    let builder = match (address(PEER, is_ipv6).ip(), address(OWN, is_ipv6).ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both addresses are of one kind"),
    };
    let builder = builder.udp(PORT, PORT);
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, body).expect("it fits a packet");
    frame
}

/// Something that asks: ARP, neighbour discovery, echo; with a right checksum and any content.
pub fn question(input: &mut Input<'_>, is_ipv6: bool) -> Vec<u8> {
    let count = input.below(200);
    let (kind, code) = (input.u8(), input.u8() & 1);
    let body = input.bytes(count);
    let bytes5to8 = input.u32().to_be_bytes();
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(PEER), mac(OWN));
    match (address(PEER, is_ipv6).ip(), address(OWN, is_ipv6).ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) if kind & 1 == 0 => {
            frame.extend([mac(OWN), mac(PEER)].concat());
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + (kind >> 1 & 1)]);
            frame.extend(body);
        }
        (IpAddr::V4(from), IpAddr::V4(to)) => builder
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(kind & 8, code, bytes5to8)
            .write(&mut frame, body)
            .expect("it fits a packet"),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder
            .ipv6(from.octets(), to.octets(), 255)
            .icmpv6_raw(128 + kind % 12, code, bytes5to8)
            .write(&mut frame, &[&to.octets()[..], body].concat())
            .expect("it fits a packet"),
        _ => unreachable!("both addresses are of one kind"),
    }
    frame
}
