//! What strangers, and peers that lie, may send.

use std::time::Duration;

use plover_types::NodeId;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::world::{A, B, GROUP, Sent, World, identity, link, random};
use crate::secure::limits::{HELLOS_AT_ONCE, REPLAY_WINDOW};
use crate::secure::{Identity, SecureLink};
use crate::wire::GroupId;

/// All datagrams of a handshake between A and B, and one of data each way; and their world after.
fn a_tape() -> (World, Vec<Sent>) {
    let mut world = World::connected();
    for node in [A, B] {
        let sent = world.seal(node, b"some data").unwrap();
        world.deliver(&sent);
        world.tape.push(sent);
    }
    let mut tape = world.tape.clone();
    tape.retain(|sent| sent.to != NodeId(3));
    (world, tape)
}

/// Plays a handshake up to its `at`th datagram, which is not delivered.
fn up_to(at: usize) -> (World, Sent) {
    let mut world = World::new();
    world.poll_one(A);
    for _ in 0..at {
        let sent = world.wire.pop_front().unwrap();
        world.deliver(&sent);
    }
    let sent = world.wire.pop_front().unwrap();
    (world, sent)
}

#[test]
fn a_datagram_changed_at_any_byte_does_nothing() {
    for at in 0..6 {
        let (mut world, sent) = up_to(at);
        for byte in 0..sent.bytes.len() {
            for flip in [1, 0x80] {
                let mut bytes = sent.bytes.clone();
                bytes[byte] ^= flip;
                // Slowly, so that each is looked at.
                world.now += Duration::from_millis(1);
                assert_eq!(world.give(sent.to, sent.from, &bytes), None);
                assert!(world.wire.is_empty(), "answered {at}, byte {byte}");
            }
        }
        // None of them spoiled the genuine one.
        world.deliver(&sent);
        world.drain();
        assert!(world.talk(), "datagram {at}");
    }
}

#[test]
fn a_data_datagram_changed_or_cut_anywhere_is_not_opened() {
    let mut world = World::connected();
    let sent = world.seal(A, b"a vote").unwrap();
    for byte in 0..sent.bytes.len() {
        for bit in 0..8 {
            let mut bytes = sent.bytes.clone();
            bytes[byte] ^= 1 << bit;
            assert_eq!(world.give(B, A, &bytes), None, "byte {byte}");
        }
        assert_eq!(world.give(B, A, &sent.bytes[..byte]), None);
        let longer = [&sent.bytes[..], &[0; 3]].concat();
        assert_eq!(world.give(B, A, &longer), None);
    }
    assert_eq!(world.give(B, A, &sent.bytes).unwrap(), b"a vote");
}

#[test]
fn cut_handshakes_are_malformed() {
    for at in 0..6 {
        let (mut world, sent) = up_to(at);
        let before = world.counters(sent.to);
        for length in 0..sent.bytes.len() {
            assert_eq!(world.give(sent.to, sent.from, &sent.bytes[..length]), None);
        }
        let after = world.counters(sent.to);
        let refused = |counters: &crate::secure::SecureCounters| {
            counters.malformed + counters.forged + counters.strangers
        };
        assert_eq!(refused(&after) - refused(&before), sent.bytes.len() as u64);
        world.deliver(&sent);
        world.drain();
        assert!(world.talk());
    }
}

#[test]
fn each_data_datagram_opens_once_in_any_order() {
    let mut world = World::connected();
    let mut sent: Vec<_> = (0..REPLAY_WINDOW as u32)
        .map(|number| world.seal(A, &number.to_le_bytes()).unwrap())
        .collect();
    sent.shuffle(&mut StdRng::seed_from_u64(1));
    let opened = sent
        .iter()
        .filter(|sent| world.give(B, A, &sent.bytes).is_some());
    assert_eq!(opened.count(), REPLAY_WINDOW);
    for sent in &sent {
        assert_eq!(world.give(B, A, &sent.bytes), None);
    }
    assert_eq!(world.counters(B).replayed, REPLAY_WINDOW as u64);
}

#[test]
fn a_whole_recorded_session_played_again_does_no_harm() {
    // To the same nodes in the same life, and in the next one.
    for life in [0, 1] {
        let (mut world, tape) = a_tape();
        if life == 1 {
            (world.a, world.b) = (link(A, 10), link(B, 10));
            world.settle();
        }
        let sessions = world.counters(A).sessions;
        for _ in 0..20 {
            for sent in &tape {
                assert_eq!(world.give(sent.to, sent.from, &sent.bytes), None);
            }
            world.wire.clear();
            world.now += Duration::from_millis(10);
        }
        assert!(world.talk());
        assert_eq!(world.counters(A).sessions, sessions);
        world.pass(Duration::from_secs(2), Duration::from_millis(5));
        assert!(world.talk());
    }
}

#[test]
fn a_replayed_offer_makes_no_session_and_costs_no_handshake() {
    let (mut world, offer) = up_to(2);
    assert_eq!(offer.kind(), 3);
    world.deliver(&offer);
    let answer = world.wire.pop_front().unwrap();
    for _ in 0..100 {
        world.deliver(&offer);
    }
    assert!(world.wire.is_empty(), "answered again");
    world.deliver(&answer);
    world.drain();
    assert!(world.talk());
}

