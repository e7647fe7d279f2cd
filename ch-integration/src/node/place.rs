//! How a member is reached, as the group's log carries it: its entry of `[[group.nodes]]`, as JSON.
//! A node that was not in this node's configuration is reached with what the log says.

use bytes::Bytes;
use replication::core::NodeSpec;
use replication::link::Place;

use crate::config::PeerConfig;

/// A member's place.
pub(crate) fn of(node: &PeerConfig) -> Bytes {
    // Plain values: there is nothing in it that JSON cannot say.
    serde_json::to_vec(node).unwrap_or_default().into()
}

/// The entry of `[[group.nodes]]` that a place was made of; none if it was made by another release.
pub(crate) fn read(spec: &NodeSpec) -> Option<PeerConfig> {
    let node: PeerConfig = serde_json::from_slice(&spec.place).ok()?;
    (u64::from(node.id) == spec.id.0).then_some(node)
}

/// How its replication port is reached.
pub(crate) fn address_of(spec: &NodeSpec) -> Option<Place> {
    let node = read(spec)?;
    Some(Place {
        address: node.address?,
        public: node.public_key,
    })
}
