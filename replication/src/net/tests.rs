use std::net::SocketAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;

const MACS: [Mac; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 9]];
const ROUTER: Mac = MACS[2];
const V4: [&str; 2] = ["10.0.0.1:7401", "10.0.0.2:7402"];
const V6: [&str; 2] = ["[fd00::1]:7401", "[fd00::2]:7402"];
const MS: Duration = Duration::from_millis(1);

fn config(own: usize, addresses: [&str; 2]) -> NetConfig {
    let addresses: [SocketAddr; 2] = addresses.map(|text| text.parse().unwrap());
    let peer = 1 - own;
    NetConfig {
        own: addresses[own],
        own_mac: MACS[own],
        prefix_len: if addresses[own].is_ipv4() { 24 } else { 64 },
        gateway: None,
        peers: vec![(NodeId(peer as u64 + 1), addresses[peer])],
        mtu: 1500,
    }
}

fn nets(addresses: [&str; 2]) -> (Net, Net) {
    let net = |own| Net::new(config(own, addresses)).unwrap();
    (net(0), net(1))
}

fn drained(net: &mut Net) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    net.drain(|parts| frames.push(parts.concat()));
    frames
}

fn sent(net: &mut Net, datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let to = net.peers[0].node;
    net.send(to, datagram, |parts| frames.push(parts.concat()));
    frames
}

/// Both ask, both answer.
fn introduce(a: &mut Net, b: &mut Net, now: Duration) {
    a.poll(now);
    for question in drained(a) {
        assert_eq!(b.receive(now, &question), None);
    }
    for answer in drained(b) {
        assert_eq!(a.receive(now, &answer), None);
    }
}

#[test]
fn a_datagram_arrives_once_the_next_hop_is_known() {
    for addresses in [V4, V6] {
        let (mut a, mut b) = nets(addresses);
        assert!(sent(&mut a, b"lost").is_empty());
        assert_eq!(a.counters().unresolved, 1);
        introduce(&mut a, &mut b, Duration::ZERO);
        let frames = sent(&mut a, b"hello");
        assert_eq!(frames.len(), 1);
        let (from, range) = b.receive(MS, &frames[0]).unwrap();
        assert_eq!((from, &frames[0][range]), (NodeId(1), &b"hello"[..]));
        // The question said where the asker is.
        assert_eq!(sent(&mut b, b"back").len(), 1);
        assert_eq!(
            b.route(NodeId(1)).unwrap().neighbour,
            NeighbourState::Known(MACS[0])
        );
        assert_eq!(
            (
                a.counters().neighbours_heard,
                b.counters().questions_answered
            ),
            (1, 1)
        );
    }
}

#[test]
fn frames_are_what_another_stack_takes_for_right() {
    for addresses in [V4, V6] {
        let (mut a, mut b) = nets(addresses);
        introduce(&mut a, &mut b, Duration::ZERO);
        for length in [0, 1, 2, 101, 1452] {
            let body: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let frame = sent(&mut a, &body).remove(0);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else {
                panic!("no UDP")
            };
            assert_eq!((udp.source_port(), udp.destination_port()), (7401, 7402));
            assert_eq!(udp.payload(), body);
            match sliced.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header();
                    assert!(header.dont_fragment() && !header.more_fragments());
                    let right = header.to_header().calc_header_checksum();
                    assert_eq!(header.header_checksum(), right);
                }
                Some(NetSlice::Ipv6(ip)) => assert_eq!(ip.header().hop_limit(), 64),
                _ => panic!("no IP"),
            }
        }
        assert!(sent(&mut a, &vec![0; 70_000]).is_empty());
        assert_eq!(a.counters().unroutable, 1);
    }
}