#[test]
fn own_datagrams_sent_back_are_nobodys() {
    for sent in a_tape().1 {
        let mut world = World::connected();
        assert_eq!(world.give(sent.from, sent.to, &sent.bytes), None);
        assert!(world.wire.is_empty());
        assert!(world.talk());
    }
    for at in 0..6 {
        let (mut world, sent) = up_to(at);
        let opened = world.counters(sent.from).opened;
        assert_eq!(world.give(sent.from, sent.to, &sent.bytes), None);
        assert!(world.wire.is_empty(), "answered {at}");
        assert_eq!(world.counters(sent.from).opened, opened);
        world.deliver(&sent);
        world.drain();
        assert!(world.talk());
    }
}

#[test]
fn a_datagram_under_another_nodes_address_is_nobodys() {
    let mut world = World::connected();
    let sent = world.seal(A, b"x").unwrap();
    assert_eq!(world.give(B, NodeId(3), &sent.bytes), None);
    assert_eq!(world.give(B, NodeId(9), &sent.bytes), None);
    assert_eq!(world.give(B, B, &sent.bytes), None);
    assert_eq!(world.give(B, A, &sent.bytes).unwrap(), b"x");
}

fn cannot_talk(impostor: SecureLink) {
    let mut world = World::new();
    world.a = impostor;
    world.pass(Duration::from_secs(3), Duration::from_millis(5));
    let now = world.now;
    assert!(!world.a.has_session(now, B) && !world.b.has_session(now, A));
    assert_eq!(world.counters(B).sessions, 0);
    assert!(world.counters(B).forged > 0);
    assert!(world.tape.iter().all(|sent| sent.kind() == 1), "answered");
}

#[test]
fn who_has_not_the_key_gets_no_answer() {
    let stranger = Identity::from_secret([55; 32]);
    let peers = [(B, *identity(B).public())];
    cannot_talk(SecureLink::new(stranger, &peers, GROUP, random(1)).unwrap());
}

#[test]
fn a_node_of_another_group_gets_no_answer() {
    let peers = [(B, *identity(B).public())];
    cannot_talk(SecureLink::new(identity(A), &peers, GroupId(78), random(1)).unwrap());
}

#[test]
fn a_peer_with_another_public_key_than_configured_gets_no_answer() {
    let wrong = Identity::from_secret([56; 32]);
    let peers = [(B, *wrong.public())];
    cannot_talk(SecureLink::new(identity(A), &peers, GROUP, random(1)).unwrap());
}

#[test]
fn a_flood_of_hellos_is_limited_and_a_session_is_made_all_the_same() {
    let mut world = World::new();
    let mut hello = vec![1, 1, 0, 0, 0, 0, 0, 0];
    hello.resize(crate::secure::datagram::HELLO_BYTES, 7);
    for _ in 0..10_000 {
        assert_eq!(world.give(B, A, &hello), None);
    }
    let counters = world.counters(B);
    assert!(counters.forged <= u64::from(HELLOS_AT_ONCE), "{counters:?}");
    assert!(counters.limited > 9000);
    assert!(world.wire.is_empty());
    // The flooded side's own handshake is not touched by that.
    world.poll_one(B);
    world.drain();
    assert!(world.talk());
}

#[test]
fn other_versions_are_counted_apart() {
    let mut world = World::connected();
    let mut sent = world.seal(A, b"x").unwrap();
    sent.bytes[1] = 9;
    assert_eq!(world.give(B, A, &sent.bytes), None);
    assert_eq!(world.counters(B).other_version, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random bytes, and genuine datagrams changed at random, are never opened, and a session can
    /// still be made or used.
    #[test]
    fn mutations_are_never_opened(seed: u64, at in 0..6_usize) {
        let (mut world, sent) = up_to(at);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..100 {
            let mut bytes = if rng.random_ratio(1, 5) {
                let mut bytes = vec![0; rng.random_range(0..200)];
                rng.fill(&mut bytes[..]);
                if bytes.len() > 3 {
                    (bytes[0], bytes[1], bytes[2], bytes[3]) = (rng.random_range(0..7), 1, 0, 0);
                }
                bytes
            } else {
                sent.bytes.clone()
            };
            for _ in 0..rng.random_range(1..4) {
                if let Some(last) = bytes.len().checked_sub(1) {
                    let place = rng.random_range(0..=last);
                    match rng.random_range(0..4) {
                        0 => bytes.truncate(place),
                        1 => bytes.insert(place, rng.random()),
                        _ => bytes[place] ^= rng.random_range(1..=255_u8),
                    }
                }
            }
            if bytes != sent.bytes {
                let to = if rng.random_ratio(1, 4) { sent.from } else { sent.to };
                let from = if to == A { B } else { A };
                prop_assert_eq!(world.give(to, from, &bytes), None);
            }
        }
        world.deliver(&sent);
        world.drain();
        world.pass(Duration::from_secs(1), Duration::from_millis(10));
        prop_assert!(world.talk());
    }
}
