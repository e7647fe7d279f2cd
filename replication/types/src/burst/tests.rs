//! The packets of an entry: what is built is read again, and nothing else is.

use proptest::prelude::*;

use super::*;
use crate::LogEntry;
use crate::offload::{GSO_TCP_IPV4, NEEDS_CHECKSUM, OffloadError};

const TCP: Offload = Offload {
    flags: NEEDS_CHECKSUM,
    gso_type: GSO_TCP_IPV4,
    header_bytes: 54,
    gso_bytes: 1460,
    checksum_start: 34,
    checksum_offset: 16,
};

fn burst(packets: &[(u8, Offload, &[u8])]) -> PacketBurst {
    let mut builder = PacketBurstBuilder::new();
    for (pair, offload, packet) in packets {
        builder.push(*pair, *offload, packet).expect("valid");
    }
    builder.finish().expect("not empty")
}

fn decoded(bytes: impl Into<Bytes>) -> Result<PacketBurst, EntryError> {
    match LogEntry::decode(&bytes.into())? {
        LogEntry::Input(burst) => Ok(burst),
        other => panic!("{other:?} is not an input entry"),
    }
}

#[test]
fn a_burst_keeps_packets_pairs_and_offloads_in_order() {
    let (first, second) = ([1u8; 14], [2u8; 9000]);
    let burst = burst(&[(0, Offload::PLAIN, &first), (7, TCP, &second)]);
    let read = decoded(burst.encoded().clone()).expect("valid");
    let packets: Vec<_> = read.iter().collect();
    assert_eq!(
        packets,
        [
            Packet {
                pair: 0,
                offload: Offload::PLAIN,
                bytes: &first
            },
            Packet {
                pair: 7,
                offload: TCP,
                bytes: &second
            },
        ]
    );
    assert_eq!(read.len(), 2);
}

#[test]
fn a_plain_packet_costs_five_bytes() {
    let burst = burst(&[(0, Offload::PLAIN, &[9; 60])]);
    assert_eq!(burst.encoded().len(), BURST_HEADER_BYTES + 5 + 60);
}

#[test]
fn what_does_not_fit_starts_the_next_entry() {
    let mut builder = PacketBurstBuilder::new();
    for _ in 0..ENTRY_PACKETS_MAX + 1 {
        builder.push(0, Offload::PLAIN, &[0; 60]).expect("valid");
    }
    for number in 0..5 {
        builder
            .push(1, TCP, &[number; PACKET_BYTES_MAX])
            .expect("valid");
    }
    assert_eq!(builder.len(), ENTRY_PACKETS_MAX + 6);
    let entries: Vec<_> = std::iter::from_fn(|| builder.finish()).collect();
    let counts: Vec<_> = entries.iter().map(PacketBurst::len).collect();
    assert_eq!(counts, [ENTRY_PACKETS_MAX, 3, 2, 1]);
    for entry in &entries {
        assert!(decoded(entry.encoded().clone()).is_ok());
    }
    assert!(builder.is_empty());
    assert!(builder.finish().is_none());
}

#[test]
fn a_builder_names_what_an_entry_cannot_hold() {
    let mut builder = PacketBurstBuilder::new();
    let mut refused = |pair, offload, packet: &[u8]| {
        builder
            .push(pair, offload, packet)
            .expect_err("no entry holds it")
    };
    let length = |value| field("packet length", value);
    assert_eq!(refused(0, Offload::PLAIN, &[0; 13]), length(13));
    assert_eq!(
        refused(0, Offload::PLAIN, &[0; PACKET_BYTES_MAX + 1]),
        length(PACKET_BYTES_MAX as u64 + 1)
    );
    assert_eq!(
        refused(QUEUE_PAIRS_MAX, Offload::PLAIN, &[0; 60]),
        field("queue pair", QUEUE_PAIRS_MAX.into())
    );
    assert!(matches!(
        refused(0, TCP, &[0; 51]),
        EntryError::Offload {
            packet: 0,
            source: OffloadError::Checksum { .. }
        }
    ));
    assert!(builder.is_empty());
}

