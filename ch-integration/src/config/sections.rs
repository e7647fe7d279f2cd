//! The sections of a node's configuration, with their defaults. Units are last in names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use plover_keys::PublicIdentity;
use serde::{Deserialize, Serialize};

use super::MacAddress;

/// `[group]`: who belongs together. The same text on every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// The group's name.
    pub name: String,
    /// The group's number, carried by each replication frame, so that two groups on one network
    /// don't hear each other.
    pub id: u32,
    /// Its nodes: two replicas and a witness, or one replica that nothing protects.
    pub nodes: Vec<PeerConfig>,
}

/// What a node does in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Has a copy of the VM.
    Replica,
    /// Votes and stores the log; runs no VM.
    Witness,
}

/// `[[group.nodes]]`: one node of the group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// 1 to 63, unique in the group.
    pub id: u8,
    /// Replica or witness.
    pub kind: NodeKind,
    /// IP address and UDP port at which its peers reach it, on its replication port. Only where there
    /// are peers.
    pub address: Option<SocketAddr>,
    /// Its public key, as `plover keygen` printed it.
    pub public_key: Option<PublicIdentity>,
    /// Where its hasher listens. Replicas only, and only where there are two.
    pub hasher: Option<SocketAddr>,
}

/// A DPDK port: a virtual device or a PCI address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// A virtual device with its arguments, as `net_tap0,iface=plover0`.
    pub vdev: Option<String>,
    /// A PCI address, as `0000:03:00.0`.
    pub pci: Option<String>,
    /// Receive descriptors.
    pub rx_descriptors: Option<u16>,
    /// Transmit descriptors.
    pub tx_descriptors: Option<u16>,
    /// Largest payload of a frame.
    pub mtu: Option<u16>,
}

/// Whether what the nodes say to each other is authenticated and encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// It is: between nodes, and between hashers.
    #[default]
    On,
    /// It is not: to measure what it costs, on wires that nobody else can reach.
    Off,
}

/// `[replication]`: the port to the peers, and Raft's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationConfig {
    /// The port. A node that is alone in its group can do without.
    pub port: Option<PortConfig>,
    /// The way to peers outside of this node's network.
    pub gateway: Option<IpAddr>,
    /// Length of that network's prefix; default: 24 for IPv4, 64 for IPv6.
    pub prefix_len: Option<u8>,
    /// On unless it is switched off.
    #[serde(default)]
    pub security: Security,
    /// From the last heartbeat of a leader that is gone to a replica's asking for votes, at most.
    #[serde(default = "default_detection_ms")]
    pub detection_ms: u32,
    /// Raft's tick and heartbeat; default: a twentieth of `detection_ms`.
    pub tick_ms: Option<u32>,
    /// How long the primary's guest may do nothing with its input while the backup's does; 0: for
    /// ever.
    #[serde(default = "default_watchdog_ms")]
    pub watchdog_ms: u32,
}

impl ReplicationConfig {
    /// Raft's tick.
    #[must_use]
    pub fn tick(&self) -> Duration {
        let twentieth = (self.detection_ms / 20).max(1);
        Duration::from_millis(self.tick_ms.unwrap_or(twentieth).into())
    }

    /// Ticks without a leader after which it is given up; none if the detection time has too few.
    #[must_use]
    pub fn election_ticks(&self) -> Option<u32> {
        let detection = Duration::from_millis(self.detection_ms.into());
        replication::limits::election_ticks(detection, self.tick())
    }
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            port: None,
            gateway: None,
            prefix_len: None,
            security: Security::default(),
            detection_ms: default_detection_ms(),
            tick_ms: None,
            watchdog_ms: default_watchdog_ms(),
        }
    }
}

fn default_watchdog_ms() -> u32 {
    2000
}

fn default_detection_ms() -> u32 {
    100
}

/// Whether DPDK uses huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// Plain memory: works everywhere, slower.
    #[default]
    Off,
    /// Huge pages, reserved beforehand.
    On,
}

/// `[eal]`: DPDK's environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EalConfig {
    /// Huge pages off or on.
    pub huge_pages: HugePages,
    /// DPDK's memory: packet buffers of both ports, and some to spare.
    pub memory_mib: u32,
    /// The core that DPDK's main thread is bound to.
    pub main_core: Option<u32>,
    /// Tells DPDK processes of one host apart.
    pub file_prefix: Option<String>,
}

