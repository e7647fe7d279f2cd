//! What Raft promises, checked while a scenario runs.

use std::collections::BTreeMap;

use bytes::Bytes;
use plover_types::LogIndex;
use replication::storage::LogStorage;

/// What was seen so far, over all nodes and their restarts.
#[derive(Default)]
pub struct Promises {
    leader_of_term: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, (u64, Bytes)>,
    vote_of: BTreeMap<(u64, u64), u64>,
}

impl Promises {
    /// A term has one leader.
    pub fn leads(&mut self, node: u64, term: u64) {
        let first = *self.leader_of_term.entry(term).or_insert(node);
        assert_eq!(first, node, "term {term} has two leaders");
    }

    /// A node gives its vote of a term to one.
    pub fn votes(&mut self, node: u64, term: u64, vote: u64) {
        if vote != 0 {
            let first = *self.vote_of.entry((node, term)).or_insert(vote);
            assert_eq!(first, vote, "node {node} votes twice in term {term}");
        }
    }

    /// What is applied at an index is the same everywhere, and for good.
    pub fn applies(&mut self, node: u64, index: u64, term: u64, data: &Bytes) {
        let known = self
            .applied
            .entry(index)
            .or_insert_with(|| (term, data.clone()));
        assert_eq!(
            known,
            &(term, data.clone()),
            "node {node} applies something else at {index}"
        );
    }

    /// A new leader holds all that was ever applied.
    pub fn is_complete(&self, node: u64, log: &LogStorage) {
        for (index, (term, _)) in self.applied.range(log.compacted().0.0..) {
            if *index > 0 {
                let held = log.term_of(LogIndex(*index)).map(|term| term.0);
                assert_eq!(held, Some(*term), "leader {node} lacks entry {index}");
            }
        }
    }
}

/// Two logs with the same term at an index are the same up to there.
pub fn logs_match(first: &LogStorage, second: &LogStorage) {
    let from = first.first().max(second.first()).0;
    let to = first.last().min(second.last()).0;
    let mut same = false;
    for index in (from..=to).rev() {
        let (one, other) = (first.entry(LogIndex(index)), second.entry(LogIndex(index)));
        let (Some(one), Some(other)) = (one, other) else {
            continue;
        };
        same |= one.term == other.term;
        if same {
            assert_eq!(
                (one.term, &one.data),
                (other.term, &other.data),
                "logs differ at {index}"
            );
        }
    }
}
