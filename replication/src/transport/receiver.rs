//! What came from a peer: which numbers are to be acknowledged, which messages are whole, which
//! wait for one before them.

use std::time::Duration;

use arrayvec::ArrayVec;
use bytes::Bytes;

use super::counters::TransportCounters;
use super::datagram::{ACK_WORDS_MAX, ACK_WORDS_WITH_FRAGMENT, Ack, Fragment, Numbered};
use super::reassembly::{Put, Reassembly};
use crate::limits::{ACK_DELAY, ACKS_DELAYED_MAX, MESSAGES_MAX, NUMBERS_MAX, RECEIVE_BYTES_MAX};

/// One peer's side of the way here.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    seen: Seen,
    ack_due: Option<Duration>,
    acks_delayed: u32,
    whole: Whole,
    reassembly: Reassembly,
    /// Whole messages in order, each waiting for one before it; by their ids.
    waiting: Vec<(u64, Bytes)>,
    waiting_bytes: usize,
    unrepaired: Unrepaired,
}

impl Receiver {
    /// A fragment that is repaired if it is lost.
    pub(super) fn receive_numbered(
        &mut self,
        now: Duration,
        (numbered, fragment, bytes): (&Numbered, &Fragment, &[u8]),
        counters: &mut TransportCounters,
        deliver: &mut impl FnMut(Bytes),
    ) {
        let arrival = self.seen.note(now, numbered);
        self.ask_for_ack(now, arrival, fragment.count);
        if arrival == Arrival::Again {
            counters.duplicates += 1;
            return;
        }
        if self.whole.forget_before(numbered.message_min) {
            self.reassembly
                .forget_before(numbered.message_min, &mut counters.evicted);
            self.deliver_waiting(deliver);
        }
        if self.whole.has(fragment.message) {
            counters.duplicates += 1;
            return;
        }
        match self.reassembly.put(fragment, bytes, &mut counters.evicted) {
            Put::Incomplete => {}
            Put::Duplicate => counters.duplicates += 1,
            Put::Contradiction => counters.malformed += 1,
            Put::Whole(message) => {
                counters.messages_received += 1;
                self.whole.add(fragment.message);
                if numbered.is_ordered && !self.whole.has_all_before(fragment.message) {
                    self.wait((fragment.message, message), counters);
                } else {
                    deliver(message);
                }
                self.deliver_waiting(deliver);
            }
        }
    }

    /// A whole message that is not repaired.
    pub(super) fn receive_unrepaired(
        &mut self,
        fragment: &Fragment,
        bytes: &[u8],
        counters: &mut TransportCounters,
        deliver: &mut impl FnMut(Bytes),
    ) {
        if fragment.count != 1 {
            counters.malformed += 1;
        } else if !self.unrepaired.is_new(fragment.message) {
            counters.duplicates += 1;
        } else if let Put::Whole(message) =
            self.reassembly.put(fragment, bytes, &mut counters.evicted)
        {
            counters.messages_received += 1;
            deliver(message);
        }
    }

    fn wait(&mut self, waiting: (u64, Bytes), counters: &mut TransportCounters) {
        if self.waiting_bytes + waiting.1.len() > RECEIVE_BYTES_MAX {
            counters.evicted += 1;
            return;
        }
        self.waiting_bytes += waiting.1.len();
        let at = self.waiting.partition_point(|(id, _)| *id < waiting.0);
        self.waiting.insert(at, waiting);
    }

    #[inline]
    fn deliver_waiting(&mut self, deliver: &mut impl FnMut(Bytes)) {
        if self.waiting.is_empty() {
            return;
        }
        let whole = &self.whole;
        let count = self
            .waiting
            .partition_point(|(id, _)| whole.has_all_before(*id));
        for (_, message) in self.waiting.drain(..count) {
            self.waiting_bytes -= message.len();
            deliver(message);
        }
    }

    /// A short message that came in order may wait for an answer that carries its acknowledgement;
    /// everything else is acknowledged in this turn: its sender waits for room, or looks for losses.
    fn ask_for_ack(&mut self, now: Duration, arrival: Arrival, fragments: u16) {
        self.acks_delayed += 1;
        let may_wait = arrival == Arrival::Next
            && fragments == 1
            && self.acks_delayed < ACKS_DELAYED_MAX
            && self.reassembly.is_empty();
        let due = if may_wait { now + ACK_DELAY } else { now };
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// The acknowledgement that is owed, to travel with a fragment; none if it has no room there.
    #[inline]
    pub(super) fn take_ack(&mut self, now: Duration) -> Option<Ack> {
        self.ack_due?;
        if self.seen.words() > ACK_WORDS_WITH_FRAGMENT {
            return None;
        }
        self.ack(now)
    }

    /// The acknowledgement that cannot wait any longer.
    #[inline]
    pub(super) fn take_due_ack(&mut self, now: Duration) -> Option<Ack> {
        self.ack_due.filter(|due| *due <= now)?;
        self.ack(now)
    }

    fn ack(&mut self, now: Duration) -> Option<Ack> {
        (self.ack_due, self.acks_delayed) = (None, 0);
        self.seen.ack(now)
    }

    /// When an acknowledgement cannot wait any longer.
    pub(super) fn due(&self) -> Option<Duration> {
        self.ack_due
    }
}

/// How a number came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// The one after the newest.
    Next,
    /// Others are missing before it, or came before it.
    Disordered,
    /// It was there before, or is too old to tell.
    Again,
}