impl Default for EalConfig {
    fn default() -> Self {
        Self {
            huge_pages: HugePages::Off,
            memory_mib: 128,
            main_core: None,
            file_prefix: None,
        }
    }
}

/// `[uplink]`: the port to the clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkConfig {
    /// The port.
    pub port: PortConfig,
}

/// Which side of a vhost-user socket is ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketMode {
    /// We listen, the VMM connects.
    #[default]
    Listen,
    /// The VMM listens, we connect.
    Connect,
}

/// `[guest]`: the guest as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Its Ethernet address, the same on both replicas.
    pub mac: MacAddress,
    /// The vhost-user socket; default: `vhost.sock` in `state_dir`.
    pub socket: Option<PathBuf>,
    /// Who listens on it.
    #[serde(default)]
    pub socket_mode: SocketMode,
    /// Largest payload of a frame, as the guest is told.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Pairs of a receive and a transmit queue.
    #[serde(default = "default_queue_pairs")]
    pub queue_pairs: u8,
    /// Whether checksum and segmentation offloads are offered to the guest.
    #[serde(default = "default_offloads")]
    pub offloads: bool,
}

fn default_mtu() -> u16 {
    1500
}

fn default_queue_pairs() -> u8 {
    1
}

fn default_offloads() -> bool {
    true
}

/// `[hasher]`: the hasher's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HasherConfig {
    /// Its executable; default: `plover-hasher` beside the running one.
    pub binary: Option<PathBuf>,
    /// Its control socket; default: `hasher.sock` in `state_dir`.
    pub socket: Option<PathBuf>,
    /// Threads that digest pages.
    pub threads: u32,
}

impl Default for HasherConfig {
    fn default() -> Self {
        Self {
            binary: None,
            socket: None,
            threads: 1,
        }
    }
}

/// `[sync]`: when to sync, and bounds on what may wait for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncConfig {
    /// No sync begins sooner than this after the last.
    pub interval_min_ms: u32,
    /// A sync begins at the latest this long after the last.
    pub interval_max_ms: u32,
    /// Packets of the guest held before a sync is forced.
    pub held_packets_max: u32,
    /// How long a copy is given to go quiet.
    pub quiet_max_ms: u32,
    /// A sync that takes longer is aborted.
    pub timeout_ms: u32,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            interval_min_ms: 20,
            interval_max_ms: 200,
            held_packets_max: 4096,
            quiet_max_ms: 10,
            timeout_ms: 5000,
        }
    }
}

/// Whether the poll core ever sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PollMode {
    /// Never.
    Busy,
    /// After a while without work, for `idle_sleep_us`.
    #[default]
    Adaptive,
}

/// `[poll]`: the poll core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PollConfig {
    /// Busy or adaptive.
    pub mode: PollMode,
    /// How long an idle adaptive core sleeps at once.
    pub idle_sleep_us: u32,
    /// The core it is bound to.
    pub core: Option<u32>,
}

impl Default for PollConfig {
    fn default() -> Self {
        Self {
            mode: PollMode::Adaptive,
            idle_sleep_us: 50,
            core: None,
        }
    }
}

/// What the primary does when it has lost its backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBackupLoss {
    /// Serves on, unprotected.
    #[default]
    Continue,
    /// Holds its output until there is a backup again.
    Stall,
}

/// `[debug]`: switches for tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DebugConfig {
    /// Where a reader of whole memories is told of each applied sync while both copies are paused.
    pub verifier_socket: Option<PathBuf>,
    /// A file that each delivery into the guest is recorded in.
    pub record_deliveries: Option<PathBuf>,
    /// Off: the backup's guest gets no packets (a control run).
    pub deliver_to_backup: bool,
    /// The node kills itself at this step of a sync.
    pub die_at_step: Option<String>,
    /// Pages of the rotating slice added to each sync's union; default: the hasher's own.
    pub slice_pages: Option<u32>,
}

impl Default for DebugConfig {
    fn default() -> Self {
        Self {
            verifier_socket: None,
            record_deliveries: None,
            deliver_to_backup: true,
            die_at_step: None,
            slice_pages: None,
        }
    }
}
