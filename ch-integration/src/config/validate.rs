//! Whether a configuration that could be read makes sense. Each problem names its key and fix.

use std::collections::HashSet;
use std::path::Path;

use plover_types::limits::GROUP_SIZES;
use replication::net::{Mac, NetError};

use super::{
    EalConfig, GroupConfig, GuestConfig, NodeConfig, NodeKind, PeerConfig, PlainNicConfig,
    PortConfig, Problem, SocketMode, VmmConfig,
};
use crate::limits;
use crate::refuse;

/// A shorter watchdog would take a slow host for a VM that stands still.
const WATCHDOG_MS_MIN: u32 = 500;

/// All that makes no sense in `config`.
pub(super) fn problems(config: &NodeConfig) -> Vec<Problem> {
    let mut found = Found::default();
    names(config, &mut found);
    group(&config.group, &mut found);
    public_keys(config, &mut found);
    own_role(config, &mut found);
    replication_port(config, &mut found);
    clocks(config, &mut found);
    if let Some(card) = &config.guest {
        network_card(card, &mut found);
        found.require(
            card.socket_mode == SocketMode::Listen,
            "guest.socket_mode",
            "is \"connect\", but the VMM is started by this node and connects",
            "remove it",
        );
    }
    if let Some(vmm) = &config.vmm {
        machine(vmm, &mut found);
    }
    if let (Some(vmm), Some(guest)) = (&config.vmm, &config.guest) {
        found.require(
            u32::from(guest.queue_pairs) <= vmm.vcpus,
            "guest.queue_pairs",
            "is more than vmm.vcpus: the guest has no use for the others",
            "use as many as vmm.vcpus, or fewer",
        );
    }
    found.0
}

/// Keys of a replicated VM that a file with `replication` as a word has all the same, and a word
/// that is none.
pub(super) fn foreign_to_plain_nic(table: &toml::Table, word: &str) -> Vec<Problem> {
    let mut found = Found::default();
    found.require(
        word == "off",
        "replication",
        &format!("{word:?} is not known"),
        "use \"off\", or make it a section [replication] with a port",
    );
    for key in ["id", "join", "on_backup_loss"] {
        if table.contains_key(key) {
            found.add(
                key,
                "is set, but a card without replication belongs to no group",
                format!("remove {key}"),
            );
        }
    }
    for (section, why) in [
        ("group", "there are no other nodes"),
        ("vmm", "the VMM is started by hand"),
        ("hasher", "no pages are compared"),
        ("sync", "there is no other copy"),
        ("debug", "it has switches of replication only"),
    ] {
        if table.contains_key(section) {
            found.add(
                section,
                format!("is set, but with replication off {why}"),
                format!("remove [{section}]"),
            );
        }
    }
    found.0
}

/// All that makes no sense in a card without replication.
pub(super) fn plain_nic_problems(config: &PlainNicConfig) -> Vec<Problem> {
    let mut found = Found::default();
    found.require(
        !config.name.is_empty(),
        "name",
        "is empty",
        "name this card",
    );
    state_dir(&config.state_dir, &mut found);
    port("uplink.port", &config.uplink.port, &mut found);
    network_card(&config.guest, &mut found);
    socket(&config.vhost_socket(), &mut found);
    memory(&config.eal, &mut found);
    found.0
}

#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, key: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            what: what.into(),
            fix: fix.into(),
        });
    }

    fn require(&mut self, holds: bool, key: &str, what: &str, fix: &str) {
        if !holds {
            self.add(key, what, fix);
        }
    }
}

fn names(config: &NodeConfig, found: &mut Found) {
    found.require(
        !config.name.is_empty(),
        "name",
        "is empty",
        "name this node",
    );
    found.require(
        !config.group.name.is_empty(),
        "group.name",
        "is empty",
        "name the group",
    );
    state_dir(&config.state_dir, found);
}

fn state_dir(path: &Path, found: &mut Found) {
    found.require(
        path.is_absolute(),
        "state_dir",
        "is not an absolute path",
        "write the whole path, from /",
    );
}

