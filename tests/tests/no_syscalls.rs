//! A card that polls busily makes no system call for a packet: seen from outside, by strace.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use plover_tests::e2e;
use plover_tests::e2e::card::{Card, CardConfig};
use plover_tests::frontend::{Guest, GuestConfig};

const STRACE: &str = "/usr/bin/strace";
/// How long the thread is looked at.
const LOOK: Duration = Duration::from_secs(2);
const SIZES: [usize; 3] = [64, 512, 1514];
/// Fewer packets than that while it is looked at prove nothing.
const FRAMES_MIN: u64 = 1000;

/// The thread of `process` with this name.
fn thread_of(process: Pid, name: &str) -> Result<Pid> {
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let folder = entry?.path();
        if fs::read_to_string(folder.join("comm"))?.trim() == name {
            let id = folder.file_name().and_then(|name| name.to_str());
            return Ok(Pid::from_raw(
                id.context("a thread has no number")?.parse()?,
            ));
        }
    }
    anyhow::bail!("no thread of {process} is called {name}")
}

/// System calls of `thread` while `work` is done again and again.
fn watch(thread: Pid, record: &Path, mut work: impl FnMut() -> Result<()>) -> Result<String> {
    let mut strace = Command::new(STRACE)
        .args(["-qq", "-tt", "-p", &thread.to_string(), "-o"])
        .arg(record)
        .stdin(Stdio::null())
        .spawn()
        .context("start strace")?;
    let end = Instant::now() + LOOK;
    let mut done = Ok(());
    while Instant::now() < end && done.is_ok() {
        done = work();
    }
    let pid = Pid::from_raw(i32::try_from(strace.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    strace.wait()?;
    done?;
    fs::read_to_string(record).context("read what strace saw")
}

fn lack() -> Option<String> {
    (!Path::new(STRACE).exists()).then(|| "no strace".to_owned())
}

#[test]
fn a_busy_core_makes_no_system_call_under_load() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(lack())? else {
        return Ok(());
    };
    let card = Card::start(&CardConfig {
        busy: true,
        ..CardConfig::default()
    })?;
    // A guest that polls wants no calls, and says so by a flag. By EVENT_IDX it could only name an
    // index far off, and would be called once in 65,536 packets.
    let mut guest = Guest::boot(
        &card.socket(),
        GuestConfig {
            event_idx: false,
            ..GuestConfig::default()
        },
    )?;
    guest.exchange(FRAMES_MIN, &SIZES)?;
    let thread = thread_of(card.pid()?, "plover-poll")?;
    let record = card.folder().join("strace");

    // strace sees the thread at all: a question to the core has it answer by a system call.
    let mut asked = 0;
    let seen = watch(thread, &record, || {
        asked += 1;
        card.status().map(drop)
    })?;
    ensure!(
        seen.lines().count() > 0,
        "strace saw nothing of {asked} questions"
    );

    let before = guest.ledger.received;
    let seen = watch(thread, &record, || guest.exchange(32, &SIZES))?;
    let frames = guest.ledger.received - before;
    println!(
        "{frames} frames came back; system calls: {}",
        seen.lines().count()
    );
    ensure!(frames >= FRAMES_MIN, "only {frames} frames came back");
    ensure!(seen.is_empty(), "system calls of the poll core:\n{seen}");
    Ok(())
}
