//! Who has which IPv4 address: ARP, asked and answered.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType};

use super::{Mac, Net, frame};

const BROADCAST: Mac = [0xff; 6];

/// Bytes of such a frame; a link that needs longer ones pads it.
const FRAME_BYTES: usize = 14 + ArpEthIpv4Packet::LEN;

/// Asks for `hop`: its last known station, or all.
pub(super) fn question(
    (own_mac, own): (Mac, Ipv4Addr),
    hop: Ipv4Addr,
    last_known: Option<Mac>,
) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: own_mac,
        sender_ipv4: own.octets(),
        target_mac: [0; 6],
        target_ipv4: hop.octets(),
    };
    framed(own_mac, last_known.unwrap_or(BROADCAST), &packet)
}

fn framed(from: Mac, to: Mac, packet: &ArpEthIpv4Packet) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    frame.extend_from_slice(&frame::ethernet(from, to, EtherType::ARP));
    frame.extend_from_slice(&packet.to_bytes());
    frame
}

impl Net {
    /// An ARP packet: learns where a next hop is, and answers who asks for us.
    pub(super) fn receive_arp(&mut self, now: Duration, packet: &[u8]) {
        let IpAddr::V4(own) = self.own.ip() else {
            self.counters.foreign += 1;
            return;
        };
        let parsed = ArpPacketSlice::from_slice(packet)
            .ok()
            .and_then(|packet| packet.to_packet().try_eth_ipv4().ok());
        let Some(packet) = parsed else {
            self.counters.malformed += 1;
            return;
        };
        let is_station = packet.sender_mac[0] & 1 == 0 && packet.sender_mac != [0; 6];
        let sender = IpAddr::V4(packet.sender_ipv4_addr());
        if is_station && self.neighbours.learn(now, sender, packet.sender_mac) {
            self.counters.neighbours_heard += 1;
        }
        let is_asked = packet.operation == ArpOperation::REQUEST
            && packet.target_ipv4_addr() == own
            && is_station;
        if is_asked {
            let answer = ArpEthIpv4Packet {
                operation: ArpOperation::REPLY,
                sender_mac: self.own_mac,
                sender_ipv4: own.octets(),
                target_mac: packet.sender_mac,
                target_ipv4: packet.sender_ipv4,
            };
            self.answer(now, &framed(self.own_mac, packet.sender_mac, &answer));
        }
    }

    pub(super) fn answer(&mut self, now: Duration, frame: &[u8]) {
        if self.answers.allows(now) && self.outbox.push(frame) {
            self.counters.questions_answered += 1;
        } else {
            self.counters.answers_withheld += 1;
        }
    }
}