#[test]
fn every_damaged_byte_is_noticed_or_means_nothing() {
    for addresses in [V4, V6] {
        let (mut a, mut b) = nets(addresses);
        introduce(&mut a, &mut b, Duration::ZERO);
        let frame = sent(&mut a, b"the datagram").remove(0);
        let source_mac = 6..12;
        for at in (0..frame.len()).filter(|at| !source_mac.contains(at)) {
            let mut damaged = frame.clone();
            damaged[at] ^= 1;
            let received = b.receive(MS, &damaged);
            // IPv6's traffic class, flow label and hop limit are no part of any checksum.
            let is_free = addresses == V6 && matches!(at, 14..=17 | 21);
            assert_eq!(received.is_some(), is_free, "byte {at}");
        }
        let c = *b.counters();
        assert!(c.foreign > 0 && c.checksums > 0 && c.malformed > 0, "{c:?}");
        for length in 0..frame.len() {
            assert_eq!(b.receive(MS, &frame[..length]), None);
        }
    }
}

#[test]
fn a_peer_beyond_a_router_is_reached_by_it() {
    for (addresses, gateway) in [
        (["10.0.0.1:7401", "10.0.5.2:7401"], "10.0.0.254"),
        (["[fd00::1]:7401", "[fd00:5::2]:7401"], "fe80::1"),
    ] {
        let mut config = config(0, addresses);
        assert_eq!(
            Net::new(config.clone()).unwrap_err(),
            NetError::NoRoute(NodeId(2))
        );
        config.gateway = Some(gateway.parse().unwrap());
        let mut a = Net::new(config).unwrap();
        let gateway = gateway.parse().unwrap();
        assert_eq!(a.route(NodeId(2)).unwrap().hop, gateway);
        assert!(a.neighbours.learn(MS, gateway, ROUTER));
        let frame = sent(&mut a, b"far").remove(0);
        assert_eq!(frame[..6], ROUTER);
    }
}

#[test]
fn addresses_that_make_no_sense_are_refused_by_name() {
    type Break = fn(&mut NetConfig);
    let cases: [(Break, NetError); 6] = [
        (|c| c.mtu = 575, NetError::Mtu(575)),
        (|c| c.prefix_len = 33, NetError::Prefix(33)),
        (
            |c| c.own.set_port(0),
            NetError::Address("10.0.0.1:0".parse().unwrap()),
        ),
        (
            |c| c.gateway = Some("10.0.1.1".parse().unwrap()),
            NetError::Gateway("10.0.1.1".parse().unwrap()),
        ),
        (|c| c.peers[0].1 = c.own, NetError::Duplicate(NodeId(2))),
        (
            |c| c.peers[0].1 = "[fd00::2]:1".parse().unwrap(),
            NetError::Family(NodeId(2)),
        ),
    ];
    for (break_it, wanted) in cases {
        let mut config = config(0, V4);
        break_it(&mut config);
        assert_eq!(Net::new(config).unwrap_err(), wanted);
    }
    let mut short = config(0, V6);
    short.mtu = 1279;
    assert_eq!(Net::new(short).unwrap_err(), NetError::Mtu(1279));
}

#[test]
fn strangers_other_ports_and_ip_fragments_are_counted_and_go_nowhere() {
    let (_, mut b) = nets(V4);
    let frame = |from: [u8; 4], ports: (u16, u16)| {
        let builder = PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4(from, [10, 0, 0, 2], 64);
        let mut frame = Vec::new();
        builder
            .udp(ports.0, ports.1)
            .write(&mut frame, b"x")
            .unwrap();
        frame
    };
    assert!(b.receive(MS, &frame([10, 0, 0, 1], (7401, 7402))).is_some());
    for stranger in [
        frame([10, 0, 0, 3], (7401, 7402)),
        frame([10, 0, 0, 1], (7409, 7402)),
    ] {
        assert_eq!(b.receive(MS, &stranger), None);
    }
    assert_eq!(b.receive(MS, &frame([10, 0, 0, 1], (7401, 53))), None);
    let mut cut = frame([10, 0, 0, 1], (7401, 7402));
    cut[20] = 0x20;
    let (ip, _) = etherparse::Ipv4Header::from_slice(&cut[14..]).unwrap();
    cut[24..26].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
    assert_eq!(b.receive(MS, &cut), None);
    let mut bare = frame([10, 0, 0, 1], (7401, 7402));
    bare[40..42].fill(0);
    assert_eq!(b.receive(MS, &bare), None, "no checksum");
    let c = b.counters();
    assert_eq!(
        (c.strangers, c.foreign, c.malformed, c.checksums),
        (2, 1, 1, 1)
    );
}

