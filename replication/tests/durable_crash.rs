//! What the durable log acknowledged survives SIGKILL at any moment and a full disk.
//!
//! Each test starts this binary again as a child that writes and says what was acknowledged.
//! A kill loses no page cache: that a sync comes before each acknowledgement is by construction,
//! see `DurableLog::append`; torn records are made by hand in `durable::tests`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plover_types::{LogIndex, NodeId, Term};
use raft::eraftpb::{Entry, HardState};
use rand::{Rng, SeedableRng, rngs::StdRng};
use replication::durable::{
    DurableLog, DurableWriter, Owner, PersistRequest, Recovered, SnapshotChange, SnapshotState,
    SubmitError,
};
use replication::wire::GroupId;

const OWNER: Owner = Owner {
    group: GroupId(5),
    node: NodeId(3),
};
const DIR: &str = "PLOVER_TEST_DURABLE_DIR";
const ENTRY_BYTES: usize = 20_000;
const KILLS: u64 = 25;

/// Requests on their way at once: enough for batches, few enough that a small disk takes some.
const WINDOW: u64 = 64;

fn entry(index: u64) -> Entry {
    Entry {
        index,
        term: 1 + index / 100,
        data: Bytes::from(vec![(index % 251) as u8 | 0x80; ENTRY_BYTES]),
        ..Entry::default()
    }
}

/// The request that appends entry `index`; everything in it follows from the index.
fn request(index: u64) -> PersistRequest {
    let before = entry(index - 1);
    let compact = index.is_multiple_of(64);
    PersistRequest {
        number: index,
        entries: vec![entry(index)],
        hard_state: Some(HardState {
            term: 1 + index / 100,
            vote: 1 + index % 3,
            commit: index - 1,
            ..HardState::default()
        }),
        snapshot: compact.then(|| {
            SnapshotChange::Taken(SnapshotState {
                index: LogIndex(before.index),
                term: Term(before.term),
                data: Bytes::from(before.index.to_string()),
            })
        }),
        compacted: compact.then(|| (LogIndex(before.index - 20), Term(entry(index - 21).term))),
    }
}

fn last_index(recovered: &Recovered) -> u64 {
    recovered.compacted.0.0 + recovered.entries.len() as u64
}

fn check(recovered: &Recovered) {
    let last = last_index(recovered);
    for (held, index) in recovered.entries.iter().zip(recovered.compacted.0.0 + 1..) {
        assert_eq!(*held, entry(index));
    }
    if last > 0 {
        assert_eq!(
            Some(&recovered.hard_state),
            request(last).hard_state.as_ref()
        );
    }
}

/// Writes until something ends it, and says "acked N" on standard output.
fn write_and_tell(dir: &Path) -> String {
    let (log, recovered) = DurableLog::open(dir, OWNER).expect("the log opens");
    check(&recovered);
    let mut next = last_index(&recovered) + 1;
    let mut acked = next - 1;
    let mut writer = DurableWriter::start(log).expect("a thread");
    loop {
        if next - acked <= WINDOW {
            match writer.submit(request(next)) {
                Ok(()) => next += 1,
                Err(SubmitError::Full(_)) => panic!("{WINDOW} requests fill the channel"),
                Err(SubmitError::Stopped(_)) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        match writer.completed() {
            None => {}
            Some(Ok(number)) => {
                acked = number;
                println!("acked {number}");
            }
            Some(Err(error)) => return format!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }
}

/// Not a test by itself: the child of the tests below.
#[test]
fn child_writes_until_it_is_ended() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    println!("\nfailed {}", write_and_tell(dir));
    let (_log, recovered) = DurableLog::open(dir, OWNER).unwrap();
    check(&recovered);
    println!("reopened {}", last_index(&recovered));
}

fn child(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", "child_writes_until_it_is_ended", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped());
    command
}

/// What the child said, up to its end.
fn lines(child: &mut Child) -> Vec<String> {
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    output.lines().map_while(Result::ok).collect()
}

fn last_number(lines: &[String], word: &str) -> Option<u64> {
    let said = lines.iter().filter_map(|line| line.strip_prefix(word));
    said.filter_map(|number| number.trim().parse().ok())
        .next_back()
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(0x706c_6f76_6572);
    let mut acked_before = 0;
    for kill in 0..KILLS {
        let mut process = child(dir.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(5..120)));
        process.kill().unwrap();
        let said = lines(&mut process);
        process.wait().unwrap();
        // The log may still be locked for as long as the kernel takes the process apart.
        let (_log, recovered) = DurableLog::open(dir.path(), OWNER).unwrap();
        check(&recovered);
        let acked = last_number(&said, "acked ").unwrap_or(acked_before);
        let last = last_index(&recovered);
        assert!(
            last >= acked.max(acked_before),
            "kill {kill}: {acked} acknowledged, {last} there"
        );
        acked_before = last;
    }
    assert!(
        acked_before > 100,
        "the child wrote next to nothing: {acked_before}"
    );
    println!("{acked_before} entries over {KILLS} kills");
}

#[test]
fn a_full_disk_is_reported_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mount_point = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let mut command = child(dir.path());
    // SAFETY: only system calls between fork and exec, on strings made before the fork.
    unsafe {
        command.pre_exec(move || mount_small_tmpfs(&mount_point));
    }
    let mut process = match command.spawn() {
        Ok(process) => process,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            println!("skipped: no mount namespace without privileges");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let started = Instant::now();
    let said = lines(&mut process);
    assert!(process.wait().unwrap().success(), "{said:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let failed = said.iter().find(|line| line.starts_with("failed")).unwrap();
    assert!(
        failed.contains("write to") && failed.contains("StorageFull"),
        "{failed}"
    );
    let acked = last_number(&said, "acked ").unwrap();
    let reopened = last_number(&said, "reopened ").unwrap();
    assert!(
        acked > 10 && reopened >= acked,
        "{acked} acknowledged, {reopened} there"
    );
}

fn mount_small_tmpfs(at: &std::ffi::CStr) -> std::io::Result<()> {
    let check = |result| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let (none, tmpfs, small) = (c"none".as_ptr(), c"tmpfs".as_ptr(), c"size=8m".as_ptr());
    // SAFETY: the strings are valid and end in NUL; the new namespace is this child's own.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(
            none,
            c"/".as_ptr(),
            none,
            private,
            std::ptr::null(),
        ))?;
        check(libc::mount(none, at.as_ptr(), tmpfs, 0, small.cast()))
    }
}
