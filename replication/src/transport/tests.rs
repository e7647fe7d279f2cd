use proptest::prelude::*;

use super::*;
use crate::limits::{
    ACK_DELAY, PROBE_MARGIN_MIN, PROBES_MAX, SEND_BYTES_MAX, WINDOW_DATAGRAMS_MAX,
};

mod hostile;

const GROUP: GroupId = GroupId(0x1122_3344_5566_7788);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const US: Duration = Duration::from_micros(1);
const ONE_WAY: Duration = Duration::from_micros(500);
const TURN: Duration = Duration::from_micros(20);
const DATAGRAM_BYTES: usize = 1400;

fn transport(own: NodeId, boot: u64, datagram_bytes_max: usize) -> Transport {
    Transport::new(TransportConfig {
        group: GROUP,
        peers: vec![if own == A { B } else { A }],
        boot,
        datagram_bytes_max,
    })
    .unwrap()
}

/// Two transports and a link that takes time, and loses what it is told to.
struct World<F> {
    now: Duration,
    ends: [Transport; 2],
    flying: Vec<(Duration, usize, Vec<u8>)>,
    count: u64,
    /// Number of the datagram, who sent it, its bytes: whether it is lost.
    loses: F,
    delivered: [Vec<Bytes>; 2],
    in_flight_max: usize,
}

impl<F: FnMut(u64, usize, &[u8]) -> bool> World<F> {
    fn new(datagram_bytes_max: usize, loses: F) -> Self {
        Self {
            now: Duration::ZERO,
            ends: [
                transport(A, 11, datagram_bytes_max),
                transport(B, 22, datagram_bytes_max),
            ],
            flying: Vec::new(),
            count: 0,
            loses,
            delivered: Default::default(),
            in_flight_max: 0,
        }
    }

    fn put(&mut self, from: usize, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            self.count += 1;
            if !(self.loses)(self.count, from, &datagram) {
                self.flying.push((self.now + ONE_WAY, 1 - from, datagram));
            }
        }
        self.in_flight_max = self.in_flight_max.max(self.flying.len());
    }

    fn send(&mut self, from: usize, delivery: Delivery, message: &[u8]) {
        let mut datagrams = Vec::new();
        let to = [B, A][from];
        self.ends[from].send(self.now, to, delivery, message.into(), |_, parts| {
            datagrams.push(parts.concat());
        });
        self.put(from, datagrams);
        self.pump(from);
    }

    fn pump(&mut self, from: usize) {
        let mut datagrams = Vec::new();
        let count = self.ends[from].pump(self.now, |_, parts| datagrams.push(parts.concat()));
        assert_eq!(count, datagrams.len());
        self.put(from, datagrams);
    }

    fn turn(&mut self) {
        self.now += TURN;
        let now = self.now;
        let (arrived, flying) = std::mem::take(&mut self.flying)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        self.flying = flying;
        for (_, to, datagram) in arrived {
            self.ends[to].receive(now, [B, A][to], &datagram);
        }
        for end in 0..2 {
            while let Some((_, message)) = self.ends[end].next_message() {
                self.delivered[end].push(message);
            }
            self.pump(end);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.turn();
        }
    }

    /// The way is measured, and everything is acknowledged.
    fn warm_up(&mut self) {
        for _ in 0..40 {
            self.send(0, Delivery::Repaired, b"warm");
            self.send(1, Delivery::Repaired, b"warm");
            self.run(4 * ONE_WAY);
        }
        self.delivered = Default::default();
    }

    fn run_until_delivered(&mut self, end: usize, count: usize) -> Duration {
        let start = self.now;
        while self.delivered[end].len() < count {
            self.turn();
            assert!(self.now < start + Duration::from_secs(2), "it never comes");
        }
        self.now - start
    }
}

