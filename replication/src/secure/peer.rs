//! One peer: its sessions, the handshake under way, and when the next one is due.
//!
//! ```text
//!   initiator                                      responder
//!     Hello(random) ─────────────────────────────▶   keeps nothing
//!           ◀───────────────────────────── Challenge(random, challenge)
//!     Offer(challenge, index, e, es, ss) ────────▶   challenge is used up: a replay does nothing
//!           ◀───────────────────────────── Answer(index, e, ee, se); session is `next`
//!   session is `current`
//!     Data, empty ───────────────────────────────▶   it opens: `next` becomes `current`
//!           ◀───────────────────────────── Data, empty: the initiator knows, too
//! ```
//!
//! Until the responder has seen data of the new session, it seals with the one before; both sides
//! open either. Each step that is lost is tried again from `Hello`, with growing waits.

use std::time::Duration;

use plover_keys::PublicIdentity;
use plover_types::NodeId;
use rand::Rng;
use snow::HandshakeState;

use super::Own;
use super::bucket::Bucket;
use super::datagram::{CHALLENGE_BYTES, Draft, HEADER_BYTES, Header, Kind};
use super::handshake::{Message, Offer, PairKeys, SplitKeys, finish};
use super::limits::{
    HANDSHAKES_AT_ONCE, HANDSHAKES_PER_SECOND, HELLOS_AT_ONCE, HELLOS_PER_SECOND, KEEP_ALIVE_AFTER,
    OFFER_HOLDS, REKEY_AFTER, REKEY_GRACE, RETRY_FIRST, RETRY_MAX, SILENCE_MAX,
};
use super::session::{Agreed, Refused, Session};

/// Where datagrams go.
pub(super) type Send<'a> = &'a mut dyn FnMut(NodeId, &[u8]);

/// The handshake that this side began.
enum Attempt {
    None,
    Hello {
        random: u64,
    },
    Offer {
        own_index: u32,
        noise: Box<HandshakeState>,
    },
}

pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) public: PublicIdentity,
    keys: PairKeys,
    /// What is sealed with.
    pub(super) current: Option<Session>,
    /// What was sealed with before, and still opens.
    previous: Option<Session>,
    /// What the peer offered and has not used yet.
    next: Option<Session>,
    attempt: Attempt,
    /// Handshakes begun, or confirmations sent, without success.
    tries: u32,
    next_try: Duration,
    /// What the next offer has to name.
    challenge: [u8; CHALLENGE_BYTES],
    hellos: Bucket,
    handshakes: Bucket,
    /// The first sending since something came.
    unanswered_since: Option<Duration>,
    /// Something came since the last sending, first at.
    owes_since: Option<Duration>,
}

impl Peer {
    pub(super) fn new(node: NodeId, public: PublicIdentity, keys: PairKeys, own: &mut Own) -> Self {
        Self {
            node,
            public,
            keys,
            current: None,
            previous: None,
            next: None,
            attempt: Attempt::None,
            tries: 0,
            next_try: Duration::ZERO,
            challenge: own.rng.random(),
            hellos: Bucket::new(HELLOS_PER_SECOND, HELLOS_AT_ONCE),
            handshakes: Bucket::new(HANDSHAKES_PER_SECOND, HANDSHAKES_AT_ONCE),
            unanswered_since: None,
            owes_since: None,
        }
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Duration, own: &mut Own, send: Send<'_>) {
        for slot in [&mut self.current, &mut self.previous, &mut self.next] {
            slot.take_if(|session| session.is_over(now));
        }
        if self
            .owes_since
            .is_some_and(|since| now.saturating_sub(since) >= KEEP_ALIVE_AFTER)
        {
            self.send_empty(now, own, send);
        }
        if now < self.next_try {
            return;
        }
        if self.wants_handshake(now) {
            self.say_hello(now, own, send);
        } else if self.is_unconfirmed() {
            self.wait_longer(now, own);
            self.send_empty(now, own, send);
        }
    }

