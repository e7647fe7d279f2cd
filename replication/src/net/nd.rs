//! Who has which IPv6 address: neighbour discovery (RFC 4861), asked and answered.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv6::{
    Icmpv6PayloadSlice, NdpOptionSlice, NdpOptionsIterator, NeighborAdvertisementHeader,
};
use etherparse::{EtherType, Icmpv6Header, Icmpv6Slice, Icmpv6Type, IpNumber};

use super::{Mac, Net, frame};

/// Neighbour discovery's packets passed no router if they still have this.
pub(super) const HOP_LIMIT_ND: u8 = 255;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The option that carries the sender's MAC address in a question, the target's in an answer;
/// both are one unit of eight bytes long.
const SOURCE_LINK_LAYER: [u8; 2] = [1, 1];
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

/// The group that whoever has `address` belongs to.
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// The Ethernet group of an IPv6 group.
pub(super) fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// Asks for `hop`: its last known station, or all who might be it.
pub(super) fn question(
    (own_mac, own): (Mac, Ipv6Addr),
    hop: Ipv6Addr,
    last_known: Option<Mac>,
) -> Option<Vec<u8>> {
    let group = solicited_node(hop);
    let (to, to_mac) = last_known.map_or((group, group_mac(group)), |mac| (hop, mac));
    let message = Message {
        icmp_type: Icmpv6Type::NeighborSolicitation,
        target: hop,
        option: SOURCE_LINK_LAYER,
        mac: own_mac,
    };
    message.framed((own_mac, own), (to_mac, to))
}

struct Message {
    icmp_type: Icmpv6Type,
    target: Ipv6Addr,
    option: [u8; 2],
    mac: Mac,
}

impl Message {
    fn framed(
        &self,
        (from_mac, from): (Mac, Ipv6Addr),
        (to_mac, to): (Mac, Ipv6Addr),
    ) -> Option<Vec<u8>> {
        let body = [&self.target.octets()[..], &self.option, &self.mac].concat();
        let icmp = self.icmp_type;
        let header = Icmpv6Header::with_checksum(icmp, from.octets(), to.octets(), &body).ok()?;
        let bytes = u16::try_from(header.header_len() + body.len()).ok()?;
        let ip = frame::ipv6(bytes, IpNumber::IPV6_ICMP, HOP_LIMIT_ND, from, to);
        let ethernet = frame::ethernet(from_mac, to_mac, EtherType::IPV6);
        Some([&ethernet[..], &ip.to_bytes(), &header.to_bytes(), &body].concat())
    }
}

impl Net {
    /// A question or an answer of neighbour discovery; its checksum and hop limit were right.
    pub(super) fn receive_nd(&mut self, now: Duration, from: Ipv6Addr, message: &Icmpv6Slice<'_>) {
        match message.payload_slice() {
            Ok(Icmpv6PayloadSlice::NeighborSolicitation(question)) => {
                let mac = option(question.options_iterator(), |option| match option {
                    NdpOptionSlice::SourceLinkLayerAddress(option) => {
                        Some(option.link_layer_address())
                    }
                    _ => None,
                });
                self.receive_question(now, from, question.target_address(), mac);
            }
            Ok(Icmpv6PayloadSlice::NeighborAdvertisement(answer)) => {
                let mac = option(answer.options_iterator(), |option| match option {
                    NdpOptionSlice::TargetLinkLayerAddress(option) => {
                        Some(option.link_layer_address())
                    }
                    _ => None,
                });
                let target = IpAddr::V6(answer.target_address());
                if mac.is_some_and(|mac| self.neighbours.learn(now, target, mac)) {
                    self.counters.neighbours_heard += 1;
                }
            }
            Ok(_) => self.counters.foreign += 1,
            Err(_) => self.counters.malformed += 1,
        }
    }

    fn receive_question(
        &mut self,
        now: Duration,
        from: Ipv6Addr,
        target: Ipv6Addr,
        mac: Option<Mac>,
    ) {
        if IpAddr::V6(target) != self.own.ip() {
            self.counters.foreign += 1;
            return;
        }
        // Without an address the asker wants to take ours: all are told that it is taken.
        let (to, to_mac) = match mac {
            _ if from.is_unspecified() => (ALL_NODES, group_mac(ALL_NODES)),
            Some(mac) => (from, mac),
            None => {
                self.counters.malformed += 1;
                return;
            }
        };
        if mac.is_some_and(|mac| self.neighbours.learn(now, IpAddr::V6(from), mac)) {
            self.counters.neighbours_heard += 1;
        }
        let answer = Message {
            icmp_type: Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
                router: false,
                solicited: !from.is_unspecified(),
                r#override: true,
            }),
            target,
            option: TARGET_LINK_LAYER,
            mac: self.own_mac,
        };
        if let Some(frame) = answer.framed((self.own_mac, target), (to_mac, to)) {
            self.answer(now, &frame);
        }
    }
}

/// The MAC address in the first option that `find` knows; a station's, or none.
fn option<'a>(
    options: NdpOptionsIterator<'a>,
    find: impl Fn(NdpOptionSlice<'a>) -> Option<&'a [u8]>,
) -> Option<Mac> {
    let bytes = options.map_while(Result::ok).find_map(find)?;
    let mac: Mac = bytes.get(..6)?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}