fn message(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

#[test]
fn messages_of_every_awkward_length_arrive_over_every_mtu() {
    for datagram_bytes_max in [500, 501, 1400, 9000] {
        let piece = datagram_bytes_max - HEADER_BYTES_MAX;
        for length in [
            1,
            piece - 1,
            piece,
            piece + 1,
            3 * piece + 1,
            MESSAGE_BYTES_MAX,
        ] {
            let mut world = World::new(datagram_bytes_max, |_, _, datagram| {
                assert!(datagram.len() <= datagram_bytes_max);
                false
            });
            world.send(0, Delivery::InOrder, &message(length));
            world.run_until_delivered(1, 1);
            assert_eq!(world.delivered[1][0], message(length));
            world.run(10 * ONE_WAY);
            assert_eq!(world.ends[0].peers[0].link().waiting_bytes, 0);
            assert_eq!(world.ends[0].counters().repaired, 0);
        }
    }
}

#[test]
fn too_short_datagrams_are_refused() {
    let config = TransportConfig {
        group: GROUP,
        peers: vec![],
        boot: 1,
        datagram_bytes_max: 400,
    };
    assert_eq!(
        Transport::new(config).unwrap_err(),
        TransportError::Short(400)
    );
}

#[test]
fn a_lone_message_waits_for_nothing_and_its_ack_only_shortly() {
    let mut world = World::new(DATAGRAM_BYTES, |_, _, _| false);
    world.send(0, Delivery::InOrder, b"lone");
    assert_eq!(world.flying.len(), 1, "it left in the same turn");
    let took = world.run_until_delivered(1, 1);
    assert!(took <= ONE_WAY + TURN);
    world.run(ACK_DELAY + 2 * TURN);
    assert_eq!(world.ends[1].counters().acks_alone, 1);
    // An answer in time carries it.
    world.send(0, Delivery::InOrder, b"asked");
    world.run_until_delivered(1, 2);
    world.send(1, Delivery::Repaired, b"answered");
    world.run(4 * ONE_WAY);
    assert_eq!(world.ends[1].counters().acks_alone, 1);
    assert_eq!(world.ends[0].peers[0].link().on_the_way, 0);
}

#[test]
fn a_loss_that_others_follow_is_repaired_in_a_round_trip() {
    let mut lost = false;
    let mut world = World::new(DATAGRAM_BYTES, move |_, from, datagram| {
        let hit = !lost && from == 0 && datagram.ends_with(b"number 3");
        lost |= hit;
        hit
    });
    world.warm_up();
    for number in 0..10 {
        world.send(0, Delivery::InOrder, format!("number {number}").as_bytes());
    }
    let took = world.run_until_delivered(1, 10);
    assert!(took <= 3 * ONE_WAY + 6 * TURN, "{took:?}");
    let texts: Vec<_> = (0..10).map(|number| format!("number {number}")).collect();
    assert_eq!(world.delivered[1], texts, "in order");
    let counters = world.ends[0].counters();
    assert_eq!((counters.repaired, counters.probes), (1, 0));
}

#[test]
fn what_is_not_in_order_overtakes() {
    let mut lost = false;
    let mut world = World::new(DATAGRAM_BYTES, move |_, _, datagram| {
        let hit = !lost && datagram.ends_with(b"first");
        lost |= hit;
        hit
    });
    world.send(0, Delivery::InOrder, b"first");
    world.send(0, Delivery::InOrder, b"second");
    world.send(0, Delivery::Repaired, b"vote");
    world.send(0, Delivery::Unrepaired, b"beat");
    world.run(2 * ONE_WAY);
    assert_eq!(world.delivered[1], [&b"vote"[..], b"beat"]);
    world.run_until_delivered(1, 4);
    assert_eq!(world.delivered[1][2..], [&b"first"[..], b"second"]);
}

#[test]
fn a_lost_tail_is_repaired_by_the_timer() {
    let mut lost = 0;
    let mut world = World::new(DATAGRAM_BYTES, move |_, from, datagram| {
        let hit = lost < 2 && from == 0 && datagram.ends_with(b"tail");
        lost += u32::from(hit);
        hit
    });
    world.warm_up();
    world.send(0, Delivery::InOrder, b"tail");
    let took = world.run_until_delivered(1, 1);
    // Once after a round trip and a margin, the second time after twice that.
    assert!(
        took <= 3 * (2 * ONE_WAY + PROBE_MARGIN_MIN) + 2 * ONE_WAY,
        "{took:?}"
    );
    assert_eq!(world.ends[0].counters().probes, 2);
}

#[test]
fn what_is_not_worth_it_is_not_repaired() {
    let mut world = World::new(DATAGRAM_BYTES, |_, _, datagram| datagram.ends_with(b"beat"));
    world.send(0, Delivery::Unrepaired, b"beat");
    world.run(100 * ONE_WAY);
    assert!(world.delivered[1].is_empty());
    assert_eq!(world.ends[0].counters().repaired, 0);
}

#[test]
fn a_long_entry_is_paced() {
    let mut world = World::new(1400, |_, _, _| false);
    let long = message(MESSAGE_BYTES_MAX);
    world.send(0, Delivery::InOrder, &long);
    world.run_until_delivered(1, 1);
    assert!(world.in_flight_max <= WINDOW_DATAGRAMS_MAX as usize + 8);
    assert_eq!(world.ends[0].counters().repaired, 0);
}

#[test]
fn a_peer_that_is_silent_costs_bounded_memory_and_is_given_up() {
    let mut world = World::new(DATAGRAM_BYTES, |_, from, _| from == 0);
    let long = message(100_000);
    for _ in 0..100 {
        world.send(0, Delivery::InOrder, &long);
    }
    let link = world.ends[0].peers[0].link();
    assert!(link.waiting_bytes <= SEND_BYTES_MAX);
    let queued = (SEND_BYTES_MAX / long.len()) as u64;
    assert_eq!(world.ends[0].counters().messages_no_room, 100 - queued);
    world.run(Duration::from_millis(20) * (2 << PROBES_MAX));
    let counters = *world.ends[0].counters();
    assert_eq!(counters.messages_given_up, queued);
    assert_eq!(world.ends[0].peers[0].link().waiting_bytes, 0);
    assert!(counters.datagrams_sent < 200, "{counters:?}");
}

#[test]
fn after_giving_up_new_messages_go_through_in_order() {
    let cut = std::rc::Rc::new(std::cell::Cell::new(false));
    let is_cut = std::rc::Rc::clone(&cut);
    let mut world = World::new(DATAGRAM_BYTES, move |_, _, _| is_cut.get());
    world.send(0, Delivery::InOrder, b"before");
    world.run_until_delivered(1, 1);
    world.run(4 * ONE_WAY);
    cut.set(true);
    world.send(0, Delivery::InOrder, b"lost");
    world.run(Duration::from_secs(2));
    assert_eq!(world.ends[0].counters().messages_given_up, 1);
    cut.set(false);
    for text in ["one", "two", "three"] {
        world.send(0, Delivery::InOrder, text.as_bytes());
    }
    world.run_until_delivered(1, 4);
    assert_eq!(world.delivered[1], ["before", "one", "two", "three"]);
}

#[test]
fn a_restarted_peer_starts_anew_and_its_former_life_is_not_heard() {
    let mut world = World::new(DATAGRAM_BYTES, |_, _, _| false);
    world.warm_up();
    let mut late = Vec::new();
    world.ends[1].send(
        world.now,
        A,
        Delivery::Unrepaired,
        b"late"[..].into(),
        |_, parts| {
            late.push(parts.concat());
        },
    );
    world.ends[1] = transport(B, 23, DATAGRAM_BYTES);
    world.send(0, Delivery::InOrder, b"to the dead");
    world.run(4 * ONE_WAY);
    assert!(world.delivered[1].is_empty(), "meant for the former life");
    world.send(1, Delivery::InOrder, b"born");
    world.run_until_delivered(0, 1);
    assert_eq!(world.ends[0].counters().messages_to_former_life, 1);
    world.send(0, Delivery::InOrder, b"welcome");
    world.run_until_delivered(1, 1);
    assert_eq!(world.delivered, [vec!["born"], vec!["welcome"]]);
    world.ends[0].receive(world.now, B, &late[0]);
    assert_eq!(world.ends[0].next_message(), None);
    assert_eq!(world.ends[0].counters().former_life, 1);
    world.send(1, Delivery::InOrder, b"still here");
    world.run_until_delivered(0, 2);
}

#[test]
fn memory_is_used_again_in_steady_state() {
    let mut world = World::new(DATAGRAM_BYTES, |_, _, _| false);
    world.warm_up();
    assert!(!world.ends[0].spare.is_empty());
    let buffer = world.ends[0].buffer();
    assert!(buffer.is_empty() && buffer.capacity() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is lost, repeated or late: what is repaired arrives once, in order where it is
    /// asked for, as long as the link is not cut.
    #[test]
    fn all_arrives_once_and_in_order(
        seed in any::<u64>(),
        lost_percent in 0u64..12,
        lengths in prop::collection::vec((1usize..20_000, any::<bool>()), 1..40),
    ) {
        let mut state = seed | 1;
        let mut world = World::new(700, move |_, _, _| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % 100 < lost_percent
        });
        let messages: Vec<(Vec<u8>, bool)> = lengths
            .iter()
            .enumerate()
            .map(|(number, (length, is_ordered))| {
                let mut bytes = message(*length);
                bytes.extend((number as u32).to_le_bytes());
                (bytes, *is_ordered)
            })
            .collect();
        for (bytes, is_ordered) in &messages {
            let delivery = if *is_ordered { Delivery::InOrder } else { Delivery::Repaired };
            world.send(0, delivery, bytes);
            world.turn();
            // The link repeats something, and mixes the order.
            if let Some(again) = world.flying.first().cloned() {
                world.flying.insert(world.flying.len() / 2, again);
            }
        }
        world.run_until_delivered(1, messages.len());
        world.run(Duration::from_millis(50));
        prop_assert_eq!(world.delivered[1].len(), messages.len());
        let ordered = |all: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            all.into_iter()
                .filter(|bytes| messages.iter().any(|(sent, is)| *is && sent == bytes))
                .collect()
        };
        let sent = ordered(messages.iter().map(|(bytes, _)| bytes.clone()).collect());
        let got = ordered(world.delivered[1].iter().map(|bytes| bytes.to_vec()).collect());
        prop_assert_eq!(sent, got);
        prop_assert!(world.now < Duration::from_secs(3) + 100 * US);
    }
}
