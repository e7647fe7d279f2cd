//! The way from the core to its peers and back, put together: messages (`wire`) in repaired datagrams
//! (`transport`), each sealed as one ([`guard`]), in UDP (`net`). IO-free, like its parts.
//!
//! ```text
//!  Envelope ─encode─▶ message ─fragments─▶ datagram ─seal─▶ UDP, IP, Ethernet ─▶ port
//! ```

mod guard;
mod status;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use plover_types::NodeId;
use raft::eraftpb::MessageType;

use crate::net::{Net, NetConfig, NetCounters, NetError, datagram_bytes_max};
use crate::secure::{PublicIdentity, SecureError};
use crate::transport::{Delivery, Transport, TransportConfig, TransportCounters, TransportError};
use crate::wire::{self, Body, EncodeError, Envelope, GroupId};

pub use guard::{GuardCounters, Security};
pub use status::{LinkStatus, links_of};

use guard::Guard;

/// What a link is made with.
pub struct LinkConfig {
    /// The group.
    pub group: GroupId,
    /// Random per start of the process, and not 0: tells this node's lives apart.
    pub boot: u64,
    /// Where this node and its peers are; none in a group of one node.
    pub net: Option<NetConfig>,
    /// How datagrams are protected.
    pub security: Security,
}

/// Why a link was not set up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Addresses.
    #[error("the nodes' addresses")]
    Net(#[from] NetError),
    /// Keys.
    #[error("the nodes' keys")]
    Secure(#[from] SecureError),
    /// Lengths.
    #[error("the replication port's MTU")]
    Transport(#[from] TransportError),
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its IP address and UDP port.
    pub address: SocketAddr,
    /// Its public key; none with security off.
    pub public: Option<PublicIdentity>,
}

impl LinkConfig {
    /// How each peer is reached.
    #[must_use]
    pub fn places(&self) -> Vec<(NodeId, Place)> {
        let public_of = |node: NodeId| match &self.security {
            Security::On { peers, .. } => peers
                .iter()
                .find(|(peer, _)| *peer == node)
                .map(|(_, public)| *public),
            Security::Off => None,
        };
        let peers = self.net.iter().flat_map(|net| &net.peers);
        peers
            .map(|(node, address)| {
                let place = Place {
                    address: *address,
                    public: public_of(*node),
                };
                (*node, place)
            })
            .collect()
    }
}

/// The replication link of a node.
#[derive(Debug)]
pub struct Link {
    group: GroupId,
    transport: Transport,
    outlet: Outlet,
}

/// What is below the transport: a datagram goes in, frames come out.
#[derive(Debug)]
struct Outlet {
    net: Option<Net>,
    guard: Guard,
    /// The datagram that is being sent.
    sealed: Vec<u8>,
}

impl Link {
    /// A link.
    ///
    /// # Errors
    /// Names what is wrong with the addresses or the MTU.
    pub fn new(config: LinkConfig) -> Result<Self, LinkError> {
        let guard = Guard::new(config.security, config.group)?;
        // Without peers nothing is sent; any length will do.
        let (peers, datagram_max) = match &config.net {
            None => (Vec::new(), usize::from(u16::MAX)),
            Some(net) => (
                net.peers.iter().map(|(node, _)| *node).collect(),
                datagram_bytes_max(net.mtu, net.own.ip()).saturating_sub(guard.overhead_bytes()),
            ),
        };
        let transport = TransportConfig {
            group: config.group,
            peers,
            boot: config.boot,
            datagram_bytes_max: datagram_max,
        };
        Ok(Self {
            group: config.group,
            transport: Transport::new(transport)?,
            outlet: Outlet {
                net: config.net.map(Net::new).transpose()?,
                guard,
                sealed: Vec::new(),
            },
        })
    }

    /// Other peers, from now on; what is on the way to and from those that stay goes on. Of two
    /// with one address or key the first counts, and one that cannot be reached is left out.
    pub fn set_peers(&mut self, peers: &[(NodeId, Place)]) {
        let Some(net) = &mut self.outlet.net else {
            return;
        };
        let addresses = peers.iter().map(|(node, place)| (*node, place.address));
        net.set_peers(addresses);
        self.outlet.guard.set_peers(
            peers
                .iter()
                .filter_map(|(node, place)| Some((*node, place.public?))),
        );
        let nodes: Vec<_> = net.nodes().collect();
        self.transport.set_peers(&nodes);
    }

    /// What is due by time alone: questions for MAC addresses, handshakes.
    #[inline]
    pub fn poll(&mut self, now: Duration) {
        self.outlet.poll(now);
    }

    /// Sends a message, or queues it for [`Self::pump`]. `send` gets the parts of each frame.
    ///
    /// # Errors
    /// It has no byte form.
    #[inline]
    pub fn send(
        &mut self,
        now: Duration,
        envelope: &Envelope,
        mut send: impl FnMut(&[&[u8]]),
    ) -> Result<(), EncodeError> {
        let mut message = self.transport.buffer();
        if let Err(error) = wire::encode(envelope, self.group, &mut message) {
            self.transport.recycle(message);
            return Err(error);
        }
        let (transport, outlet) = (&mut self.transport, &mut self.outlet);
        let delivery = delivery_of(&envelope.body);
        transport.send(now, envelope.to, delivery, message, |to, parts| {
            outlet.send(now, to, parts, &mut send);
        });
        Ok(())
    }

    /// Sends all that is due. Returns how many datagrams of messages that were.
    #[inline]
    pub fn pump(&mut self, now: Duration, mut send: impl FnMut(&[&[u8]])) -> usize {
        let (transport, outlet) = (&mut self.transport, &mut self.outlet);
        let sent = transport.pump(now, |to, parts| outlet.send(now, to, parts, &mut send));
        if let Some(net) = &mut outlet.net {
            net.drain(send);
        }
        sent
    }

    /// Takes a frame from the port: hostile until checked. It is opened in place.
    #[inline]
    pub fn receive(&mut self, now: Duration, frame: &mut [u8]) {
        if let Some((from, datagram)) = self.outlet.open(now, frame) {
            self.transport.receive(now, from, datagram);
        }
    }

    /// A message that is whole, and whose datagrams it came in.
    #[inline]
    pub fn next_message(&mut self) -> Option<(NodeId, Bytes)> {
        self.transport.next_message()
    }

    /// When there is something to do, even if nothing is heard until then.
    #[must_use]
    pub fn due(&self) -> Duration {
        let transport = self.transport.due().unwrap_or(Duration::MAX);
        let net = self.outlet.net.as_ref().map_or(Duration::MAX, Net::due);
        transport.min(net)
    }

    /// Counts of the transport.
    #[must_use]
    pub fn transport_counters(&self) -> &TransportCounters {
        self.transport.counters()
    }

    /// Counts of frames.
    #[must_use]
    pub fn net_counters(&self) -> NetCounters {
        self.outlet
            .net
            .as_ref()
            .map(|net| *net.counters())
            .unwrap_or_default()
    }

    /// Counts of what protects datagrams.
    #[must_use]
    pub fn guard_counters(&self) -> GuardCounters {
        self.outlet.guard.counters()
    }
}

impl Outlet {
    #[inline]
    fn send(&mut self, now: Duration, to: NodeId, parts: &[&[u8]], send: impl FnMut(&[&[u8]])) {
        let Some(net) = &mut self.net else { return };
        self.sealed.clear();
        if self.guard.seal(now, to, parts, &mut self.sealed) {
            net.send(to, &self.sealed, send);
        }
    }

    #[inline]
    fn open<'a>(&mut self, now: Duration, frame: &'a mut [u8]) -> Option<(NodeId, &'a [u8])> {
        let net = self.net.as_mut()?;
        let (from, range) = net.receive(now, frame)?;
        self.guard
            .open(now, from, &mut frame[range], |to, datagram| {
                net.queue(to, datagram);
            })
    }

    fn poll(&mut self, now: Duration) {
        if let Some(net) = &mut self.net {
            net.poll(now);
            self.guard.poll(now, |to, datagram| net.queue(to, datagram));
        }
    }
}

/// How a message is delivered, by what it says.
///
/// Reports and heartbeats come again with each tick, and newer: repairing one would only bring an
/// old one late. The request to take over leadership must not come late either, since it was weighed
/// at one moment; the plan asks again. Entries and the snapshot before them are in order, since
/// raft-rs rejects what does not follow. Everything else may overtake.
fn delivery_of(body: &Body) -> Delivery {
    let Body::Raft(message) = body else {
        return Delivery::Unrepaired;
    };
    match message.get_msg_type() {
        MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => Delivery::Unrepaired,
        MessageType::MsgAppend | MessageType::MsgSnapshot => Delivery::InOrder,
        _ => Delivery::Repaired,
    }
}
