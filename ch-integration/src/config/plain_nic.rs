//! The shape of a file with `replication = "off"`: a plain network card on a DPDK port. No group,
//! no log, no copy; the VMM is started by whoever wants the VM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{EalConfig, GuestConfig, PollConfig, UplinkConfig};

/// The one word that `replication` may be instead of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationOff {
    /// Nothing is replicated: the VM is not protected.
    Off,
}

/// The configuration of a card without replication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainNicConfig {
    /// The card's name, for logs and status.
    pub name: String,
    /// Where the status socket lies, and the card's unless `guest.socket` says otherwise.
    pub state_dir: PathBuf,
    /// Says that this is such a card.
    pub replication: ReplicationOff,
    /// DPDK's environment.
    #[serde(default)]
    pub eal: EalConfig,
    /// The port to the network.
    pub uplink: UplinkConfig,
    /// The guest's card.
    pub guest: GuestConfig,
    /// The poll core.
    #[serde(default)]
    pub poll: PollConfig,
}

impl PlainNicConfig {
    /// The vhost-user socket that our backend serves.
    #[must_use]
    pub fn vhost_socket(&self) -> PathBuf {
        let configured = self.guest.socket.clone();
        configured.unwrap_or_else(|| self.state_dir.join("vhost.sock"))
    }
}