#[test]
fn fields_of_an_entry_are_checked_by_name() {
    let good = burst(&[(1, Offload::PLAIN, &[5; 20]), (0, TCP, &[6; 60])]);
    let second = BURST_HEADER_BYTES + PACKET_HEADER_BYTES + 20;
    let with = |at: usize, value: u8| {
        let mut bytes = good.encoded().to_vec();
        bytes[at] = value;
        decoded(bytes).expect_err("a field is wrong")
    };
    assert_eq!(with(1, 0), field("packet count", 0));
    assert_eq!(with(1, 129), field("packet count", 129));
    assert_eq!(with(1, 1), EntryError::Trailing(15 + 60));
    assert!(matches!(with(1, 3), EntryError::Short { .. }));
    assert_eq!(with(2, 8), field("queue pair", 8));
    assert_eq!(with(3, 13), field("packet length", 13));
    assert_eq!(with(6, 1), field("packet length", (1 << 24) + 20));
    let flags = second + PACKET_HEADER_BYTES;
    assert_eq!(
        with(flags, 4),
        EntryError::Offload {
            packet: 1,
            source: OffloadError::Flags(4)
        }
    );
    assert!(matches!(
        with(flags + 6, 60),
        EntryError::Offload {
            packet: 1,
            source: OffloadError::Checksum { start: 60, .. }
        }
    ));
    let mut plain = good.encoded().to_vec();
    plain[flags..flags + OFFLOAD_BYTES].fill(0);
    assert_eq!(decoded(plain), Err(field("offload of a plain packet", 1)));
}

