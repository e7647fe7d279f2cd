//! Datagrams to and from the other nodes: UDP over IPv4 or IPv6 in Ethernet frames.
//!
//! What lives here: frames built and read (by `etherparse`), where the next hop to each peer is and
//! which MAC address it has (ARP, neighbour discovery), answers to whoever asks for ours, echo for
//! the operator. What does not: ports and packet buffers (the caller copies), what a datagram says
//! (see `transport`), who may say it (a frame's addresses prove nothing), clocks (the caller says
//! what time it is).
//!
//! ```text
//!  ask (broadcast, or all who might be it)      unanswered: again after 20 ms, doubled up to 1 s
//!      unknown ───────────────────────────▶ asked ──answer──▶ known ──heard from: stays known
//!         ▲                                                     │ 20 s without: asked again
//!         └──────────────── 60 s without a sign ────────────────┘
//! ```
//!
//! Frames come from whoever is on the link. What is wrong with one is counted, never logged, never
//! an error. Only the configured peers and the gateway have a place in the table, so no stranger
//! can fill it.

mod arp;
mod config;
mod counters;
mod echo;
mod frame;
mod nd;
mod neighbours;
mod outbox;
mod receive;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plover_types::NodeId;

pub use config::{NetConfig, NetError, PREFIX_LEN_IPV4, PREFIX_LEN_IPV6, datagram_bytes_max};
pub use counters::NetCounters;
pub use neighbours::NeighbourState;

use crate::limits::{ANSWERS_PER_SECOND_MAX, ECHOES_PER_SECOND_MAX, QUESTIONS_PER_SECOND_MAX};
use neighbours::Neighbours;
use outbox::{Outbox, Rate};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// This node's place in the network, and its peers'.
#[derive(Debug)]
pub struct Net {
    own: SocketAddr,
    own_mac: Mac,
    config: NetConfig,
    peers: Vec<Peer>,
    neighbours: Neighbours,
    /// Frames of our own: answers and questions.
    outbox: Outbox,
    answers: Rate,
    questions: Rate,
    echoes: Rate,
    counters: NetCounters,
}

/// A peer and the way there.
#[derive(Clone, Copy, Debug)]
struct Peer {
    node: NodeId,
    address: SocketAddr,
    hop: IpAddr,
}

/// How a peer is reached, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The peer's address.
    pub address: SocketAddr,
    /// The next hop: the peer itself, or the gateway.
    pub hop: IpAddr,
    /// Whether that hop's MAC address is known.
    pub neighbour: NeighbourState,
}

impl Net {
    /// A place in the network.
    ///
    /// # Errors
    /// Names the address that has no way to it, or is taken twice.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let peers = routes(&config)?;
        let mut neighbours = Neighbours::default();
        neighbours.keep(peers.iter().map(|peer| peer.hop));
        Ok(Self {
            own: config.own,
            own_mac: config.own_mac,
            peers,
            neighbours,
            config,
            outbox: Outbox::default(),
            answers: Rate::new(ANSWERS_PER_SECOND_MAX),
            questions: Rate::new(QUESTIONS_PER_SECOND_MAX),
            echoes: Rate::new(ECHOES_PER_SECOND_MAX),
            counters: NetCounters::default(),
        })
    }

    /// Other peers, from now on. Of two with one address the first counts; one that cannot be
    /// reached is left out.
    pub fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, SocketAddr)>) {
        self.config.peers.clear();
        self.peers.clear();
        for peer in peers {
            self.config.peers.push(peer);
            match routes(&self.config) {
                Ok(routes) => self.peers = routes,
                Err(_) => drop(self.config.peers.pop()),
            }
        }
        self.neighbours.keep(self.peers.iter().map(|peer| peer.hop));
    }

    /// The peers that can be reached.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.iter().map(|peer| peer.node)
    }

    /// What became of frames so far.
    #[must_use]
    pub fn counters(&self) -> &NetCounters {
        &self.counters
    }

    /// How this peer is reached.
    #[must_use]
    pub fn route(&self, node: NodeId) -> Option<Route> {
        let peer = self.peers.iter().find(|peer| peer.node == node)?;
        Some(Route {
            address: peer.address,
            hop: peer.hop,
            neighbour: self.neighbours.state(peer.hop),
        })
    }

    /// Sends a datagram to a peer: `send` gets the parts of one frame. A next hop that is not known
    /// yet loses it, as a wire would.
    #[inline]
    pub fn send(&mut self, to: NodeId, datagram: &[u8], mut send: impl FnMut(&[&[u8]])) {
        let Some(peer) = self.peers.iter().find(|peer| peer.node == to) else {
            self.counters.unroutable += 1;
            return;
        };
        let Some(mac) = self.neighbours.mac(peer.hop) else {
            self.counters.unresolved += 1;
            return;
        };
        match frame::udp_headers((self.own_mac, mac), (self.own, peer.address), datagram) {
            Some(headers) => {
                self.counters.datagrams_sent += 1;
                send(&[&headers, datagram]);
            }
            None => self.counters.unroutable += 1,
        }
    }

    /// Queues a datagram for [`Self::drain`], from where no frame can be sent at once.
    pub fn queue(&mut self, to: NodeId, datagram: &[u8]) {
        let mut frame = Vec::new();
        self.send(to, datagram, |parts| frame = parts.concat());
        if !frame.is_empty() && !self.outbox.push(&frame) {
            self.counters.answers_withheld += 1;
        }
    }

    /// Asks for next hops that are due to be asked for.
    #[inline]
    pub fn poll(&mut self, now: Duration) {
        if now < self.neighbours.due() {
            return;
        }
        let (own, own_mac, outbox) = (self.own.ip(), self.own_mac, &mut self.outbox);
        let (rate, counters) = (&mut self.questions, &mut self.counters);
        self.neighbours.poll(now, |hop, last_known| {
            if !rate.allows(now) {
                return;
            }
            let frame = match (own, hop) {
                (IpAddr::V4(own), IpAddr::V4(hop)) => {
                    Some(arp::question((own_mac, own), hop, last_known))
                }
                (IpAddr::V6(own), IpAddr::V6(hop)) => nd::question((own_mac, own), hop, last_known),
                _ => None,
            };
            if frame.is_some_and(|frame| outbox.push(&frame)) {
                counters.questions_sent += 1;
            }
        });
    }

    /// When [`Self::poll`] has something to do.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.neighbours.due()
    }

    /// Sends what this node asks and answers by itself.
    #[inline]
    pub fn drain(&mut self, send: impl FnMut(&[&[u8]])) {
        self.outbox.drain(send);
    }
}

fn routes(config: &NetConfig) -> Result<Vec<Peer>, NetError> {
    config.check()?;
    config
        .peers
        .iter()
        .map(|(node, address)| {
            Ok(Peer {
                node: *node,
                address: *address,
                hop: config.hop_to(*node, address.ip())?,
            })
        })
        .collect()
}
