//! Each frame that comes out is taken apart by etherparse, which computes checksums on its own.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use plover_types::Offload;
use plover_types::offload::{
    GSO_ECN, GSO_NONE, GSO_TCP_IPV4, GSO_TCP_IPV6, GSO_UDP, NEEDS_CHECKSUM,
};
use proptest::prelude::*;

use super::sum::Sum;
use super::*;

const MTU: u16 = 1500;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Net {
    V4,
    V6,
    V6WithOptions,
}

#[derive(Clone, Debug)]
struct Shape {
    net: Net,
    udp: bool,
    vlans: usize,
    tcp_options: usize,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let nets = prop_oneof![Just(Net::V4), Just(Net::V6), Just(Net::V6WithOptions)];
    (nets, any::<bool>(), 0..3usize, 0..3usize).prop_map(|(net, udp, vlans, tcp_options)| Shape {
        net,
        udp,
        vlans,
        tcp_options,
    })
}

/// A packet as a guest's stack leaves it: the pseudo-header's sum where the checksum belongs.
fn packet(shape: &Shape, payload: &[u8]) -> (Vec<u8>, Offload) {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    // etherparse takes the tags and the extension headers by hand more easily than by builder.
    let mut tcp = TcpHeader::new(443, 50_000, 0xffff_ff00, 8192);
    tcp.acknowledgment_number = 77;
    (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, true, true);
    tcp.set_options_raw(&[1; 40][..4 * shape.tcp_options])
        .unwrap();
    let builder = match shape.net {
        Net::V4 => ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        Net::V6 | Net::V6WithOptions => ethernet.ipv6([0x20; 16], [0xfe; 16], 64),
    };
    let transport = if shape.udp {
        builder.udp(1000, 2000).write(&mut frame, payload).unwrap();
        8
    } else {
        let bytes = tcp.header_len();
        builder.tcp_header(tcp).write(&mut frame, payload).unwrap();
        bytes
    };
    let mut header_bytes = frame.len() - payload.len();
    if shape.net == Net::V6WithOptions {
        // Destination options: next header, length 0, a PadN option of 4 bytes.
        let options = [frame[20], 0, 1, 4, 0, 0, 0, 0];
        frame[20] = 60;
        frame.splice(54..54, options);
        let bytes = u16::from_be_bytes([frame[18], frame[19]]) + 8;
        frame[18..20].copy_from_slice(&bytes.to_be_bytes());
        header_bytes += 8;
    }
    for _ in 0..shape.vlans {
        frame.splice(12..12, [0x81, 0, 0, 5]);
        header_bytes += 4;
    }
    let start = header_bytes - transport;
    let offset = if shape.udp { 6 } else { 16 };
    let pseudo = pseudo_sum(&frame, shape, start);
    frame[start + offset..start + offset + 2].copy_from_slice(&pseudo);
    let offload = Offload {
        flags: NEEDS_CHECKSUM,
        gso_type: GSO_NONE,
        header_bytes: header_bytes as u16,
        gso_bytes: 0,
        checksum_start: start as u16,
        checksum_offset: offset as u16,
    };
    (frame, offload)
}

fn pseudo_sum(frame: &[u8], shape: &Shape, start: usize) -> [u8; 2] {
    let ip = 14 + 4 * shape.vlans;
    let addresses = match shape.net {
        Net::V4 => ip + 12..ip + 20,
        _ => ip + 8..ip + 40,
    };
    let [a, b] = Sum::default()
        .add(&frame[addresses])
        .add_word(if shape.udp { 17 } else { 6 })
        .add_word((frame.len() - start) as u16)
        .checksum();
    [!a, !b]
}

fn to_be_cut(shape: &Shape, mut offload: Offload, gso_bytes: u16) -> Offload {
    offload.gso_bytes = gso_bytes;
    offload.gso_type = match shape {
        Shape { udp: true, .. } => GSO_UDP,
        Shape { net: Net::V4, .. } => GSO_TCP_IPV4 | GSO_ECN,
        _ => GSO_TCP_IPV6 | GSO_ECN,
    };
    offload
}

