//! Messages on their way to a peer: which fragments were sent under which number, which arrived,
//! which are lost and go again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;

use super::counters::TransportCounters;
use super::datagram::{Ack, Fragment, Numbered};
use super::rtt::RoundTrip;
use super::window::Window;
use crate::limits::{MESSAGES_MAX, NUMBERS_MAX, PROBES_MAX, REORDER_DATAGRAMS, SEND_BYTES_MAX};
use crate::wire::limits::FRAGMENTS_MAX;

/// Fragments that one probe sends again.
const PROBE_FRAGMENTS: usize = 2;

/// What is on the way to one peer, and what waits.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// In order of their ids, without gaps; the first is one that is still waited for.
    messages: VecDeque<Outgoing>,
    message_min: u64,
    /// Their bytes.
    bytes: usize,
    /// Place in `messages` of the first with fragments that were never sent.
    unsent: usize,
    /// In order of their numbers, without gaps.
    sent: VecDeque<Sent>,
    number_min: u64,
    /// How many of `sent` are still waited for.
    on_the_way: u32,
    newest_acknowledged: Option<u64>,
    /// Fragments to be sent again.
    lost: VecDeque<(u64, u16)>,
    last_sent: Duration,
    /// When the oldest overtaken datagram is lost.
    overtaken_due: Option<Duration>,
    /// Probes in a row that nobody answered.
    probes: u32,
    pub(super) round_trip: RoundTrip,
    pub(super) window: Window,
    pub(super) repaired: u64,
}

#[derive(Debug)]
struct Outgoing {
    bytes: BytesMut,
    is_ordered: bool,
    count: u16,
    total: u32,
    /// Fragments sent at least once.
    sent: u16,
    missing: u16,
    arrived: [u64; FRAGMENTS_MAX / 64],
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    message: u64,
    fragment: u16,
    at: Duration,
    is_waited_for: bool,
}

impl Sender {
    /// Queues a message, in fragments of this length at most. It comes back if there is no room.
    pub(super) fn push(
        &mut self,
        bytes: BytesMut,
        is_ordered: bool,
        fragment_bytes_max: usize,
    ) -> Result<(), BytesMut> {
        let has_room =
            self.messages.len() < MESSAGES_MAX - 1 && self.bytes + bytes.len() <= SEND_BYTES_MAX;
        let count = u16::try_from(bytes.len().div_ceil(fragment_bytes_max));
        let (true, Ok(count), Ok(total)) = (has_room, count, u32::try_from(bytes.len())) else {
            return Err(bytes);
        };
        self.bytes += bytes.len();
        self.messages.push_back(Outgoing {
            bytes,
            is_ordered,
            count,
            total,
            sent: 0,
            missing: count,
            arrived: [0; FRAGMENTS_MAX / 64],
        });
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.on_the_way >= self.window.datagrams() || self.sent.len() >= NUMBERS_MAX - 1
    }

    fn has_unsent(&self) -> bool {
        !self.lost.is_empty() || self.unsent < self.messages.len()
    }

    /// The next fragment that may be sent, if any: repairs first.
    #[inline]
    pub(super) fn next_fragment(
        &mut self,
        now: Duration,
    ) -> Option<(Numbered, Fragment, Range<usize>, &[u8])> {
        if self.is_full() {
            return None;
        }
        let (message, fragment) = self.next_lost().or_else(|| self.next_unsent())?;
        let number = self.number_min + self.sent.len() as u64;
        self.sent.push_back(Sent {
            message,
            fragment,
            at: now,
            is_waited_for: true,
        });
        self.on_the_way += 1;
        self.last_sent = now;
        let message_min = self.message_min;
        let outgoing = self.outgoing(message)?;
        let header = Fragment {
            message,
            number: fragment,
            count: outgoing.count,
            total: outgoing.total,
        };
        let numbered = Numbered {
            number,
            number_min: self.number_min,
            message_min,
            is_ordered: outgoing.is_ordered,
        };
        Some((numbered, header, header.range()?, &outgoing.bytes))
    }

    fn next_lost(&mut self) -> Option<(u64, u16)> {
        loop {
            let (message, fragment) = self.lost.pop_front()?;
            // It may have arrived all the same.
            let waits = |outgoing: &Outgoing| !outgoing.has(fragment);
            if self.outgoing(message).is_some_and(waits) {
                return Some((message, fragment));
            }
        }
    }

    fn next_unsent(&mut self) -> Option<(u64, u16)> {
        let outgoing = self.messages.get_mut(self.unsent)?;
        let (message, fragment) = (self.message_min + self.unsent as u64, outgoing.sent);
        outgoing.sent += 1;
        if outgoing.sent == outgoing.count {
            self.unsent += 1;
        }
        Some((message, fragment))
    }

    fn place(&self, message: u64) -> Option<usize> {
        usize::try_from(message.checked_sub(self.message_min)?).ok()
    }

    fn outgoing(&self, message: u64) -> Option<&Outgoing> {
        self.messages.get(self.place(message)?)
    }

    /// The peer says what it has. `done` gets the buffers of messages that arrived.
    pub(super) fn acknowledge(
        &mut self,
        now: Duration,
        ack: &Ack,
        done: &mut impl FnMut(BytesMut),
    ) {
        let number_next = self.number_min + self.sent.len() as u64;
        if ack.newest >= number_next {
            // Never sent: a peer that makes things up gets nothing for it.
            return;
        }
        let was_full = self.is_full() && self.has_unsent();
        self.measure(now, ack);
        let mut arrived = 0;
        for place in 0..self.sent.len() {
            let number = self.number_min + place as u64;
            if number > ack.newest {
                break;
            }
            if self.sent[place].is_waited_for && ack.has(number) {
                arrived += 1;
                let Sent {
                    message, fragment, ..
                } = self.settle(place);
                self.arrive(message, fragment, done);
            }
        }
        if arrived > 0 {
            self.probes = 0;
            self.window.grow(arrived, was_full);
        }
        self.newest_acknowledged = self.newest_acknowledged.max(Some(ack.newest));
        self.forget_settled();
    }

