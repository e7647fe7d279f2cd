//! Where this node and its peers are, and whether that makes sense.

use std::net::{IpAddr, SocketAddr};

use plover_types::NodeId;

use super::Mac;
use crate::wire::limits::{MTU_BYTES_MAX, MTU_BYTES_MIN};

/// Length of the network's prefix where none is given, IPv4.
pub const PREFIX_LEN_IPV4: u8 = 24;

/// Length of the network's prefix where none is given, IPv6.
pub const PREFIX_LEN_IPV6: u8 = 64;

/// What every IPv6 link carries (RFC 8200).
const MTU_BYTES_MIN_IPV6: usize = 1280;

/// IP's header without options, and UDP's.
const HEADER_BYTES_IPV4: usize = 20 + 8;
const HEADER_BYTES_IPV6: usize = 40 + 8;

/// Where this node and its peers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// This node's address and UDP port.
    pub own: SocketAddr,
    /// The replication port's Ethernet address.
    pub own_mac: Mac,
    /// Length of the prefix that all on the link share with this node.
    pub prefix_len: u8,
    /// The way to peers with another prefix.
    pub gateway: Option<IpAddr>,
    /// The other nodes.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// Bytes that follow the Ethernet header, at most, on the whole way to each peer.
    pub mtu: usize,
}

/// Why addresses make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    /// The MTU is outside what datagrams are made for.
    #[error(
        "replication MTU of {0} bytes; {MTU_BYTES_MIN} (IPv6: 1280) to {MTU_BYTES_MAX} are supported"
    )]
    Mtu(usize),
    /// The prefix is longer than an address.
    #[error("a prefix of {0} bits is longer than the node's address")]
    Prefix(u8),
    /// An address that is nobody's in particular, or no port.
    #[error("{0} is no node's address: it is unspecified, multicast, broadcast, or has no port")]
    Address(SocketAddr),
    /// One is IPv4, the other IPv6.
    #[error("node {0} has an address of the other IP version than this node")]
    Family(NodeId),
    /// The gateway cannot be reached.
    #[error("the gateway {0} is not on this node's network")]
    Gateway(IpAddr),
    /// The peer cannot be reached.
    #[error("node {0} is not on this node's network, and there is no gateway")]
    NoRoute(NodeId),
    /// Two nodes have one address.
    #[error("node {0} shares its address with another node of the group")]
    Duplicate(NodeId),
}

/// Bytes of the longest datagram that fits a frame.
#[must_use]
pub fn datagram_bytes_max(mtu: usize, own: IpAddr) -> usize {
    let headers = match own {
        IpAddr::V4(_) => HEADER_BYTES_IPV4,
        IpAddr::V6(_) => HEADER_BYTES_IPV6,
    };
    mtu.saturating_sub(headers)
}

impl NetConfig {
    /// Whether this makes sense; the way to each peer is [`Self::hop_to`]'s.
    ///
    /// # Errors
    /// Names what does not.
    pub fn check(&self) -> Result<(), NetError> {
        let own = self.own.ip();
        let (mtu_min, bits) = match own {
            IpAddr::V4(_) => (MTU_BYTES_MIN, 32),
            IpAddr::V6(_) => (MTU_BYTES_MIN_IPV6, 128),
        };
        if !(mtu_min..=MTU_BYTES_MAX).contains(&self.mtu) {
            return Err(NetError::Mtu(self.mtu));
        }
        if self.prefix_len > bits {
            return Err(NetError::Prefix(self.prefix_len));
        }
        if !names_a_node(&self.own) {
            return Err(NetError::Address(self.own));
        }
        if let Some(gateway) = self.gateway
            && (gateway.is_ipv4() != own.is_ipv4() || !self.is_on_link(gateway) || gateway == own)
        {
            return Err(NetError::Gateway(gateway));
        }
        let mut taken = vec![self.own];
        for (node, address) in &self.peers {
            if !names_a_node(address) {
                return Err(NetError::Address(*address));
            }
            if taken.contains(address) {
                return Err(NetError::Duplicate(*node));
            }
            taken.push(*address);
        }
        Ok(())
    }

    /// The next hop to a peer.
    ///
    /// # Errors
    /// There is none.
    pub fn hop_to(&self, node: NodeId, peer: IpAddr) -> Result<IpAddr, NetError> {
        if peer.is_ipv4() != self.own.is_ipv4() {
            return Err(NetError::Family(node));
        }
        if self.is_on_link(peer) {
            return Ok(peer);
        }
        self.gateway.ok_or(NetError::NoRoute(node))
    }

    fn is_on_link(&self, address: IpAddr) -> bool {
        match (self.own.ip(), address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix_len)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                other.is_unicast_link_local()
                    || differing.leading_zeros() >= u32::from(self.prefix_len)
            }
            _ => false,
        }
    }
}

fn names_a_node(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}
