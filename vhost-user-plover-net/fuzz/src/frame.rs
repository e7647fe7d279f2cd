//! Frames of the replication link, from peers and from strangers: what two nodes really send each
//! other, damaged, lost, repeated, in any order; datagrams with proper addresses and checksums that
//! then say anything; questions for addresses; and frames that never were one. What comes together
//! is decoded; what is decoded is encoded again and is the same; nothing panics, and nothing grows.

mod forge;
mod message;

use std::time::Duration;

use bytes::BytesMut;
use plover_types::NodeId;
use replication::net::{Mac, Net, NetConfig, datagram_bytes_max};
use replication::transport::{Delivery, Transport, TransportConfig};
use replication::wire::GroupId;

use crate::input::Input;

pub(crate) const GROUP: GroupId = GroupId(7);
pub(crate) const OWN: NodeId = NodeId(1);
pub(crate) const PEER: NodeId = NodeId(2);
const STEPS_MAX: usize = 64;
/// Frames on the link at once; what comes beyond is lost.
const FRAMES_MAX: usize = 512;

/// A node as far as its link goes.
struct Station {
    net: Net,
    transport: Transport,
}

/// Feeds a node the frames that `data` describes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mtu = 1280 + input.below(2000);
    let is_ipv6 = input.flag();
    let mut node = Station::new(OWN, is_ipv6, mtu);
    let mut peer = Station::new(PEER, is_ipv6, mtu);
    let mut now = Duration::ZERO;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 6 {
            0 => {
                let count = input.below(2048);
                node.receive(now, input.bytes(count), &mut input);
            }
            1 => node.receive(now, &forge::datagram(&mut input, is_ipv6), &mut input),
            2 => node.receive(now, &forge::question(&mut input, is_ipv6), &mut input),
            3 => now += Duration::from_micros(input.u16().into()),
            4 => node.send(now, PEER, b"an answer", &mut input),
            _ => {
                let message = message::message(&mut input);
                peer.send(now, OWN, &message, &mut input);
            }
        }
        exchange(now, &mut node, &mut peer, &mut input);
    }
}

/// What each has to send reaches the other, or what the input makes of it.
fn exchange(now: Duration, node: &mut Station, peer: &mut Station, input: &mut Input<'_>) {
    for frame in damaged(peer.frames(now), input) {
        node.receive(now, &frame, input);
    }
    for frame in node.frames(now) {
        peer.receive(now, &frame, input);
    }
}

fn damaged(mut frames: Vec<Vec<u8>>, input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let faults = input.u8();
    if faults & 1 != 0 {
        frames.reverse();
    }
    if faults & 2 != 0 && !frames.is_empty() {
        let number = input.below(frames.len());
        let at = input.below(frames[number].len());
        frames[number][at] ^= input.u8();
    }
    if faults & 4 != 0 && !frames.is_empty() {
        frames.remove(input.below(frames.len()));
    }
    if faults & 8 != 0 {
        frames.extend_from_within(..);
    }
    frames
}

impl Station {
    fn new(own: NodeId, is_ipv6: bool, mtu: usize) -> Self {
        let address = |node| forge::address(node, is_ipv6);
        let peer = if own == OWN { PEER } else { OWN };
        let config = NetConfig {
            own: address(own),
            own_mac: mac(own),
            prefix_len: 24,
            gateway: None,
            peers: vec![(peer, address(peer))],
            mtu,
        };
        let transport = TransportConfig {
            group: GROUP,
            peers: vec![peer],
            boot: own.0,
            datagram_bytes_max: datagram_bytes_max(mtu, config.own.ip()),
        };
        Self {
            net: Net::new(config).expect("addresses that fit"),
            transport: Transport::new(transport).expect("within the limits"),
        }
    }

    fn send(&mut self, now: Duration, to: NodeId, message: &[u8], input: &mut Input<'_>) {
        let delivery = input.pick(&[Delivery::InOrder, Delivery::Repaired, Delivery::Unrepaired]);
        let mut frames = Vec::new();
        let net = &mut self.net;
        self.transport
            .send(now, to, delivery, BytesMut::from(message), |to, parts| {
                net.send(to, &parts.concat(), |parts| frames.push(parts.concat()));
            });
        // They are lost: nothing repairs these, and that is to be seen, too.
    }

    fn frames(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.net.poll(now);
        let net = &mut self.net;
        self.transport.pump(now, |to, parts| {
            net.send(to, &parts.concat(), |parts| frames.push(parts.concat()));
        });
        self.net.drain(|parts| frames.push(parts.concat()));
        frames.truncate(FRAMES_MAX);
        frames
    }

    fn receive(&mut self, now: Duration, frame: &[u8], input: &mut Input<'_>) {
        if let Some((from, range)) = self.net.receive(now, frame) {
            self.transport.receive(now, from, &frame[range]);
        }
        while let Some((_, message)) = self.transport.next_message() {
            message::decode(&message, input);
        }
    }
}

fn mac(node: NodeId) -> Mac {
    [2, 0, 0, 0, 0, u8::try_from(node.0).unwrap_or(0xff)]
}
