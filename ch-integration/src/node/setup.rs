//! Puts a node together from its configuration: DPDK, ports, the group's core, the guest's card,
//! the poll core and the driver.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::unbounded;
use dpdk_config::Eal;
use hasher::guest_memory::RegionSpec;
use nix::sys::memfd::{MFdFlags, memfd_create};
use plover_types::NodeId;
use replication::core::{CoreConfig, NodeSpec};
use replication::link::{LinkConfig, Security};
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::secure::SecureLink;
use replication::wire::GroupId;
use tracing::warn;
use vhost_user_plover_net::limits::{CUT_MBUFS, KEPT_PACKETS_MAX};
use vhost_user_plover_net::path::ports::NodePort;
use vhost_user_plover_net::poll::{PollConfig, PollCore, PollSetup};
use vhost_user_plover_net::record::DeliveryRecord;
use vhost_user_plover_net::{EventFd, NicConfig, VhostUserServer, WrittenPages, channel};

use super::card::card_config;
use super::control::{self, Control};
use super::driver::{Driver, DriverSetup, Hashing, Replica};
use super::hasher_process::HasherSetup;
use super::journal::Journal;
use super::status::{self, NodeFacts, NodeStatus};
use super::{place, ports, ram_layout};
use crate::config::{self, NodeConfig, NodeKind, PollMode};
use crate::host_facts::host_facts;
use crate::launch::find_binary;

/// Packet buffers of the replication port: its receive ring, a message of the longest kind each
/// way, and what a thread's cache keeps.
const REPLICATION_MBUFS: u32 = 4096;

/// Packet buffers of the uplink beside those for held packets.
const UPLINK_MBUFS: u32 = 2048 + CUT_MBUFS as u32;

/// The longest frame payload that fits an mbuf.
const MTU_MAX: u16 = 1500;

/// What [`prepare`] makes.
pub struct Parts {
    /// For a thread of its own.
    pub poll_core: PollCore,
    /// For the main thread.
    pub driver: Driver,
    /// Lives as long as the ports; the poll thread takes its cache of packet buffers from it.
    pub eal: Eal,
}

/// Makes everything that a node consists of.
pub fn prepare(config: NodeConfig) -> Result<Parts> {
    create_state_dir(&config.state_dir)?;
    let own_ports = [
        config.replication.port.as_ref(),
        config.uplink.as_ref().map(|uplink| &uplink.port),
    ];
    let eal =
        ports::start_eal(&config.eal, own_ports.into_iter().flatten()).context("start DPDK")?;
    let replication = config
        .replication
        .port
        .as_ref()
        .map(|port| open_replication(&eal, port))
        .transpose()?;
    let held = config.sync.held_packets_max;
    // Only where nobody else reads the log.
    let kept = match config.group.nodes.len() {
        1 => KEPT_PACKETS_MAX as u32,
        _ => 0,
    };
    let mbufs = UPLINK_MBUFS + 2 * held + kept;
    let uplink = config
        .uplink
        .as_ref()
        .map(|uplink| ports::open_uplink(&eal, &uplink.port, guest_mtu(&config), mbufs))
        .transpose()?
        .map(|(port, pool)| NodePort::new(port, pool));
    let facts = Arc::new(NodeFacts::new(&config));
    check_binaries(&config)?;
    if config.keys()?.is_none() && !config.is_alone() {
        tracing::warn!("replication.security is off: whoever reaches the links is let in");
    }
    let node = start_node(&config, replication.as_ref(), &facts)?;
    let clock_start = node.instant_of(Duration::ZERO);
    let (poll, commands) = unbounded();
    let (event_sender, events) = unbounded();
    let bell = Arc::new(EventFd::new().context("make the driver's bell")?);
    let wake = Arc::new(EventFd::new().context("make the poll core's bell")?);
    let (nic, replica) = prepare_replica(&config)?.unzip();
    let record = config
        .debug
        .record_deliveries
        .as_deref()
        .map(DeliveryRecord::create)
        .transpose()
        .context("create debug.record_deliveries")?;
    let poll_core = PollCore::new(PollSetup {
        node,
        replication,
        uplink,
        nic,
        config: poll_config(&config),
        commands,
        events: event_sender,
        bell: Arc::clone(&bell),
        wake: Arc::clone(&wake),
        record,
    });
    let asked = NodeStatus {
        facts: Arc::clone(&facts),
        poll: poll.clone(),
        wake: Arc::clone(&wake),
    };
    status::serve(&config.state_dir, move || asked.answer())?;
    let control = Control {
        poll: poll.clone(),
        wake: Arc::clone(&wake),
    };
    control::serve(&config.state_dir, control)?;
    let journal = Journal::open(&config.state_dir)?;
    let driver = Driver::new(DriverSetup {
        config,
        poll,
        wake,
        events,
        bell,
        journal,
        facts,
        clock_start,
        replica,
    });
    Ok(Parts {
        poll_core,
        driver,
        eal,
    })
}

