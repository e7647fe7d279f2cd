use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::storage::LogStorage;

const OWNER: Owner = Owner {
    group: GroupId(0xabc),
    node: NodeId(3),
};

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from(vec![index as u8 | 1; bytes]),
        ..Entry::default()
    }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote,
        commit,
        ..HardState::default()
    }
}

fn snapshot(index: u64, term: u64) -> SnapshotState {
    SnapshotState {
        index: LogIndex(index),
        term: Term(term),
        data: Bytes::from(format!("state after {index}")),
    }
}

fn append(index: u64, term: u64) -> PersistRequest {
    PersistRequest {
        entries: vec![entry(index, term, 40)],
        hard_state: Some(hard_state(term, 2, index - 1)),
        ..PersistRequest::default()
    }
}

fn open(dir: &TempDir) -> Result<(DurableLog, Recovered), DurableError> {
    DurableLog::open(dir.path(), OWNER)
}

fn reopen(dir: &TempDir) -> Recovered {
    open(dir).unwrap().1
}

fn only_segment(dir: &TempDir) -> PathBuf {
    let paths = recover::segment_paths(dir.path()).unwrap();
    assert_eq!(paths.len(), 1);
    paths[0].1.clone()
}

/// A log of entries 1 to `last`, one a record, and where each record ends in the file.
fn log_with(dir: &TempDir, last: u64) -> Vec<u64> {
    let (mut log, recovered) = open(dir).unwrap();
    assert_eq!(recovered, Recovered::default());
    let mut ends = vec![log.length];
    for index in 1..=last {
        log.append(&[append(index, 1)]).unwrap();
        ends.push(log.length);
    }
    ends
}

#[test]
fn what_was_appended_is_there_after_opening_again() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 3);
    let (mut log, recovered) = open(&dir).unwrap();
    assert_eq!(
        recovered.entries,
        [1, 2, 3].map(|index| entry(index, 1, 40))
    );
    assert_eq!(recovered.hard_state, hard_state(1, 2, 2));
    log.append(&[append(4, 2)]).unwrap();
    drop(log);
    let recovered = reopen(&dir);
    assert_eq!(recovered.entries.len(), 4);
    assert_eq!(recovered.hard_state, hard_state(2, 2, 3));
    assert_eq!(recovered.torn_bytes, 0);
}

#[test]
fn replaced_entries_stay_replaced() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 5);
    let (mut log, _) = open(&dir).unwrap();
    log.append(&[append(3, 2)]).unwrap();
    drop(log);
    let terms: Vec<_> = reopen(&dir)
        .entries
        .iter()
        .map(|entry| entry.term)
        .collect();
    assert_eq!(terms, [1, 1, 2]);
}

#[test]
fn an_installed_snapshot_starts_the_log_anew() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 5);
    let (mut log, _) = open(&dir).unwrap();
    let request = PersistRequest {
        snapshot: Some(SnapshotChange::Installed(snapshot(20, 4))),
        entries: vec![entry(21, 4, 10)],
        hard_state: Some(hard_state(4, 0, 20)),
        ..PersistRequest::default()
    };
    log.append(&[request]).unwrap();
    drop(log);
    let recovered = reopen(&dir);
    assert_eq!(recovered.compacted, (LogIndex(20), Term(4)));
    assert_eq!(recovered.snapshot, Some(snapshot(20, 4)));
    assert_eq!(recovered.entries, [entry(21, 4, 10)]);
    let storage = LogStorage::restore(&[NodeId(1), NodeId(2), NodeId(3)], &recovered).unwrap();
    assert_eq!(storage.snapshot_data().unwrap().0, LogIndex(20));
}

