//! What the card is to a guest: the features that are offered for it, and its configuration space.
//! Who finishes what a guest leaves to the card is not known here (`offload`).

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::limits::QUEUE_PAIRS_MAX;

/// What the rings can, and what any VMM needs. The log is offered because QEMU refuses to save any
/// state with a backend that could not keep one.
const ALWAYS: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_IN_ORDER
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << net::VIRTIO_NET_F_MRG_RXBUF
    | 1 << net::VIRTIO_NET_F_MTU
    | 1 << net::VIRTIO_NET_F_STATUS
    | VhostUserVirtioFeatures::LOG_ALL.bits()
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Checksums both ways; cut for the guest, never joined for it: no uplink gives us large packets.
const OFFLOADS: u64 = 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_HOST_TSO4
    | 1 << net::VIRTIO_NET_F_HOST_TSO6
    | 1 << net::VIRTIO_NET_F_HOST_ECN
    | 1 << net::VIRTIO_NET_F_HOST_USO;

/// The link is up (`VIRTIO_NET_S_LINK_UP`): a guest can't tell its link from that of its protection.
const STATUS_UP: u16 = 1;

/// Bytes that a VMM may ask for at once; what we say is at the front, the rest is 0.
const CONFIG_SPACE_BYTES: usize = 256;

/// What a card is to its guest. Equal on both replicas, since the guest's driver moves with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardConfig {
    /// Its Ethernet address, for VMMs that ask the backend.
    pub mac: Option<[u8; 6]>,
    /// Largest payload of a frame.
    pub mtu: u16,
    /// Pairs of a receive and a transmit ring, 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: u8,
    /// Whether checksums may be left open, and large packets sent. The core behind the card must
    /// finish them (see [`crate::offload`]).
    pub offloads: bool,
    /// Whether the guest is to announce its addresses when it was moved. Not under protection:
    /// each load of a state would count as a move; the new primary announces the guest itself.
    pub announce: bool,
}

impl Default for CardConfig {
    /// One pair, frames of 1500 bytes, nothing that the core would have to finish.
    fn default() -> Self {
        Self {
            mac: None,
            mtu: 1500,
            queue_pairs: 1,
            offloads: false,
            announce: false,
        }
    }
}

impl CardConfig {
    /// Rings of the card; at least a pair, and no more than there may be.
    pub(super) fn rings(&self) -> usize {
        2 * usize::from(self.queue_pairs).clamp(1, QUEUE_PAIRS_MAX)
    }

    /// Virtio features offered to guest and VMM.
    #[must_use]
    pub fn features(&self) -> u64 {
        let several = self.rings() > 2;
        // The queue itself is the VMM's. It has one only if we say so (Cloud Hypervisor), and a
        // guest turns further pairs on by it.
        let control = several || self.announce;
        let when = |wanted: bool, bit: u32| u64::from(wanted) << bit;
        ALWAYS
            | if self.offloads { OFFLOADS } else { 0 }
            | when(self.mac.is_some(), net::VIRTIO_NET_F_MAC)
            | when(several, net::VIRTIO_NET_F_MQ)
            | when(control, net::VIRTIO_NET_F_CTRL_VQ)
            | when(self.announce, net::VIRTIO_NET_F_GUEST_ANNOUNCE)
    }

    /// What of vhost-user is offered to the VMM. DEVICE_STATE stays away: Cloud Hypervisor's
    /// snapshot would want state that we don't have. NET_MTU and RARP do, too: the crate knows
    /// neither message.
    pub(super) fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
    }

    /// A part of the configuration space (`struct virtio_net_config`); nothing where there is none.
    pub(super) fn config_space(&self, offset: u32, bytes: u32) -> Vec<u8> {
        let mut space = [0; CONFIG_SPACE_BYTES];
        space[..6].copy_from_slice(&self.mac.unwrap_or_default());
        space[6..8].copy_from_slice(&STATUS_UP.to_le_bytes());
        let pairs = (self.rings() / 2) as u16;
        space[8..10].copy_from_slice(&pairs.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        let start = offset as usize;
        let part = start..start.saturating_add(bytes as usize);
        space.get(part).map(<[u8]>::to_vec).unwrap_or_default()
    }
}

/// Names of the features in `bits`, for the log.
pub(super) fn names(bits: u64) -> String {
    let known = NAMES.iter().filter(|(bit, _)| bits & (1 << bit) != 0);
    let unnamed = NAMES.iter().fold(bits, |bits, (bit, _)| bits & !(1 << bit));
    let mut text: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
    if unnamed != 0 {
        text.push(format!("{unnamed:#x}"));
    }
    text.join(" ")
}

const NAMES: [(u32, &str); 19] = [
    (net::VIRTIO_NET_F_CSUM, "CSUM"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"),
    (net::VIRTIO_NET_F_MTU, "MTU"),
    (net::VIRTIO_NET_F_MAC, "MAC"),
    (net::VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
    (net::VIRTIO_NET_F_HOST_ECN, "HOST_ECN"),
    (net::VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"),
    (net::VIRTIO_NET_F_STATUS, "STATUS"),
    (net::VIRTIO_NET_F_CTRL_VQ, "CTRL_VQ"),
    (net::VIRTIO_NET_F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (net::VIRTIO_NET_F_MQ, "MQ"),
    (26, "LOG_ALL"),
    (VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC"),
    (VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (VIRTIO_F_VERSION_1, "VERSION_1"),
    (VIRTIO_F_IN_ORDER, "IN_ORDER"),
    (net::VIRTIO_NET_F_HOST_USO, "HOST_USO"),
];

const _: () = assert!(VhostUserVirtioFeatures::LOG_ALL.bits() == 1 << 26);
const _: () = assert!(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 1 << 30);

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: CardConfig = CardConfig {
        mac: Some([2, 0, 0, 0, 0, 7]),
        mtu: 9000,
        queue_pairs: 4,
        offloads: true,
        announce: true,
    };

    #[test]
    fn a_feature_is_offered_where_it_is_configured() {
        let plain = CardConfig::default();
        assert_eq!(plain.features(), ALWAYS);
        assert_eq!(plain.rings(), 2);
        let names = names(ALL.features());
        for name in ["CSUM", "HOST_USO", "MAC", "MQ", "CTRL_VQ", "GUEST_ANNOUNCE"] {
            assert!(names.split(' ').any(|n| n == name), "{name} in {names}");
        }
        assert!(!names.contains("0x"), "{names}");
        let several = CardConfig {
            announce: false,
            ..ALL
        };
        let differs = ALL.features() ^ several.features();
        assert_eq!(super::names(differs), "GUEST_ANNOUNCE");
    }

    #[test]
    fn impossible_numbers_of_pairs_are_brought_into_bounds() {
        for (queue_pairs, rings) in [(0, 2), (1, 2), (8, 16), (255, 16)] {
            let card = CardConfig { queue_pairs, ..ALL };
            assert_eq!(card.rings(), rings);
        }
    }

    #[test]
    fn the_configuration_space_is_that_of_virtio_net() {
        let space = [2, 0, 0, 0, 0, 7, 1, 0, 4, 0, 0x28, 0x23, 0, 0];
        assert_eq!(ALL.config_space(0, 14), space);
        assert_eq!(ALL.config_space(8, 4), space[8..12]);
        assert_eq!(ALL.config_space(250, 6), [0; 6]);
        for (offset, bytes) in [(250, 7), (300, 1), (u32::MAX, u32::MAX)] {
            assert!(ALL.config_space(offset, bytes).is_empty());
        }
        assert_eq!(names(1 << 57), "0x200000000000000");
    }
}
