use plover_types::LogIndex;
use raft::eraftpb::{Entry, Message};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::secure::Identity;

const GROUP: GroupId = GroupId(9);
const MS: Duration = Duration::from_millis(1);

fn identity(node: usize) -> Identity {
    Identity::from_secret([node as u8 + 1; 32])
}

fn link(own: usize, is_secured: bool, mtu: usize) -> Link {
    let peer = 1 - own;
    let id = |node: usize| NodeId(node as u64 + 1);
    let address = |node: usize| ([10, 0, 0, node as u8 + 1], 7401).into();
    let security = if is_secured {
        Security::On {
            identity: identity(own),
            peers: vec![(id(peer), *identity(peer).public())],
            random: Box::new(StdRng::seed_from_u64(own as u64)),
        }
    } else {
        Security::Off
    };
    let net = NetConfig {
        own: address(own),
        own_mac: [2, 0, 0, 0, 0, own as u8],
        prefix_len: 24,
        gateway: None,
        peers: vec![(id(peer), address(peer))],
        mtu,
    };
    Link::new(LinkConfig {
        group: GROUP,
        boot: own as u64 + 5,
        net: Some(net),
        security,
    })
    .unwrap()
}

fn append(bytes: usize) -> Envelope {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgAppend);
    (message.term, message.log_term, message.index) = (3, 2, LogIndex(4).0);
    message.entries = vec![Entry {
        index: 5,
        term: 3,
        data: vec![7; bytes].into(),
        ..Entry::default()
    }]
    .into();
    Envelope {
        from: NodeId(1),
        to: NodeId(2),
        body: Body::Raft(message),
    }
}

/// Both take turns until nothing is on the wire. Returns what arrived, and the longest frame.
fn settle(links: &mut [Link; 2], now: Duration) -> (Vec<Bytes>, usize) {
    let (mut arrived, mut longest) = (Vec::new(), 0);
    loop {
        let mut frames = [Vec::new(), Vec::new()];
        for (link, frames) in links.iter_mut().zip(&mut frames) {
            link.poll(now);
            link.pump(now, |parts| frames.push(parts.concat()));
        }
        if frames.iter().all(Vec::is_empty) {
            return (arrived, longest);
        }
        let [from_a, from_b] = frames;
        for (to, frames) in [(1, from_a), (0, from_b)] {
            for mut frame in frames {
                longest = longest.max(frame.len());
                links[to].receive(now, &mut frame);
            }
            while let Some((_, message)) = links[to].next_message() {
                arrived.push(message);
            }
        }
    }
}

#[test]
fn a_message_goes_through_all_layers_with_security_on_and_off_over_any_mtu() {
    for (is_secured, mtu) in [(false, 576), (false, 1500), (true, 576), (true, 1500)] {
        let mut links = [link(0, is_secured, mtu), link(1, is_secured, mtu)];
        // Neighbours, sessions, measured ways.
        for turn in 0..40 {
            settle(&mut links, 10 * MS * turn);
        }
        let sent = append(150_000);
        links[0].send(400 * MS, &sent, |_| {}).unwrap();
        let (arrived, longest) = settle(&mut links, 400 * MS);
        assert_eq!(arrived.len(), 1, "secured: {is_secured}, mtu {mtu}");
        let mut encoded = bytes::BytesMut::new();
        wire::encode(&sent, GROUP, &mut encoded).unwrap();
        assert_eq!(arrived[0], encoded);
        assert!((mtu - 100..=mtu + 14).contains(&longest), "{longest}");
        let status = &links_of(&links[0], 400 * MS)[0];
        assert!(status.has_session && status.is_heard && status.neighbour == "known");
        assert_eq!(links[0].guard_counters().is_secured, is_secured);
    }
}

#[test]
fn damage_and_strangers_cost_a_counter_and_nothing_else() {
    for is_secured in [false, true] {
        let mut links = [link(0, is_secured, 1500), link(1, is_secured, 1500)];
        for turn in 0..40 {
            settle(&mut links, 10 * MS * turn);
        }
        links[0].send(400 * MS, &append(100), |_| {}).unwrap();
        let mut frames = Vec::new();
        links[0].pump(400 * MS, |parts| frames.push(parts.concat()));
        // A checksum that is right for what was changed: only the guard can tell.
        let mut frame = frames.remove(0);
        let last = frame.len() - 1;
        frame[last] ^= 0x10;
        let sum = [frame[40], frame[41]];
        let added = if last % 2 == 0 { 0x1000u16 } else { 0x10 };
        let was_set = frame[last] & 0x10 == 0;
        let old = u32::from(u16::from_be_bytes(sum));
        let new = if was_set {
            old + u32::from(added)
        } else {
            old + 0xffff - u32::from(added)
        };
        let folded = (new & 0xffff) + (new >> 16);
        frame[40..42].copy_from_slice(&(folded as u16).to_be_bytes());
        links[1].receive(400 * MS, &mut frame);
        assert_eq!(links[1].next_message(), None);
        let counters = links[1].guard_counters();
        assert_eq!(counters.corrupt + counters.secure.forged, 1, "{counters:?}");
    }
}

#[test]
fn what_is_worth_repairing_is_decided_by_kind() {
    let of = |kind| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        delivery_of(&Body::Raft(message))
    };
    assert_eq!(of(MessageType::MsgHeartbeat), Delivery::Unrepaired);
    assert_eq!(of(MessageType::MsgTimeoutNow), Delivery::Unrepaired);
    assert_eq!(of(MessageType::MsgAppend), Delivery::InOrder);
    assert_eq!(of(MessageType::MsgRequestVote), Delivery::Repaired);
    assert_eq!(of(MessageType::MsgAppendResponse), Delivery::Repaired);
}

#[test]
fn a_node_alone_sends_nothing() {
    let mut alone = Link::new(LinkConfig {
        group: GROUP,
        boot: 1,
        net: None,
        security: Security::Off,
    })
    .unwrap();
    alone.poll(MS);
    alone.send(MS, &append(10), |_| panic!("a frame")).unwrap();
    assert_eq!(alone.pump(MS, |_| panic!("a frame")), 0);
    assert_eq!(alone.due(), Duration::MAX);
}
