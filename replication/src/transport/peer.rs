//! A peer: both directions, and which of its lives they belong to.

use std::time::Duration;

use arrayvec::ArrayVec;
use bytes::{Bytes, BytesMut};
use plover_types::NodeId;

use super::counters::TransportCounters;
use super::datagram::{Datagram, Fragment};
use super::receiver::Receiver;
use super::sender::Sender;
use crate::limits::BOOTS_REMEMBERED;

/// How the way to a peer is, for whoever asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLink {
    /// Whether anything was heard of it yet.
    pub is_heard: bool,
    /// A round trip, smoothed; none before the first acknowledgement.
    pub round_trip: Option<Duration>,
    /// Datagrams that are not acknowledged yet.
    pub on_the_way: u32,
    /// How many there may be.
    pub window: u32,
    /// Bytes of messages that are not acknowledged yet.
    pub waiting_bytes: usize,
    /// Datagrams found lost, and sent again.
    pub repaired: u64,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub node: NodeId,
    /// 0 until it is heard of.
    boot: u64,
    former_boots: ArrayVec<u64, BOOTS_REMEMBERED>,
    /// Id of the next message that is not repaired.
    next_unrepaired: u64,
    pub sender: Sender,
    pub receiver: Receiver,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            boot: 0,
            former_boots: ArrayVec::new(),
            next_unrepaired: 0,
            sender: Sender::default(),
            receiver: Receiver::default(),
        }
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    /// The fragment header of a message that goes once, in one datagram.
    pub(super) fn unrepaired_fragment(&mut self, bytes: usize) -> Fragment {
        let message = self.next_unrepaired;
        self.next_unrepaired += 1;
        Fragment {
            message,
            number: 0,
            count: 1,
            // What is longer than MESSAGE_BYTES_MAX does not come here.
            total: u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn receive(
        &mut self,
        now: Duration,
        own_boot: u64,
        datagram: &Datagram<'_>,
        counters: &mut TransportCounters,
        done: &mut impl FnMut(BytesMut),
        deliver: &mut impl FnMut(Bytes),
    ) {
        let header = &datagram.header;
        if !self.is_of_this_life(header.boot, counters, done) {
            counters.former_life += 1;
            return;
        }
        if header.peer_boot != 0 && header.peer_boot != own_boot {
            // Meant for the node that had our address before us.
            counters.former_life += 1;
            return;
        }
        if let Some(ack) = &header.ack
            && header.peer_boot == own_boot
        {
            self.sender.acknowledge(now, ack, done);
        }
        match (&header.numbered, &header.fragment) {
            (Some(numbered), Some(fragment)) => self.receiver.receive_numbered(
                now,
                (numbered, fragment, datagram.fragment),
                counters,
                deliver,
            ),
            (None, Some(fragment)) => {
                self.receiver
                    .receive_unrepaired(fragment, datagram.fragment, counters, deliver);
            }
            _ => {}
        }
    }

    /// A boot id that is new ends the peer's former life. Ids cannot be put in order, so former
    /// ones are remembered: what comes late from there must not look like yet another start.
    fn is_of_this_life(
        &mut self,
        boot: u64,
        counters: &mut TransportCounters,
        done: &mut impl FnMut(BytesMut),
    ) -> bool {
        if boot == self.boot {
            return true;
        }
        if self.former_boots.contains(&boot) {
            return false;
        }
        if self.boot != 0 {
            if self.former_boots.is_full() {
                self.former_boots.remove(0);
            }
            self.former_boots.push(self.boot);
            counters.messages_to_former_life += self.sender.give_up(done) as u64;
            self.receiver = Receiver::default();
        }
        self.boot = boot;
        true
    }

    pub(super) fn due(&self) -> Option<Duration> {
        [self.sender.due(), self.receiver.due()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn link(&self) -> PeerLink {
        PeerLink {
            is_heard: self.boot != 0,
            round_trip: self.sender.round_trip.smoothed(),
            on_the_way: self.sender.on_the_way(),
            window: self.sender.window.datagrams(),
            waiting_bytes: self.sender.bytes(),
            repaired: self.sender.repaired,
        }
    }
}
