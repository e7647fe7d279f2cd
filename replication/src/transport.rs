//! Messages in datagrams: cut into fragments on one side, put together on the other, and repaired
//! on the way in about a round trip.
//!
//! What lives here: fragments, their acknowledgement, loss and its repair, how much may be on the
//! way, duplicates, order where it matters. What does not: addresses and frames (see `net`),
//! secrecy and authenticity (the caller seals each datagram), what a message says (see `wire`),
//! clocks (the caller says what time it is).
//!
//! ```text
//!  message ─▶ fragments ─▶ datagram n ──────────────▶ seen, acknowledged: newest and bits before
//!                ▲              │                                  │
//!                │   3 later ones acknowledged, or 9/8 round trip  │
//!                └── lost: again, as datagram m > n ◀──────────────┘
//! ```
//!
//! A datagram's number is never used twice, so an acknowledgement always says which sending it
//! answers, and the lost repair of a loss is found like any other. The last datagrams of a burst,
//! which nothing follows, are sent again by a timer ([`rtt`](self)). What is given up here is
//! repaired by raft-rs, later.
//!
//! How a message is delivered is decided by its kind ([`Delivery`]). raft-rs takes messages in any
//! order; only entries that overtake each other cost it a rejection and a probe, so that those,
//! and nothing else, wait for those before them.
//!
//! Both sides' memory is bounded ([`crate::limits`]). A boot id, random per start, tells a peer's
//! lives apart: a new one ends everything that was on the way to the old one.

mod counters;
mod datagram;
mod peer;
mod reassembly;
mod receiver;
mod rtt;
mod sender;
mod window;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use plover_types::NodeId;

use crate::limits::DATAGRAMS_PER_TURN_MAX;
use crate::wire::GroupId;
use crate::wire::limits::{FRAGMENTS_MAX, MESSAGE_BYTES_MAX};

pub use counters::TransportCounters;
pub use datagram::{HEADER_BYTES_MAX, TRANSPORT_VERSION};
pub use peer::PeerLink;

use datagram::{Datagram, Header};
use peer::Peer;

/// Buffers for messages that are kept for the next ones.
const SPARE_BUFFERS_MAX: usize = 64;

/// Bytes that a spare buffer holds at most: a long message's goes back to the allocator.
const SPARE_BYTES_MAX: usize = 32 * 1024;

/// What a transport is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// The group; datagrams of others are dropped.
    pub group: GroupId,
    /// The other nodes.
    pub peers: Vec<NodeId>,
    /// Random per start of the process, and not 0.
    pub boot: u64,
    /// Bytes of the longest datagram.
    pub datagram_bytes_max: usize,
}

/// Why a transport was not set up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TransportError {
    /// The longest message would not fit its fragments.
    #[error(
        "datagrams of {0} bytes are too short for the longest message; use an MTU of 576 or more"
    )]
    Short(usize),
}

/// How a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// At once and once, or not at all if it is lost: the next one of its kind says the same, only
    /// newer. One that does not fit a datagram is [`Self::Repaired`].
    Unrepaired,
    /// Lost datagrams are repaired; other messages may overtake it.
    Repaired,
    /// Repaired, and no repaired message that was sent after it is delivered before it if that one
    /// is in order, too.
    InOrder,
}

/// Cuts messages into datagrams and puts them together again.
#[derive(Debug)]
pub struct Transport {
    group: GroupId,
    boot: u64,
    fragment_bytes_max: usize,
    peers: Vec<Peer>,
    /// Whole messages from peers.
    ready: VecDeque<(NodeId, Bytes)>,
    spare: Vec<BytesMut>,
    counters: TransportCounters,
}

impl Transport {
    /// A transport.
    ///
    /// # Errors
    /// Datagrams are too short.
    pub fn new(config: TransportConfig) -> Result<Self, TransportError> {
        let fragment_bytes_max = config.datagram_bytes_max.saturating_sub(HEADER_BYTES_MAX);
        if fragment_bytes_max * FRAGMENTS_MAX < MESSAGE_BYTES_MAX {
            return Err(TransportError::Short(config.datagram_bytes_max));
        }
        Ok(Self {
            group: config.group,
            boot: config.boot,
            fragment_bytes_max,
            peers: config.peers.into_iter().map(Peer::new).collect(),
            ready: VecDeque::new(),
            spare: Vec::new(),
            counters: TransportCounters::default(),
        })
    }

    /// Other peers, from now on; what is on the way to and from those that stay goes on.
    pub fn set_peers(&mut self, nodes: &[NodeId]) {
        self.peers.retain(|peer| nodes.contains(&peer.node));
        for node in nodes {
            if !self.peers.iter().any(|peer| peer.node == *node) {
                self.peers.push(Peer::new(*node));
            }
        }
    }

    /// What became of datagrams and messages so far.
    #[must_use]
    pub fn counters(&self) -> &TransportCounters {
        &self.counters
    }