#[test]
fn files_whose_entries_are_compacted_go_and_the_rest_reads_the_same() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir).unwrap();
    let big = 1024 * 1024;
    let mut files_max = 0;
    for index in 1..=100 {
        let done = index - 1;
        let request = PersistRequest {
            entries: vec![entry(index, 1, big)],
            hard_state: Some(hard_state(1, 2, done)),
            snapshot: (done % 10 == 0 && done > 0)
                .then(|| SnapshotChange::Taken(snapshot(done, 1))),
            compacted: (done % 10 == 0 && done > 5).then(|| (LogIndex(done - 5), Term(1))),
            ..PersistRequest::default()
        };
        log.append(&[request]).unwrap();
        files_max = files_max.max(recover::segment_paths(dir.path()).unwrap().len());
    }
    assert!(files_max <= 3, "{files_max} files");
    let (numbers, _): (Vec<u64>, Vec<_>) = recover::segment_paths(dir.path())
        .unwrap()
        .into_iter()
        .unzip();
    assert!(numbers[0] > 1, "the first file is still there");
    drop(log);
    let recovered = reopen(&dir);
    assert_eq!(recovered.compacted, (LogIndex(85), Term(1)));
    assert_eq!(recovered.snapshot, Some(snapshot(90, 1)));
    let indexes: Vec<_> = recovered.entries.iter().map(|entry| entry.index).collect();
    assert_eq!(indexes, (86..=100).collect::<Vec<_>>());
}

#[test]
fn a_record_torn_at_any_byte_is_cut_off() {
    let dir = TempDir::new().unwrap();
    let ends = log_with(&dir, 3);
    let path = only_segment(&dir);
    let whole = std::fs::read(&path).unwrap();
    for length in ends[0]..whole.len() as u64 {
        std::fs::write(&path, &whole[..length as usize]).unwrap();
        let (mut log, recovered) = open(&dir).unwrap();
        let complete = ends.iter().filter(|end| **end <= length).count() - 1;
        assert_eq!(recovered.entries.len(), complete, "cut at {length}");
        assert_eq!(recovered.torn_bytes, length - ends[complete]);
        log.append(&[append(complete as u64 + 1, 9)]).unwrap();
        drop(log);
        let again = reopen(&dir);
        assert_eq!(again.entries.len(), complete + 1);
        assert_eq!(again.torn_bytes, 0);
    }
}

#[test]
fn sectors_that_were_never_written_are_a_torn_record() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 2);
    let path = only_segment(&dir);
    let start = std::fs::metadata(&path).unwrap().len();
    let (mut log, _) = open(&dir).unwrap();
    let mut request = append(3, 1);
    request.entries[0] = entry(3, 1, 4000);
    log.append(&[request]).unwrap();
    drop(log);
    let whole = std::fs::read(&path).unwrap();
    let first_sector = start.next_multiple_of(512) as usize;
    for zeroed in [
        start as usize..first_sector,
        first_sector..first_sector + 512,
    ] {
        let mut bytes = whole.clone();
        bytes[zeroed].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let recovered = reopen(&dir);
        assert_eq!(recovered.entries.len(), 2);
        assert_eq!(recovered.torn_bytes, whole.len() as u64 - start);
    }
}

#[test]
fn a_changed_byte_anywhere_is_refused_and_the_message_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 4);
    let path = only_segment(&dir);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&path, &bytes).unwrap();
        let refused = open(&dir).expect_err("damage goes unnoticed");
        assert!(
            matches!(refused, DurableError::Damaged { .. }),
            "byte {at}: {refused}"
        );
        let text = refused.to_string();
        assert!(text.contains("plover replace"), "{text}");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "a refused file was changed"
        );
    }
}

#[test]
fn a_zeroed_record_in_the_middle_is_refused() {
    let dir = TempDir::new().unwrap();
    let ends = log_with(&dir, 4);
    let path = only_segment(&dir);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[ends[1] as usize..ends[2] as usize].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(&dir), Err(DurableError::Damaged { .. })));
}

#[test]
fn a_missing_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir).unwrap();
    for index in 1..=4 {
        log.append(&[append(index, 1)]).unwrap();
        log.length = SEGMENT_BYTES_MAX;
    }
    drop(log);
    let paths = recover::segment_paths(dir.path()).unwrap();
    assert_eq!(paths.len(), 4);
    assert_eq!(reopen(&dir).entries.len(), 4);
    for missing in [0, 1, 2] {
        let bytes = std::fs::read(&paths[missing].1).unwrap();
        std::fs::remove_file(&paths[missing].1).unwrap();
        let refused = open(&dir).unwrap_err();
        assert!(
            matches!(refused, DurableError::Damaged { .. }),
            "file {missing}: {refused}"
        );
        std::fs::write(&paths[missing].1, bytes).unwrap();
    }
    assert_eq!(reopen(&dir).entries.len(), 4);
}

