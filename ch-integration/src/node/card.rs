//! The guest's card, from its section of the configuration.

use vhost_user_plover_net::CardConfig;

use crate::config::GuestConfig;

/// What the backend offers. `moves`: the VMM may move the guest by itself, so that the guest has
/// to announce it; under protection it never does.
pub(super) fn card_config(guest: &GuestConfig, moves: bool) -> CardConfig {
    CardConfig {
        mac: Some(guest.mac.bytes()),
        mtu: guest.mtu,
        queue_pairs: guest.queue_pairs,
        offloads: guest.offloads,
        announce: moves,
    }
}