fn group(group: &GroupConfig, found: &mut Found) {
    let nodes = &group.nodes;
    members(nodes, found);
    let (mut ids, mut hashers) = (HashSet::new(), HashSet::new());
    for (index, node) in nodes.iter().enumerate() {
        let key = |name: &str| format!("group.nodes[{index}].{name}");
        if !(1..=limits::NODE_ID_MAX).contains(&node.id) {
            found.add(
                key("id"),
                format!("{} is not an id", node.id),
                "use 1 to 63",
            );
        }
        if !ids.insert(node.id) {
            found.add(
                key("id"),
                format!("{} is used twice", node.id),
                "give each node its own",
            );
        }
        if node.address.is_none() && nodes.len() > 1 {
            found.add(
                key("address"),
                "is missing",
                "add address = \"IP:PORT\", where its peers reach its replication port",
            );
        }
        match (node.kind, node.hasher) {
            (NodeKind::Replica, None) if nodes.len() > 1 => {
                found.add(
                    key("hasher"),
                    "is missing",
                    "add hasher = \"IP:PORT\" to this replica",
                );
            }
            (NodeKind::Witness, Some(_)) => {
                found.add(
                    key("hasher"),
                    "is set, but a witness has no hasher",
                    "remove it",
                );
            }
            (NodeKind::Replica, Some(address)) if !hashers.insert(address) => {
                found.add(
                    key("hasher"),
                    format!("{address} is used twice"),
                    "use another port",
                );
            }
            _ => {}
        }
    }
}

/// In a secured group each node is known by a key of its own.
fn public_keys(config: &NodeConfig, found: &mut Found) {
    let mut keys = HashSet::new();
    for (index, node) in config.group.nodes.iter().enumerate() {
        let key = format!("group.nodes[{index}].public_key");
        match node.public_key {
            None if config.is_secured() => found.add(
                key,
                "is missing",
                "make a key on that host with `plover keygen FILE` and write what it prints here, \
                 on every node; or, for a wire that nobody else can reach, set \
                 replication.security = \"off\"",
            ),
            Some(public) if !keys.insert(public) => found.add(
                key,
                "is that of another node, too",
                "make a key for each node, on its host, with `plover keygen FILE`",
            ),
            _ => {}
        }
    }
}

/// Two replicas and a witness, or a replica that nothing protects.
fn members(nodes: &[PeerConfig], found: &mut Found) {
    if !GROUP_SIZES.contains(&nodes.len()) {
        let what = format!("lists {} nodes", nodes.len());
        found.add(
            "group.nodes",
            what,
            "list three, two replicas and one witness; for a VM that nothing protects list one \
             replica, or remove [group] and set replication = \"off\"",
        );
    }
    let of_kind = |kind| nodes.iter().filter(|node| node.kind == kind).count();
    let witnesses = of_kind(NodeKind::Witness);
    if nodes.len() == 1 {
        found.require(
            witnesses == 0,
            "group.nodes",
            "is a witness alone, with no VM to vote on",
            "make it kind = \"replica\", or list all three nodes",
        );
    } else if witnesses != 1 {
        let what = format!("lists {witnesses} witnesses");
        found.add(
            "group.nodes",
            what,
            "make exactly one node kind = \"witness\"",
        );
    }
}

/// The way to each peer, as the node will take it.
fn addresses(config: &NodeConfig, found: &mut Found) {
    let mtu = config.replication.port.as_ref().and_then(|port| port.mtu);
    // The port's own is asked from the port; any will do here.
    let Some(net) = config.net(Mac::default(), mtu.unwrap_or(limits::REPLICATION_MTU_MAX)) else {
        return;
    };
    let ways = || -> Result<(), NetError> {
        net.check()?;
        let mut peers = net.peers.iter();
        peers.try_for_each(|(node, address)| net.hop_to(*node, address.ip()).map(drop))
    };
    let Err(error) = ways() else { return };
    let (key, fix) = match error {
        NetError::Mtu(_) => (
            "replication.port.mtu",
            "use 1500, or what the way to the peers carries",
        ),
        NetError::Prefix(_) => (
            "replication.prefix_len",
            "use the length of the network's prefix, as 24",
        ),
        NetError::Gateway(_) => (
            "replication.gateway",
            "name a router on this node's own network",
        ),
        NetError::NoRoute(_) => (
            "replication.gateway",
            "add the router's address, or correct replication.prefix_len",
        ),
        NetError::Address(_) | NetError::Family(_) | NetError::Duplicate(_) => (
            "group.nodes",
            "give each node an address = \"IP:PORT\" of its own, all IPv4 or all IPv6",
        ),
    };
    found.add(key, error.to_string(), fix);
}

/// A node that has peers reaches them by its port.
fn replication_port(config: &NodeConfig, found: &mut Found) {
    addresses(config, found);
    match &config.replication.port {
        Some(peers) => port("replication.port", peers, found),
        None => found.require(
            config.is_alone(),
            "replication.port",
            "is missing: this node has no way to its peers",
            "add [replication.port] with vdev or pci",
        ),
    }
}

