//! The configuration of a node: one TOML file per host.
//!
//! What lives here: the file's shapes ([`NodeConfig`] and its sections, [`PlainNicConfig`] with
//! `replication = "off"`), how it is read, and its errors. Whether it makes sense is checked in
//! `validate`. Nothing is opened or started here.

mod keys;
mod mac;
mod plain_nic;
mod sections;
mod validate;
mod vmm;

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use plover_types::NodeId;
use replication::net::{Mac, NetConfig, PREFIX_LEN_IPV4, PREFIX_LEN_IPV6};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use keys::{GroupKeys, KeysError};
pub use mac::{MacAddress, MacAddressError};
pub use plain_nic::{PlainNicConfig, ReplicationOff};
pub use sections::{
    DebugConfig, EalConfig, GroupConfig, GuestConfig, HasherConfig, HugePages, NodeKind,
    OnBackupLoss, PeerConfig, PollConfig, PollMode, PortConfig, ReplicationConfig, Security,
    SocketMode, SyncConfig, UplinkConfig,
};
pub use vmm::{Accel, VmmConfig};

use crate::limits;

/// What a file describes.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A node of a group.
    Node(Box<NodeConfig>),
    /// `replication = "off"`: a network card and nothing else.
    PlainNic(Box<PlainNicConfig>),
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path)?)
    }

    /// Checks `text`, which errors attribute to `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // What is no TOML at all is told by the node's reader, with its line.
        let table = text.parse::<toml::Table>().unwrap_or_default();
        match table.get("replication") {
            Some(toml::Value::String(word)) => {
                check(path, validate::foreign_to_plain_nic(&table, word))?;
                let config: PlainNicConfig = deserialize(path, text)?;
                check(path, validate::plain_nic_problems(&config))?;
                Ok(Self::PlainNic(Box::new(config)))
            }
            _ => Ok(Self::Node(Box::new(NodeConfig::parse(path, text)?))),
        }
    }

    /// Where the node keeps its sockets and files.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        match self {
            Self::Node(config) => &config.state_dir,
            Self::PlainNic(config) => &config.state_dir,
        }
    }
}

/// The configuration of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name, for logs and status.
    pub name: String,
    /// This node's id: one of those in `group.nodes`.
    pub id: u8,
    /// Where this node keeps its log, votes and sockets.
    pub state_dir: PathBuf,
    /// The file with this node's secret key, made by `plover keygen`; default: `<name>.key` beside
    /// the configuration. See [`Self::key_file()`].
    pub key_file: Option<PathBuf>,
    /// Where the configuration was read: what `key_file` is relative to.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Whether the group runs already and this node takes the place of a lost one. `group.nodes` then
    /// names the group as it will be.
    #[serde(default)]
    pub join: bool,
    /// What the primary does when it has lost its backup.
    #[serde(default)]
    pub on_backup_loss: OnBackupLoss,
    /// The group and its nodes, three or a single replica; the same text on every node.
    pub group: GroupConfig,
    /// The replication port and Raft's clock.
    #[serde(default)]
    pub replication: ReplicationConfig,
    /// DPDK's environment.
    #[serde(default)]
    pub eal: EalConfig,
    /// The port to the clients. Replicas only.
    pub uplink: Option<UplinkConfig>,
    /// The guest as clients see it. Replicas only.
    pub guest: Option<GuestConfig>,
    /// The VMM and the guest's machine. Replicas only.
    pub vmm: Option<VmmConfig>,
    /// The hasher. Replicas only.
    #[serde(default)]
    pub hasher: HasherConfig,
    /// When to sync, and bounds.
    #[serde(default)]
    pub sync: SyncConfig,
    /// The poll core.
    #[serde(default)]
    pub poll: PollConfig,
    /// Switches for tests.
    #[serde(default)]
    pub debug: DebugConfig,
}

impl NodeConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path)?)
    }

    /// Checks `text`, which errors attribute to `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = deserialize(path, text)?;
        config.folder = path.parent().unwrap_or(Path::new("")).to_owned();
        check(path, validate::problems(&config))?;
        Ok(config)
    }

    /// This node's entry in the group.
    pub fn own(&self) -> Option<&PeerConfig> {
        self.group.nodes.iter().find(|node| node.id == self.id)
    }

    /// Whether this node is all of its group: its VM's input goes through a log, and nothing
    /// protects it.
    pub fn is_alone(&self) -> bool {
        self.group.nodes.len() == 1
    }

    /// Where this node and its peers are, for a replication port with this MAC address; none where
    /// an address is missing, or there is only one node.
    #[must_use]
    pub fn net(&self, own_mac: Mac, mtu: u16) -> Option<NetConfig> {
        let own = self.own()?.address?;
        let prefix_len = if own.is_ipv4() {
            PREFIX_LEN_IPV4
        } else {
            PREFIX_LEN_IPV6
        };
        let others = self.group.nodes.iter().filter(|node| node.id != self.id);
        let peers: Option<Vec<_>> = others
            .map(|node| Some((NodeId(node.id.into()), node.address?)))
            .collect();
        Some(NetConfig {
            own,
            own_mac,
            prefix_len: self.replication.prefix_len.unwrap_or(prefix_len),
            gateway: self.replication.gateway,
            peers: peers.filter(|peers| !peers.is_empty())?,
            mtu: mtu.min(limits::REPLICATION_MTU_MAX).into(),
        })
    }

    /// The vhost-user socket that our backend serves.
    pub fn vhost_socket(&self) -> PathBuf {
        let configured = self.guest.as_ref().and_then(|guest| guest.socket.clone());
        configured.unwrap_or_else(|| self.state_dir.join("vhost.sock"))
    }

    /// The hasher's control socket.
    pub fn hasher_socket(&self) -> PathBuf {
        self.hasher
            .socket
            .clone()
            .unwrap_or_else(|| self.state_dir.join("hasher.sock"))
    }

    /// The hasher's executable: the configured one, else `plover-hasher` beside the running one.
    pub fn hasher_binary(&self) -> PathBuf {
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("plover-hasher")
        };
        self.hasher.binary.clone().unwrap_or_else(beside)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = fs::metadata(path).map_err(fail)?.len();
    if bytes > limits::CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong {
            path: path.to_owned(),
            bytes,
        });
    }
    fs::read_to_string(path).map_err(fail)
}

fn deserialize<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        fix: fix_for(error.message()),
        detail: error.to_string().trim_end().to_owned(),
    })
}

fn check(path: &Path, problems: Vec<Problem>) -> Result<(), ConfigError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        path: path.to_owned(),
        problems: Problems(problems),
    })
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading configuration {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("configuration {path:?} has {bytes} bytes, more than one has; name a node's TOML file")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The text is not TOML, or has a key that we don't know, or lacks one.
    #[error("configuration {path:?}: {detail}\n{fix}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, key and problem.
        detail: String,
        /// What to do about it.
        fix: &'static str,
    },
    /// The values make no sense together.
    #[error("configuration {path:?}: {problems}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each problem with its key and fix.
        problems: Problems,
    },
}

/// A value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, from the top.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// All that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { key, what, fix }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{key}: {what}; {fix}")?;
        }
        Ok(())
    }
}

fn fix_for(message: &str) -> &'static str {
    if message.contains("unknown field") {
        "fix: correct the key's spelling, or remove it"
    } else if message.contains("missing field") {
        "fix: add the missing key"
    } else if message.contains("unknown variant") {
        "fix: use one of the values named"
    } else {
        "fix: correct this line"
    }
}

#[cfg(test)]
mod tests;