    /// How the way to each peer is.
    pub fn links(&self) -> impl Iterator<Item = (NodeId, PeerLink)> + '_ {
        self.peers.iter().map(|peer| (peer.node, peer.link()))
    }

    /// An empty buffer to write a message into; [`Self::send`] takes it back.
    #[must_use]
    pub fn buffer(&mut self) -> BytesMut {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn recycle(&mut self, buffer: BytesMut) {
        keep(&mut self.spare, buffer);
    }

    /// Sends a message, or queues it for [`Self::pump`]. `emit` gets the parts of each datagram.
    /// What cannot be sent is dropped and counted.
    pub fn send(
        &mut self,
        now: Duration,
        to: NodeId,
        delivery: Delivery,
        message: BytesMut,
        emit: impl FnMut(NodeId, &[&[u8]]),
    ) {
        let Some(at) = self.peers.iter().position(|peer| peer.node == to) else {
            self.counters.messages_unsendable += 1;
            self.recycle(message);
            return;
        };
        if !(1..=MESSAGE_BYTES_MAX).contains(&message.len()) {
            self.counters.messages_unsendable += 1;
            self.recycle(message);
            return;
        }
        let fits = message.len() <= self.fragment_bytes_max;
        if delivery == Delivery::Unrepaired && fits {
            self.send_unrepaired(now, at, &message, emit);
            self.recycle(message);
            return;
        }
        let is_ordered = delivery == Delivery::InOrder;
        let taken = self.peers[at]
            .sender
            .push(message, is_ordered, self.fragment_bytes_max);
        match taken {
            Ok(()) => self.counters.messages_sent += 1,
            Err(message) => {
                self.counters.messages_no_room += 1;
                self.recycle(message);
            }
        }
    }

    fn send_unrepaired(
        &mut self,
        now: Duration,
        at: usize,
        message: &[u8],
        mut emit: impl FnMut(NodeId, &[&[u8]]),
    ) {
        let (group, boot) = (self.group, self.boot);
        let peer = &mut self.peers[at];
        let mut header = Header::new(group, boot, peer.boot());
        header.fragment = Some(peer.unrepaired_fragment(message.len()));
        header.ack = peer.receiver.take_ack(now);
        emit(peer.node, &[&header.to_bytes(), message]);
        self.counters.messages_sent += 1;
        self.counters.datagrams_sent += 1;
    }

    /// Takes an opened datagram of a peer's; [`Self::next_message`] has the messages that it
    /// completes.
    pub fn receive(&mut self, now: Duration, from: NodeId, datagram: &[u8]) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == from) else {
            self.counters.foreign += 1;
            return;
        };
        let datagram = match Datagram::parse(datagram, self.group) {
            Ok(datagram) => datagram,
            Err(why) => {
                self.counters.refuse(why);
                return;
            }
        };
        self.counters.datagrams_received += 1;
        let (spare, ready) = (&mut self.spare, &mut self.ready);
        peer.receive(
            now,
            self.boot,
            &datagram,
            &mut self.counters,
            &mut |buffer: BytesMut| keep(spare, buffer),
            &mut |message| ready.push_back((from, message)),
        );
    }

    /// A message that is whole, and who sent it.
    #[inline]
    pub fn next_message(&mut self) -> Option<(NodeId, Bytes)> {
        self.ready.pop_front()
    }

    /// Sends what is due and may be on the way: fragments, repairs, acknowledgements. Returns how
    /// many datagrams that were.
    pub fn pump(&mut self, now: Duration, mut emit: impl FnMut(NodeId, &[&[u8]])) -> usize {
        let mut count = 0;
        let spare = &mut self.spare;
        for peer in &mut self.peers {
            peer.sender
                .find_lost(now, &mut self.counters, &mut |buffer| keep(spare, buffer));
            for _ in 0..DATAGRAMS_PER_TURN_MAX {
                let mut header = Header::new(self.group, self.boot, peer.boot());
                let Some((numbered, fragment, range, bytes)) = peer.sender.next_fragment(now)
                else {
                    break;
                };
                header.numbered = Some(numbered);
                header.fragment = Some(fragment);
                header.ack = peer.receiver.take_ack(now);
                emit(peer.node, &[&header.to_bytes(), &bytes[range]]);
                count += 1;
            }
            if let Some(ack) = peer.receiver.take_due_ack(now) {
                let mut header = Header::new(self.group, self.boot, peer.boot());
                header.ack = Some(ack);
                emit(peer.node, &[&header.to_bytes()]);
                self.counters.acks_alone += 1;
                count += 1;
            }
        }
        self.counters.datagrams_sent += count as u64;
        count
    }

    /// When [`Self::pump`] has something to do, if ever; now or earlier: at once.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.peers.iter().filter_map(Peer::due).min()
    }
}

fn keep(spare: &mut Vec<BytesMut>, mut buffer: BytesMut) {
    if spare.len() < SPARE_BUFFERS_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
        buffer.clear();
        spare.push(buffer);
    }
}
