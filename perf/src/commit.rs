//! Three cores in one thread, messages handed over without a wire: what the log itself costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use plover_types::{NodeId, Offload, PacketBurst, PacketBurstBuilder};
use replication::core::{Action, Core, CoreConfig, Event, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;
use replication::wire::Envelope;

use crate::measured::Measured;

/// Commits of a round unless told otherwise.
pub const ENTRIES: usize = 20_000;
/// How often.
pub const ROUNDS: usize = 5;
const TICK: Duration = Duration::from_millis(10);
const PACKET_BYTES: usize = 64;
/// Input that the guest is given is dropped from the log in steps of this many entries.
const DELIVER_EVERY: usize = 64;

/// Measures commits, in microseconds each.
pub fn run(entries: usize, rounds: usize) -> Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for packets in [1, 32] {
        let mut group = Group::start()?;
        let samples: Result<Vec<f64>> = (0..rounds)
            .map(|_| group.commit(entries, &burst(packets)?))
            .collect();
        let samples = samples?;
        let rate = samples.iter().map(|us| packets as f64 / us).collect();
        let entry = format!("{packets}x{PACKET_BYTES}");
        rows.push(Measured::new(
            format!("replication/commit/{entry}"),
            "us",
            samples,
        ));
        rows.push(Measured::new(
            format!("replication/commit-bound/{entry}"),
            "Mpps",
            rate,
        ));
    }
    Ok(rows)
}

fn burst(packets: usize) -> Result<PacketBurst> {
    let mut builder = PacketBurstBuilder::new();
    for _ in 0..packets {
        builder.push(0, Offload::PLAIN, &[7; PACKET_BYTES])?;
    }
    let burst = builder.finish().context("an empty burst")?;
    ensure!(builder.is_empty(), "{packets} packets do not fit one entry");
    Ok(burst)
}

struct Group {
    nodes: Vec<Core>,
    now: Duration,
    pending: Vec<Envelope>,
}

impl Group {
    /// Three nodes, the first primary and serving.
    fn start() -> Result<Self> {
        let members: Vec<NodeSpec> = (1..=3)
            .map(|id| match id {
                3 => NodeSpec::witness(id),
                _ => NodeSpec::replica(id),
            })
            .collect();
        let ids: Vec<NodeId> = members.iter().map(|node| node.id).collect();
        let nodes: Result<Vec<Core>, _> = ids
            .iter()
            .map(|own| {
                let config = CoreConfig {
                    own: *own,
                    nodes: members.clone(),
                    joins: false,
                    tick: TICK,
                    election_ticks: 15,
                    sync_timeout: Duration::from_secs(5),
                    on_backup_loss: OnBackupLoss::Continue,
                    is_durable: false,
                    is_restarted: false,
                    incarnation: 1,
                    host_facts_hash: 0,
                };
                Core::new(config, LogStorage::new(&ids), Duration::ZERO)
            })
            .collect();
        let mut group = Self {
            nodes: nodes?,
            now: Duration::ZERO,
            pending: Vec::new(),
        };
        // Only the first has a VM: it becomes primary, and nobody is filled.
        group.nodes[0].step(group.now, Event::Copy(CopyEvent::Ready));
        for _ in 0..1000 {
            group.now += TICK;
            for node in &mut group.nodes {
                node.step(group.now, Event::Tick);
            }
            group.settle();
            if group.nodes[0].may_propose() {
                return Ok(group);
            }
        }
        anyhow::bail!("no primary after 1000 ticks")
    }

    /// Microseconds for each of `entries` commits on all three, one after another.
    fn commit(&mut self, entries: usize, burst: &PacketBurst) -> Result<f64> {
        let start = Instant::now();
        for number in 0..entries {
            let refused = self.nodes[0].propose(self.now, burst.clone()).is_err();
            ensure!(!refused, "the log refused a burst");
            self.settle();
            if number % DELIVER_EVERY == 0 {
                self.nodes[0].deliver(|_, _| true);
            }
        }
        let last = self.nodes[0].applied();
        ensure!(
            self.nodes.iter().all(|node| node.applied() >= last),
            "not committed everywhere"
        );
        Ok(start.elapsed().as_secs_f64() * 1e6 / entries as f64)
    }

    /// Hands messages over until there are none.
    fn settle(&mut self) {
        loop {
            for at in 0..self.nodes.len() {
                let mut actions = self.nodes[at].take_actions();
                for action in actions.drain(..) {
                    match action {
                        Action::Send(envelope) => self.pending.push(envelope),
                        Action::Copy(CopyCommand::Boot) => {
                            self.nodes[at].step(self.now, Event::Copy(CopyEvent::Booted));
                        }
                        _ => {}
                    }
                }
                self.nodes[at].recycle(actions);
            }
            if self.pending.is_empty() {
                return;
            }
            for envelope in std::mem::take(&mut self.pending) {
                let to = envelope.to.0 as usize - 1;
                self.nodes[to].step(self.now, Event::Receive(envelope));
            }
        }
    }
}