    fn measure(&mut self, now: Duration, ack: &Ack) {
        let place = ack.newest.checked_sub(self.number_min);
        let sent = place
            .and_then(|place| self.sent.get(usize::try_from(place).ok()?))
            .filter(|sent| sent.is_waited_for);
        if let Some(sent) = sent {
            let delay = Duration::from_micros(ack.delay_us.into());
            let took = now.saturating_sub(sent.at);
            self.round_trip
                .measure(took.checked_sub(delay).unwrap_or(took));
        }
    }

    fn settle(&mut self, place: usize) -> Sent {
        self.sent[place].is_waited_for = false;
        self.on_the_way -= 1;
        self.sent[place]
    }

    fn arrive(&mut self, message: u64, fragment: u16, done: &mut impl FnMut(BytesMut)) {
        let Some(place) = self.place(message) else {
            return;
        };
        let Some(outgoing) = self.messages.get_mut(place) else {
            return;
        };
        if outgoing.has(fragment) {
            return;
        }
        outgoing.arrived[usize::from(fragment) / 64] |= 1 << (fragment % 64);
        outgoing.missing -= 1;
        if outgoing.missing == 0 {
            self.bytes -= outgoing.bytes.len();
            done(std::mem::take(&mut outgoing.bytes));
        }
    }

    fn forget_settled(&mut self) {
        while self.sent.front().is_some_and(|sent| !sent.is_waited_for) {
            self.sent.pop_front();
            self.number_min += 1;
        }
        while self
            .messages
            .front()
            .is_some_and(|first| first.missing == 0)
        {
            self.messages.pop_front();
            self.message_min += 1;
            // All of its fragments were sent, so the first unsent one comes later.
            self.unsent -= 1;
        }
    }

    /// Finds what is lost: overtaken by several, overtaken for long, or unanswered at the end.
    pub(super) fn find_lost(
        &mut self,
        now: Duration,
        counters: &mut TransportCounters,
        done: &mut impl FnMut(BytesMut),
    ) {
        if self.on_the_way == 0 {
            return;
        }
        self.find_overtaken(now, counters);
        if self.on_the_way > 0 && now >= self.probe_due() {
            self.probe(counters, done);
        }
        self.forget_settled();
    }

    fn find_overtaken(&mut self, now: Duration, counters: &mut TransportCounters) {
        self.overtaken_due = None;
        let Some(newest) = self.newest_acknowledged else {
            return;
        };
        let after = self.round_trip.overtaken_after();
        for place in 0..self.sent.len() {
            let number = self.number_min + place as u64;
            if number >= newest {
                break;
            }
            let sent = self.sent[place];
            if !sent.is_waited_for {
                continue;
            }
            if newest - number >= REORDER_DATAGRAMS || now >= sent.at + after {
                self.lose(place);
                counters.repaired += 1;
            } else {
                let due = sent.at + after;
                self.overtaken_due =
                    Some(self.overtaken_due.map_or(due, |earlier| earlier.min(due)));
            }
        }
    }

    fn lose(&mut self, place: usize) {
        let number = self.number_min + place as u64;
        let number_next = self.number_min + self.sent.len() as u64;
        let sent = self.settle(place);
        self.window.shrink(number, number_next);
        self.lost.push_back((sent.message, sent.fragment));
        self.repaired += 1;
    }

    fn probe_due(&self) -> Duration {
        self.last_sent + self.round_trip.probe_after() * (1 << self.probes.min(PROBES_MAX))
    }

    /// Nothing is heard: the oldest go again; after several times all is given up.
    fn probe(&mut self, counters: &mut TransportCounters, done: &mut impl FnMut(BytesMut)) {
        if self.probes >= PROBES_MAX {
            counters.messages_given_up += self.give_up(done) as u64;
            return;
        }
        self.probes += 1;
        let mut probed = 0;
        for place in 0..self.sent.len() {
            if self.sent[place].is_waited_for {
                self.lose(place);
                counters.repaired += 1;
                counters.probes += 1;
                probed += 1;
            }
            if probed == PROBE_FRAGMENTS {
                break;
            }
        }
    }

    /// Drops everything. Returns how many messages that were.
    pub(super) fn give_up(&mut self, done: &mut impl FnMut(BytesMut)) -> usize {
        let count = self.messages.iter().filter(|one| one.missing > 0).count();
        self.message_min += self.messages.len() as u64;
        self.number_min += self.sent.len() as u64;
        self.messages.drain(..).for_each(|one| done(one.bytes));
        self.sent.clear();
        self.lost.clear();
        (self.bytes, self.unsent, self.on_the_way, self.probes) = (0, 0, 0, 0);
        self.newest_acknowledged = None;
        self.overtaken_due = None;
        self.window = Window::default();
        count
    }

    /// When there is something to do, if ever.
    pub(super) fn due(&self) -> Option<Duration> {
        if self.has_unsent() && !self.is_full() {
            return Some(Duration::ZERO);
        }
        let probe = (self.on_the_way > 0).then(|| self.probe_due());
        [self.overtaken_due, probe].into_iter().flatten().min()
    }

    /// Datagrams that are waited for.
    pub(super) fn on_the_way(&self) -> u32 {
        self.on_the_way
    }

    /// Bytes of messages that are waited for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Outgoing {
    fn has(&self, fragment: u16) -> bool {
        self.arrived[usize::from(fragment) / 64] >> (fragment % 64) & 1 == 1
    }
}
