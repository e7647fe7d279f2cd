//! The whole poll core as a group of one node, between a port that makes packets as fast as it can
//! (`net_null`) and a guest's driver in this process: packets go through the log to the guest, and
//! from it to the uplink. A packet allocates nothing and takes no lock; an entry of many packets
//! allocates little.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod card;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use card::Guest;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use dpdk_config::{Eal, EalConfig, Mempool, Port, PortConfig};
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
/// What raft-rs, the batches in which the log is compacted, and the log's memory allocate for an
/// entry, however many packets it holds.
const ALLOCATIONS_PER_ENTRY_MAX: u64 = 8;
/// Entries are full here: of what they allocate each packet has less than this.
const PACKETS_PER_ALLOCATION_MIN: u64 = 10;

fn node(folder: &Path) -> Node {
    let own = NodeId(1);
    let core = CoreConfig {
        own,
        nodes: vec![NodeSpec::replica(own.0)],
        joins: false,
        tick: Duration::from_millis(10),
        election_ticks: 15,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: false,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    };
    let link = LinkConfig {
        group: GroupId(1),
        boot: 1,
        net: None,
        security: Security::Off,
    };
    let setup = NodeSetup {
        core,
        link,
        state_dir: folder,
        durability: Durability::Memory,
        locate: Box::new(|_| None),
    };
    Node::start(setup).unwrap()
}

/// The core's other end: its guest boots at once.
struct Driver {
    commands: Sender<PollCommand>,
    events: Receiver<(Instant, PollEvent)>,
}

impl Driver {
    fn boot(&self) {
        self.commands
            .send(PollCommand::Copy(CopyEvent::Ready))
            .unwrap();
        loop {
            let (_, event) = self.events.recv_timeout(WAIT).unwrap();
            if matches!(event, PollEvent::Command(CopyCommand::Boot)) {
                break;
            }
        }
        self.commands
            .send(PollCommand::Thaw { sync: None })
            .unwrap();
        self.commands
            .send(PollCommand::Copy(CopyEvent::Booted))
            .unwrap();
    }

    fn status(&self) -> Status {
        let (reply, answer) = bounded(1);
        self.commands.send(PollCommand::Status(reply)).unwrap();
        *answer.recv_timeout(WAIT).unwrap()
    }
}

#[test]
fn packets_go_through_the_log_without_an_allocation_or_a_lock_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let eal = Eal::init(&EalConfig {
        memory_mib: 128,
        ..EalConfig::default()
    })
    .unwrap();
    let pool = Mempool::new(&eal, "uplink", 8191, 256, 2048).unwrap();
    let uplink = Port::open(&eal, &PortConfig::vdev("net_null0,size=200"), &pool).unwrap();
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(|_| ()),
        written_pages: None,
        card: CardConfig::default(),
    })
    .unwrap();
    let server = VhostUserServer::start(&socket, control).unwrap();
    let (commands, core_commands) = unbounded();
    let (core_events, events) = unbounded();
    let bell = || Arc::new(EventFd::new().unwrap());
    let core = PollCore::new(PollSetup {
        node: node(folder.path()),
        replication: None,
        uplink: Some(NodePort::new(uplink, pool)),
        nic: Some(nic),
        config: PollConfig {
            is_busy: true,
            idle_sleep: Duration::from_micros(50),
            guest_mac: None,
            guest_mtu: 1500,
            sync_interval_min: Duration::from_millis(10),
            sync_interval_max: Duration::from_millis(100),
            held_packets_max: 2048,
            deliver_to_backup: true,
            measures_steps: true,
        },
        commands: core_commands,
        events: core_events,
        bell: bell(),
        wake: bell(),
        record: None,
    });
    let driver = Driver { commands, events };
    let stop = Arc::new(AtomicBool::new(false));
    let (its_stop, its_eal) = (Arc::clone(&stop), eal.clone());
    let thread = std::thread::spawn(move || {
        let _cache = its_eal.register_thread();
        card::watch_this_thread();
        core.run(&its_stop);
    });
    driver.boot();

    let mut guest = Guest::on(&eal, &socket);
    // Rings are started, queues and the log's memory reach their size.
    guest.exchange(10_000);
    let status = driver.status();
    assert_eq!(status.ring_fault, None);
    assert!(status.is_serving);
    let sent = guest.sent;
    let (first, before) = (driver.status(), card::counted());
    guest.exchange(10_000);
    let (after, last) = (card::counted(), driver.status());
    let sent = guest.sent - sent;

    let entries = last.applied.0 - first.applied.0;
    let delivered = last.path.delivered - first.path.delivered;
    let (allocations, locks) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{delivered} packets to the guest in {entries} entries, {sent} from it: \
         {allocations} allocations, {locks} locks"
    );
    assert!(
        allocations <= entries * ALLOCATIONS_PER_ENTRY_MAX,
        "{allocations}, {entries} entries"
    );
    assert!(
        allocations * PACKETS_PER_ALLOCATION_MIN <= delivered + sent as u64,
        "{allocations} for {delivered} and {sent} packets"
    );
    assert_eq!(locks, 0);

    drop(guest);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    server.stop();
}
