//! Puts the nodes together: ports, logs, the guest's card, poll cores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::unbounded;
use dpdk_config::{Eal, EalConfig, HugePages, Mempool, Port, PortConfig};
use plover_types::NodeId;
use replication::core::{CoreConfig, NodeSpec};
use replication::link::{LinkConfig, Security};
use replication::net::NetConfig;
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::wire::GroupId;
use vhost_user_plover_net::limits::KEPT_PACKETS_MAX;
use vhost_user_plover_net::path::ports::NodePort;
use vhost_user_plover_net::poll::{PollConfig, PollCore, PollSetup};
use vhost_user_plover_net::{
    CardConfig, EventFd, GuestNic, NicConfig, VhostUserServer, WrittenPages, channel,
};

use super::driver::Watcher;
use super::{BackendArguments, links};

/// Packet buffers of the uplink: held packets, those kept for the guest, rings, and what the
/// thread's cache keeps.
const UPLINK_MBUFS: u32 = 2 * HELD_PACKETS_MAX as u32 + KEPT_PACKETS_MAX as u32 + 2048;
/// Packet buffers of a port between the nodes.
const REPLICATION_MBUFS: u32 = 4096;
/// Mbufs that the poll thread keeps at hand.
const MBUF_CACHE: u32 = 256;
/// Output leaves at once, so little is held.
const HELD_PACKETS_MAX: usize = 2048;
/// Guest addresses that are written to: `net_virtio_user` sends its own addresses for them.
const GUEST_END: u64 = 1 << 47;
const TICK: Duration = Duration::from_millis(10);
const ELECTION_TICKS: u32 = 15;

/// All that runs.
pub struct Parts {
    pub cores: Vec<PollCore>,
    pub watchers: Vec<Watcher>,
    pub server: VhostUserServer,
    pub eal: Eal,
}

/// Makes all parts. The first node has the guest.
pub fn prepare(arguments: &BackendArguments) -> Result<Parts> {
    let links = match arguments.nodes {
        1 => Vec::new(),
        nodes => links::lay(nodes)?,
    };
    let eal = Eal::init(&eal_config(arguments)).context("start DPDK")?;
    let uplink = open_port(
        &eal,
        "uplink",
        &arguments.uplink,
        arguments.mtu,
        UPLINK_MBUFS,
    )
    .context("open the uplink")?;
    let (server, nic) = card(arguments)?;
    let mut guest = Some((uplink, nic));
    let (mut cores, mut watchers) = (Vec::new(), Vec::new());
    for number in 0..arguments.nodes {
        let replication = links
            .get(number)
            .map(|device| {
                open_port(
                    &eal,
                    &format!("node{number}"),
                    device,
                    1500,
                    REPLICATION_MBUFS,
                )
                .with_context(|| format!("open the port of node {}", number + 1))
            })
            .transpose()?;
        let (core, watcher) = node(arguments, number, replication, guest.take())?;
        cores.push(core);
        watchers.push(watcher);
    }
    watchers[0].offer_guest();
    Ok(Parts {
        cores,
        watchers,
        server,
        eal,
    })
}

/// Pins the calling thread.
pub fn pin(core: Option<usize>) -> Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut set = nix::sched::CpuSet::new();
    set.set(core)
        .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
        .with_context(|| format!("poll on core {core}"))
}

fn eal_config(arguments: &BackendArguments) -> EalConfig {
    EalConfig {
        huge_pages: if arguments.no_huge_pages {
            HugePages::Off
        } else {
            HugePages::On
        },
        memory_mib: arguments.memory_mib,
        main_core: None,
        file_prefix: Some(format!("plover-backend-{}", std::process::id())),
        pci: false,
    }
}

