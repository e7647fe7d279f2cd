//! Counts the system calls of a thread of another process, as strace does: every entry stops it.
//!
//! The thread is slowed down by each call that it makes, and not at all by those that it does not:
//! a thread that makes none runs at full speed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::interrupt;

/// How long a thread may take to stop when asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Each call stops the thread twice: where it enters the kernel and where it leaves.
const STOPS_PER_CALL: u64 = 2;

/// Calls that a thread makes in a while.
pub fn count(thread: i32, time: Duration) -> Result<u64> {
    let thread = Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD)
        .with_context(|| format!("trace thread {thread}; is another tracer there?"))?;
    let counted = trace(thread, time);
    let detached = release(thread);
    let stops = counted?;
    detached?;
    Ok(stops.div_ceil(STOPS_PER_CALL))
}

/// Stops at system calls until the time is over.
fn trace(thread: Pid, time: Duration) -> Result<u64> {
    ptrace::interrupt(thread).context("stop a thread to trace it")?;
    next_stop(thread, Instant::now() + PATIENCE)?.context("the thread does not stop")?;
    ptrace::syscall(thread, None).context("let a traced thread run")?;
    let end = Instant::now() + time;
    let mut stops = 0;
    while let Some(stop) = next_stop(thread, end)? {
        let signal = match stop {
            WaitStatus::PtraceSyscall(_) => {
                stops += 1;
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        ptrace::syscall(thread, signal).context("let a traced thread run")?;
    }
    Ok(stops)
}

/// Detaching needs a thread that stands.
fn release(thread: Pid) -> Result<()> {
    match ptrace::interrupt(thread) {
        Ok(()) => {
            next_stop(thread, Instant::now() + PATIENCE)?;
        }
        // It stands already, or is gone.
        Err(Errno::EIO | Errno::ESRCH) => {}
        Err(error) => return Err(error).context("stop a thread to let it go"),
    }
    match ptrace::detach(thread, None) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("let a thread go"),
    }
}

/// Why the thread stands; none if it runs until `end`.
fn next_stop(thread: Pid, end: Instant) -> Result<Option<WaitStatus>> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    loop {
        interrupt::check()?;
        match waitpid(thread, Some(flags)).context("wait for a traced thread")? {
            WaitStatus::StillAlive if Instant::now() >= end => return Ok(None),
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(1)),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                anyhow::bail!("thread {thread} ended while it was counted")
            }
            stop => return Ok(Some(stop)),
        }
    }
}

/// The thread of a process that uses the most CPU time, measured over a moment.
pub fn busiest_thread(process: u32) -> Result<i32> {
    let before = cpu_ticks(process)?;
    interrupt::sleep(Duration::from_millis(200))?;
    let after = cpu_ticks(process)?;
    let used = |(thread, ticks): &(i32, u64)| {
        let earlier = before.iter().find(|(known, _)| known == thread);
        ticks.saturating_sub(earlier.map_or(0, |(_, ticks)| *ticks))
    };
    let (thread, _) = after
        .iter()
        .max_by_key(|entry| used(entry))
        .with_context(|| format!("process {process} has no threads"))?;
    Ok(*thread)
}

fn cpu_ticks(process: u32) -> Result<Vec<(i32, u64)>> {
    let folder = format!("/proc/{process}/task");
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let path = entry?.path();
        let Some(thread) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        // A thread that has ended meanwhile has no file any more.
        let text = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        threads.push((thread, ticks(&text).unwrap_or(0)));
    }
    Ok(threads)
}

/// User and system time of /proc/…/stat, which come 14th and 15th.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    fn shell(script: &str) -> Process {
        Process::start("sh", &["-c".to_owned(), script.to_owned()]).expect("a shell")
    }

    const WHILE: Duration = Duration::from_millis(300);

    #[test]
    fn a_loop_without_calls_makes_none() {
        let shell = shell("while :; do :; done");
        let thread = busiest_thread(shell.id()).expect("a thread");
        assert_eq!(thread, shell.id().cast_signed());
        assert_eq!(count(thread, WHILE).expect("counted"), 0);
    }

    #[test]
    fn calls_are_counted() {
        let shell = shell("while :; do cd /; done");
        let thread = shell.id().cast_signed();
        assert!(count(thread, WHILE).expect("counted") > 10);
        // It was let go: a second count works.
        assert!(count(thread, WHILE).expect("counted again") > 10);
    }

    #[test]
    fn there_is_no_such_thread() {
        assert!(count(i32::MAX, WHILE).is_err());
        assert!(busiest_thread(u32::MAX).is_err());
    }

    #[test]
    fn times_are_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) R 1 1 1 0 -1 4 5 6 7 8 30 12 0 0 20";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (x) R"), None);
    }
}