#[test]
fn a_file_that_was_just_being_started_is_dropped() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 2);
    for bytes in [&b""[..], b"PLVR\x01"] {
        let next = recover::segment_path(dir.path(), 4);
        std::fs::write(&next, bytes).unwrap();
        let (mut log, recovered) = open(&dir).unwrap();
        assert_eq!(recovered.entries.len(), 2);
        assert!(!next.exists());
        log.length = SEGMENT_BYTES_MAX;
        drop(log);
    }
}

#[test]
fn another_nodes_log_and_a_second_process_are_refused() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(&dir).unwrap();
    assert!(matches!(open(&dir), Err(DurableError::Locked { .. })));
    drop(log);
    for other in [
        Owner {
            node: NodeId(1),
            ..OWNER
        },
        Owner {
            group: GroupId(1),
            ..OWNER
        },
    ] {
        let refused = DurableLog::open(dir.path(), other).unwrap_err();
        assert!(matches!(refused, DurableError::Owner { .. }), "{refused}");
    }
    assert!(open(&dir).is_ok());
}

#[test]
fn a_log_of_another_version_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    log_with(&dir, 1);
    let path = only_segment(&dir);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4] = 1;
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        open(&dir),
        Err(DurableError::Version { version: 1, .. })
    ));
}

#[test]
fn a_log_after_a_failed_write_takes_no_more() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir).unwrap();
    log.file = File::open(&log.path).unwrap();
    let failed = log.append(&[append(1, 1)]).unwrap_err();
    assert!(matches!(
        failed,
        DurableError::Io {
            what: "write to",
            ..
        }
    ));
    log.file = OpenOptions::new().append(true).open(&log.path).unwrap();
    assert!(matches!(
        log.append(&[append(1, 1)]),
        Err(DurableError::Broken { .. })
    ));
}

/// Waits for the next completion, for ten seconds at most.
fn wait(writer: &mut DurableWriter) -> Result<u64, DurableError> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if let Some(result) = writer.completed() {
            return result;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the writer reports nothing");
}

#[test]
fn the_writer_completes_in_order_and_finishes_when_dropped() {
    let dir = TempDir::new().unwrap();
    let mut writer = DurableWriter::start(open(&dir).unwrap().0).unwrap();
    assert!(writer.completed().is_none());
    let mut latest = 0;
    for number in 1..=200 {
        writer
            .submit(PersistRequest {
                number,
                ..append(number, 1)
            })
            .unwrap();
        if let Some(done) = writer.completed() {
            let done = done.unwrap();
            assert!(done > latest && done <= number);
            latest = done;
        }
    }
    while latest < 100 {
        latest = wait(&mut writer).unwrap();
    }
    drop(writer);
    assert_eq!(reopen(&dir).entries.len(), 200);
}

#[test]
fn a_full_channel_is_reported_and_hands_the_request_back() {
    let (requests, waiting) = crossbeam_channel::bounded(1);
    let (done, completions) = crossbeam_channel::unbounded();
    let mut writer = DurableWriter::of_channels(requests, completions);
    writer.submit(append(1, 1)).unwrap();
    let Err(SubmitError::Full(back)) = writer.submit(append(2, 1)) else {
        panic!("taken");
    };
    assert_eq!(*back, append(2, 1));
    drop((waiting, done));
    assert!(matches!(
        writer.submit(append(2, 1)),
        Err(SubmitError::Stopped(_))
    ));
    assert!(matches!(
        writer.completed(),
        Some(Err(DurableError::Stopped))
    ));
    assert!(writer.completed().is_none());
}

#[test]
fn a_failed_write_is_an_event_and_ends_the_thread() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir).unwrap().0;
    log.file = File::open(&log.path).unwrap();
    let mut writer = DurableWriter::start(log).unwrap();
    writer.submit(append(1, 1)).unwrap();
    assert!(matches!(wait(&mut writer), Err(DurableError::Io { .. })));
    assert!(writer.completed().is_none());
    assert!(matches!(
        writer.submit(append(2, 1)),
        Err(SubmitError::Stopped(_))
    ));
}

