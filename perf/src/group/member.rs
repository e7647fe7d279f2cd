//! One node: the real one, with its frames on the wire, and the answers of a driver that has
//! nothing to wait for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use plover_types::PacketBurst;
use replication::core::{Action, CoreConfig, Event, NodeSpec, Notice};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::link::{self, LinkConfig};
use replication::net::NetConfig;
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::secure::{Identity, SecureLink};
use replication::wire::GroupId;
use tempfile::TempDir;

use super::address::{NODES, id, mac, place};
use super::copy;
use super::stopwatch::{Detail, Spent, Step, Stopwatch};
use super::wire::Wire;

const TICK: Duration = Duration::from_millis(10);
/// Bytes behind an Ethernet header that the wire carries.
const MTU: usize = 1500;

/// Whether frames are encrypted and authenticated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// As by default.
    #[default]
    On,
    /// For trusted wires.
    Off,
}

impl Security {
    /// Both.
    pub const ALL: [Self; 2] = [Self::On, Self::Off];

    /// What its figures are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "encrypted",
            Self::Off => "plain",
        }
    }
}

/// What a group is like.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Keeps its frames apart from another group's.
    pub name: &'static str,
    /// Ticks without a leader before an election.
    pub election_ticks: u32,
    /// Whether its frames are encrypted.
    pub security: Security,
}

/// A node of a group.
pub struct Member {
    number: usize,
    node: Node,
    todo: Vec<CopyCommand>,
    /// What the node told since it was last asked.
    notes: Vec<(Instant, Notice)>,
    watch: Stopwatch,
    _state: TempDir,
}

impl Member {
    /// The node of this number.
    pub fn start(number: usize, kind: &Kind) -> Result<Self> {
        let state = tempfile::tempdir().context("make a folder for the node's identity")?;
        let node = Node::start(NodeSetup {
            core: core_config(number, kind),
            link: link_config(number, kind)?,
            state_dir: state.path(),
            durability: Durability::Memory,
            locate: Box::new(|_| None),
        })
        .with_context(|| format!("start node {}", number + 1))?;
        Ok(Self {
            number,
            node,
            todo: Vec::new(),
            notes: Vec::new(),
            watch: Stopwatch::new(Detail::Off),
            _state: state,
        })
    }

    /// A VMM waits here.
    pub fn offer_guest(&mut self) {
        let now = self.node.now();
        let core = self.node.core_mut();
        core.step(now, Event::Copy(CopyEvent::Ready));
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The node, to deliver from.
    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Its number, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Times its turns from now on; what was spent before is forgotten.
    pub fn watch(&mut self, detail: Detail) {
        self.watch = Stopwatch::new(detail);
    }

    /// What it spent while it was watched.
    pub fn spent(&self) -> Spent {
        self.watch.spent()
    }

    /// What it told since the last call.
    pub fn take_notes(&mut self) -> Vec<(Instant, Notice)> {
        std::mem::take(&mut self.notes)
    }

    /// One turn, as the poll core takes it: hear the peers, propose, do what the core asks.
    /// A burst that the log refuses stays in `offer`.
    #[inline]
    pub fn turn(&mut self, wire: &mut Wire, offer: &mut Option<PacketBurst>) -> Result<()> {
        self.watch.begin();
        let now = self.node.now();
        wire.receive(self.number, |frame| {
            self.node.receive_frame(now, frame);
        });
        self.node.poll(now).context("the log in memory failed")?;
        self.watch.done(Step::Receive);
        if let Some(burst) = offer.take()
            && let Err(refused) = self.node.core_mut().propose(now, burst)
        {
            *offer = Some(refused);
        }
        self.watch.done(Step::Propose);
        self.act(wire);
        self.watch.done(Step::Send);
        self.watch.end();
        Ok(())
    }

    #[inline]
    fn act(&mut self, wire: &mut Wire) {
        let (number, todo, notes) = (self.number, &mut self.todo, &mut self.notes);
        let now = self.node.now();
        self.node.drain(
            now,
            |frame| wire.send(number, frame),
            |action| match action {
                Action::Copy(command) => todo.push(command),
                Action::Note(notice) => notes.push((Instant::now(), notice)),
                _ => {}
            },
        );
        wire.flush();
        if !self.todo.is_empty() {
            self.answer();
        }
    }

    /// What the driver of the copy answers; the core's next actions are done in the next turn.
    #[cold]
    fn answer(&mut self) {
        let now = self.node.now();
        let core = self.node.core_mut();
        for command in self.todo.drain(..) {
            if let Some(event) = copy::answer(core, command) {
                core.step(now, Event::Copy(event));
            }
        }
    }
}

fn core_config(own: usize, kind: &Kind) -> CoreConfig {
    CoreConfig {
        own: id(own),
        nodes: (0..NODES)
            .map(|node| NodeSpec {
                is_replica: node < 2,
                ..NodeSpec::replica(id(node).0)
            })
            .collect(),
        joins: false,
        tick: TICK,
        election_ticks: kind.election_ticks,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: false,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    }
}

fn link_config(own: usize, kind: &Kind) -> Result<LinkConfig> {
    let peers = || (0..NODES).filter(|node| *node != own);
    let security = match kind.security {
        Security::Off => link::Security::Off,
        Security::On => link::Security::On {
            identity: identity(own),
            peers: peers()
                .map(|node| (id(node), *identity(node).public()))
                .collect(),
            random: SecureLink::system_random().context("make keys for sessions")?,
        },
    };
    Ok(LinkConfig {
        group: GroupId::of(kind.name),
        boot: 1,
        net: Some(NetConfig {
            own: place(own),
            own_mac: mac(own),
            prefix_len: 24,
            gateway: None,
            peers: peers().map(|node| (id(node), place(node))).collect(),
            mtu: MTU,
        }),
        security,
    })
}

/// Known to whoever reads this: nothing but a measurement is behind it.
fn identity(node: usize) -> Identity {
    Identity::from_secret([node as u8 + 1; 32])
}