#[test]
fn an_entry_cut_anywhere_is_refused() {
    let good = burst(&[(1, Offload::PLAIN, &[5; 20]), (0, TCP, &[6; 60])]);
    for length in 1..good.encoded().len() {
        assert!(
            decoded(good.encoded().slice(..length)).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn a_stub_is_no_entry_and_shows_only_what_it_has() {
    let mut builder = PacketBurstBuilder::new();
    builder.push(2, TCP, &[1; 60]).expect("valid");
    for bytes in [14, PACKET_BYTES_MAX] {
        let header = header(1, Offload::PLAIN, bytes);
        builder.push_kept(header).expect("valid");
    }
    let stub = builder.finish().expect("not empty");
    assert!(stub.is_stub() && LogEntry::is_stub(stub.encoded()));
    assert!(LogEntry::is_input(stub.encoded()));
    assert_eq!((stub.len(), stub.kept_packets()), (3, 2));
    assert_eq!(stub.iter().count(), 1);
    let refused = LogEntry::decode(stub.encoded());
    assert_eq!(refused, Err(EntryError::Kind(KIND_STUB)));
    // Nor does it become one under the kind of an entry.
    let mut bytes = stub.encoded().to_vec();
    bytes[0] = KIND_INPUT;
    assert_eq!(
        decoded(bytes),
        Err(field("queue pair", u64::from(1 | IS_KEPT)))
    );
    builder.push(2, TCP, &[1; 60]).expect("valid");
    assert!(!builder.finish().expect("not empty").is_stub());
}

#[test]
fn a_stub_is_written_out_with_its_own_packets_only() {
    let mut builder = PacketBurstBuilder::new();
    for bytes in [20, 30] {
        let header = header(0, Offload::PLAIN, bytes);
        builder.push_kept(header).expect("valid");
    }
    let stub = builder.finish().expect("not empty");
    let packets: [&[u8]; 3] = [&[1; 20], &[2; 30], &[3; 30]];
    let written = |first: usize, count: usize| {
        stub.written_out(|number| packets[first..first + count].get(number).copied())
    };
    let whole = written(0, 2).expect("these are its packets");
    assert_eq!(whole.iter().map(|packet| packet.bytes[0]).sum::<u8>(), 3);
    assert!(whole.written_out(|_| None).is_none(), "it is no stub");
    assert_eq!(written(0, 1), None, "one is missing");
    assert_eq!(written(1, 2), None, "one is of another length");
}

#[test]
fn an_entry_ends_where_its_chunk_does() {
    let mut builder = PacketBurstBuilder::new();
    let frames = 4 * chunks::CHUNK_BYTES / 1500;
    for number in 0..frames {
        let byte = u8::try_from(number % 251).expect("below 251");
        builder
            .push(0, Offload::PLAIN, &[byte; 1500])
            .expect("valid");
    }
    let mut number = 0;
    while let Some(entry) = builder.finish() {
        assert!(entry.encoded().len() > 1500 && decoded(entry.encoded().clone()).is_ok());
        for packet in entry.iter() {
            assert!(
                packet
                    .bytes
                    .iter()
                    .all(|byte| usize::from(*byte) == number % 251)
            );
            number += 1;
        }
    }
    assert_eq!(number, frames);
}

fn header(pair: u8, offload: Offload, bytes: usize) -> PacketHeader {
    PacketHeader {
        pair,
        offload,
        bytes,
    }
}

fn packets() -> impl Strategy<Value = Vec<(u8, bool, Vec<u8>)>> {
    let length = prop_oneof![14..200_usize, 1500..9000_usize, Just(PACKET_BYTES_MAX)];
    let packet = (0..QUEUE_PAIRS_MAX, any::<bool>(), length, any::<u8>())
        .prop_map(|(pair, offloads, length, byte)| (pair, offloads, vec![byte; length]));
    proptest::collection::vec(packet, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_between_builder_and_reader(packets in packets()) {
        let mut builder = PacketBurstBuilder::new();
        let mut sent = Vec::new();
        for (pair, offloads, bytes) in &packets {
            let offload = if *offloads && bytes.len() > 60 { TCP } else { Offload::PLAIN };
            builder.push(*pair, offload, bytes).expect("valid");
            sent.push((*pair, offload, bytes.clone()));
        }
        let mut read = Vec::new();
        while let Some(entry) = builder.finish() {
            prop_assert!(entry.encoded().len() <= ENTRY_BYTES_MAX);
            let entry = decoded(entry.encoded().clone()).expect("own entries are valid");
            read.extend(entry.iter().map(|it| (it.pair, it.offload, it.bytes.to_vec())));
        }
        prop_assert!(read == sent);
    }

    #[test]
    fn by_reference_and_written_out_are_the_same_entry(
        packets in packets(),
        switches in proptest::collection::vec(0..8_u8, 200),
    ) {
        let mut builder = PacketBurstBuilder::new();
        let mut headers = Vec::new();
        for ((pair, offloads, bytes), switch) in packets.iter().zip(&switches) {
            let offload = if *offloads && bytes.len() > 60 { TCP } else { Offload::PLAIN };
            let header = header(*pair, offload, bytes.len());
            match switch {
                0..=3 => builder.push(*pair, offload, bytes).expect("valid"),
                _ => builder.push_kept(header).expect("valid"),
            }
            headers.push(header);
        }
        let mut first = 0;
        while let Some(entry) = builder.finish() {
            let end = first + entry.len();
            let written = if entry.is_stub() {
                let kept: Vec<_> = (first..end).filter(|at| switches[*at] > 3).collect();
                prop_assert_eq!(entry.kept_packets(), kept.len());
                let packet = |number: usize| kept.get(number).map(|at| &packets[*at].2[..]);
                entry.written_out(packet).expect("these are its packets")
            } else {
                entry
            };
            let mut plain = PacketBurstBuilder::new();
            for (header, packet) in headers[first..end].iter().zip(&packets[first..end]) {
                plain.push(header.pair, header.offload, &packet.2).expect("valid");
            }
            let expected = plain.finish().expect("not empty");
            prop_assert!(plain.is_empty(), "what is written out fits one entry");
            prop_assert_eq!(&written, &expected);
            prop_assert!(decoded(written.encoded().clone()).is_ok());
            first = end;
        }
        prop_assert_eq!(first, packets.len());
    }

    #[test]
    fn no_bytes_of_an_input_entry_make_decode_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        count in 1..4_u8,
    ) {
        bytes.splice(0..0, [KIND_INPUT, count]);
        let bytes = Bytes::from(bytes);
        if let Ok(burst) = decoded(bytes) {
            prop_assert_eq!(burst.iter().count(), burst.len());
        }
    }

    #[test]
    fn a_changed_length_is_noticed(at in 1_usize..7, value in any::<u8>()) {
        let good = burst(&[(0, Offload::PLAIN, &[1; 20]), (0, Offload::PLAIN, &[2; 30])]);
        let mut bytes = good.encoded().to_vec();
        let old = bytes[at];
        bytes[at] = value;
        // The pair may be any of the pairs that there are.
        let is_pair = at == 2 && value < QUEUE_PAIRS_MAX;
        prop_assert_eq!(decoded(bytes).is_ok(), value == old || is_pair);
    }
}
