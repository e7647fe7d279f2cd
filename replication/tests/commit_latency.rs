//! How long a lone commit takes over links that lose frames: three whole nodes, sealed datagrams,
//! and a network in virtual time, so that the same seed always gives the same figures.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use plover_types::{NodeId, Offload, PacketBurstBuilder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use replication::core::{Action, CoreConfig, Event, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::link::{LinkConfig, Security};
use replication::net::NetConfig;
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::secure::Identity;
use replication::wire::GroupId;
use tempfile::TempDir;

const NODES: usize = 3;
const US: Duration = Duration::from_micros(1);
const ONE_WAY: Duration = Duration::from_micros(100);
const ROUND_TRIP: Duration = Duration::from_micros(200);
/// A busy poll core's turn.
const TURN: Duration = Duration::from_micros(5);
const COMMITS: usize = 2_000;
const SEED: u64 = 20_261_122;

struct World {
    now: Duration,
    nodes: Vec<Node>,
    _folders: Vec<TempDir>,
    /// In order of their arrival.
    flying: VecDeque<(Duration, usize, Vec<u8>)>,
    loss: f64,
    random: StdRng,
}

fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

fn mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, node as u8]
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, node as u8 + 1], 7401))
}

fn identity(node: usize) -> Identity {
    Identity::from_secret([node as u8 + 1; 32])
}

fn peers(own: usize) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |node| *node != own)
}

fn start(own: usize, folder: &TempDir) -> Node {
    let core = CoreConfig {
        own: id(own),
        nodes: (0..NODES)
            .map(|node| NodeSpec {
                id: id(node),
                is_replica: node < 2,
                place: Bytes::new(),
            })
            .collect(),
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
        group: GroupId(7),
        boot: own as u64 + 1,
        net: Some(NetConfig {
            own: address(own),
            own_mac: mac(own),
            prefix_len: 24,
            gateway: None,
            peers: peers(own).map(|node| (id(node), address(node))).collect(),
            mtu: 1500,
        }),
        security: Security::On {
            identity: identity(own),
            peers: peers(own)
                .map(|node| (id(node), *identity(node).public()))
                .collect(),
            random: Box::new(StdRng::seed_from_u64(own as u64)),
        },
    };
    let setup = NodeSetup {
        core,
        link,
        state_dir: folder.path(),
        durability: Durability::Memory,
        locate: Box::new(|_| None),
    };
    Node::start(setup).expect("a valid setup")
}

impl World {
    fn new(loss: f64) -> Self {
        let folders: Vec<_> = (0..NODES)
            .map(|_| tempfile::tempdir().expect("a folder"))
            .collect();
        let nodes = (0..NODES).map(|own| start(own, &folders[own])).collect();
        let mut world = Self {
            now: Duration::ZERO,
            nodes,
            _folders: folders,
            flying: VecDeque::new(),
            loss: 0.0,
            random: StdRng::seed_from_u64(SEED),
        };
        let ready = Event::Copy(CopyEvent::Ready);
        world.nodes[0].core_mut().step(Duration::ZERO, ready);
        while !world.nodes[0].core().is_serving() {
            world.turn();
            assert!(world.now < Duration::from_secs(5), "nobody serves");
        }
        // Measured ways, live leases.
        world.run(Duration::from_millis(200));
        world.loss = loss;
        world
    }

    fn turn(&mut self) {
        self.now += TURN;
        let now = self.now;
        while self.flying.front().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, to, mut frame)) = self.flying.pop_front() {
                self.nodes[to].receive_frame(now, &mut frame);
            }
        }
        for own in 0..NODES {
            self.nodes[own].poll(now).expect("no disk, no error");
            let mut booted = false;
            let (flying, random, loss) = (&mut self.flying, &mut self.random, self.loss);
            self.nodes[own].drain(
                now,
                |parts| {
                    let frame = parts.concat();
                    let to_all = frame[0] & 1 != 0;
                    for to in peers(own).filter(|to| to_all || frame[..6] == mac(*to)) {
                        if !random.random_bool(loss) {
                            flying.push_back((now + ONE_WAY, to, frame.clone()));
                        }
                    }
                },
                |action| booted |= matches!(action, Action::Copy(CopyCommand::Boot)),
            );
            if booted {
                let event = Event::Copy(CopyEvent::Booted);
                self.nodes[own].core_mut().step(now, event);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.turn();
        }
    }

    /// From the proposal of one packet to its commit, as its leader sees it.
    fn commit(&mut self) -> Duration {
        let mut builder = PacketBurstBuilder::new();
        builder.push(0, Offload::PLAIN, &[7; 64]).expect("valid");
        let burst = builder.finish().expect("one packet");
        let leader = self.nodes[0].core_mut();
        let before = leader.applied();
        let proposed = self.now;
        assert!(leader.propose(proposed, burst).is_ok(), "it leads");
        while self.nodes[0].core().applied() <= before {
            self.turn();
            assert!(
                self.now < proposed + Duration::from_secs(1),
                "never committed"
            );
        }
        self.now - proposed
    }

    /// Median, 99 % and longest of many, and how many datagrams were repaired.
    fn measure(&mut self) -> [Duration; 3] {
        let mut took: Vec<_> = (0..COMMITS)
            .map(|_| {
                let took = self.commit();
                let pause = self.random.random_range(50..400);
                self.run(US * pause);
                took
            })
            .collect();
        took.sort_unstable();
        [
            took[COMMITS / 2],
            took[COMMITS * 99 / 100],
            took[COMMITS - 1],
        ]
    }
}

#[test]
fn loss_costs_a_lone_commit_a_round_trip_and_not_a_heartbeat() {
    let [median_without_loss, ..] = World::new(0.0).measure();
    assert!(median_without_loss <= ROUND_TRIP + 4 * TURN);
    for loss in [0.01, 0.05] {
        let mut world = World::new(loss);
        let [median, most, longest] = world.measure();
        let repaired = world.nodes[0].link().transport_counters().repaired;
        println!(
            "{loss}: median {median:?} (without loss {median_without_loss:?}), 99 % {most:?}, \
             longest {longest:?}, {repaired} repaired by the leader"
        );
        assert!(repaired > 0);
        assert_eq!(median, median_without_loss);
        assert!(most <= 3 * ROUND_TRIP + Duration::from_millis(1));
    }
}
