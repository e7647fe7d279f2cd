//! What a scenario does to a [group](super::group): cuts, lost messages, restarts, logs of the past.

use bytes::Bytes;
use plover_types::{LogIndex, NodeId};
use raft::eraftpb::Entry;
use replication::storage::LogStorage;

use super::content::{burst, state_of_three};
use super::group::Group;
use super::node::start;

impl Group {
    /// Loses what is on its way to these nodes.
    pub fn lose_to(&mut self, ids: &[u64]) {
        self.wire.retain(|message| !ids.contains(&message.to));
    }

    /// Loses everything between two nodes, from now on.
    pub fn cut(&mut self, one: u64, other: u64) {
        self.cut.extend([(one, other), (other, one)]);
    }

    /// Loses everything to and from a node, from now on.
    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|o| *o != id).collect();
        others.iter().for_each(|other| self.cut(id, *other));
    }

    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// Takes a snapshot at the applied index and drops the log up to it.
    pub fn compact(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let index = LogIndex(node.applied);
        let log = node.raft.mut_store();
        let term = log.term_of(index).expect("applied entries are there");
        log.set_snapshot_data(index, term, state_of_three())
            .expect("a snapshot of what is applied");
        log.compact(index.next()).expect("up to the snapshot");
        node.kept = node.raft.store().clone();
    }

    /// SIGKILL: what the disk did not finish is gone.
    pub fn restart(&mut self, id: u64) {
        let node = &self.nodes[&id];
        let (kept, is_slow) = (node.kept.clone(), node.is_slow);
        let mut node = start(&self.setup, id, kept);
        node.is_slow = is_slow;
        if let Some(trace) = &mut self.trace {
            trace.starts(id, &node.raft);
        }
        self.nodes.insert(id, node);
    }

    /// Replaces what a node has on disk: its term, entries of these terms, and what is committed.
    pub fn give_log(&mut self, id: u64, terms: &[u64], term: u64, commit: u64) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().map(NodeId).collect();
        let mut log = LogStorage::new(&ids);
        let entries: Vec<Entry> = (1..)
            .zip(terms)
            .map(|(index, term)| {
                let is_first = terms.iter().position(|first| first == term) == Some(index - 1);
                Entry {
                    index: index as u64,
                    term: *term,
                    // A leader's first entry is empty.
                    data: if is_first {
                        Bytes::new()
                    } else {
                        burst(index as u32)
                    },
                    ..Entry::default()
                }
            })
            .collect();
        log.append(&entries).expect("a log from the start");
        let mut state = log.hard_state().clone();
        state.term = term;
        state.commit = commit;
        log.set_hard_state(state);
        self.nodes.insert(id, start(&self.setup, id, log));
    }

    /// Lets a node have voted, in the term that it is in.
    pub fn give_vote(&mut self, id: u64, vote: u64) {
        let mut log = self.node(id).kept.clone();
        let mut state = log.hard_state().clone();
        state.vote = vote;
        log.set_hard_state(state);
        self.nodes.insert(id, start(&self.setup, id, log));
    }
}
