//! Sessions come about, are renewed and survive what the network does to their handshakes.

use std::time::Duration;

use plover_types::NodeId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{A, B, GROUP, World, identity, link, random};
use crate::secure::limits::{
    OFFER_HOLDS, REJECT_AFTER, REJECT_AFTER_DATAGRAMS, REKEY_AFTER, REKEY_AFTER_DATAGRAMS,
    RETRY_MAX, SILENCE_MAX,
};
use crate::secure::{Identity, NoSession, SecureError, SecureLink};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn two_nodes_that_start_together_make_one_session() {
    let mut world = World::connected();
    assert!(world.talk());
    let (a, b) = (world.counters(A), world.counters(B));
    assert_eq!((a.sessions, b.sessions), (1, 1));
    assert_eq!((a.forged, b.forged, a.replayed, b.replayed), (0, 0, 0, 0));
}

#[test]
fn a_session_takes_four_datagrams_and_its_confirmation() {
    let mut world = World::new();
    world.poll_one(A);
    world.drain();
    let kinds: Vec<_> = world
        .tape
        .iter()
        .filter(|sent| sent.to != NodeId(3))
        .map(super::world::Sent::kind)
        .collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 5]);
    assert!(world.talk());
}

#[test]
fn parts_are_put_together_and_out_is_appended_to() {
    let mut world = World::connected();
    let mut out = vec![1, 2, 3];
    let now = world.now;
    world
        .a
        .seal(now, B, &[b"one ", b"", b"two"], &mut out)
        .unwrap();
    assert_eq!(out[..3], [1, 2, 3]);
    assert_eq!(out.len(), 3 + 7 + SecureLink::OVERHEAD_BYTES);
    assert_eq!(world.give(B, A, &out[3..]).unwrap(), b"one two");
}

#[test]
fn without_a_session_nothing_is_sealed_and_it_is_counted() {
    let mut world = World::new();
    assert_eq!(world.seal(A, b"x"), Err(NoSession));
    let (now, mut out) = (world.now, vec![9]);
    assert_eq!(
        world.a.seal(now, NodeId(9), &[b"x"], &mut out),
        Err(NoSession)
    );
    assert_eq!((world.counters(A).no_session, out), (2, vec![9]));
}

#[test]
fn any_datagram_of_a_handshake_may_be_lost() {
    for lost in 0..12 {
        let mut world = World::new();
        let mut count = 0;
        for _ in 0..200 {
            world.poll();
            while let Some(sent) = world.wire.pop_front() {
                count += 1;
                if count != lost + 1 {
                    world.deliver(&sent);
                }
            }
            world.now += MILLI;
        }
        assert!(world.talk(), "lost {lost}");
    }
}

#[test]
fn heavy_loss_only_delays_and_both_sides_agree_in_the_end() {
    for seed in 0..30 {
        let mut world = World::new();
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..4000 {
            world.poll();
            while let Some(sent) = world.wire.pop_front() {
                match rng.random_range(0..10) {
                    0..5 => {}
                    5 => {
                        world.deliver(&sent);
                        world.deliver(&sent);
                    }
                    6 if !world.wire.is_empty() => {
                        world.wire.push_back(sent);
                        break;
                    }
                    _ => world.deliver(&sent),
                }
            }
            world.now += MILLI;
        }
        world.pass(3 * SECOND, MILLI);
        assert!(world.talk(), "seed {seed}");
    }
}

#[test]
fn retries_are_spaced_out_and_do_not_stop() {
    let mut world = World::new();
    let mut times = Vec::new();
    for _ in 0..20_000 {
        world.poll_one(A);
        if world.wire.drain(..).count() > 0 {
            times.push(world.now);
        }
        world.now += MILLI;
    }
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] < 15 * MILLI && gaps.len() > 10, "{gaps:?}");
    assert!(
        gaps.iter().all(|gap| *gap <= RETRY_MAX.mul_f64(1.26)),
        "{gaps:?}"
    );
    assert!(gaps[10] > RETRY_MAX / 2, "{gaps:?}");
}