/// Numbers received: the newest, and a bit for each of those before it.
#[derive(Debug, Default)]
struct Seen {
    newest: Option<u64>,
    newest_at: Duration,
    words: [u64; ACK_WORDS_MAX],
    /// The oldest that the sender waits for.
    number_min: u64,
}

impl Seen {
    fn note(&mut self, now: Duration, numbered: &Numbered) -> Arrival {
        let number = numbered.number;
        self.number_min = self.number_min.max(numbered.number_min);
        let Some(newest) = self.newest else {
            (self.newest, self.newest_at) = (Some(number), now);
            return Arrival::Next;
        };
        if number > newest {
            self.shift(number - newest);
            (self.newest, self.newest_at) = (Some(number), now);
            return if number == newest + 1 {
                Arrival::Next
            } else {
                Arrival::Disordered
            };
        }
        let behind = newest - number;
        if behind == 0 || behind > NUMBERS_MAX as u64 {
            return Arrival::Again;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most NUMBERS_MAX")]
        let behind = behind as usize - 1;
        let (word, bit) = (&mut self.words[behind / 64], 1 << (behind % 64));
        if *word & bit != 0 {
            return Arrival::Again;
        }
        *word |= bit;
        Arrival::Disordered
    }

    /// The newest becomes one of those before.
    fn shift(&mut self, by: u64) {
        let Some(by) = usize::try_from(by).ok().filter(|by| *by <= NUMBERS_MAX) else {
            self.words = [0; ACK_WORDS_MAX];
            return;
        };
        let (words, bits) = (by / 64, by % 64);
        for at in (0..ACK_WORDS_MAX).rev() {
            let low = at.checked_sub(words).map_or(0, |from| self.words[from]);
            let lower = at.checked_sub(words + 1).map_or(0, |from| self.words[from]);
            self.words[at] = if bits == 0 {
                low
            } else {
                low << bits | lower >> (64 - bits)
            };
        }
        let newest = by - 1;
        self.words[newest / 64] |= 1 << (newest % 64);
    }

    /// Words that tell of all that the sender waits for.
    fn words(&self) -> usize {
        let behind = self.newest.unwrap_or(0).saturating_sub(self.number_min);
        usize::try_from(behind.div_ceil(64))
            .unwrap_or(ACK_WORDS_MAX)
            .min(ACK_WORDS_MAX)
    }

    fn ack(&self, now: Duration) -> Option<Ack> {
        let delay = now.saturating_sub(self.newest_at).as_micros();
        let mut words = ArrayVec::new();
        words.extend(self.words[..self.words()].iter().copied());
        Some(Ack {
            newest: self.newest?,
            delay_us: u32::try_from(delay).unwrap_or(u32::MAX),
            words,
        })
    }
}

/// Which messages are whole: all before `all_before`, and a bit for each from there on.
#[derive(Debug)]
struct Whole {
    all_before: u64,
    bits: [u64; MESSAGES_MAX / 64],
}

impl Default for Whole {
    fn default() -> Self {
        Self {
            all_before: 0,
            bits: [0; MESSAGES_MAX / 64],
        }
    }
}

impl Whole {
    fn place(message: u64) -> (usize, u64) {
        #[expect(clippy::cast_possible_truncation, reason = "below MESSAGES_MAX")]
        let at = (message % MESSAGES_MAX as u64) as usize;
        (at / 64, 1 << (at % 64))
    }

    fn has_all_before(&self, message: u64) -> bool {
        message <= self.all_before
    }

    fn has(&self, message: u64) -> bool {
        let (word, bit) = Self::place(message);
        message < self.all_before || self.bits[word] & bit != 0
    }

    /// The sender waits for none before this one. True if that is news.
    fn forget_before(&mut self, message: u64) -> bool {
        if message <= self.all_before {
            return false;
        }
        if message - self.all_before >= MESSAGES_MAX as u64 {
            self.bits = [0; MESSAGES_MAX / 64];
            self.all_before = message;
        }
        while self.all_before < message {
            self.step();
        }
        self.skip_whole();
        true
    }

    /// `message` is below `all_before + MESSAGES_MAX`: its datagram said so of the oldest one.
    fn add(&mut self, message: u64) {
        let (word, bit) = Self::place(message);
        self.bits[word] |= bit;
        self.skip_whole();
    }

    fn skip_whole(&mut self) {
        loop {
            let (word, bit) = Self::place(self.all_before);
            if self.bits[word] & bit == 0 {
                break;
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let (word, bit) = Self::place(self.all_before);
        self.bits[word] &= !bit;
        self.all_before += 1;
    }
}

/// Which of the last messages that are not repaired came.
#[derive(Debug, Default)]
struct Unrepaired {
    /// The id after the newest.
    next: u64,
    /// Bit *b*: `next - 1 - b` came.
    bits: u64,
}

impl Unrepaired {
    /// Whether it did not come yet. What is much older than the newest counts as if it had.
    fn is_new(&mut self, message: u64) -> bool {
        let Some(next) = message.checked_add(1) else {
            return false;
        };
        if next > self.next {
            let by = u32::try_from(next - self.next).unwrap_or(u32::MAX);
            self.bits = self.bits.checked_shl(by).unwrap_or(0) | 1;
            self.next = next;
            return true;
        }
        let behind = self.next - next;
        let is_new = behind < 64 && self.bits >> behind & 1 == 0;
        if is_new {
            self.bits |= 1 << behind;
        }
        is_new
    }
}
