//! Which queue pair a frame goes to: by its flow, so that a flow's packets stay in order and a
//! guest's vCPUs share the work.

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// "More fragments", or an offset: ports are in the first fragment only.
const FRAGMENT: u16 = 0x3fff;

/// Bytes of addresses and ports that a flow is told by.
const KEY_BYTES_MAX: usize = 2 * 16 + 4;

/// The pair for `frame`, of `pairs` that run. Frames that are no IP go to the first.
#[inline]
pub(super) fn pair_of(frame: &[u8], pairs: u8) -> u8 {
    if pairs <= 1 {
        return 0;
    }
    let hash = key_of(frame).map_or(0, hash);
    // The high bits are the well mixed ones.
    ((u64::from(hash) * u64::from(pairs)) >> u32::BITS) as u8
}

/// Addresses and, of whole TCP and UDP packets, ports.
fn key_of(frame: &[u8]) -> Option<&[u8]> {
    let (addresses, protocol, is_fragment) = match u16_at(frame, 12)? {
        IPV4 if frame.get(14)? & 0xf == 5 => {
            let is_fragment = u16_at(frame, 20)? & FRAGMENT != 0;
            (26..34, *frame.get(23)?, is_fragment)
        }
        IPV6 => (22..54, *frame.get(20)?, false),
        _ => return None,
    };
    let has_ports = matches!(protocol, TCP | UDP) && !is_fragment;
    let end = if has_ports {
        addresses.end + 4
    } else {
        addresses.end
    };
    frame.get(addresses.start..end)
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A multiplicative hash. Who can choose addresses and ports can choose a pair: it gains nothing.
fn hash(key: &[u8]) -> u32 {
    debug_assert!(key.len() <= KEY_BYTES_MAX);
    let mixed = key.chunks(4).fold(0_u64, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from(u32::from_le_bytes(word))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (mixed >> u32::BITS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(port: u16) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&IPV4.to_be_bytes());
        frame[14] = 0x45;
        frame[23] = UDP;
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn flows_are_spread_and_a_flow_stays_where_it_is() {
        let mut counts = [0; 4];
        for port in 0..1000 {
            let pair = pair_of(&udp(port), 4);
            assert_eq!(pair, pair_of(&udp(port), 4));
            counts[usize::from(pair)] += 1;
        }
        assert!(
            counts.iter().all(|count| (150..350).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn fragments_go_by_their_addresses() {
        for port in 0..100 {
            let mut first = udp(port);
            first[20] = 0x20;
            let mut later = udp(7);
            later[21] = 9;
            assert_eq!(pair_of(&first, 8), pair_of(&later, 8));
        }
    }

    #[test]
    fn a_frame_cut_anywhere_goes_somewhere() {
        for frame in [udp(80), [&udp(0)[..12], &[0x86, 0xdd], &[9; 60]].concat()] {
            for end in 0..frame.len() {
                assert!(pair_of(&frame[..end], 3) < 3);
            }
        }
        assert_eq!(pair_of(&[0xff; 60], 8), 0, "no IP");
    }
}
