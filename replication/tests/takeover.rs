//! A backup that is elected may transmit within two round trips: it waits for no tick.

use std::collections::VecDeque;
use std::time::Duration;

use plover_types::{Certificate, Mode, NodeId};
use replication::core::{Action, Core, CoreConfig, Event, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent, Side};
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;
use replication::wire::Envelope;

const TICK: Duration = Duration::from_millis(10);
const NODES: usize = 3;
const PRIMARY: usize = 0;
const BACKUP: usize = 1;

struct Group {
    cores: Vec<Core>,
    now: Duration,
    dead: Option<usize>,
    on_the_way: VecDeque<Envelope>,
}

impl Group {
    fn new() -> Self {
        let ids: Vec<NodeId> = (1..=NODES as u64).map(NodeId).collect();
        let core = |own: &NodeId| {
            let config = CoreConfig {
                own: *own,
                nodes: ids
                    .iter()
                    .map(|id| NodeSpec {
                        is_replica: id.0 < 3,
                        ..NodeSpec::replica(id.0)
                    })
                    .collect(),
                joins: false,
                tick: TICK,
                election_ticks: 10,
                sync_timeout: Duration::from_secs(5),
                on_backup_loss: OnBackupLoss::Continue,
                is_durable: false,
                is_restarted: false,
                incarnation: 1,
                host_facts_hash: 0,
            };
            Core::new(config, LogStorage::new(&ids), Duration::ZERO).expect("a member")
        };
        Self {
            cores: ids.iter().map(core).collect(),
            now: Duration::ZERO,
            dead: None,
            on_the_way: VecDeque::new(),
        }
    }

    /// A tick everywhere; all messages that follow arrive before the next one.
    fn tick(&mut self) {
        self.now += TICK;
        for node in 0..NODES {
            self.step(node, Event::Tick);
        }
        while let Some(envelope) = self.on_the_way.pop_front() {
            let to = envelope.to.0 as usize - 1;
            self.step(to, Event::Receive(envelope));
        }
    }

    fn step(&mut self, node: usize, event: Event) {
        if self.dead == Some(node) {
            return;
        }
        self.cores[node].step(self.now, event);
        for action in self.cores[node].take_actions() {
            match action {
                Action::Send(envelope) => self.on_the_way.push_back(envelope),
                Action::Copy(command) => self.answer(node, command),
                _ => {}
            }
        }
    }

    fn answer(&mut self, node: usize, command: CopyCommand) {
        let certificate = Certificate([7; 16]);
        let event = match command {
            CopyCommand::Boot => CopyEvent::Booted,
            CopyCommand::Begin {
                sync,
                side: Side::Primary,
                ..
            } => CopyEvent::CopiedOut {
                sync,
                certificate,
                position: self.cores[node].position(),
            },
            CopyCommand::Begin { sync, .. } => CopyEvent::Staged { sync, certificate },
            CopyCommand::Commit { sync, .. } => CopyEvent::Loaded { sync },
            _ => return,
        };
        self.step(node, Event::Copy(event));
    }

    fn is_protected(&self) -> bool {
        let role = self.cores[PRIMARY].group().role();
        role.is_some_and(|role| role.mode == Mode::Protected)
    }
}

#[test]
fn an_elected_backup_holds_its_lease_before_the_next_tick() {
    let mut group = Group::new();
    group.step(PRIMARY, Event::Copy(CopyEvent::Ready));
    group.step(BACKUP, Event::Copy(CopyEvent::Ready));
    for _ in 0..200 {
        group.tick();
    }
    assert!(group.is_protected(), "the backup is filled");
    group.dead = Some(PRIMARY);
    for _ in 0..100 {
        group.tick();
        let backup = &group.cores[BACKUP];
        if backup.is_serving() {
            assert!(backup.may_transmit(group.now), "no lease");
            return;
        }
    }
    panic!("the backup was not elected");
}
