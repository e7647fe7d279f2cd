//! What a peer that is broken, or is none, can send.

use super::super::datagram::{Ack, Datagram, Fragment, Header, Numbered, Refused};
use super::*;
use crate::limits::{REASSEMBLY_SLOTS_MAX, RECEIVE_BYTES_MAX};

fn header(number: u64, message: u64, count: u16, total: u32) -> Header {
    let mut header = Header::new(GROUP, 22, 0);
    header.numbered = Some(Numbered {
        number,
        number_min: number,
        message_min: message,
        is_ordered: false,
    });
    header.fragment = Some(Fragment {
        message,
        number: 0,
        count,
        total,
    });
    header
}

fn bytes(header: &Header, fragment: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], fragment].concat()
}

fn counters(datagrams: &[Vec<u8>]) -> TransportCounters {
    let mut node = transport(A, 11, DATAGRAM_BYTES);
    for datagram in datagrams {
        node.receive(Duration::ZERO, B, datagram);
        assert_eq!(node.next_message(), None);
    }
    *node.counters()
}

#[test]
fn headers_are_read_as_they_are_written() {
    let mut whole = header(900, 800, 1, 3);
    whole.ack = Some(Ack {
        newest: 7,
        delay_us: 9,
        words: [1, u64::MAX].into_iter().collect(),
    });
    if let Some(numbered) = &mut whole.numbered {
        (numbered.number_min, numbered.message_min) = (500, 1);
    }
    for header in [whole, header(0, 0, 1, 3)] {
        let bytes = bytes(&header, b"abc");
        assert!(bytes.len() <= HEADER_BYTES_MAX + 3);
        let read = Datagram::parse(&bytes, GROUP).unwrap();
        assert_eq!((read.header, read.fragment), (header, &b"abc"[..]));
        for length in 0..bytes.len() {
            assert!(Datagram::parse(&bytes[..length], GROUP).is_err());
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_kind() {
    let good = bytes(&header(0, 0, 1, 3), b"abc");
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        Datagram::parse(&bad, GROUP).unwrap_err()
    };
    assert_eq!(with(0, 1), Refused::Version);
    assert_eq!(with(2, 0), Refused::Group);
    for flags in [0, 1, 9, 8 | 2, 16 | 3] {
        assert_eq!(with(1, flags), Refused::Malformed, "flags {flags}");
    }
    // Total, count and number of the fragment, which end the header.
    let end = good.len() - 3;
    assert_eq!(with(end - 1, 0xff), Refused::Long);
    assert_eq!(with(end - 6, 0), Refused::Malformed);
    assert_eq!(with(end - 8, 1), Refused::Malformed);
    let longer = [&good[..], b"d"].concat();
    assert_eq!(
        Datagram::parse(&longer, GROUP).unwrap_err(),
        Refused::Malformed
    );
}

#[test]
fn an_ack_of_what_was_never_sent_does_nothing() {
    let mut node = transport(A, 11, DATAGRAM_BYTES);
    node.send(
        Duration::ZERO,
        B,
        Delivery::InOrder,
        b"x"[..].into(),
        |_, _| {},
    );
    assert_eq!(node.pump(Duration::ZERO, |_, _| {}), 1);
    for newest in [1, 5, u64::MAX] {
        let mut header = Header::new(GROUP, 22, 11);
        header.ack = Some(Ack {
            newest,
            delay_us: u32::MAX,
            words: [u64::MAX; 8].into_iter().collect(),
        });
        node.receive(US, B, &header.to_bytes());
    }
    assert_eq!(node.peers[0].link().on_the_way, 1);
    assert_eq!(node.peers[0].link().round_trip, None);
}

#[test]
fn incomplete_messages_take_bounded_memory() {
    let total = MESSAGE_BYTES_MAX as u32;
    let flood: Vec<_> = (0..10 * REASSEMBLY_SLOTS_MAX as u64)
        .map(|number| {
            let mut header = header(number, number, 200, total);
            if let Some(numbered) = &mut header.numbered {
                numbered.message_min = number.saturating_sub(1000);
            }
            bytes(&header, &vec![0; MESSAGE_BYTES_MAX.div_ceil(200)])
        })
        .collect();
    let c = counters(&flood);
    let kept = (RECEIVE_BYTES_MAX / MESSAGE_BYTES_MAX).min(REASSEMBLY_SLOTS_MAX);
    assert_eq!(c.evicted as usize, flood.len() - kept);
}

#[test]
fn fragments_that_contradict_each_other_are_counted() {
    let first = header(0, 0, 2, 6);
    let mut other = header(1, 0, 3, 9);
    if let Some(numbered) = &mut other.numbered {
        numbered.message_min = 0;
    }
    let c = counters(&[bytes(&first, b"abc"), bytes(&other, b"abc")]);
    assert_eq!(c.malformed, 1);
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut node = transport(A, 11, DATAGRAM_BYTES);
        node.receive(Duration::ZERO, B, &noise);
        let mut headed = bytes(&header(3, 3, 1, 3), b"abc");
        for (byte, noise) in headed.iter_mut().skip(10).zip(&noise) {
            *byte = *noise;
        }
        node.receive(Duration::ZERO, B, &headed);
        node.pump(Duration::from_secs(1), |_, _| {});
    }
}