/// Captured states and control sockets lie there: for nobody else to read.
pub(super) fn create_state_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create state_dir {}", path.display()))
}

/// What would keep a replica from starting is found before it claims its identity: a replica that
/// took part once cannot come back under its id.
fn check_binaries(config: &NodeConfig) -> Result<()> {
    let hasher = config.hasher_binary();
    if config.vmm.is_some() && !config.is_alone() && !hasher.is_file() {
        anyhow::bail!("no hasher at {}; set hasher.binary to it", hasher.display());
    }
    Ok(())
}

fn guest_mtu(config: &NodeConfig) -> u16 {
    config.guest.as_ref().map_or(MTU_MAX, |guest| guest.mtu)
}

fn open_replication(eal: &Eal, port: &config::PortConfig) -> Result<NodePort> {
    let setup = ports::PortSetup {
        port,
        name: "replication",
        mbufs: REPLICATION_MBUFS,
        // It sends no more than fits the smallest buffers.
        frame_bytes_max: 0,
    };
    let (port, pool) = ports::open(eal, &setup).context("open replication.port")?;
    // Neighbour discovery asks a group of stations.
    port.set_promiscuous(true)
        .context("let the replication port take questions for its address")?;
    Ok(NodePort::new(port, pool))
}

fn start_node(
    config: &NodeConfig,
    replication: Option<&NodePort>,
    facts: &NodeFacts,
) -> Result<Node> {
    let own = config.own().context("this node is not in group.nodes")?;
    let id = |id: u8| NodeId(id.into());
    let is_replica = own.kind == NodeKind::Replica;
    let tick = config.replication.tick();
    let core = CoreConfig {
        own: id(config.id),
        nodes: config
            .group
            .nodes
            .iter()
            .map(|node| NodeSpec {
                id: id(node.id),
                is_replica: node.kind == NodeKind::Replica,
                place: place::of(node),
            })
            .collect(),
        joins: config.join,
        tick,
        election_ticks: config
            .replication
            .election_ticks()
            .context("replication.detection_ms has too few ticks")?,
        sync_timeout: Duration::from_millis(config.sync.timeout_ms.into()),
        on_backup_loss: match config.on_backup_loss {
            config::OnBackupLoss::Continue => OnBackupLoss::Continue,
            config::OnBackupLoss::Stall => OnBackupLoss::Stall,
        },
        is_durable: !is_replica,
        is_restarted: false,
        incarnation: rand::random(),
        host_facts_hash: facts_hash(config, facts)?,
    };
    let link = LinkConfig {
        group: GroupId::of(&format!("{}/{}", config.group.name, config.group.id)),
        boot: rand::random::<u64>().max(1),
        net: replication.and_then(|port| config.net(port.port().mac(), port.port().mtu())),
        security: security(config)?,
    };
    // A replica that restarts has lost its VM anyway: its commits wait for no disk. The witness
    // keeps its vote and its log.
    let durability = if is_replica {
        Durability::Memory
    } else {
        Durability::Disk
    };
    let setup = NodeSetup {
        core,
        link,
        state_dir: &config.state_dir,
        durability,
        locate: Box::new(place::address_of),
    };
    let mut node = Node::start(setup).context("start the node of the group")?;
    let watchdog = Duration::from_millis(config.replication.watchdog_ms.into());
    node.core_mut().set_watchdog(watchdog);
    Ok(node)
}

/// How the node's datagrams are protected.
fn security(config: &NodeConfig) -> Result<Security> {
    let Some(keys) = config.keys().context("this node's keys")? else {
        if !config.is_alone() {
            warn!(
                "replication.security is off: whoever reaches the links between the hosts can read \
                 and change what the nodes say to each other"
            );
        }
        return Ok(Security::Off);
    };
    Ok(Security::On {
        identity: keys.identity,
        peers: keys.peers,
        random: SecureLink::system_random().context("make keys for sessions")?,
    })
}

