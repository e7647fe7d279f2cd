use plover_types::{Offload, PacketBurstBuilder, PacketHeader};
use proptest::prelude::*;
use raft::storage::MemStorage;
use raft::{Config, RawNode};

use super::*;

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from(vec![7; (index % 5) as usize * 20 + 1]),
        ..Entry::default()
    }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn log_of(last: u64) -> LogStorage {
    let mut log = LogStorage::new(&[NodeId(1), NodeId(2), NodeId(3)]);
    log.append(&entries(1..=last, 1)).unwrap();
    log
}

fn read(log: &LogStorage, low: u64, high: u64, max: Option<u64>) -> raft::Result<Vec<Entry>> {
    log.entries(low, high, max, GetEntriesContext::empty(false))
}

#[test]
fn a_new_log_starts_a_raft_node() {
    let log = LogStorage::new(&[NodeId(1), NodeId(2), NodeId(3)]);
    let config = Config {
        id: 1,
        election_tick: 10,
        heartbeat_tick: 1,
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let node = RawNode::new(&config, log, &logger).unwrap();
    assert!(node.raft.promotable());
    assert_eq!(node.raft.prs().conf().voters().ids().len(), 3);
}

#[test]
fn appending_replaces_what_follows_and_counts_bytes() {
    let mut log = log_of(6);
    log.append(&entries(4..=5, 2)).unwrap();
    assert_eq!((log.first(), log.last()), (LogIndex(1), LogIndex(5)));
    assert_eq!(log.term_of(LogIndex(4)), Some(Term(2)));
    assert_eq!(log.entry(LogIndex(6)), None);
    let data: usize = (1..=5).map(|index| entry(index, 1).data.len()).sum();
    assert_eq!(log.bytes(), data + 5 * ENTRY_OVERHEAD_BYTES);
}

#[test]
fn a_stub_is_not_read_to_be_sent_until_it_is_written_out() {
    let mut log = log_of(2);
    let mut builder = PacketBurstBuilder::new();
    let header = PacketHeader {
        pair: 0,
        offload: Offload::PLAIN,
        bytes: 500,
    };
    builder.push_kept(header).unwrap();
    let stub = builder.finish().unwrap();
    let with_stub = Entry {
        data: stub.encoded().clone(),
        ..entry(3, 1)
    };
    log.append(&[with_stub]).unwrap();
    log.append(&entries(4..=5, 1)).unwrap();
    let to_send =
        |log: &LogStorage, low, high| log.entries(low, high, None, GetEntriesContext::empty(true));
    assert!(matches!(
        to_send(&log, 2, 6),
        Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
    ));
    assert_eq!(to_send(&log, 1, 3).unwrap().len(), 2);
    assert_eq!(to_send(&log, 4, 6).unwrap().len(), 2);
    assert_eq!(read(&log, 2, 6, None).unwrap().len(), 4, "to be applied");
    let before = log.bytes();
    let written = stub.written_out(|_| Some(&[7; 500])).unwrap();
    log.write_out(LogIndex(3), written.encoded().clone());
    assert_eq!(log.bytes(), before + 500);
    assert_eq!(to_send(&log, 2, 6).unwrap()[1].data, *written.encoded());
}

#[test]
fn entries_share_their_data_with_the_log() {
    let log = log_of(3);
    let copy = read(&log, 2, 3, None).unwrap();
    assert_eq!(
        copy[0].data.as_ptr(),
        log.entry(LogIndex(2)).unwrap().data.as_ptr()
    );
}

#[test]
fn a_gap_or_a_compacted_entry_is_not_appended() {
    let mut log = log_of(5);
    assert!(matches!(
        log.append(&entries(7..=8, 1)),
        Err(LogError::Append { index: 7, .. })
    ));
    assert!(log.append(&[entry(6, 1), entry(8, 1)]).is_err());
    log.set_snapshot_data(LogIndex(4), Term(1), Bytes::new())
        .unwrap();
    log.compact(LogIndex(4)).unwrap();
    assert!(log.append(&[entry(3, 2)]).is_err());
    assert_eq!(log.last(), LogIndex(5));
}

#[test]
fn compaction_keeps_the_term_before_the_first_entry() {
    let mut log = log_of(5);
    log.set_snapshot_data(LogIndex(4), Term(1), Bytes::from_static(b"s"))
        .unwrap();
    log.compact(LogIndex(5)).unwrap();
    assert_eq!(log.compacted(), (LogIndex(4), Term(1)));
    assert_eq!(Storage::term(&log, 4), Ok(1));
    assert_eq!(Storage::term(&log, 3), Err(StorageError::Compacted.into()));
    assert_eq!(
        Storage::term(&log, 6),
        Err(StorageError::Unavailable.into())
    );
    assert_eq!(read(&log, 4, 6, None), Err(StorageError::Compacted.into()));
    assert_eq!(
        read(&log, 5, 7, None),
        Err(StorageError::Unavailable.into())
    );
    assert_eq!(read(&log, 6, 6, Some(1)), Ok(vec![]));
}

#[test]
fn no_entry_is_dropped_that_no_snapshot_covers() {
    let mut log = log_of(5);
    assert!(log.compact(LogIndex(2)).is_err());
    log.set_snapshot_data(LogIndex(3), Term(1), Bytes::new())
        .unwrap();
    assert_eq!(
        log.compact(LogIndex(5)),
        Err(LogError::Compact { to: 5, snapshot: 3 })
    );
    log.compact(LogIndex(4)).unwrap();
    assert_eq!(log.first(), LogIndex(4));
}

#[test]
fn a_snapshot_is_given_once_there_is_one_that_is_new_enough() {
    let mut log = log_of(5);
    let unavailable = Err(StorageError::SnapshotTemporarilyUnavailable.into());
    assert_eq!(log.snapshot(0, 2), unavailable);
    assert!(
        log.set_snapshot_data(LogIndex(6), Term(1), Bytes::new())
            .is_err()
    );
    assert!(
        log.set_snapshot_data(LogIndex(5), Term(2), Bytes::new())
            .is_err()
    );
    log.set_snapshot_data(LogIndex(5), Term(1), Bytes::from_static(b"roles"))
        .unwrap();
    let snapshot = log.snapshot(5, 2).unwrap();
    assert_eq!(snapshot.get_metadata().get_conf_state().voters, [1, 2, 3]);
    assert_eq!(&snapshot.data[..], b"roles");
    assert_eq!(log.snapshot(6, 2), unavailable);
}

#[test]
fn an_installed_snapshot_replaces_the_log() {
    let mut source = log_of(9);
    source
        .set_snapshot_data(LogIndex(9), Term(1), Bytes::from_static(b"s"))
        .unwrap();
    let snapshot = source.snapshot(0, 2).unwrap();
    let mut log = log_of(3);
    log.apply_snapshot(&snapshot).unwrap();
    assert_eq!((log.first(), log.last()), (LogIndex(10), LogIndex(9)));
    assert_eq!(log.bytes(), 0);
    assert_eq!((log.hard_state().commit, log.hard_state().term), (9, 1));
    assert_eq!(log.snapshot(9, 3), Ok(snapshot.clone()));
    log.append(&entries(10..=12, 3)).unwrap();
    log.set_snapshot_data(LogIndex(12), Term(3), Bytes::new())
        .unwrap();
    log.compact(LogIndex(13)).unwrap();
    assert!(matches!(
        log.apply_snapshot(&snapshot),
        Err(LogError::SnapshotOld { .. })
    ));
}

#[test]
fn a_recovered_log_that_commits_what_it_lacks_is_refused() {
    let voters = [NodeId(1), NodeId(2), NodeId(3)];
    let mut recovered = Recovered {
        compacted: (LogIndex(4), Term(1)),
        entries: entries(5..=8, 2),
        ..Recovered::default()
    };
    for (commit, fits) in [(3, false), (4, true), (8, true), (9, false)] {
        recovered.hard_state.commit = commit;
        assert_eq!(
            LogStorage::restore(&voters, &recovered).is_ok(),
            fits,
            "commit {commit}"
        );
    }
}

#[derive(Clone, Debug)]
enum Change {
    Append { back: u64, count: u64 },
    Compact { ahead: u64 },
    Install { ahead: u64 },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u64..6, 1u64..6).prop_map(|(back, count)| Change::Append { back, count }),
        2 => (0u64..8).prop_map(|ahead| Change::Compact { ahead }),
        1 => (1u64..6).prop_map(|ahead| Change::Install { ahead }),
    ]
}

