//! Which queue pair a packet from the uplink is for: chosen once, when it is admitted, and then
//! part of the log. All packets of a connection go to one pair, those of either direction to the
//! same, so that a guest that steers its connections by the pair they came on keeps them there.

/// Packets of one flow have one hash; it is the same in both directions and on every host.
///
/// IP over Ethernet, with or without a VLAN tag, by its addresses, its protocol and, for TCP and UDP
/// packets that are no fragments, its ports. Anything else is one flow.
#[must_use]
pub fn flow_hash(frame: &[u8]) -> u32 {
    let (ether_type, packet) = match frame.get(12..14) {
        Some([0x81, 0x00]) => (frame.get(16..18), frame.get(18..)),
        ether_type => (ether_type, frame.get(14..)),
    };
    let packet = packet.unwrap_or_default();
    match ether_type {
        Some([0x08, 0x00]) => hash_ipv4(packet),
        Some([0x86, 0xdd]) => hash_ipv6(packet),
        _ => 0,
    }
}

/// The pair of `pairs` that a packet is for.
#[inline]
#[must_use]
pub fn pair_of(frame: &[u8], pairs: usize) -> u8 {
    if pairs <= 1 {
        return 0;
    }
    // The high bits are the mixed ones; the product's upper half is below `pairs`, a u8.
    ((u64::from(flow_hash(frame)) * pairs as u64) >> 32) as u8
}

fn hash_ipv4(packet: &[u8]) -> u32 {
    let Some(header) = packet.first_chunk::<20>() else {
        return 0;
    };
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    // "More fragments", or an offset: the ports are in another fragment.
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let ports = match packet.get(header_bytes..) {
        Some(transport) if !is_fragment => ports_of(header[9], transport),
        _ => 0,
    };
    mix(word(12) ^ word(16), ports, header[9])
}

fn hash_ipv6(packet: &[u8]) -> u32 {
    let Some((header, transport)) = packet.split_first_chunk::<40>() else {
        return 0;
    };
    let addresses = header[8..]
        .as_chunks::<4>()
        .0
        .iter()
        .fold(0, |all, word| all ^ u32::from_be_bytes(*word));
    // Behind extension headers the ports are not looked for: those packets stay together, too.
    mix(addresses, ports_of(header[6], transport), header[6])
}

/// Both ports as one number that is the same in either direction; 0 where there are none.
fn ports_of(protocol: u8, transport: &[u8]) -> u32 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    match transport.first_chunk::<4>() {
        Some([a, b, c, d]) if protocol == TCP || protocol == UDP => {
            let (from, to) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            u32::from(from.min(to)) << 16 | u32::from(from.max(to))
        }
        _ => 0,
    }
}

/// Spreads what differs in a few low bits over the high ones (the finalizer of `MurmurHash3`).
fn mix(addresses: u32, ports: u32, protocol: u8) -> u32 {
    let mut hash = addresses.wrapping_mul(0x9e37_79b1) ^ ports.rotate_left(5) ^ u32::from(protocol);
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(from.0, to.0, 64)
            .udp(from.1, to.1);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 8]).expect("a valid packet");
        frame
    }

    fn tcp6(from: ([u8; 16], u16), to: ([u8; 16], u16)) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(from.0, to.0, 64)
            .tcp(from.1, to.1, 7, 1000);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 8]).expect("a valid packet");
        frame
    }

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn both_directions_of_a_connection_go_together() {
        let (there, back) = (udp((A, 4000), (B, 53)), udp((B, 53), (A, 4000)));
        assert_eq!(flow_hash(&there), flow_hash(&back));
        let (a, b) = ([1; 16], [2; 16]);
        let (there, back) = (tcp6((a, 4000), (b, 80)), tcp6((b, 80), (a, 4000)));
        assert_eq!(flow_hash(&there), flow_hash(&back));
    }

    #[test]
    fn a_tag_and_the_payload_do_not_matter_and_the_hash_never_changes() {
        let plain = udp((A, 4000), (B, 53));
        let mut tagged = plain.clone();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
        let mut other = plain.clone();
        *other.last_mut().expect("bytes") = 9;
        assert_eq!(flow_hash(&plain), flow_hash(&tagged));
        assert_eq!(flow_hash(&plain), flow_hash(&other));
        // The primary of tomorrow's release must choose alike.
        assert_eq!(flow_hash(&plain), 0x2ce5_7ab0);
    }

    #[test]
    fn fragments_of_a_packet_go_together() {
        let mut first = udp((A, 4000), (B, 53));
        first[14 + 6] |= 0x20;
        let mut second = udp((A, 1), (B, 2));
        second[14 + 7] = 185;
        assert_eq!(flow_hash(&first), flow_hash(&second));
    }

    #[test]
    fn connections_spread_over_the_pairs() {
        for pairs in 2..=8 {
            let mut counts = [0; 8];
            for port in 0..4000 {
                let frame = udp((A, 10_000 + port), (B, 443));
                counts[usize::from(pair_of(&frame, pairs))] += 1;
            }
            let fair = 4000 / pairs;
            let counts = &counts[..pairs];
            assert!(
                counts
                    .iter()
                    .all(|count| count * 2 > fair && *count < 2 * fair),
                "{counts:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_pair(
            frame in proptest::collection::vec(any::<u8>(), 0..100),
            pairs in 0..=8_usize,
        ) {
            prop_assert!(usize::from(pair_of(&frame, pairs)) < pairs.max(1));
        }
    }
}