#[test]
fn a_session_is_renewed_and_nothing_is_lost_meanwhile() {
    let mut world = World::connected();
    for _ in 0..(3 * REKEY_AFTER.as_secs() * 2) {
        world.pass(SECOND / 2, SECOND / 2);
        assert!(world.talk());
    }
    assert_eq!(
        (world.counters(A).sessions, world.counters(B).sessions),
        (4, 4)
    );
    assert_eq!(world.counters(A).no_session, 0);
}

#[test]
fn what_was_sealed_before_a_renewal_opens_after_it() {
    let mut world = World::connected();
    let (of_a, of_b) = (
        world.seal(A, b"late").unwrap(),
        world.seal(B, b"later").unwrap(),
    );
    world.now += REKEY_AFTER;
    world.settle();
    assert_eq!(world.counters(A).sessions, 2);
    assert!(world.talk());
    assert_eq!(world.give(B, A, &of_a.bytes).unwrap(), b"late");
    assert_eq!(world.give(A, B, &of_b.bytes).unwrap(), b"later");
}

#[test]
fn the_responder_keeps_the_old_session_until_the_new_one_is_used() {
    let mut world = World::connected();
    world.now += REKEY_AFTER;
    world.poll();
    // All but the confirmation arrives.
    while let Some(sent) = world.wire.pop_front() {
        if sent.kind() != 5 {
            world.deliver(&sent);
        }
    }
    let responder = if world.counters(A).sessions == 2 {
        B
    } else {
        A
    };
    assert_eq!(world.counters(responder).sessions, 1);
    assert!(world.say(responder, b"under the old one"));
    let initiator = if responder == A { B } else { A };
    assert!(world.say(initiator, b"under the new one"));
    assert_eq!(world.counters(responder).sessions, 2);
}

#[test]
fn a_confirmation_that_was_held_back_does_not_bring_an_old_session_back() {
    let mut world = World::connected();
    world.now += REKEY_AFTER;
    world.poll();
    let mut held = None;
    while let Some(sent) = world.wire.pop_front() {
        match sent.kind() {
            5 => held = Some(sent),
            _ => world.deliver(&sent),
        }
    }
    let held = held.unwrap();
    // The responder gives the offered one up and makes its own.
    world.now += SECOND;
    world.poll_one(held.to);
    world.drain();
    assert!(world.talk());
    let sessions = world.counters(held.to).sessions;
    world.deliver(&held);
    assert_eq!(world.counters(held.to).sessions, sessions);
    assert!(world.talk());
}

#[test]
fn a_session_ends_by_age_even_when_none_follows() {
    let mut world = World::connected();
    let late = world.seal(A, b"late").unwrap();
    world.now += REJECT_AFTER - MILLI;
    assert!(world.seal(A, b"x").is_ok());
    world.now += MILLI;
    assert_eq!(world.seal(A, b"x"), Err(NoSession));
    assert_eq!(world.give(B, A, &late.bytes), None);
    world.poll();
    world.wire.clear();
    assert_eq!(world.give(B, A, &late.bytes), None);
    world.now += 2 * SECOND;
    world.settle();
    assert!(world.talk());
}

#[test]
fn a_session_is_renewed_by_count_and_its_counter_never_wraps() {
    let mut world = World::connected();
    let current = |link: &mut SecureLink| link.peers[0].current.as_mut().unwrap().own_index;
    let before = current(&mut world.a);
    world.a.peers[0]
        .current
        .as_mut()
        .unwrap()
        .skip_to(REKEY_AFTER_DATAGRAMS - 1);
    assert!(world.talk());
    world.now += SECOND;
    world.settle();
    assert_ne!(current(&mut world.a), before);
    assert!(world.talk());
    for counter in [REJECT_AFTER_DATAGRAMS, u64::MAX] {
        world.a.peers[0].current.as_mut().unwrap().skip_to(counter);
        assert_eq!(world.seal(A, b"x"), Err(NoSession));
    }
    world.now += SECOND;
    world.settle();
    assert!(world.talk());
}

