//! The poll core of a group of one between a port that makes packets as fast as it can (`net_null`)
//! and a guest's driver in this process (`net_virtio_user`): long packets are kept in their mbufs
//! until they are delivered, written into the log when the guest takes none for a while, and every
//! mbuf is back in its pool at the end.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use dpdk_config::{Burst, Eal, EalConfig, Mempool, Port, PortConfig};
use plover_types::NodeId;
use replication::core::{CoreConfig, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::link::{LinkConfig, Security};
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::wire::GroupId;
use vhost_user_plover_net::path::ports::NodePort;
use vhost_user_plover_net::poll::{PollCommand, PollConfig, PollCore, PollEvent, PollSetup};
use vhost_user_plover_net::status::Status;
use vhost_user_plover_net::{CardConfig, EventFd, NicConfig, VhostUserServer, channel};

const WAIT: Duration = Duration::from_secs(10);
const MBUFS: u32 = 8191;

fn node(state_dir: &std::path::Path) -> Node {
    let own = NodeId(1);
    Node::start(NodeSetup {
        core: CoreConfig {
            own,
            nodes: vec![NodeSpec::replica(own.0)],
            tick: Duration::from_millis(10),
            election_ticks: 15,
            sync_timeout: Duration::from_secs(5),
            on_backup_loss: OnBackupLoss::Continue,
            is_durable: false,
            is_restarted: false,
            joins: false,
            incarnation: 1,
            host_facts_hash: 0,
        },
        link: LinkConfig {
            group: GroupId(1),
            boot: 1,
            net: None,
            security: Security::Off,
        },
        state_dir,
        durability: Durability::Memory,
        locate: Box::new(|_| None),
    })
    .unwrap()
}

fn poll_config() -> PollConfig {
    PollConfig {
        is_busy: true,
        idle_sleep: Duration::from_micros(100),
        guest_mac: None,
        guest_mtu: 1500,
        sync_interval_min: Duration::from_millis(10),
        sync_interval_max: Duration::from_millis(100),
        held_packets_max: 1024,
        deliver_to_backup: true,
        measures_steps: true,
    }
}

/// What VMM and hasher would do: the guest is there at once.
fn boot(commands: &Sender<PollCommand>, events: &Receiver<(Instant, PollEvent)>) {
    commands.send(PollCommand::Copy(CopyEvent::Ready)).unwrap();
    let deadline = Instant::now() + WAIT;
    while let Ok((_, event)) = events.recv_deadline(deadline) {
        if matches!(event, PollEvent::Command(CopyCommand::Boot)) {
            commands.send(PollCommand::Thaw { sync: None }).unwrap();
            commands.send(PollCommand::Copy(CopyEvent::Booted)).unwrap();
            return;
        }
    }
    panic!("the copy was not booted");
}

fn status(commands: &Sender<PollCommand>) -> Status {
    let (reply, answer) = bounded(1);
    commands.send(PollCommand::Status(reply)).unwrap();
    *answer.recv_timeout(WAIT).unwrap()
}

/// Receives until `enough` packets came; all of them are of this length.
fn receive(port: &mut Port, bytes: usize, enough: usize) {
    let deadline = Instant::now() + WAIT;
    let (mut received, mut burst) = (0, Burst::new());
    while received < enough {
        assert!(Instant::now() < deadline, "{received} packets came");
        received += port.rx_burst(&mut burst);
        assert!(burst.iter().all(|mbuf| mbuf.len() == bytes));
        burst.clear();
    }
}

#[test]
fn long_packets_are_kept_until_they_are_delivered_and_none_is_lost_to_the_pool() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let eal = Eal::init(&EalConfig {
        memory_mib: 128,
        ..EalConfig::default()
    })
    .unwrap();
    let bytes = 1000;
    let pool = Mempool::new(&eal, "uplink", MBUFS, 0, 2048).unwrap();
    let device = format!("net_null0,size={bytes}");
    let uplink = Port::open(&eal, &PortConfig::vdev(device), &pool).unwrap();
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(|_| ()),
        written_pages: None,
        card: CardConfig::default(),
    })
    .unwrap();
    let server = VhostUserServer::start(&socket, control).unwrap();
    let (commands, core_commands) = unbounded();
    let (core_events, events) = unbounded();
    let core = PollCore::new(PollSetup {
        node: node(folder.path()),
        replication: None,
        uplink: Some(NodePort::new(uplink, pool.clone())),
        nic: Some(nic),
        config: poll_config(),
        commands: core_commands,
        events: core_events,
        bell: Arc::new(EventFd::new().unwrap()),
        wake: Arc::new(EventFd::new().unwrap()),
        record: None,
    });
    let stop = Arc::new(AtomicBool::new(false));
    let its_stop = Arc::clone(&stop);
    let thread = std::thread::spawn(move || core.run(&its_stop));
    boot(&commands, &events);

    let guest_pool = Mempool::new(&eal, "guest", 4095, 0, 2048).unwrap();
    let device = format!("net_virtio_user0,path={},queues=1", socket.display());
    let mut guest = Port::open(&eal, &PortConfig::vdev(device), &guest_pool).unwrap();
    receive(&mut guest, bytes, 20_000);
    // Nobody takes anything: what is kept does not hold the pool for long.
    let deadline = Instant::now() + WAIT;
    while status(&commands).path.entries_written_out == 0 {
        assert!(Instant::now() < deadline, "nothing was written out");
        std::thread::sleep(Duration::from_millis(2));
    }
    // It goes on with what was written.
    receive(&mut guest, bytes, 20_000);
    let path = status(&commands).path;
    assert!(path.delivered >= 40_000 && path.proposed >= path.delivered);
    assert_eq!((path.dropped_length, path.dropped_role_lost), (0, 0));

    drop(guest);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    server.stop();
    assert_eq!(pool.available(), MBUFS);
}
