//! Three whole cores, two replicas and a witness, moved by ticks alone. Messages pass the wire form;
//! the witness has a disk, which may be slow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use plover_types::{NodeId, Offload, PacketBurst, PacketBurstBuilder};
use replication::core::{Action, Core, CoreConfig, Event, NodeSpec, Notice};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;
use replication::wire::{Envelope, GroupId, decode, encode};

const GROUP: GroupId = GroupId(9);
const TICK: Duration = Duration::from_millis(10);
pub const ELECTION_TICKS: u32 = 15;
pub const A: u64 = 1;
pub const B: u64 = 2;
pub const WITNESS: u64 = 3;

/// Three cores.
pub struct Cores {
    pub cores: BTreeMap<u64, Core>,
    pub wire: VecDeque<Envelope>,
    cut: BTreeSet<(u64, u64)>,
    pub now: Duration,
    /// What the witness's disk has not done.
    pub unwritten: VecDeque<u64>,
    pub disk_is_slow: bool,
    /// What was told, in order.
    pub notices: Vec<(u64, Notice)>,
}

fn config(own: u64, is_restarted: bool) -> CoreConfig {
    CoreConfig {
        own: NodeId(own),
        nodes: (A..=WITNESS)
            .map(|id| match id {
                WITNESS => NodeSpec::witness(id),
                _ => NodeSpec::replica(id),
            })
            .collect(),
        joins: false,
        tick: TICK,
        election_ticks: ELECTION_TICKS,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: own == WITNESS,
        is_restarted,
        incarnation: own,
        host_facts_hash: 0,
    }
}

fn voters() -> Vec<NodeId> {
    (A..=WITNESS).map(NodeId).collect()
}

impl Cores {
    pub fn new() -> Self {
        let core = |id| {
            Core::new(
                config(id, false),
                LogStorage::new(&voters()),
                Duration::ZERO,
            )
        };
        let mut cores = Self {
            cores: (A..=WITNESS)
                .map(|id| (id, core(id).expect("a valid configuration")))
                .collect(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            now: Duration::ZERO,
            unwritten: VecDeque::new(),
            disk_is_slow: false,
            notices: Vec::new(),
        };
        for id in [A, B] {
            cores.step(id, Event::Copy(CopyEvent::Ready));
        }
        cores
    }

    /// A group that serves from its first replica.
    pub fn serving() -> Self {
        let mut cores = Self::new();
        cores.ticks(&[A, B, WITNESS], 60);
        assert!(cores.core(A).is_serving(), "the first replica is first");
        cores
    }

    pub fn core(&self, id: u64) -> &Core {
        &self.cores[&id]
    }

    pub fn term(&self, id: u64) -> u64 {
        self.core(id).leader().1.0
    }

    /// Who transmits now.
    pub fn transmitting(&self) -> Vec<u64> {
        let may = |(_, core): &(&u64, &Core)| core.may_transmit(self.now);
        self.cores.iter().filter(may).map(|(id, _)| *id).collect()
    }

    pub fn step(&mut self, id: u64, event: Event) {
        let now = self.now;
        let core = self.cores.get_mut(&id).expect("a core");
        core.step(now, event);
        self.drain(id);
    }

    /// Proposes input at a node, if it takes it.
    pub fn propose(&mut self, id: u64, number: u32) -> bool {
        let now = self.now;
        let core = self.cores.get_mut(&id).expect("a core");
        let is_taken = core.propose(now, burst(number)).is_ok();
        self.drain(id);
        is_taken
    }

    fn drain(&mut self, id: u64) {
        let core = self.cores.get_mut(&id).expect("a core");
        for action in core.take_actions() {
            match action {
                Action::Send(envelope) => self.wire.push_back(envelope),
                Action::Persist(persist) => {
                    assert_eq!(id, WITNESS, "only the witness has a disk");
                    self.unwritten.push_back(persist.number);
                }
                Action::Copy(CopyCommand::Boot) => self.step(id, Event::Copy(CopyEvent::Booted)),
                Action::Note(notice) => self.notices.push((id, notice)),
                _ => {}
            }
        }
        if !self.disk_is_slow {
            self.write();
        }
    }

    /// The witness's disk finishes all that it was given.
    pub fn write(&mut self) {
        while let Some(number) = self.unwritten.pop_front() {
            self.step(WITNESS, Event::Persisted(number));
        }
    }

    /// Delivers what is under way until nothing is.
    pub fn settle(&mut self) {
        while let Some(envelope) = self.wire.pop_front() {
            if self.cut.contains(&(envelope.from.0, envelope.to.0)) {
                continue;
            }
            let own = envelope.to;
            let mut bytes = BytesMut::new();
            encode(&envelope, GROUP, &mut bytes).expect("what a core sends can be encoded");
            let known = |node: NodeId| node != own && voters().contains(&node);
            let envelope = decode(bytes.freeze(), GROUP, own, known).expect("and decoded");
            self.step(own.0, Event::Receive(envelope));
            assert!(self.transmitting().len() <= 1, "two transmit");
        }
    }

    /// Time passes; only these nodes notice it.
    pub fn ticks(&mut self, ids: &[u64], count: u32) {
        for _ in 0..count {
            self.now += TICK;
            for id in ids {
                self.step(*id, Event::Tick);
            }
            self.settle();
            assert!(self.transmitting().len() <= 1, "two transmit");
        }
    }

    /// Loses what one sends to the other, from now on.
    pub fn cut_way(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub fn isolate(&mut self, id: u64) {
        for other in (A..=WITNESS).filter(|other| *other != id) {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    pub fn mend(&mut self) {
        self.cut.clear();
    }
}

pub fn burst(number: u32) -> PacketBurst {
    let mut packet = [0; 60];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    let mut builder = PacketBurstBuilder::new();
    builder.push(0, Offload::PLAIN, &packet).expect("a packet");
    builder.finish().expect("a burst")
}