#[test]
fn a_node_that_comes_back_is_met_at_once() {
    let mut world = World::connected();
    for life in 1..5 {
        world.b = link(B, life);
        assert!(!world.say(A, b"to the one before"));
        world.settle();
        assert!(world.talk(), "life {life}");
    }
}

#[test]
fn a_peer_that_lost_the_session_without_a_word_is_met_again() {
    let mut world = World::connected();
    // B forgets, and is made to believe that it need not begin itself.
    world.b = link(B, 1);
    let mut waited = Duration::ZERO;
    while !world.b.has_session(world.now, A) {
        let _ = world.seal(A, b"anybody there?");
        world.poll_one(A);
        world.drain();
        world.now += MILLI;
        waited += MILLI;
        assert!(waited < SILENCE_MAX + SECOND);
    }
    assert!(world.talk());
}

#[test]
fn a_peer_that_only_listens_sends_signs_of_life() {
    let mut world = World::connected();
    for _ in 0..60 {
        assert!(world.say(A, b"one way"));
        world.pass(SECOND, SECOND / 4);
    }
    assert_eq!(world.counters(A).sessions, 1);
    let quiet = world.tape.len();
    world.pass(30 * SECOND, SECOND);
    let to_each_other = |sent: &&super::world::Sent| sent.to != NodeId(3);
    assert!(world.tape[quiet..].iter().filter(to_each_other).count() <= 2);
}

#[test]
fn an_offer_that_nobody_confirms_holds_nothing_up() {
    let mut world = World::connected();
    world.now += REKEY_AFTER;
    world.poll();
    while let Some(sent) = world.wire.pop_front() {
        if sent.kind() < 4 {
            world.deliver(&sent);
        }
    }
    assert!(world.talk());
    world.pass(OFFER_HOLDS * 3, MILLI);
    assert!(world.talk());
    assert_eq!(world.counters(A).sessions, 2);
}

#[test]
fn peers_are_added_changed_and_removed() {
    let mut world = World::connected();
    let of_b = (B, *identity(B).public());
    let fourth = (NodeId(4), *identity(NodeId(4)).public());
    world.a.set_peers(&[fourth, of_b]).unwrap();
    assert!(world.talk());
    let replaced = Identity::from_secret([99; 32]);
    world.a.set_peers(&[(B, *replaced.public())]).unwrap();
    assert!(world.seal(A, b"x").is_err());
    world.settle();
    assert!(
        !world.a.has_session(world.now, B),
        "B has still its old key"
    );
    world.b = SecureLink::new(replaced, &[(A, *identity(A).public())], GROUP, random(5)).unwrap();
    world.pass(2 * SECOND, MILLI);
    assert!(world.talk());
    world.a.set_peers(&[]).unwrap();
    assert!(!world.say(B, b"to nobody"));
    assert!(world.a.counters().strangers > 0);
}

#[test]
fn keys_and_ids_that_two_nodes_share_are_refused() {
    let public = |node| *identity(NodeId(node)).public();
    let new = |peers: &[_]| SecureLink::new(identity(A), peers, GROUP, random(1)).map(drop);
    let shared = |node| Err(SecureError::SharedKey(NodeId(node)));
    assert_eq!(new(&[(NodeId(2), public(1))]), shared(2));
    assert_eq!(
        new(&[(NodeId(2), public(2)), (NodeId(3), public(2))]),
        shared(3)
    );
    let twice = [(NodeId(2), public(2)), (NodeId(2), public(3))];
    assert_eq!(new(&twice), Err(SecureError::SharedId(NodeId(2))));
    let mut weak = public(2);
    weak.x25519 = [0; 32];
    assert_eq!(
        new(&[(NodeId(2), weak)]),
        Err(SecureError::WeakKey(NodeId(2)))
    );
}

#[test]
fn the_same_seed_does_the_same() {
    let run = || {
        let mut world = World::connected();
        world.pass(300 * SECOND, SECOND);
        world.talk();
        world.tape
    };
    assert!(run() == run());
}
