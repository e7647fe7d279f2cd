//! Tells the network where the guest's addresses are now: after a takeover the switch still sends
//! to the old host. RARP moves the MAC; gratuitous ARP and an unsolicited neighbour advertisement
//! refresh the addresses that were learned from the guest's own frames.

use std::time::Duration;

use arrayvec::ArrayVec;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, PacketBuilder,
};

use crate::limits::LEARNED_ADDRESSES_MAX;

/// After the takeover, when the announcement is sent: at once, and again in case it was lost.
pub const SEND_AFTER: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];

const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes on the link (RFC 4291, 2.7.1).
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Reverse ARP (RFC 903).
const ETHERTYPE_RARP: EtherType = EtherType(0x8035);
const RARP_REQUEST: ArpOperation = ArpOperation(3);
/// Neighbour advertisement (RFC 4861, 4.4), its override flag, and the option that follows.
const ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];
/// Neighbour discovery is only accepted with this hop limit.
const HOP_LIMIT: u8 = 255;

/// Addresses that the guest was seen to use.
#[derive(Debug, Default)]
pub struct Learned {
    ipv4: ArrayVec<[u8; 4], LEARNED_ADDRESSES_MAX>,
    ipv6: ArrayVec<[u8; 16], LEARNED_ADDRESSES_MAX>,
}

impl Learned {
    /// Looks at a frame that the guest sent. Cheap: most frames are told apart by two bytes.
    pub fn look_at(&mut self, frame: &[u8]) {
        match frame.get(12..14) {
            // ARP for IPv4 over Ethernet: the sender's address at 28.
            Some([0x08, 0x06]) => {
                if let Some(sender) = frame.get(28..32).and_then(|slice| slice.try_into().ok())
                    && frame[14..20] == [0, 1, 8, 0, 6, 4]
                    && sender != [0; 4]
                {
                    insert(&mut self.ipv4, sender);
                }
            }
            // IPv6: the source at 22. Only unicast is a place.
            Some([0x86, 0xdd]) => {
                let source = frame
                    .get(22..38)
                    .and_then(|slice| <[u8; 16]>::try_from(slice).ok());
                if let Some(source) = source
                    && source != [0; 16]
                    && source[0] != 0xff
                {
                    insert(&mut self.ipv6, source);
                }
            }
            _ => {}
        }
    }

    /// Gives each frame of an announcement to `send`.
    pub fn frames(&self, mac: [u8; 6], mut send: impl FnMut(&[u8])) {
        let arp = |ether_type, operation, address: [u8; 4]| {
            let packet = ArpPacket::new(
                ArpHardwareId::ETHERNET,
                EtherType::IPV4,
                operation,
                &mac,
                &address,
                &mac,
                &address,
            );
            let header = Ethernet2Header {
                source: mac,
                destination: BROADCAST,
                ether_type,
            };
            packet.map(|packet| [&header.to_bytes()[..], &packet.to_bytes()[..]].concat())
        };
        // The lengths are constants that ArpPacket accepts, so none of these is an error.
        if let Ok(frame) = arp(ETHERTYPE_RARP, RARP_REQUEST, [0; 4]) {
            send(&frame);
        }
        for address in &self.ipv4 {
            if let Ok(frame) = arp(EtherType::ARP, ArpOperation::REQUEST, *address) {
                send(&frame);
            }
        }
        for address in &self.ipv6 {
            let payload = [&address[..], &TARGET_LINK_LAYER, &mac].concat();
            let builder = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
                .ipv6(*address, ALL_NODES, HOP_LIMIT)
                .icmpv6_raw(ADVERTISEMENT, 0, [OVERRIDE, 0, 0, 0]);
            let mut frame = Vec::with_capacity(builder.size(payload.len()));
            if builder.write(&mut frame, &payload).is_ok() {
                send(&frame);
            }
        }
    }
}

fn insert<T: PartialEq>(list: &mut ArrayVec<T, LEARNED_ADDRESSES_MAX>, address: T) {
    if !list.contains(&address) {
        // A guest with more addresses than fit refreshes the others by its own traffic.
        let _ = list.try_push(address);
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket};

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn frames(learned: &Learned) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        learned.frames(MAC, |frame| frames.push(frame.to_vec()));
        frames
    }

    #[test]
    fn the_mac_is_always_announced() {
        let frames = frames(&Learned::default());
        assert_eq!(frames.len(), 1);
        assert_eq!(
            frames[0][..14],
            [&BROADCAST[..], &MAC, &[0x80, 0x35]].concat()
        );
        assert_eq!(frames[0].len(), 42);
    }

    #[test]
    fn addresses_are_learned_from_arp_and_ipv6_and_announced() {
        let mut learned = Learned::default();
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REPLY,
            &MAC,
            &[10, 78, 0, 2],
            &[2; 6],
            &[10, 78, 0, 1],
        )
        .expect("valid");
        let header = Ethernet2Header {
            source: MAC,
            destination: [2; 6],
            ether_type: EtherType::ARP,
        };
        let seen = [&header.to_bytes()[..], &arp.to_bytes()[..]].concat();
        learned.look_at(&seen);
        learned.look_at(&seen);
        let source = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        let mut seen = Vec::new();
        PacketBuilder::ethernet2(MAC, [2; 6])
            .ipv6(source, [0xfd; 16], 64)
            .udp(1, 2)
            .write(&mut seen, &[])
            .expect("valid");
        learned.look_at(&seen);
        let frames = frames(&learned);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1][28..32], [10, 78, 0, 2]);
        let sliced = SlicedPacket::from_ethernet(&frames[2]).expect("a valid frame");
        let Some(NetSlice::Ipv6(ip)) = sliced.net else {
            panic!("no IPv6")
        };
        assert_eq!(ip.header().source(), source);
        assert_eq!(ip.header().hop_limit(), 255);
    }

    #[test]
    fn cut_frames_teach_nothing() {
        let mut learned = Learned::default();
        for length in 0..42 {
            let mut frame = vec![0u8; length];
            if length >= 14 {
                frame[12..14].copy_from_slice(&[0x08, 0x06]);
            }
            learned.look_at(&frame);
            if length >= 14 {
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            }
            learned.look_at(&frame);
        }
        assert_eq!(frames(&learned).len(), 1);
    }
}
