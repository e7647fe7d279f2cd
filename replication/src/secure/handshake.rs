//! The cryptography of a handshake: `Noise_KK_25519_AESGCM_SHA256` by `snow`, and the guard that
//! stands before it.
//!
//! What lives here: keys in, bytes and session keys out. What does not: when a handshake is due,
//! which one counts (see `peer`).

use plover_keys::{Identity, KEY_BYTES, PublicIdentity};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::datagram::{CHALLENGE_BYTES, Draft, GUARD_BYTES, Header, NOISE_BYTES};
use crate::wire::GroupId;

const PATTERN: &str = "Noise_KK_25519_AESGCM_SHA256";
const PROLOGUE: &[u8] = b"plover secure 1";
const GUARD_SALT: &[u8] = b"plover guard 1";

/// What this node and one peer need for their handshakes.
pub(super) struct PairKeys {
    own: Zeroizing<[u8; KEY_BYTES]>,
    peer: [u8; KEY_BYTES],
    group: GroupId,
    seal_guard: hmac::Key,
    check_guard: hmac::Key,
    /// Of two handshakes that cross, this node's stands.
    pub(super) own_stands: bool,
}

/// A message of the handshake, as Noise makes it.
pub(super) type Message = [u8; NOISE_BYTES];

/// Random bytes that a handshake's ephemeral key is made from.
pub(super) type Seed = [u8; 32];

/// What an offer carries in the clear.
pub(super) struct Offer<'a> {
    pub(super) header: Header,
    pub(super) challenge: &'a [u8; CHALLENGE_BYTES],
}

/// Who began the handshake.
#[derive(Clone, Copy)]
enum Side {
    Initiator,
    Responder,
}

/// The keys of a session: what its initiator seals with, then what its responder seals with.
pub(super) type SplitKeys = Zeroizing<[[u8; KEY_BYTES]; 2]>;

impl PairKeys {
    /// None if the peer's key agrees with everybody.
    pub(super) fn new(own: &Identity, peer: &PublicIdentity, group: GroupId) -> Option<Self> {
        let shared = own.agree(peer)?;
        let (own_public, peer_public) = (&own.public().x25519, &peer.x25519);
        let guard = |from, to| guard_key(&shared, group, from, to);
        Some(Self {
            own: Zeroizing::new(*own.x25519()),
            peer: *peer_public,
            group,
            seal_guard: guard(own_public, peer_public),
            check_guard: guard(peer_public, own_public),
            own_stands: own_public < peer_public,
        })
    }

    /// Ends a datagram to the peer.
    pub(super) fn put_guard(&self, draft: &mut Draft) {
        let guard = hmac::sign(&self.seal_guard, draft.bytes());
        draft.put(guard.as_ref());
    }

    /// Takes the guard off a datagram. None if the peer did not make it.
    pub(super) fn check_guard<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (body, guard) = datagram.split_last_chunk::<GUARD_BYTES>()?;
        hmac::verify(&self.check_guard, body, guard).ok()?;
        Some(body)
    }

    /// Begins a handshake: its state, and the message for the offer.
    pub(super) fn begin(&self, offer: &Offer<'_>, seed: Seed) -> Option<(HandshakeState, Message)> {
        let mut noise = self.noise(offer, seed, Side::Initiator)?;
        let mut message = [0; NOISE_BYTES];
        let written = noise.write_message(&[], &mut message).ok()?;
        (written == NOISE_BYTES).then_some((noise, message))
    }

    /// Answers a handshake, if the peer began it. The offer is authenticated by it, too.
    pub(super) fn answer(
        &self,
        offer: &Offer<'_>,
        message: &Message,
        seed: Seed,
    ) -> Option<(SplitKeys, Message)> {
        let mut noise = self.noise(offer, seed, Side::Responder)?;
        noise.read_message(message, &mut []).ok()?;
        let mut answer = [0; NOISE_BYTES];
        let written = noise.write_message(&[], &mut answer).ok()?;
        (written == NOISE_BYTES).then(|| (split(&mut noise), answer))
    }

    fn noise(&self, offer: &Offer<'_>, seed: Seed, side: Side) -> Option<HandshakeState> {
        let prologue = [
            PROLOGUE,
            &self.group.0.to_le_bytes(),
            &offer.header.encode(),
            offer.challenge,
        ]
        .concat();
        let builder = Builder::with_resolver(PATTERN.parse().ok()?, Box::new(Seeded(seed)))
            .local_private_key(&self.own[..])
            .and_then(|builder| builder.remote_public_key(&self.peer))
            .and_then(|builder| builder.prologue(&prologue))
            .ok()?;
        match side {
            Side::Initiator => builder.build_initiator().ok(),
            Side::Responder => builder.build_responder().ok(),
        }
    }
}

/// Ends a handshake that this side began, if the peer answered it.
pub(super) fn finish(mut noise: HandshakeState, answer: &Message) -> Option<SplitKeys> {
    noise.read_message(answer, &mut []).ok()?;
    Some(split(&mut noise))
}

fn split(noise: &mut HandshakeState) -> SplitKeys {
    let (initiator, responder) = noise.dangerously_get_raw_split();
    Zeroizing::new([initiator, responder])
}

fn guard_key(
    shared: &[u8; KEY_BYTES],
    group: GroupId,
    from: &[u8; KEY_BYTES],
    to: &[u8; KEY_BYTES],
) -> hmac::Key {
    let info: [&[u8]; 3] = [&group.0.to_le_bytes(), from, to];
    let pseudo_random = Salt::new(HKDF_SHA256, GUARD_SALT).extract(shared);
    let key = pseudo_random.expand(&info, hmac::HMAC_SHA256);
    // HKDF-SHA256 gives up to 8160 bytes, and these are 32.
    key.map_or_else(
        |_| hmac::Key::new(hmac::HMAC_SHA256, shared),
        hmac::Key::from,
    )
}

/// What `snow` is built from: ciphers and hashes of `ring`, the curve of `curve25519-dalek`, random
/// numbers that the caller drew.
struct Seeded(Seed);

struct SeededRandom(StdRng);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(out);
        Ok(())
    }
}

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRandom(StdRng::from_seed(self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}