    fn is_unconfirmed(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|session| session.initiated && !session.heard)
    }

    fn wants_handshake(&self, now: Duration) -> bool {
        let Some(session) = &self.current else {
            return true;
        };
        let grace = if session.initiated {
            Duration::ZERO
        } else {
            REKEY_GRACE
        };
        let silent_for = self
            .unanswered_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        session.is_used_up()
            || now.saturating_sub(session.made) >= REKEY_AFTER + grace
            || silent_for >= SILENCE_MAX
    }

    /// Puts the next try off: twice as long as the last time, and a quarter up or down, so that
    /// two sides that began together do not stay together.
    fn wait_longer(&mut self, now: Duration, own: &mut Own) {
        let wait = RETRY_FIRST
            .saturating_mul(1 << self.tries.min(16))
            .min(RETRY_MAX);
        self.tries = self.tries.saturating_add(1);
        self.next_try = now + wait.mul_f64(own.rng.random_range(0.75..1.25));
    }

    fn say_hello(&mut self, now: Duration, own: &mut Own, send: Send<'_>) {
        self.wait_longer(now, own);
        let random = own.rng.random();
        self.attempt = Attempt::Hello { random };
        own.counters.handshakes_begun += 1;
        let mut draft = Draft::new(header(Kind::Hello, 0, random));
        self.keys.put_guard(&mut draft);
        send(self.node, draft.bytes());
    }

    /// Takes a datagram of a handshake. Hostile until the guard is checked; what can be known to
    /// be none of ours before that, is.
    pub(super) fn handshake(
        &mut self,
        now: Duration,
        header: Header,
        datagram: &[u8],
        own: &mut Own,
        send: Send<'_>,
    ) {
        let is_expected = match (header.kind, &self.attempt) {
            (Kind::Hello, _) => header.index == 0,
            (Kind::Challenge, Attempt::Hello { random }) => *random == header.number,
            (Kind::Offer, _) => datagram[HEADER_BYTES..].starts_with(&self.challenge),
            (Kind::Answer, Attempt::Offer { own_index, .. }) => *own_index == header.index,
            _ => false,
        };
        if !is_expected {
            own.counters.strangers += 1;
            return;
        }
        if header.kind == Kind::Hello && !self.hellos.take(now) {
            own.counters.limited += 1;
            return;
        }
        let Some(body) = self.keys.check_guard(datagram) else {
            own.counters.forged += 1;
            return;
        };
        let body = &body[HEADER_BYTES..];
        let done = match header.kind {
            Kind::Hello => {
                self.send_challenge(header.number, send);
                Some(())
            }
            Kind::Challenge => self.on_challenge(body, own, send),
            Kind::Offer => self.on_offer(now, header, body, own, send),
            Kind::Answer => self.on_answer(now, header, body, own, send),
            Kind::Data => None,
        };
        if done.is_none() {
            own.counters.forged += 1;
        }
    }

    fn send_challenge(&self, random: u64, send: Send<'_>) {
        let mut draft = Draft::new(header(Kind::Challenge, 0, random));
        draft.put(&self.challenge);
        self.keys.put_guard(&mut draft);
        send(self.node, draft.bytes());
    }

    fn on_challenge(&mut self, body: &[u8], own: &mut Own, send: Send<'_>) -> Option<()> {
        let challenge = body.first_chunk()?;
        let own_index = self.free_index(own);
        let header = header(Kind::Offer, own_index, 0);
        let offer = Offer { header, challenge };
        let (noise, message) = self.keys.begin(&offer, own.rng.random())?;
        self.attempt = Attempt::Offer {
            own_index,
            noise: Box::new(noise),
        };
        let mut draft = Draft::new(header);
        draft.put(challenge);
        draft.put(&message);
        self.keys.put_guard(&mut draft);
        send(self.node, draft.bytes());
        Some(())
    }

    fn on_offer(
        &mut self,
        now: Duration,
        offered: Header,
        body: &[u8],
        own: &mut Own,
        send: Send<'_>,
    ) -> Option<()> {
        if matches!(self.attempt, Attempt::Offer { .. }) && self.keys.own_stands {
            own.counters.crossed += 1;
            return Some(());
        }
        if !self.handshakes.take(now) {
            own.counters.limited += 1;
            return Some(());
        }
        let (challenge, message) = body.split_first_chunk::<CHALLENGE_BYTES>()?;
        let message: &Message = message.first_chunk()?;
        // Used up before anything is computed: the same offer is never looked at again.
        self.challenge = own.rng.random();
        let offer = Offer {
            header: offered,
            challenge,
        };
        let (keys, answer) = self.keys.answer(&offer, message, own.rng.random())?;
        self.attempt = Attempt::None;
        self.next_try = self.next_try.max(now + OFFER_HOLDS);
        let own_index = self.free_index(own);
        self.next = Some(session(now, &keys, own_index, offered.index, false)?);
        let mut draft = Draft::new(header(Kind::Answer, offered.index, own_index.into()));
        draft.put(&answer);
        self.keys.put_guard(&mut draft);
        send(self.node, draft.bytes());
        Some(())
    }

    fn on_answer(
        &mut self,
        now: Duration,
        header: Header,
        body: &[u8],
        own: &mut Own,
        send: Send<'_>,
    ) -> Option<()> {
        let peer_index = u32::try_from(header.number).ok()?;
        let answer: &Message = body.first_chunk()?;
        let Attempt::Offer { own_index, noise } =
            std::mem::replace(&mut self.attempt, Attempt::None)
        else {
            return None;
        };
        let keys = finish(*noise, answer)?;
        let session = session(now, &keys, own_index, peer_index, true)?;
        self.install(session, own);
        // The first of the confirmations, which are repeated until the peer is heard.
        self.tries = 0;
        self.wait_longer(now, own);
        self.send_empty(now, own, send);
        Some(())
    }

    fn install(&mut self, session: Session, own: &mut Own) {
        own.counters.sessions += 1;
        self.previous = self.current.replace(session);
        self.unanswered_since = None;
    }

    /// Opens a datagram of one of the sessions. None: counted, or an empty one.
    pub(super) fn open<'a>(
        &mut self,
        now: Duration,
        header: Header,
        datagram: &'a mut [u8],
        own: &mut Own,
        send: Send<'_>,
    ) -> Option<&'a [u8]> {
        let is_meant =
            |session: &&mut Session| session.own_index == header.index && !session.is_over(now);
        let slots = [&mut self.current, &mut self.previous, &mut self.next];
        let found = slots.into_iter().filter_map(Option::as_mut).find(is_meant);
        let Some(session) = found else {
            own.counters.strangers += 1;
            return None;
        };
        let opened = match session.open(header.number, datagram) {
            Ok(opened) => opened,
            Err(Refused::Replayed) => {
                own.counters.replayed += 1;
                return None;
            }
            Err(Refused::Forged) => {
                own.counters.forged += 1;
                return None;
            }
        };
        own.counters.opened += 1;
        if self.unanswered_since.take().is_some() {
            self.tries = 0;
        }
        if !opened.is_empty() {
            self.owes_since.get_or_insert(now);
        }
        if let Some(confirmed) = self.next.take_if(|next| next.own_index == header.index) {
            self.confirmed(now, confirmed, own, send);
        }
        Some(&*opened).filter(|opened| !opened.is_empty())
    }

    /// The peer used the session that it offered. One that is older than the current one was held
    /// back on its way: it still opens, and that is all.
    fn confirmed(&mut self, now: Duration, session: Session, own: &mut Own, send: Send<'_>) {
        let current = self.current.as_ref();
        if current.is_some_and(|current| current.made > session.made) {
            self.previous = Some(session);
            return;
        }
        self.install(session, own);
        self.attempt = Attempt::None;
        self.tries = 0;
        self.next_try = now;
        self.send_empty(now, own, send);
    }

    /// Appends a datagram. None if there is no session.
    pub(super) fn seal(&mut self, now: Duration, parts: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
        let session = self
            .current
            .as_mut()
            .filter(|session| session.is_usable(now))?;
        session.seal(parts, out)?;
        self.owes_since = None;
        self.unanswered_since.get_or_insert(now);
        Some(())
    }

    /// An empty datagram, which is not answered.
    fn send_empty(&mut self, now: Duration, own: &mut Own, send: Send<'_>) {
        let mut scratch = std::mem::take(&mut own.scratch);
        scratch.clear();
        let was_unanswered = self.unanswered_since;
        if self.seal(now, &[], &mut scratch).is_some() {
            own.counters.sealed += 1;
            send(self.node, &scratch);
            // Only a confirmation expects something back.
            if !self.is_unconfirmed() {
                self.unanswered_since = was_unanswered;
            }
        }
        own.scratch = scratch;
    }

    fn free_index(&self, own: &mut Own) -> u32 {
        let slots = [&self.current, &self.previous, &self.next];
        loop {
            let index = own.rng.random();
            let is_used = |session: &Session| session.own_index == index;
            if index != 0 && !slots.iter().any(|slot| slot.as_ref().is_some_and(is_used)) {
                return index;
            }
        }
    }
}

fn header(kind: Kind, index: u32, number: u64) -> Header {
    Header {
        kind,
        index,
        number,
    }
}

fn session(
    now: Duration,
    keys: &SplitKeys,
    own_index: u32,
    peer_index: u32,
    initiated: bool,
) -> Option<Session> {
    let [of_initiator, of_responder] = &**keys;
    let (seal_key, open_key) = if initiated {
        (of_initiator, of_responder)
    } else {
        (of_responder, of_initiator)
    };
    let agreed = Agreed {
        own_index,
        peer_index,
        seal_key,
        open_key,
        initiated,
    };
    Session::new(now, &agreed)
}