proptest! {
    /// `MemStorage` is the oracle for what entries there are. It loses the term of the entry
    /// before the first when it compacts, and keeps its last entry: there the contract decides.
    #[test]
    fn the_log_agrees_with_the_stock_storage(changes in prop::collection::vec(change(), 1..60)) {
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let mut log = LogStorage::new(&voters);
        let oracle = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        let mut term = 1;
        for change in changes {
            term += 1;
            let (first, last) = (log.first().0, log.last().0);
            match change {
                Change::Append { back, count } => {
                    let start = (last + 1 - back.min(last)).max(first);
                    let new = entries(start..=start + count - 1, term);
                    log.append(&new).unwrap();
                    oracle.wl().append(&new).unwrap();
                }
                Change::Compact { ahead } if last >= first => {
                    // One entry stays: MemStorage forgets its place when it has none.
                    let to = (first + ahead).min(last);
                    let covered = log.term_of(LogIndex(last)).unwrap();
                    log.set_snapshot_data(LogIndex(last), covered, Bytes::new()).unwrap();
                    log.compact(LogIndex(to)).unwrap();
                    oracle.wl().compact(to).unwrap();
                }
                Change::Compact { .. } => {}
                Change::Install { ahead } => {
                    let mut snapshot = Snapshot::default();
                    snapshot.mut_metadata().index = last + ahead;
                    snapshot.mut_metadata().term = term;
                    snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
                    log.apply_snapshot(&snapshot).unwrap();
                    oracle.wl().apply_snapshot(snapshot).unwrap();
                }
            }
            let (first, last) = (log.first().0, log.last().0);
            prop_assert_eq!(log.first_index(), oracle.first_index());
            prop_assert_eq!(log.last_index(), oracle.last_index());
            prop_assert!(Storage::term(&log, first - 1).is_ok());
            for index in first..=last + 2 {
                prop_assert_eq!(Storage::term(&log, index), Storage::term(&oracle, index));
            }
            let data: usize = (first..=last).map(|i| log.entry(LogIndex(i)).unwrap().data.len()).sum();
            prop_assert_eq!(log.bytes(), data + (last + 1 - first) as usize * ENTRY_OVERHEAD_BYTES);
            if last < first {
                continue;
            }
            let all = read(&log, first, last + 1, None);
            let expected = oracle.entries(first, last + 1, None, GetEntriesContext::empty(false));
            prop_assert_eq!(&all, &expected);
            let all = all.unwrap();
            for max in [0, 1, 50, 100, 300, u64::MAX] {
                let some = read(&log, first, last + 1, Some(max)).unwrap();
                prop_assert!(!some.is_empty() && all.starts_with(&some));
                let bytes: u64 = some.iter().map(counted_bytes).sum();
                prop_assert!(some.len() == 1 || bytes <= max);
                prop_assert!(some.len() == all.len() || bytes + counted_bytes(&all[some.len()]) > max);
                let stock = oracle
                    .entries(first, last + 1, Some(max), GetEntriesContext::empty(false))
                    .unwrap();
                prop_assert!(stock.starts_with(&some));
            }
        }
    }
}
