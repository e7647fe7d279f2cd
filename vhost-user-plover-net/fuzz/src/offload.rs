//! Checksums to be finished and packets to be cut, with frame and header both a guest's. Either
//! it is refused, or the frames are whole: within the MTU, with checksums that add up to nothing,
//! and with all of the packet's payload in order.

use plover_types::Offload;
use plover_types::limits::PACKET_BYTES_MAX;
use vhost_user_plover_net::offload::{SEGMENTS_MAX, Segments, finish_checksum};

use crate::input::Input;

const ETHERNET_BYTES: usize = 14;
/// Lengths of the IP packet at which something changes.
const LENGTHS: [usize; 6] = [20, 60, 1500, 1501, 9000, 65_535];

/// Finishes and cuts the packet that `data` describes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut header = [0; 10];
    let given = input.bytes(header.len());
    header[..given.len()].copy_from_slice(given);
    let mut offload = Offload::from_bytes(&header);
    let mtu = input.u16();
    let frame = if input.u8().is_multiple_of(4) {
        let count = input.below(4096);
        input.bytes(count).to_vec()
    } else {
        plausible(&mut input, &mut offload)
    };
    check_checksum(&frame, &offload);
    check_segments(&frame, &offload, mtu);
}

/// A frame with headers that are nearly right, and an offload that nearly fits it.
fn plausible(input: &mut Input<'_>, offload: &mut Offload) -> Vec<u8> {
    let shape = input.u8();
    let mut frame = vec![0x52; 12];
    for _ in 0..shape >> 6 {
        frame.extend([0x81, 0, 0, 1]);
    }
    let (ip_bytes, is_ipv6, is_tcp) = (packet_bytes(input), shape & 1 != 0, shape & 2 != 0);
    frame.extend(if is_ipv6 { [0x86, 0xdd] } else { [8, 0] });
    let ip_at = frame.len();
    let protocol = if is_tcp { 6 } else { 17 };
    if is_ipv6 {
        let payload = (ip_bytes.saturating_sub(40) as u16).to_be_bytes();
        frame.extend([0x60, 0, 0, 0, payload[0], payload[1], protocol, 64]);
        frame.extend([0x20; 32]);
    } else {
        let total = (ip_bytes as u16).to_be_bytes();
        frame.extend([0x45, 0, total[0], total[1], 0, 9, 0, 0, 64, protocol, 0, 0]);
        frame.extend([10; 8]);
    }
    let transport_at = frame.len();
    frame.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0, 9, 0, 0, 0, 0,
    ]);
    if !is_tcp {
        let udp = (ip_at + ip_bytes).saturating_sub(transport_at) as u16;
        frame[transport_at + 4..transport_at + 6].copy_from_slice(&udp.to_be_bytes());
    }
    let filler = input.u8();
    frame.resize((ip_at + ip_bytes).min(PACKET_BYTES_MAX), filler);
    if shape & 4 == 0 {
        offload.flags = 1;
        offload.gso_type = match (is_tcp, is_ipv6) {
            (true, false) => 1,
            (true, true) => 4,
            _ => 5,
        };
        offload.checksum_start = transport_at as u16;
        offload.checksum_offset = if is_tcp { 16 } else { 6 };
        offload.header_bytes = (transport_at + if is_tcp { 20 } else { 8 }) as u16;
    }
    for _ in 0..input.below(6) {
        let at = usize::from(input.u8()).min(frame.len() - 1);
        frame[at] = input.u8();
    }
    frame
}

fn packet_bytes(input: &mut Input<'_>) -> usize {
    match input.u8() {
        choice if usize::from(choice) < LENGTHS.len() => LENGTHS[usize::from(choice)],
        _ => usize::from(input.u16()),
    }
}

fn check_checksum(frame: &[u8], offload: &Offload) {
    let mut finished = frame.to_vec();
    match finish_checksum(&mut finished, offload) {
        Err(_) => assert_eq!(finished, frame, "refused, and changed"),
        Ok(()) if offload.needs_checksum() => {
            let field = usize::from(offload.checksum_start) + usize::from(offload.checksum_offset);
            let changed = finished.iter().zip(frame).enumerate();
            for (at, (now, then)) in changed {
                assert!(now == then || (field..field + 2).contains(&at), "byte {at}");
            }
        }
        Ok(()) => assert_eq!(finished, frame, "nobody asked"),
    }
}

fn check_segments(frame: &[u8], offload: &Offload, mtu: u16) {
    let Ok(segments) = Segments::new(frame, offload, mtu) else {
        return;
    };
    let mut payload = Vec::new();
    let mut count = 0;
    let mut headers_bytes = 0;
    let mut room = vec![0; PACKET_BYTES_MAX + 1];
    for segment in segments {
        count += 1;
        assert!(count <= SEGMENTS_MAX, "more frames than one packet may be");
        let written = segment.write_to(&mut room).expect("room for any packet");
        assert_eq!(written, segment.frame_bytes());
        assert!(segment.write_to(&mut room[..written - 1]).is_none());
        // Two VLAN tags don't count.
        assert!(
            written <= usize::from(mtu) + ETHERNET_BYTES + 8,
            "longer than the MTU"
        );
        headers_bytes = segment.headers().len();
        payload.extend_from_slice(segment.payload());
    }
    assert!(count > 0, "a packet is at least one frame");
    assert_eq!(payload, frame[headers_bytes..], "payload lost or moved");
}
