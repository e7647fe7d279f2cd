//! Byte forms: what is encoded is decoded, anything else is an error by name.

use plover_types::PageIndex;
use proptest::prelude::*;

use super::*;

const SYNC: SyncId = SyncId(LogIndex(42));

fn samples() -> Vec<Message> {
    let scattered: PageSet = (0..400).step_by(3).map(PageIndex).collect();
    let runs: PageSet = (1000..3000).map(PageIndex).collect();
    vec![
        Message::Hello {
            group: "g0".to_owned(),
            node: NodeId(2),
        },
        Message::Key(CertificateKey([9; KEY_BYTES])),
        Message::Begin(Begin {
            kind: SyncKind::Fill,
            whole: true,
            base: Some(SyncId(LogIndex(3))),
            map: vec![(0, 100), (200, 4)],
            slice_cursor: 5,
            slice_pages: 6,
        }),
        Message::Pages(WireSet::All),
        Message::Pages(WireSet::Pages(scattered)),
        Message::Ask(WireSet::Pages(runs)),
        Message::Digests(vec![PageDigest(1), PageDigest(2)]),
        Message::BlockDigests(Bytes::from_static(&[1; 128])),
        Message::Blocks(Bytes::from_static(b"records")),
        Message::State(Bytes::from_static(b"state")),
        Message::Seal(Seal {
            position: Position {
                index: LogIndex(41),
                packet: 3,
            },
            certificate: Certificate([1; 16]),
            state_tag: StateTag([2; 16]),
            state_bytes: 5,
            records: 7,
        }),
        Message::Done,
        Message::Abort {
            code: AbortCode::Mismatch,
            reason: "no".to_owned(),
        },
    ]
}

fn decode(header: &[u8], payload: &Bytes) -> Result<Message, ProtocolError> {
    let header = FrameHeader::decode(header.try_into().expect("length"))?;
    header.message(payload.clone())
}

#[test]
fn messages_survive_their_byte_form() {
    for message in samples() {
        let (header, payload) = message.encode(SYNC);
        assert_eq!(decode(&header, &payload), Ok(message));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for message in samples() {
        let (header, payload) = message.encode(SYNC);
        for bit in 0..(header.len() + payload.len()) * 8 {
            let mut bytes = [&header[..], &payload[..]].concat();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let payload = Bytes::copy_from_slice(&bytes[HEADER_BYTES..]);
            assert!(
                decode(&bytes[..HEADER_BYTES], &payload).is_err(),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn what_is_wrong_with_a_header_is_named() {
    let (good, _) = Message::Done.encode(SYNC);
    let with = |at: usize, value: u8| {
        let mut bytes: [u8; HEADER_BYTES] = good[..].try_into().expect("length");
        bytes[at] = value;
        let checksum = crc32c::crc32c(&bytes[..CHECKED_HEADER_BYTES]);
        bytes[CHECKED_HEADER_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        FrameHeader::decode(&bytes).map(|_| ())
    };
    assert_eq!(with(0, good[0]), Ok(()));
    assert!(matches!(with(0, 0), Err(ProtocolError::Magic(_))));
    assert_eq!(with(4, 9), Err(ProtocolError::Version(9)));
    assert_eq!(with(6, 99), Err(ProtocolError::Kind(99)));
    assert!(matches!(with(19, 0xff), Err(ProtocolError::Long(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_decode_panic(
        kind in 0u16..16,
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut header = BytesMut::new();
        header.put_u32_le(MAGIC);
        header.put_u16_le(VERSION);
        header.put_u16_le(kind);
        header.put_u64_le(1);
        header.put_u32_le(payload.len() as u32);
        header.put_u32_le(crc32c::crc32c(&payload));
        header.put_u32_le(crc32c::crc32c(&header));
        let payload = Bytes::from(payload);
        if let Ok(message) = decode(&header, &payload) {
            let again = message.encode(SyncId(LogIndex(1)));
            prop_assert_eq!(decode(&again.0, &again.1), Ok(message));
        }
    }
}
