//! The modelled disk of the witness.

use plover_types::{LogIndex, NodeId, Term};
use raft::eraftpb::HardState;
use replication::core::Persist;
use replication::durable::{Recovered, SnapshotState};
use replication::storage::LogStorage;

use super::NODES;

/// What survives a crash of a durable node.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) recovered: Recovered,
}

impl Disk {
    pub(super) fn write(&mut self, persist: Persist) {
        let log = &mut self.recovered;
        if let Some(snapshot) = persist.snapshot {
            let metadata = snapshot.get_metadata();
            let (index, term) = (LogIndex(metadata.index), Term(metadata.term));
            log.entries.clear();
            log.compacted = (index, term);
            log.snapshot = Some(SnapshotState {
                index,
                term,
                data: snapshot.data.clone(),
            });
        }
        if let Some(first) = persist.entries.first() {
            log.entries.retain(|entry| entry.index < first.index);
        }
        log.entries.extend(persist.entries);
        log.hard_state = persist.hard_state;
    }

    pub(super) fn compact(&mut self, to: LogIndex, snapshot: SnapshotState, hard_state: HardState) {
        let log = &mut self.recovered;
        let Some(last_dropped) = log.entries.iter().find(|entry| entry.index + 1 == to.0) else {
            return;
        };
        log.compacted = (LogIndex(last_dropped.index), Term(last_dropped.term));
        log.entries.retain(|entry| entry.index >= to.0);
        log.snapshot = Some(snapshot);
        log.hard_state = hard_state;
    }

    pub(super) fn recover(&self, nodes: usize) -> LogStorage {
        let voters: Vec<NodeId> = NODES[..nodes].iter().map(|spec| spec.id).collect();
        let mut recovered = self.recovered.clone();
        let last = recovered.compacted.0.0 + recovered.entries.len() as u64;
        let commit = recovered.hard_state.commit;
        recovered.hard_state.commit = commit.max(recovered.compacted.0.0).min(last);
        LogStorage::restore(&voters, &recovered).expect("a stored log is consistent")
    }
}
