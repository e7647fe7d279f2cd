use proptest::prelude::*;

use super::*;

const MAC_A: Mac = [2, 0, 0, 0, 0, 1];
const MAC_B: Mac = [2, 0, 0, 0, 0, 2];
const MAC_STRANGER: Mac = [2, 0, 0, 0, 0, 9];
const GROUP: GroupId = GroupId(0x1122_3344_5566_7788);

fn transport(own: u64, mtu: usize) -> Transport {
    let nodes = [(NodeId(1), MAC_A), (NodeId(2), MAC_B)];
    let own_mac = nodes.iter().find(|(node, _)| node.0 == own).unwrap().1;
    let peers = nodes.into_iter().filter(|(node, _)| node.0 != own);
    Transport::new(TransportConfig {
        own: NodeId(own),
        own_mac,
        peers: peers.collect(),
        group: GROUP,
        mtu,
        first_message: u64::MAX - 1,
    })
    .unwrap()
}

fn frames(sender: &mut Transport, message: &[u8]) -> Vec<Vec<u8>> {
    sender
        .fragments(NodeId(2), message)
        .map(|(header, part)| [&header[..], part].concat())
        .collect()
}

fn message(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

fn receive_all(receiver: &mut Transport, frames: &[Vec<u8>]) -> Vec<Bytes> {
    let received = frames.iter().filter_map(|frame| receiver.receive(frame));
    received
        .map(|(from, message)| {
            assert_eq!(from, NodeId(1));
            message
        })
        .collect()
}

#[test]
fn messages_of_every_awkward_length_arrive() {
    for mtu in [MTU_BYTES_MIN, 577, 1500, MTU_BYTES_MAX] {
        let (mut a, mut b) = (transport(1, mtu), transport(2, 1500));
        let payload = mtu - FRAGMENT_HEADER_BYTES;
        for length in [
            1,
            payload - 1,
            payload,
            payload + 1,
            3 * payload + 1,
            MESSAGE_BYTES_MAX,
        ] {
            let sent = message(length);
            let frames = frames(&mut a, &sent);
            assert!(
                frames
                    .iter()
                    .all(|frame| frame.len() <= ETHERNET_BYTES + mtu)
            );
            assert_eq!(frames.len(), length.div_ceil(payload));
            assert_eq!(receive_all(&mut b, &frames), [&sent[..]]);
        }
        assert_eq!(b.counters().messages_received, 6);
        assert_eq!(a.counters().fragments_sent, b.counters().fragments_received);
    }
}

#[test]
fn a_frame_padded_by_the_link_is_taken_and_longer_padding_is_not() {
    let (mut a, mut b) = (transport(1, 1500), transport(2, 1500));
    let mut frame = frames(&mut a, b"tick").remove(0);
    frame.resize(ETHERNET_FRAME_BYTES_MIN, 0);
    assert_eq!(b.receive(&frame).unwrap().1, &b"tick"[..]);
    frame.push(0);
    assert_eq!(b.receive(&frame), None);
    assert_eq!(b.counters().malformed, 1);
}

#[test]
fn fragments_out_of_order_and_doubled_make_one_message() {
    let (mut a, mut b) = (transport(1, 600), transport(2, 600));
    let sent = message(5000);
    let mut frames = frames(&mut a, &sent);
    frames.reverse();
    let doubled: Vec<_> = frames
        .iter()
        .flat_map(|frame| [frame.clone(), frame.clone()])
        .collect();
    assert_eq!(receive_all(&mut b, &doubled), [&sent[..]]);
    assert_eq!(receive_all(&mut b, &frames), Vec::<Bytes>::new());
    assert_eq!(b.counters().duplicates, 2 * frames.len() as u64);
}

#[test]
fn a_message_that_lost_a_fragment_makes_room_for_later_ones() {
    let (mut a, mut b) = (transport(1, 600), transport(2, 600));
    for _ in 0..100 {
        let mut frames = frames(&mut a, &message(3000));
        frames.remove(2);
        assert!(receive_all(&mut b, &frames).is_empty());
        assert!(b.peers[0].slots.len() <= REASSEMBLY_SLOTS);
    }
    assert_eq!(b.counters().evicted, 100 - REASSEMBLY_SLOTS as u64);
    let frames = frames(&mut a, &message(3000));
    assert_eq!(receive_all(&mut b, &frames).len(), 1);
}

#[test]
fn a_peer_cannot_hold_more_than_its_slots() {
    let (mut a, mut b) = (transport(1, 1500), transport(2, 1500));
    for _ in 0..1000 {
        let first = frames(&mut a, &message(MESSAGE_BYTES_MAX)).remove(0);
        assert_eq!(b.receive(&first), None);
    }
    let held: usize = b.peers[0].slots.iter().map(|slot| slot.buffer.len()).sum();
    assert_eq!(held, REASSEMBLY_SLOTS * MESSAGE_BYTES_MAX);
}

#[test]
fn what_cannot_be_sent_is_counted() {
    let mut a = transport(1, 1500);
    assert_eq!(a.fragments(NodeId(2), &[]).count(), 0);
    assert_eq!(
        a.fragments(NodeId(2), &vec![0; MESSAGE_BYTES_MAX + 1])
            .count(),
        0
    );
    assert_eq!(a.fragments(NodeId(3), b"x").count(), 0);
    assert_eq!(a.counters().messages_unsendable, 3);
    assert_eq!(a.counters().messages_sent, 0);
}

/// A frame, what is done to it, and the counter that notices.
type Damage = (
    &'static str,
    fn(&mut Vec<u8>),
    fn(&TransportCounters) -> u64,
);

#[test]
fn every_damaged_frame_costs_its_counter_and_nothing_else() {
    let damages: [Damage; 14] = [
        ("short", |f| f.truncate(HEADER - 1), |c| c.foreign),
        ("empty", Vec::clear, |c| c.foreign),
        ("to another", |f| f[0] ^= 2, |c| c.foreign),
        ("another type", |f| f[12] = 8, |c| c.foreign),
        ("another group", |f| f[28] ^= 1, |c| c.foreign),
        (
            "stranger",
            |f| f[6..12].copy_from_slice(&MAC_STRANGER),
            |c| c.strangers,
        ),
        ("version", |f| f[14] = 2, |c| c.other_version),
        ("reserved", |f| f[15] = 1, |c| c.malformed),
        ("number", |f| f[16] = 9, |c| c.malformed),
        ("no fragments", |f| f[18] = 0, |c| c.malformed),
        ("no bytes", |f| f[20..24].fill(0), |c| c.malformed),
        ("huge", |f| f[23] = 1, |c| c.oversized),
        ("cut", |f| f.truncate(200), |c| c.malformed),
        ("flipped", |f| f[300] ^= 0x10, |c| c.corrupt),
    ];
    for (name, damage, counter) in damages {
        let (mut a, mut b) = (transport(1, 1500), transport(2, 1500));
        let mut frame = frames(&mut a, &message(1000)).remove(0);
        damage(&mut frame);
        assert_eq!(b.receive(&frame), None, "{name}");
        assert_eq!(counter(b.counters()), 1, "{name}");
        assert_eq!(b.counters().messages_received, 0, "{name}");
    }
}

#[test]
fn a_fragment_that_contradicts_its_message_is_dropped() {
    let (mut a, mut b) = (transport(1, 600), transport(2, 600));
    let sent = message(2000);
    let good = frames(&mut a, &sent);
    let mut bad = good[1].clone();
    bad[24] ^= 1;
    assert_eq!(b.receive(&good[0]), None);
    assert_eq!(b.receive(&bad), None);
    assert_eq!(b.counters().malformed, 1);
    assert_eq!(receive_all(&mut b, &good), [&sent[..]]);
}

#[test]
fn a_setup_that_cannot_work_is_refused() {
    let config = |mtu, peer_mac| TransportConfig {
        own: NodeId(1),
        own_mac: MAC_A,
        peers: vec![(NodeId(2), peer_mac)],
        group: GROUP,
        mtu,
        first_message: 0,
    };
    let refused = |config| Transport::new(config).unwrap_err();
    assert_eq!(refused(config(100, MAC_B)), TransportError::Mtu(100));
    assert_eq!(
        refused(config(1500, MAC_A)),
        TransportError::Duplicate(NodeId(2))
    );
}

proptest! {
    #[test]
    fn shuffled_lossy_doubled_fragments_never_make_a_wrong_message(
        lengths in proptest::collection::vec(1usize..6000, 1..6),
        order in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..120),
    ) {
        let (mut a, mut b) = (transport(1, 600), transport(2, 600));
        let sent: Vec<_> = lengths.iter().map(|length| message(*length)).collect();
        let frames: Vec<_> = sent.iter().flat_map(|message| frames(&mut a, message)).collect();
        for (which, flip) in order {
            let mut frame = which.get(&frames).clone();
            if flip {
                let at = which.index(frame.len());
                frame[at] ^= 0x41;
            }
            if let Some((from, received)) = b.receive(&frame) {
                prop_assert_eq!(from, NodeId(1));
                prop_assert!(sent.iter().any(|message| *message == received));
            }
        }
        prop_assert!(b.peers[0].slots.len() <= REASSEMBLY_SLOTS);
    }

    #[test]
    fn no_frame_makes_receive_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 0..200),
        ours in any::<bool>(),
        small in any::<bool>(),
    ) {
        let mut b = transport(2, 600);
        if ours && frame.len() >= HEADER {
            let header = frame_header(MAC_B, MAC_A, GROUP, &FragmentHeader {
                message: frame[36].into(), count: 1, total: 1, crc: 0,
            });
            frame[..16].copy_from_slice(&header[..16]);
            frame[28..HEADER].copy_from_slice(&header[28..]);
            if small {
                frame[17] = 0;
                frame[19] = 0;
                frame[22..24].fill(0);
            }
        }
        b.receive(&frame);
        b.receive(&frame);
    }
}
