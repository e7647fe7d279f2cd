//! Datagrams between the nodes of a group, authenticated and encrypted.
//!
//! What lives here: [`SecureLink`], which makes sessions with the peers by itself, seals what goes
//! to them and opens what comes from them. It does no IO and knows no clock: the caller sends,
//! receives and tells the time. What does not: keys' files (see `plover-keys`), addresses, loss
//! and order (see `transport`).
//!
//! Who is who is known beforehand, from the configuration: each node's static public key. A
//! handshake (see `peer` for its diagram) is Noise KK with fresh keys of both sides, so that what
//! was recorded cannot be opened with key files that leak later. A datagram that no peer made
//! costs a counter: no state, no log line, no answer.
//!
//! Version rule: any change of a byte form or of the handshake raises
//! [`limits::SECURE_VERSION`]; datagrams of another version are counted and dropped.

mod bucket;
mod counters;
mod datagram;
mod handshake;
pub mod limits;
mod peer;
mod session;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use plover_keys::{Identity, PublicIdentity};
use plover_types::NodeId;
use rand::rngs::StdRng;
use rand::{CryptoRng, SeedableRng};

pub use counters::{NoSession, SecureCounters, SecureError};

use crate::wire::GroupId;
use datagram::{BadHeader, HEADER_BYTES, Header, Kind, TAG_BYTES};
use handshake::PairKeys;
use peer::Peer;

/// A source of unpredictable numbers. Seeded by the system in a node, by its seed in a
/// simulation.
pub type Random = Box<dyn CryptoRng + Send + Sync>;

/// What is this node's own, beside its peers.
struct Own {
    identity: Identity,
    group: GroupId,
    rng: Random,
    counters: SecureCounters,
    scratch: Vec<u8>,
}

/// The sessions of one node with all its peers.
pub struct SecureLink {
    own: Own,
    peers: Vec<Peer>,
}

impl SecureLink {
    /// Bytes that sealing adds to a datagram.
    pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

    /// A link without sessions; the first [`Self::poll`] begins to make them. `random` must be
    /// unpredictable to others: see [`Self::system_random`].
    ///
    /// # Errors
    /// Two nodes share a key or an id, or a key is none.
    pub fn new(
        identity: Identity,
        peers: &[(NodeId, PublicIdentity)],
        group: GroupId,
        random: Random,
    ) -> Result<Self, SecureError> {
        let mut link = Self {
            own: Own {
                identity,
                group,
                rng: random,
                counters: SecureCounters::default(),
                scratch: Vec::new(),
            },
            peers: Vec::new(),
        };
        link.set_peers(peers)?;
        Ok(link)
    }

    /// Random numbers seeded by the system.
    ///
    /// # Errors
    /// The system gives none.
    pub fn system_random() -> Result<Random, SecureError> {
        let rng = StdRng::try_from_os_rng().map_err(|_| SecureError::Random)?;
        Ok(Box::new(rng))
    }

    /// Makes these the peers. Sessions with those that stay, stay; a peer with another key is
    /// another peer.
    ///
    /// # Errors
    /// As for [`Self::new`]; the peers are then as before.
    pub fn set_peers(&mut self, peers: &[(NodeId, PublicIdentity)]) -> Result<(), SecureError> {
        let keys = self.check(peers)?;
        let mut before = std::mem::take(&mut self.peers);
        for ((node, public), keys) in peers.iter().zip(keys) {
            let known = before
                .iter()
                .position(|peer| peer.node == *node && peer.public == *public);
            self.peers.push(match known {
                Some(at) => before.swap_remove(at),
                None => Peer::new(*node, *public, keys, &mut self.own),
            });
        }
        Ok(())
    }

    fn check(&self, peers: &[(NodeId, PublicIdentity)]) -> Result<Vec<PairKeys>, SecureError> {
        let own = &self.own.identity;
        let mut keys = Vec::with_capacity(peers.len());
        for (at, (node, public)) in peers.iter().enumerate() {
            let shares = |other: &PublicIdentity| {
                other.x25519 == public.x25519 || other.ed25519 == public.ed25519
            };
            if shares(own.public()) || peers[..at].iter().any(|(_, other)| shares(other)) {
                return Err(SecureError::SharedKey(*node));
            }
            if peers[..at].iter().any(|(other, _)| other == node) {
                return Err(SecureError::SharedId(*node));
            }
            keys.push(
                PairKeys::new(own, public, self.own.group).ok_or(SecureError::WeakKey(*node))?,
            );
        }
        Ok(keys)
    }

    /// Does what is due: handshakes and their retries, new sessions in place of old ones,
    /// keep-alives. Cheap when nothing is; call it at least each millisecond while a handshake
    /// may be under way, and each tick otherwise.
    pub fn poll(&mut self, now: Duration, mut send: impl FnMut(NodeId, &[u8])) {
        for peer in &mut self.peers {
            peer.poll(now, &mut self.own, &mut send);
        }
    }

    /// Appends a datagram to `out` that only `peer` can open: `parts` put together, and
    /// [`Self::OVERHEAD_BYTES`] more.
    ///
    /// # Errors
    /// There is no session with this peer (counted); `out` is as before.
    pub fn seal(
        &mut self,
        now: Duration,
        peer: NodeId,
        parts: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), NoSession> {
        let found = self.peers.iter_mut().find(|known| known.node == peer);
        match found.and_then(|peer| peer.seal(now, parts, out)) {
            Some(()) => {
                self.own.counters.sealed += 1;
                Ok(())
            }
            None => {
                self.own.counters.no_session += 1;
                Err(NoSession)
            }
        }
    }

    /// Opens a datagram in place that came from the address of `from`: hostile until it opened.
    /// The node that is returned made it, for this node, and it came for the first time. None: it
    /// was none of a peer's (counted), or one of a handshake; its answer goes to `send`.
    pub fn open<'a>(
        &mut self,
        now: Duration,
        from: NodeId,
        datagram: &'a mut [u8],
        mut send: impl FnMut(NodeId, &[u8]),
    ) -> Option<(NodeId, &'a [u8])> {
        let header = match Header::decode(datagram) {
            Ok(header) => header,
            Err(BadHeader::Malformed) => {
                self.own.counters.malformed += 1;
                return None;
            }
            Err(BadHeader::Version) => {
                self.own.counters.other_version += 1;
                return None;
            }
        };
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == from) else {
            self.own.counters.strangers += 1;
            return None;
        };
        if header.kind == Kind::Data {
            let opened = peer.open(now, header, datagram, &mut self.own, &mut send)?;
            return Some((from, opened));
        }
        peer.handshake(now, header, datagram, &mut self.own, &mut send);
        None
    }

    /// Whether datagrams to this peer can be sealed.
    #[must_use]
    pub fn has_session(&self, now: Duration, peer: NodeId) -> bool {
        let session = self
            .peers
            .iter()
            .find(|known| known.node == peer)
            .and_then(|peer| peer.current.as_ref());
        session.is_some_and(|session| session.is_usable(now))
    }

    /// What became of datagrams.
    #[must_use]
    pub fn counters(&self) -> &SecureCounters {
        &self.own.counters
    }
}

impl std::fmt::Debug for SecureLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureLink")
            .field("identity", &self.own.identity)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