#[derive(Clone, Debug)]
enum Step {
    Append { back: u64, count: u64 },
    Compact { keep: u64 },
    Install { ahead: u64 },
    Rotate,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..4, 1u64..5).prop_map(|(back, count)| Step::Append { back, count }),
        2 => (0u64..6).prop_map(|keep| Step::Compact { keep }),
        1 => (1u64..5).prop_map(|ahead| Step::Install { ahead }),
        2 => Just(Step::Rotate),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The in-memory log is the oracle for what is on disk.
    #[test]
    fn the_log_on_disk_is_the_log_in_memory(steps in prop::collection::vec(step(), 1..40)) {
        let dir = TempDir::new().unwrap();
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let mut memory = LogStorage::new(&voters);
        let mut log = open(&dir).unwrap().0;
        let mut term = 0;
        for step in steps.into_iter().chain([Step::Reopen]) {
            term += 1;
            let (first, last) = (memory.first().0, memory.last().0);
            let mut request = PersistRequest {
                hard_state: Some(hard_state(term, 1, memory.hard_state().commit)),
                ..PersistRequest::default()
            };
            match step {
                Step::Append { back, count } => {
                    let start = (last + 1 - back.min(last)).max(first);
                    // Neither what a snapshot covers nor what is committed is ever replaced.
                    let covered = memory.snapshot_data().map_or(0, |(index, ..)| index.0);
                    let start = start.max(covered + 1);
                    request.entries = (start..start + count).map(|i| entry(i, term, 9)).collect();
                    memory.append(&request.entries).unwrap();
                }
                Step::Compact { keep } => {
                    let of = memory.term_of(LogIndex(last)).unwrap();
                    let taken = snapshot(last, of.0);
                    memory.set_snapshot_data(LogIndex(last), of, taken.data.clone()).unwrap();
                    memory.compact(LogIndex((last + 1).saturating_sub(keep))).unwrap();
                    request.snapshot = Some(SnapshotChange::Taken(taken));
                    request.compacted = Some(memory.compacted());
                    request.hard_state = Some(hard_state(term, 1, last));
                    memory.set_commit(LogIndex(last));
                }
                Step::Install { ahead } => {
                    let installed = snapshot(last + ahead, term);
                    let mut message = raft::eraftpb::Snapshot::default();
                    message.mut_metadata().index = last + ahead;
                    message.mut_metadata().term = term;
                    message.data = installed.data.clone();
                    memory.apply_snapshot(&message).unwrap();
                    request.hard_state = Some(hard_state(term, 1, last + ahead));
                    request.snapshot = Some(SnapshotChange::Installed(installed));
                }
                Step::Rotate => log.length = SEGMENT_BYTES_MAX,
                Step::Reopen => {
                    drop(log);
                    let (opened, recovered) = open(&dir).unwrap();
                    log = opened;
                    prop_assert_eq!(recovered.compacted, memory.compacted());
                    let held: Vec<_> = (memory.first().0..=memory.last().0)
                        .map(|index| memory.entry(LogIndex(index)).unwrap().clone())
                        .collect();
                    prop_assert_eq!(&recovered.entries, &held);
                    prop_assert_eq!(&recovered.hard_state, memory.hard_state());
                    let taken = memory.snapshot_data().map(|(index, term, data)| SnapshotState {
                        index, term, data: data.clone(),
                    });
                    prop_assert_eq!(recovered.snapshot, taken);
                }
            }
            memory.set_hard_state(request.hard_state.clone().unwrap());
            log.append(&[request]).unwrap();
        }
    }

    #[test]
    fn no_bytes_make_a_record_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = record::decode(Bytes::from(body));
    }

    #[test]
    fn no_file_makes_open_panic(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..3000),
        keep in 0usize..400,
    ) {
        let dir = TempDir::new().unwrap();
        log_with(&dir, 3);
        let path = only_segment(&dir);
        let mut whole = std::fs::read(&path).unwrap();
        whole.truncate(keep);
        whole.extend(bytes);
        std::fs::write(&path, whole).unwrap();
        let _ = open(&dir);
    }
}
