//! Who the nodes are and where.

use std::net::SocketAddr;

use plover_types::NodeId;

/// A replica group has three.
pub const NODES: usize = 3;

const PREFIX: [u8; 5] = [2, 0, 0, 0, 0];

/// A node's id, by its number from 0.
pub fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

/// A node's Ethernet address.
pub fn mac(node: usize) -> [u8; 6] {
    let [a, b, c, d, e] = PREFIX;
    [a, b, c, d, e, node as u8 + 1]
}

/// A node's IP address and UDP port.
pub fn place(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, node as u8 + 1], 7401))
}

/// The node that a frame in parts is for; none if it is for all, or for somebody else.
#[inline]
pub fn destination(parts: &[&[u8]]) -> Option<usize> {
    let [prefix @ .., last] = parts.first()?.first_chunk::<6>()?;
    let node = usize::from(last.checked_sub(1)?);
    (*prefix == PREFIX && node < NODES).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_where_its_first_bytes_say() {
        for node in 0..NODES {
            assert_eq!(destination(&[&mac(node), b"rest"]), Some(node));
        }
        assert_eq!(destination(&[&[0xff; 6]]), None);
        assert_eq!(destination(&[&mac(NODES)]), None);
        assert_eq!(destination(&[&[2, 0]]), None);
        assert_eq!(destination(&[]), None);
    }
}
