//! raft-rs by itself, to hold ours against: three nodes on one thread, its `MemStorage`, each
//! `Ready` handled in the order of its own example (`five_mem_node`), messages handed over in
//! memory as they are. No frames, no checks, no roles, and nothing is ever dropped from the log.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use raft::eraftpb::{Entry, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode};

use super::address::{NODES, id};

/// Rounds within which a commit must come.
const ROUNDS_MAX: usize = 1000;

/// Three nodes, the first of them leader.
pub struct Stock {
    nodes: Vec<RawNode<MemStorage>>,
    mailboxes: Vec<VecDeque<Message>>,
    /// What the first has applied.
    applied: u64,
}

impl Stock {
    /// Elects the first.
    pub fn start() -> Result<Self> {
        let voters: Vec<u64> = (0..NODES).map(|node| id(node).0).collect();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let nodes = voters.iter().map(|own| {
            let config = Config {
                id: *own,
                election_tick: 10,
                heartbeat_tick: 3,
                ..Config::default()
            };
            let storage = MemStorage::new_with_conf_state((voters.clone(), vec![]));
            RawNode::new(&config, storage, &logger)
        });
        let mut stock = Self {
            nodes: nodes.collect::<raft::Result<_>>()?,
            mailboxes: vec![VecDeque::new(); NODES],
            applied: 0,
        };
        stock.nodes[0].campaign().context("ask for votes")?;
        for _ in 0..ROUNDS_MAX {
            stock.round()?;
        }
        ensure!(stock.applied > 0, "raft-rs elected no leader");
        Ok(stock)
    }

    /// Seconds from each proposal to its being applied by the leader, one after another.
    pub fn latencies(&mut self, data: &Bytes, commits: usize) -> Result<Vec<f64>> {
        let mut latencies = Vec::with_capacity(commits);
        for _ in 0..commits {
            let start = Instant::now();
            let target = self.applied + 1;
            self.propose(data)?;
            self.round_until(target)?;
            latencies.push(start.elapsed().as_secs_f64());
        }
        Ok(latencies)
    }

    /// How long it takes to commit entries of which one is proposed in each round.
    pub fn keep_offering(&mut self, data: &Bytes, commits: usize) -> Result<Duration> {
        let start = Instant::now();
        let target = self.applied + commits as u64;
        for _ in 0..commits {
            self.propose(data)?;
            self.round()?;
        }
        self.round_until(target)?;
        Ok(start.elapsed())
    }

    fn propose(&mut self, data: &Bytes) -> Result<()> {
        // As `RawNode::propose`, which would copy the data into a vector first.
        let entry = Entry {
            data: data.clone(),
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(raft::eraftpb::MessageType::MsgPropose);
        message.from = id(0).0;
        message.set_entries(vec![entry].into());
        self.nodes[0]
            .step(message)
            .context("raft-rs refused an entry")
    }

    fn round_until(&mut self, target: u64) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            if self.applied >= target {
                return Ok(());
            }
            self.round()?;
        }
        anyhow::bail!("raft-rs did not commit an entry within {ROUNDS_MAX} rounds")
    }

    /// Each node hears its messages, then does what its `Ready` says.
    fn round(&mut self) -> Result<()> {
        for node in 0..NODES {
            while let Some(message) = self.mailboxes[node].pop_front() {
                self.nodes[node].step(message).context("a message")?;
            }
            self.on_ready(node)?;
        }
        Ok(())
    }

    fn on_ready(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        if !node.has_ready() {
            return Ok(());
        }
        let store = node.raft.raft_log.store.clone();
        let mut ready = node.ready();
        post(&mut self.mailboxes, ready.take_messages());
        let mut applied = last_index(&ready.take_committed_entries());
        store.wl().append(ready.entries()).context("append")?;
        if let Some(hard_state) = ready.hs() {
            store.wl().set_hardstate(hard_state.clone());
        }
        post(&mut self.mailboxes, ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().set_commit(commit);
        }
        post(&mut self.mailboxes, light.take_messages());
        applied = applied.max(last_index(&light.take_committed_entries()));
        node.advance_apply();
        if at == 0 {
            self.applied = self.applied.max(applied);
        }
        Ok(())
    }
}

fn post(mailboxes: &mut [VecDeque<Message>], messages: Vec<Message>) {
    for message in messages {
        if let Some(mailbox) = mailboxes.get_mut(message.to.wrapping_sub(1) as usize) {
            mailbox.push_back(message);
        }
    }
}

fn last_index(entries: &[Entry]) -> u64 {
    entries.last().map_or(0, |entry| entry.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_commits_one_by_one_and_many_in_a_row() {
        let mut stock = Stock::start().expect("a leader");
        let data = Bytes::from_static(&[7; 64]);
        assert_eq!(stock.latencies(&data, 10).expect("committed").len(), 10);
        let before = stock.applied;
        stock.keep_offering(&data, 100).expect("committed");
        assert_eq!(stock.applied, before + 100);
    }
}