#[test]
fn answers_are_bounded_and_strangers_are_not_learned() {
    let (mut a, mut b) = nets(V4);
    a.poll(Duration::ZERO);
    let question = drained(&mut a).remove(0);
    for _ in 0..1000 {
        b.receive(Duration::ZERO, &question);
        drained(&mut b);
    }
    let c = *b.counters();
    assert_eq!(c.questions_answered, u64::from(ANSWERS_PER_SECOND_MAX));
    assert_eq!(c.questions_answered + c.answers_withheld, 1000);
    let mut stranger = question;
    stranger[31] = 77;
    b.receive(Duration::from_secs(1), &stranger);
    assert_eq!(drained(&mut b).len(), 1, "it may be a router's");
    assert_eq!(b.counters().neighbours_heard, c.neighbours_heard);
}

#[test]
fn an_operator_may_ping() {
    for addresses in [V4, V6] {
        let (_, mut b) = nets(addresses);
        let builder = PacketBuilder::ethernet2(ROUTER, MACS[1]);
        let mut frame = Vec::new();
        match b.own.ip() {
            IpAddr::V4(own) => builder
                .ipv4([10, 7, 7, 7], own.octets(), 64)
                .icmpv4_echo_request(3, 4)
                .write(&mut frame, b"ping")
                .unwrap(),
            IpAddr::V6(own) => builder
                .ipv6([0xfd; 16], own.octets(), 64)
                .icmpv6_echo_request(3, 4)
                .write(&mut frame, b"ping")
                .unwrap(),
        }
        assert_eq!(b.receive(MS, &frame), None);
        let answers = drained(&mut b);
        assert_eq!(answers.len(), 1);
        let sliced = SlicedPacket::from_ethernet(&answers[0]).unwrap();
        assert_eq!(answers[0][..6], ROUTER);
        match sliced.transport.unwrap() {
            TransportSlice::Icmpv4(icmp) => {
                assert_eq!((icmp.type_u8(), icmp.payload()), (0, &b"ping"[..]));
            }
            TransportSlice::Icmpv6(icmp) => {
                assert_eq!((icmp.type_u8(), icmp.payload()), (129, &b"ping"[..]));
            }
            _ => panic!("no ICMP"),
        }
        for _ in 0..100 {
            b.receive(MS, &frame);
        }
        assert_eq!(
            b.counters().echoes_answered,
            u64::from(ECHOES_PER_SECOND_MAX)
        );
    }
}

#[test]
fn other_peers_are_taken_up_and_those_that_stay_stay_known() {
    let (mut a, mut b) = nets(V4);
    introduce(&mut a, &mut b, Duration::ZERO);
    let second = (NodeId(4), "10.0.0.4:7401".parse().unwrap());
    let both = [(NodeId(2), V4[1].parse().unwrap()), second];
    a.set_peers(both.into_iter());
    assert_eq!(
        a.route(NodeId(2)).unwrap().neighbour,
        NeighbourState::Known(MACS[1])
    );
    assert_eq!(a.route(NodeId(4)).unwrap().neighbour, NeighbourState::Asked);
    let unreachable = (NodeId(5), "10.1.0.4:7401".parse().unwrap());
    a.set_peers([second, (NodeId(6), second.1), unreachable].into_iter());
    assert_eq!(a.nodes().collect::<Vec<_>>(), [NodeId(4)]);
}