/// Takes a frame apart; every checksum in it must be right. Returns IPv4's identification, the
/// TCP header, and the payload.
fn taken_apart(frame: &[u8]) -> (u16, Option<TcpHeader>, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    let transport = sliced.transport.expect("a transport header");
    let (id, tcp, udp) = match sliced.net.expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let addresses = (header.source, header.destination);
            let id = header.identification;
            match &transport {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp.calc_checksum_ipv4(addresses.0, addresses.1);
                    (id, Some((tcp.clone(), sum.unwrap())), None)
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv4_raw(
                        addresses.0,
                        addresses.1,
                        udp.payload(),
                    );
                    (id, None, Some((udp.clone(), sum.unwrap())))
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let addresses = (header.source, header.destination);
            match &transport {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp.calc_checksum_ipv6(addresses.0, addresses.1);
                    (0, Some((tcp.clone(), sum.unwrap())), None)
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv6_raw(
                        addresses.0,
                        addresses.1,
                        udp.payload(),
                    );
                    (0, None, Some((udp.clone(), sum.unwrap())))
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    if let Some((udp, sum)) = udp {
        assert_eq!(udp.checksum(), sum, "UDP checksum");
        assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
        return (id, None, udp.payload().to_vec());
    }
    let (tcp, sum) = tcp.expect("TCP or UDP");
    assert_eq!(tcp.checksum(), sum, "TCP checksum");
    (id, Some(tcp.to_header()), tcp.payload().to_vec())
}

fn check_cut(frame: &[u8], shape: &Shape, segments: &[Vec<u8>], payload: &[u8]) {
    let (first_id, first_tcp) = original(frame, shape);
    let mut joined = Vec::new();
    for (number, bytes) in segments.iter().enumerate() {
        let (id, tcp, part) = taken_apart(bytes);
        if shape.net == Net::V4 {
            assert_eq!(id, first_id.wrapping_add(number as u16));
        }
        if let Some(tcp) = tcp {
            let first = first_tcp.as_ref().unwrap();
            let sequence = first.sequence_number.wrapping_add(joined.len() as u32);
            assert_eq!(tcp.sequence_number, sequence);
            assert_eq!(tcp.acknowledgment_number, 77);
            let last = number + 1 == segments.len();
            assert_eq!((tcp.fin, tcp.psh, tcp.cwr), (last, last, number == 0));
            assert_eq!(tcp.options, first.options);
        }
        joined.extend_from_slice(&part);
    }
    assert_eq!(joined, payload);
}

fn original(frame: &[u8], shape: &Shape) -> (u16, Option<TcpHeader>) {
    let ip = 14 + 4 * shape.vlans;
    let id = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]);
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let tcp = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Some(tcp.to_header()),
        _ => None,
    };
    (id, tcp)
}

fn cut(frame: &[u8], offload: &Offload, mtu: u16) -> Result<Vec<Vec<u8>>, FinishError> {
    let mut room = vec![0; 70_000];
    let segments = Segments::new(frame, offload, mtu)?;
    assert!(segments.len() <= SEGMENTS_MAX);
    let frames = segments.map(|segment| {
        let bytes = segment.write_to(&mut room).expect("room");
        room[..bytes].to_vec()
    });
    Ok(frames.collect())
}

/// One's complement sum, as RFC 1071 has it.
fn slow_checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

proptest! {
    #[test]
    fn the_sum_is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(Sum::default().add(&bytes).checksum(), slow_checksum(&bytes));
    }

    #[test]
    fn a_finished_checksum_is_right(
        shape in shapes(),
        payload in proptest::collection::vec(any::<u8>(), 0..1400),
    ) {
        let (mut frame, offload) = packet(&shape, &payload);
        finish_checksum(&mut frame, &offload).unwrap();
        prop_assert_eq!(taken_apart(&frame).2, payload);
    }

    #[test]
    fn what_was_cut_joins_to_the_same(
        shape in shapes(),
        payload in proptest::collection::vec(any::<u8>(), 0..20_000),
        gso_bytes in 64u16..1360,
    ) {
        let (frame, offload) = packet(&shape, &payload);
        let offload = to_be_cut(&shape, offload, gso_bytes);
        let segments = cut(&frame, &offload, MTU).unwrap();
        prop_assert_eq!(segments.len(), payload.len().div_ceil(gso_bytes.into()).max(1));
        for segment in &segments {
            prop_assert!(segment.len() <= usize::from(MTU) + 14 + 4 * shape.vlans);
        }
        check_cut(&frame, &shape, &segments, &payload);
    }

    #[test]
    fn nothing_a_guest_writes_makes_it_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 0..2000),
        header in any::<[u8; 10]>(),
        mtu in any::<u16>(),
    ) {
        let offload = Offload::from_bytes(&header);
        let _ = cut(&frame, &offload, mtu);
        let _ = finish_checksum(&mut frame, &offload);
    }

    #[test]
    fn nor_a_packet_with_some_bytes_changed(
        shape in shapes(),
        payload in proptest::collection::vec(any::<u8>(), 0..3000),
        gso_bytes in 0u16..3000,
        changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        header_changes in proptest::collection::vec((0usize..10, any::<u8>()), 0..3),
        end in 0usize..200,
        mtu in any::<u16>(),
    ) {
        let (mut frame, offload) = packet(&shape, &payload);
        let mut header = to_be_cut(&shape, offload, gso_bytes).to_bytes();
        for (at, byte) in header_changes {
            header[at] = byte;
        }
        for (at, byte) in changes {
            if let Some(target) = frame.get_mut(at) {
                *target = byte;
            }
        }
        if end < 100 {
            frame.truncate(end);
        }
        let offload = Offload::from_bytes(&header);
        if let Ok(segments) = cut(&frame, &offload, mtu) {
            // What is accepted has right checksums, whatever it is.
            for segment in &segments {
                taken_apart(segment);
            }
        }
        let _ = finish_checksum(&mut frame, &offload);
    }
}

