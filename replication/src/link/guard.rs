//! What stands around each datagram: a seal, or, with security off, a checksum.

use std::time::Duration;

use plover_types::NodeId;

use crate::secure::{Identity, PublicIdentity, Random, SecureCounters, SecureError, SecureLink};
use crate::wire::GroupId;

/// How datagrams are protected.
pub enum Security {
    /// Authenticated and encrypted.
    On {
        /// This node's secret.
        identity: Identity,
        /// The other nodes.
        peers: Vec<(NodeId, PublicIdentity)>,
        /// Unpredictable numbers: [`SecureLink::system_random`].
        random: Random,
    },
    /// By a checksum against accidents only: for trusted wires and for measuring.
    Off,
}

/// CRC32 of the datagram, little endian, behind it.
const CHECKSUM_BYTES: usize = 4;

/// Counts of what protects datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GuardCounters {
    /// Whether datagrams are authenticated and encrypted.
    pub is_secured: bool,
    /// With security off: datagrams whose checksum did not match.
    pub corrupt: u64,
    /// With security on.
    pub secure: SecureCounters,
}

/// Seals and opens datagrams.
#[derive(Debug)]
pub(super) enum Guard {
    On(Box<SecureLink>),
    Off { corrupt: u64 },
}

impl Guard {
    pub(super) fn new(security: Security, group: GroupId) -> Result<Self, SecureError> {
        match security {
            Security::Off => Ok(Self::Off { corrupt: 0 }),
            Security::On {
                identity,
                peers,
                random,
            } => {
                let link = SecureLink::new(identity, &peers, group, random)?;
                Ok(Self::On(Box::new(link)))
            }
        }
    }

    /// Other peers, from now on. Of two with one key the first counts.
    pub(super) fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, PublicIdentity)>) {
        let Self::On(link) = self else { return };
        let mut taken: Vec<(NodeId, PublicIdentity)> = Vec::new();
        for (node, public) in peers {
            let is_taken = |(_, other): &(NodeId, PublicIdentity)| {
                other.x25519 == public.x25519 || other.ed25519 == public.ed25519
            };
            if !taken.iter().any(is_taken) {
                taken.push((node, public));
            }
        }
        // A key that the link still refuses is nobody's: the peers are then as before, and this
        // one is not heard.
        let _ = link.set_peers(&taken);
    }

    /// Bytes by which a datagram grows.
    pub(super) fn overhead_bytes(&self) -> usize {
        match self {
            Self::On(_) => SecureLink::OVERHEAD_BYTES,
            Self::Off { .. } => CHECKSUM_BYTES,
        }
    }

    pub(super) fn counters(&self) -> GuardCounters {
        match self {
            Self::On(link) => GuardCounters {
                is_secured: true,
                corrupt: 0,
                secure: *link.counters(),
            },
            Self::Off { corrupt } => GuardCounters {
                corrupt: *corrupt,
                ..GuardCounters::default()
            },
        }
    }

    /// Whether datagrams to this peer can be sealed now.
    pub(super) fn is_open_to(&self, now: Duration, peer: NodeId) -> bool {
        match self {
            Self::On(link) => link.has_session(now, peer),
            Self::Off { .. } => true,
        }
    }

    /// What is due by time alone: handshakes.
    #[inline]
    pub(super) fn poll(&mut self, now: Duration, send: impl FnMut(NodeId, &[u8])) {
        if let Self::On(link) = self {
            link.poll(now, send);
        }
    }

    /// Appends the sealed datagram to `out`. False: there is no session, and the datagram is lost.
    #[inline]
    pub(super) fn seal(
        &mut self,
        now: Duration,
        to: NodeId,
        parts: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> bool {
        match self {
            Self::On(link) => link.seal(now, to, parts, out).is_ok(),
            Self::Off { .. } => {
                let start = out.len();
                parts.iter().for_each(|part| out.extend_from_slice(part));
                let checksum = crc32fast::hash(&out[start..]);
                out.extend_from_slice(&checksum.to_le_bytes());
                true
            }
        }
    }

    /// Opens a datagram in place. None: it was no peer's, or a handshake's, whose answer goes to
    /// `send`.
    #[inline]
    pub(super) fn open<'a>(
        &mut self,
        now: Duration,
        from: NodeId,
        datagram: &'a mut [u8],
        send: impl FnMut(NodeId, &[u8]),
    ) -> Option<(NodeId, &'a [u8])> {
        match self {
            Self::On(link) => link.open(now, from, datagram, send),
            Self::Off { corrupt } => {
                let opened = datagram
                    .split_last_chunk::<CHECKSUM_BYTES>()
                    .filter(|(body, sum)| crc32fast::hash(body).to_le_bytes() == **sum);
                if opened.is_none() {
                    *corrupt += 1;
                }
                opened.map(|(body, _)| (from, body))
            }
        }
    }
}