fn own_role(config: &NodeConfig, found: &mut Found) {
    let Some(own) = config.own() else {
        let what = format!("{} is not among group.nodes", config.id);
        found.add(
            "id",
            what,
            "set it to the id of this host's entry in group.nodes",
        );
        return;
    };
    let sections = [
        ("vmm", config.vmm.is_some()),
        ("uplink", config.uplink.is_some()),
        ("guest", config.guest.is_some()),
    ];
    for (section, present) in sections {
        match own.kind {
            NodeKind::Replica if !present => {
                let fix = format!("add [{section}], or make this node the witness");
                found.add(section, "is missing on a replica", fix);
            }
            NodeKind::Witness if present => {
                let fix = format!("remove [{section}]");
                found.add(
                    section,
                    "is set, but this node is the witness and runs no VM",
                    fix,
                );
            }
            _ => {}
        }
    }
    if let Some(uplink) = &config.uplink {
        port("uplink.port", &uplink.port, found);
    }
    socket(&config.vhost_socket(), found);
}

fn socket(path: &Path, found: &mut Found) {
    found.require(
        path.as_os_str().len() <= limits::SOCKET_PATH_BYTES_MAX,
        "guest.socket",
        "is longer than a Unix socket's path may be (107 bytes)",
        "set state_dir or guest.socket to a shorter path",
    );
}

fn port(key: &str, port: &PortConfig, found: &mut Found) {
    found.require(
        port.vdev.is_some() != port.pci.is_some(),
        key,
        "names no device, or two",
        "set exactly one of vdev (as \"net_tap0,iface=plover0\") and pci (as \"0000:03:00.0\")",
    );
}

fn clocks(config: &NodeConfig, found: &mut Found) {
    let replication = &config.replication;
    // Raft needs several heartbeats to fit, or one lost frame elects.
    found.require(
        replication.election_ticks().is_some(),
        "replication.detection_ms",
        "is shorter than fifteen ticks: a few lost frames would start an election, and no lease would be left",
        "use at least 15 x replication.tick_ms, and a tick_ms of 1 or more",
    );
    found.require(
        replication.watchdog_ms == 0 || replication.watchdog_ms >= WATCHDOG_MS_MIN,
        "replication.watchdog_ms",
        "is shorter than a pause of a sync or a busy host may take",
        "use 500 or more, or 0 to watch no guest",
    );
    let sync = &config.sync;
    found.require(
        sync.interval_min_ms <= sync.interval_max_ms,
        "sync.interval_min_ms",
        "is larger than sync.interval_max_ms",
        "swap them",
    );
    found.require(
        sync.interval_max_ms > 0,
        "sync.interval_max_ms",
        "is 0",
        "use 1 or more",
    );
    found.require(
        sync.held_packets_max > 0,
        "sync.held_packets_max",
        "is 0",
        "use 1 or more",
    );
    found.require(
        sync.timeout_ms > sync.quiet_max_ms,
        "sync.timeout_ms",
        "is not longer than sync.quiet_max_ms",
        "use the default, 5000",
    );
    found.require(
        config.hasher.threads > 0,
        "hasher.threads",
        "is 0",
        "use 1 or more",
    );
    memory(&config.eal, found);
}

fn memory(eal: &EalConfig, found: &mut Found) {
    found.require(
        eal.memory_mib >= 16,
        "eal.memory_mib",
        "is below 16",
        "use 64",
    );
}

fn network_card(guest: &GuestConfig, found: &mut Found) {
    let mtus = limits::GUEST_MTU_MIN..=limits::GUEST_MTU_MAX;
    if !mtus.contains(&guest.mtu) {
        found.add(
            "guest.mtu",
            format!("{} is not possible", guest.mtu),
            format!("use {} to {}", mtus.start(), mtus.end()),
        );
    }
    let pairs = 1..=limits::QUEUE_PAIRS_MAX;
    if !pairs.contains(&guest.queue_pairs) {
        found.add(
            "guest.queue_pairs",
            format!("{} is not possible", guest.queue_pairs),
            format!("use 1 to {}", pairs.end()),
        );
    }
}

fn machine(vmm: &VmmConfig, found: &mut Found) {
    if !(limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX).contains(&vmm.memory_mib) {
        let fix = format!(
            "use {} to {}",
            limits::MEMORY_MIB_MIN,
            limits::MEMORY_MIB_MAX
        );
        found.add(
            "vmm.memory_mib",
            format!("{} is no size", vmm.memory_mib),
            fix,
        );
    }
    if !limits::VCPUS_ALLOWED.contains(&vmm.vcpus) {
        found.add(
            "vmm.vcpus",
            format!("{} is not possible", vmm.vcpus),
            "use 1, 2 or 4",
        );
    }
    found.require(
        vmm.ram_path.is_absolute(),
        "vmm.ram_path",
        "is not an absolute path",
        "name a file on a tmpfs, as /dev/shm/plover-NAME/ram",
    );
    for refusal in refuse::check_extra_args(vmm.kind, &vmm.extra_args) {
        found.add(
            "vmm.extra_args",
            format!("{}: {}", refusal.what, refusal.why),
            refusal.fix,
        );
    }
}
