//! A network without loss, until a test takes something out of it.

use std::collections::VecDeque;
use std::time::Duration;

use plover_types::NodeId;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::secure::{Identity, NoSession, Random, SecureCounters, SecureLink};
use crate::wire::GroupId;

pub(super) const GROUP: GroupId = GroupId(77);
pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);

pub(super) fn identity(node: NodeId) -> Identity {
    Identity::from_secret([node.0 as u8; 32])
}

pub(super) fn random(seed: u64) -> Random {
    Box::new(StdRng::seed_from_u64(seed))
}

/// A node that was started `life` times before.
pub(super) fn link(own: NodeId, life: u64) -> SecureLink {
    let peers: Vec<_> = (1..=3)
        .map(NodeId)
        .filter(|node| *node != own)
        .map(|node| (node, *identity(node).public()))
        .collect();
    SecureLink::new(identity(own), &peers, GROUP, random(own.0 * 1000 + life)).unwrap()
}

/// A datagram on its way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sent {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) bytes: Vec<u8>,
}

impl Sent {
    pub(super) fn kind(&self) -> u8 {
        self.bytes[0]
    }
}

/// Nodes A and B, and what is on the wire between them.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) a: SecureLink,
    pub(super) b: SecureLink,
    pub(super) wire: VecDeque<Sent>,
    /// All that ever was on the wire.
    pub(super) tape: Vec<Sent>,
    /// What was opened.
    pub(super) received: Vec<(NodeId, Vec<u8>)>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now: Duration::from_secs(5),
            a: link(A, 0),
            b: link(B, 0),
            wire: VecDeque::new(),
            tape: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Two nodes with a session that both have confirmed.
    pub(super) fn connected() -> Self {
        let mut world = Self::new();
        world.settle();
        assert!(world.a.has_session(world.now, B) && world.b.has_session(world.now, A));
        world
    }

    pub(super) fn node(&mut self, node: NodeId) -> &mut SecureLink {
        if node == A { &mut self.a } else { &mut self.b }
    }

    pub(super) fn counters(&mut self, node: NodeId) -> SecureCounters {
        *self.node(node).counters()
    }

    /// Both do what is due; nothing is delivered.
    pub(super) fn poll(&mut self) {
        for node in [A, B] {
            self.poll_one(node);
        }
    }

    pub(super) fn poll_one(&mut self, node: NodeId) {
        let now = self.now;
        let mut sent = Vec::new();
        self.node(node)
            .poll(now, |to, bytes| sent.push((to, bytes.to_vec())));
        self.put(node, sent);
    }

    fn put(&mut self, from: NodeId, sent: Vec<(NodeId, Vec<u8>)>) {
        for (to, bytes) in sent {
            let sent = Sent { from, to, bytes };
            self.tape.push(sent.clone());
            // There is no third node here.
            if [A, B].contains(&to) {
                self.wire.push_back(sent);
            }
        }
    }

    /// Gives a datagram to a node, as if it came from the address of `from`.
    pub(super) fn give(&mut self, to: NodeId, from: NodeId, bytes: &[u8]) -> Option<Vec<u8>> {
        let now = self.now;
        let mut sent = Vec::new();
        let mut bytes = bytes.to_vec();
        let opened = self
            .node(to)
            .open(now, from, &mut bytes, |to, bytes| {
                sent.push((to, bytes.to_vec()));
            })
            .map(|(node, bytes)| {
                assert_eq!(node, from);
                bytes.to_vec()
            });
        self.put(to, sent);
        opened
    }

    pub(super) fn deliver(&mut self, sent: &Sent) {
        if let Some(opened) = self.give(sent.to, sent.from, &sent.bytes) {
            self.received.push((sent.to, opened));
        }
    }

    /// Delivers until nothing is on the wire.
    pub(super) fn drain(&mut self) {
        while let Some(sent) = self.wire.pop_front() {
            self.deliver(&sent);
        }
    }

    pub(super) fn settle(&mut self) {
        self.poll();
        self.drain();
    }

    /// Lets time pass in small steps, everything delivered.
    pub(super) fn pass(&mut self, time: Duration, step: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + step).min(end);
            self.settle();
        }
    }

    pub(super) fn seal(&mut self, from: NodeId, bytes: &[u8]) -> Result<Sent, NoSession> {
        let (now, to) = (self.now, if from == A { B } else { A });
        let mut out = Vec::new();
        self.node(from).seal(now, to, &[bytes], &mut out)?;
        Ok(Sent {
            from,
            to,
            bytes: out,
        })
    }

    /// Sends and delivers; whether it arrived.
    pub(super) fn say(&mut self, from: NodeId, bytes: &[u8]) -> bool {
        let Ok(sent) = self.seal(from, bytes) else {
            return false;
        };
        let opened = self.give(sent.to, sent.from, &sent.bytes);
        self.drain();
        opened.as_deref() == Some(bytes)
    }

    pub(super) fn talk(&mut self) -> bool {
        self.say(A, b"to b") && self.say(B, b"to a")
    }
}