/// What must be equal on both hosts, as one number; 0 on the witness, which runs no VM.
fn facts_hash(config: &NodeConfig, known: &NodeFacts) -> Result<u64> {
    let (Some(vmm), Some(guest)) = (&config.vmm, &config.guest) else {
        return Ok(0);
    };
    let binary = find_binary(vmm.kind, vmm.binary.as_deref())?;
    let mut facts = host_facts(vmm, guest, &version_of(&binary)?).context("look at this host")?;
    // Measured, so never twice the same; `plover status --json` shows it.
    facts.tsc_khz = 0;
    let text = serde_json::to_string(&facts).context("describe this host")?;
    known.set_host(facts);
    Ok(GroupId::of(&text).0)
}

/// The first line that a VMM says of its version.
pub fn version_of(binary: &Path) -> Result<String> {
    let output = std::process::Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn prepare_replica(
    config: &NodeConfig,
) -> Result<Option<(vhost_user_plover_net::GuestNic, Replica)>> {
    let own = config.own().context("this node is not in group.nodes")?;
    let (Some(vmm), Some(guest)) = (&config.vmm, &config.guest) else {
        return Ok(None);
    };
    let regions = ram_layout::regions(vmm.kind, vmm.memory_mib << 20);
    let hashing = prepare_hashing(config, own, &regions)?;
    let (memory_sender, memory) = unbounded();
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(move |event| {
            // The driver lives as long as the server.
            let _ = memory_sender.send(event);
        }),
        written_pages: hashing.as_ref().map(|hashing| Arc::clone(&hashing.written)),
        card: card_config(guest, false),
    })
    .context("make the guest's card")?;
    let server = VhostUserServer::start(&config.vhost_socket(), control)
        .context("serve the guest's card")?;
    let replica = Replica {
        hashing,
        memory,
        _server: server,
        regions,
        run_dir: run_dir(&vmm.ram_path, &config.state_dir),
    };
    Ok(Some((nic, replica)))
}

/// What comparing with the other copy needs; a node that is alone has none to compare with.
fn prepare_hashing(
    config: &NodeConfig,
    own: &config::PeerConfig,
    regions: &[RegionSpec],
) -> Result<Option<Hashing>> {
    if config.is_alone() {
        return Ok(None);
    }
    let mut others = config.group.nodes.iter().filter(|node| node.id != own.id);
    let peer = others.find(|node| node.hasher.is_some());
    let peer = peer.context("no other replica has a hasher address in group.nodes")?;
    let keys = if config.is_secured() {
        let public = peer
            .public_key
            .context("the other replica has no public_key")?;
        Some((config.key_file(), public))
    } else {
        None
    };
    let written = WrittenPages::create(ram_layout::guest_end(regions))
        .context("make the log of written pages")?;
    let staging = memfd_create(c"plover-staging", MFdFlags::MFD_CLOEXEC)
        .context("make the file that a staged set lives in")?;
    Ok(Some(Hashing {
        setup: HasherSetup {
            binary: config.hasher_binary(),
            socket: config.hasher_socket(),
            listen: own.hasher.context("this replica has no hasher address")?,
            peer: peer
                .hasher
                .context("no other replica has a hasher address in group.nodes")?,
            keys,
            node_id: config.id,
            threads: config.hasher.threads,
            slice_pages_max: config.debug.slice_pages,
        },
        written: Arc::new(written),
        staging: staging.into(),
    }))
}

/// Beside the RAM file, which is on a tmpfs: captured states pass through this folder.
fn run_dir(ram_path: &Path, state_dir: &Path) -> PathBuf {
    ram_path.parent().unwrap_or(state_dir).join("vmm")
}

fn poll_config(config: &NodeConfig) -> PollConfig {
    let sync = &config.sync;
    PollConfig {
        is_busy: config.poll.mode == PollMode::Busy,
        idle_sleep: Duration::from_micros(config.poll.idle_sleep_us.into()),
        guest_mac: config.guest.as_ref().map(|guest| guest.mac.bytes()),
        guest_mtu: guest_mtu(config),
        measures_steps: true,
        sync_interval_min: Duration::from_millis(sync.interval_min_ms.into()),
        sync_interval_max: Duration::from_millis(sync.interval_max_ms.into()),
        held_packets_max: sync.held_packets_max as usize,
        deliver_to_backup: config.debug.deliver_to_backup,
    }
}
