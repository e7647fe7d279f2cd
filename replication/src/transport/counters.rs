//! What became of datagrams and messages.

use super::datagram::Refused;

/// Counts of datagrams and messages, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TransportCounters {
    /// Messages taken to be sent.
    pub messages_sent: u64,
    /// Datagrams made of them, repairs and acknowledgements included.
    pub datagrams_sent: u64,
    /// Of these, those with nothing but an acknowledgement.
    pub acks_alone: u64,
    /// Messages not sent: too long, empty, or to a node that is no peer.
    pub messages_unsendable: u64,
    /// Messages not sent: too much waits for the peer already.
    pub messages_no_room: u64,
    /// Messages given up: the peer does not answer.
    pub messages_given_up: u64,
    /// Messages that were on the way to a peer's former life.
    pub messages_to_former_life: u64,
    /// Datagrams found lost, and sent again.
    pub repaired: u64,
    /// Of these, those found by the timer.
    pub probes: u64,
    /// Messages received whole.
    pub messages_received: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams of no peer, or of another group.
    pub foreign: u64,
    /// Datagrams of another version of the byte form.
    pub other_version: u64,
    /// Datagrams with a header that contradicts itself, their length or earlier fragments.
    pub malformed: u64,
    /// Messages longer than any may be.
    pub oversized: u64,
    /// Datagrams of a peer's former life.
    pub former_life: u64,
    /// Fragments and messages that were received before.
    pub duplicates: u64,
    /// Messages given up incomplete, or out of order, for want of room.
    pub evicted: u64,
}

impl TransportCounters {
    pub(super) fn refuse(&mut self, why: Refused) {
        *match why {
            Refused::Version => &mut self.other_version,
            Refused::Group => &mut self.foreign,
            Refused::Long => &mut self.oversized,
            Refused::Malformed => &mut self.malformed,
        } += 1;
    }
}