fn open_port(eal: &Eal, name: &str, device: &str, mtu: u16, mbufs: u32) -> Result<NodePort> {
    let room = dpdk_config::limits::DATA_ROOM_BYTES_DEFAULT;
    let pool = Mempool::new(eal, name, mbufs, MBUF_CACHE, room)?;
    let config = PortConfig {
        mtu: (mtu != 1500).then_some(mtu),
        ..PortConfig::vdev(device)
    };
    let port = Port::open(eal, &config, &pool)?;
    Ok(NodePort::new(port, pool))
}

fn card(arguments: &BackendArguments) -> Result<(VhostUserServer, GuestNic)> {
    let written = arguments
        .log_writes
        .then(|| WrittenPages::create(GUEST_END))
        .transpose()
        .context("make the log of written pages")?
        .map(Arc::new);
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(|_| {}),
        written_pages: written,
        card: CardConfig {
            mtu: arguments.mtu,
            queue_pairs: arguments.queue_pairs,
            ..CardConfig::default()
        },
    })
    .context("make the guest's card")?;
    let server = VhostUserServer::start(&arguments.socket, control)
        .with_context(|| format!("listen on {}", arguments.socket.display()))?;
    Ok((server, nic))
}

fn node(
    arguments: &BackendArguments,
    number: usize,
    replication: Option<NodePort>,
    guest: Option<(NodePort, GuestNic)>,
) -> Result<(PollCore, Watcher)> {
    let state = tempfile::tempdir().context("make a folder for the node's identity")?;
    let node = Node::start(NodeSetup {
        core: core_config(arguments.nodes, number),
        link: link_config(arguments.nodes, number, replication.as_ref()),
        state_dir: state.path(),
        durability: Durability::Memory,
        locate: Box::new(|_| None),
    })
    .with_context(|| format!("start node {}", number + 1))?;
    let (commands, core_commands) = unbounded();
    let (core_events, events) = unbounded();
    let wake = Arc::new(EventFd::new().context("make a bell")?);
    let (uplink, nic) = guest.unzip();
    let core = PollCore::new(PollSetup {
        node,
        replication,
        uplink,
        nic,
        config: poll_config(arguments),
        commands: core_commands,
        events: core_events,
        bell: Arc::new(EventFd::new().context("make a bell")?),
        wake: Arc::clone(&wake),
        record: None,
    });
    let watcher = Watcher {
        node: id(number).0,
        commands,
        events,
        wake,
    };
    Ok((core, watcher))
}

fn id(number: usize) -> NodeId {
    NodeId(number as u64 + 1)
}

fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, number as u8 + 1], 7401))
}

fn core_config(nodes: usize, own: usize) -> CoreConfig {
    CoreConfig {
        own: id(own),
        nodes: (0..nodes)
            .map(|number| NodeSpec {
                is_replica: number < 2,
                ..NodeSpec::replica(id(number).0)
            })
            .collect(),
        joins: false,
        tick: TICK,
        election_ticks: ELECTION_TICKS,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: false,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    }
}

fn link_config(nodes: usize, own: usize, port: Option<&NodePort>) -> LinkConfig {
    let net = port.map(|port| NetConfig {
        own: address(own),
        own_mac: port.port().mac(),
        prefix_len: 24,
        gateway: None,
        peers: (0..nodes)
            .filter(|number| *number != own)
            .map(|number| (id(number), address(number)))
            .collect(),
        mtu: port.port().mtu().into(),
    });
    LinkConfig {
        group: GroupId::of("plover-perf"),
        boot: own as u64 + 1,
        net,
        security: Security::Off,
    }
}

fn poll_config(arguments: &BackendArguments) -> PollConfig {
    PollConfig {
        is_busy: true,
        idle_sleep: Duration::from_micros(50),
        guest_mac: None,
        guest_mtu: arguments.mtu,
        sync_interval_min: Duration::from_millis(10),
        sync_interval_max: Duration::from_millis(100),
        held_packets_max: HELD_PACKETS_MAX,
        deliver_to_backup: true,
        measures_steps: !arguments.no_costs,
    }
}