#[test]
fn a_tcp_packet_is_cut_smaller_where_the_port_sends_less() {
    let shape = Shape {
        net: Net::V4,
        udp: false,
        vlans: 0,
        tcp_options: 0,
    };
    let payload = [7; 9000];
    let (frame, offload) = packet(&shape, &payload);
    let offload = to_be_cut(&shape, offload, 8960);
    let segments = cut(&frame, &offload, MTU).unwrap();
    assert_eq!(segments.len(), 9000usize.div_ceil(1460));
    check_cut(&frame, &shape, &segments, &payload);
}

#[test]
fn a_datagram_is_not() {
    let shape = Shape {
        net: Net::V4,
        udp: true,
        vlans: 0,
        tcp_options: 0,
    };
    let (frame, offload) = packet(&shape, &[7; 9000]);
    let offload = to_be_cut(&shape, offload, 1473);
    let error = cut(&frame, &offload, MTU).unwrap_err();
    assert_eq!(
        error,
        FinishError::TooLong {
            bytes: 1501,
            mtu: 1500
        }
    );
}

#[test]
fn a_udp_checksum_of_0_is_written_in_its_other_form() {
    let shape = Shape {
        net: Net::V4,
        udp: true,
        vlans: 0,
        tcp_options: 0,
    };
    // The word that makes the sum come out as all ones.
    let found = (0..=u16::MAX).find(|word| {
        let (mut frame, offload) = packet(&shape, &word.to_be_bytes());
        finish_checksum(&mut frame, &offload).unwrap();
        frame[40..42] == [0xff, 0xff]
    });
    let (frame, offload) = packet(&shape, &found.expect("one word does").to_be_bytes());
    let segments = cut(&frame, &to_be_cut(&shape, offload, 2), MTU).unwrap();
    assert_eq!(segments[0][40..42], [0xff, 0xff]);
    taken_apart(&segments[0]);
}

#[test]
fn what_does_not_fit_together_is_named() {
    let v4 = Shape {
        net: Net::V4,
        udp: false,
        vlans: 1,
        tcp_options: 0,
    };
    let (frame, offload) = packet(&v4, &[7; 3000]);
    let good = to_be_cut(&v4, offload, 1000);
    type Change = fn(&mut Vec<u8>, &mut Offload);
    let table: [(&str, Change); 16] = [
        ("gso type 0x03 is not offered", |_, o| o.gso_type = 3),
        ("gso type 0x85 is not offered", |_, o| {
            o.gso_type = GSO_UDP | GSO_ECN;
        }),
        ("does not ask for checksums", |_, o| o.flags = 0),
        ("segments of 0 bytes", |_, o| o.gso_bytes = 0),
        ("cut into 3000 segments", |_, o| o.gso_bytes = 1),
        ("headers of 4000 bytes", |_, o| o.header_bytes = 4000),
        ("for a header at 38", |_, o| o.checksum_start = 34),
        ("for a header at 38", |_, o| o.checksum_offset = 6),
        ("IP version 4", |_, o| o.gso_type = GSO_TCP_IPV6),
        ("ether type 0x0806", |f, _| f[17] = 6),
        ("IP version 6", |f, _| f[18] = 0x65),
        ("a IPv4 header of 16 bytes", |f, _| f[18] = 0x44),
        ("a fragment", |f, _| f[24] = 0x20),
        ("IP protocol 17", |f, _| f[27] = 17),
        ("says 3041 bytes where 3040 are", |f, _| f[21] += 1),
        ("a TCP header of 16 bytes", |f, _| f[50] = 0x40),
    ];
    for (expected, change) in table {
        let (mut frame, mut offload) = (frame.clone(), good);
        change(&mut frame, &mut offload);
        let error = cut(&frame, &offload, MTU).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
    let mut short = frame[..60].to_vec();
    let outside = finish_checksum(
        &mut short,
        &Offload {
            checksum_start: 50,
            ..good
        },
    );
    assert!(matches!(outside, Err(FinishError::ChecksumPlace { .. })));
    let before = finish_checksum(
        &mut short,
        &Offload {
            checksum_start: 13,
            ..good
        },
    );
    assert!(matches!(before, Err(FinishError::ChecksumPlace { .. })));
}
