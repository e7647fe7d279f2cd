//! How the way to each peer is, for the operator.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plover_types::NodeId;
use serde::Serialize;

use super::Link;
use crate::net::NeighbourState;

/// The way to a peer.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeId,
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The next hop: the peer itself, or the gateway.
    pub hop: Option<IpAddr>,
    /// The next hop's MAC address.
    pub hop_mac: Option<String>,
    /// `asked`: its MAC address is not known; `known`; `stale`: known, and silent for a while.
    pub neighbour: &'static str,
    /// Whether there is a session with it; with security off always.
    pub has_session: bool,
    /// Whether anything was heard of it yet.
    pub is_heard: bool,
    /// A round trip in microseconds, smoothed; none before the first acknowledgement.
    pub round_trip_us: Option<u64>,
    /// Datagrams found lost, and sent again.
    pub repaired: u64,
    /// Datagrams that are not acknowledged yet, and how many there may be.
    pub on_the_way: u32,
    /// How many there may be.
    pub window: u32,
    /// Bytes of messages that are not acknowledged yet.
    pub waiting_bytes: usize,
}

/// The way to each peer.
#[must_use]
pub fn links_of(link: &Link, now: Duration) -> Vec<LinkStatus> {
    let to_status = |(node, peer): (NodeId, crate::transport::PeerLink)| {
        let route = link.outlet.net.as_ref().and_then(|net| net.route(node));
        let state = route.map(|route| route.neighbour).unwrap_or_default();
        let (neighbour, mac) = match state {
            NeighbourState::Asked => ("asked", None),
            NeighbourState::Known(mac) => ("known", Some(mac)),
            NeighbourState::Stale(mac) => ("stale", Some(mac)),
        };
        LinkStatus {
            node,
            address: route.map(|route| route.address),
            hop: route.map(|route| route.hop),
            hop_mac: mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
            neighbour,
            has_session: link.outlet.guard.is_open_to(now, node),
            is_heard: peer.is_heard,
            round_trip_us: peer
                .round_trip
                .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            repaired: peer.repaired,
            on_the_way: peer.on_the_way,
            window: peer.window,
            waiting_bytes: peer.waiting_bytes,
        }
    };
    link.transport.links().map(to_status).collect()
}
