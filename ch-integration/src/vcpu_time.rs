//! CPU time of threads of another process, from `/proc/PID/task/TID/schedstat`.
//!
//! The scheduler's own sum: nanoseconds, brought up to date at each tick and switch, so a thread
//! that runs without a break is seen with the tick's resolution.

use std::cell::Cell;
use std::fs;
use std::io;
use std::time::Duration;

use crate::error::VmmError;

/// CPU time of thread `tid` of process `pid` so far.
pub fn thread_time(pid: u32, tid: u32) -> Result<Duration, VmmError> {
    let path = format!("/proc/{pid}/task/{tid}/schedstat");
    let text = fs::read_to_string(&path)
        .map_err(|source| VmmError::io(format!("reading {path}"), source))?;
    parse_schedstat(&text).ok_or_else(|| VmmError::malformed(path, "no run time in it"))
}

/// The CPU time of a guest's vCPUs over all threads that ever ran them.
#[derive(Debug, Default)]
pub struct VcpuClock {
    /// Each thread that runs a vCPU now, and its time when last seen.
    threads: Vec<(u32, Cell<Duration>)>,
    /// The time of threads that have ended.
    ended: Duration,
}

impl VcpuClock {
    /// From now on these threads of `pid` run the vCPUs. Those not among them have ended.
    pub fn run_on(&mut self, pid: u32, tids: &[u32]) {
        // A thread that has just ended keeps the time it was last seen with.
        let _ = self.total(pid);
        let mut threads = Vec::with_capacity(tids.len());
        for (tid, time) in self.threads.drain(..) {
            if tids.contains(&tid) {
                threads.push((tid, time));
            } else {
                self.ended += time.get();
            }
        }
        for tid in tids {
            if threads.iter().all(|(known, _)| known != tid) {
                threads.push((*tid, Cell::default()));
            }
        }
        self.threads = threads;
    }

    /// Whether one of the threads runs, or waits for a CPU, now.
    pub fn any_runs(&self, pid: u32) -> Result<bool, VmmError> {
        for (tid, _) in &self.threads {
            match thread_runs(pid, *tid) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(VmmError::Io { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// The time so far. It never goes back; a thread that is gone counts as it was last seen.
    pub fn total(&self, pid: u32) -> Result<Duration, VmmError> {
        let mut total = self.ended;
        for (tid, seen) in &self.threads {
            match thread_time(pid, *tid) {
                Ok(time) => seen.set(time.max(seen.get())),
                Err(VmmError::Io { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
            total += seen.get();
        }
        Ok(total)
    }
}

/// A thread that ends while its file is read yields ESRCH.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The threads of `pid` whose name `wanted` accepts, with that name.
pub fn threads_named(
    pid: u32,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(u32, String)>, VmmError> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder)
        .map_err(|source| VmmError::io(format!("reading {folder}"), source))?;
    let mut threads = Vec::new();
    for entry in entries.flatten() {
        let Some(tid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A thread may have ended since the folder was read.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        let name = name.trim_end().to_owned();
        if wanted(&name) {
            threads.push((tid, name));
        }
    }
    Ok(threads)
}

/// Whether thread `tid` of process `pid` is in the scheduler's state R.
fn thread_runs(pid: u32, tid: u32) -> Result<bool, VmmError> {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let text = fs::read_to_string(&path)
        .map_err(|source| VmmError::io(format!("reading {path}"), source))?;
    parse_state(&text)
        .map(|state| state == 'R')
        .ok_or_else(|| VmmError::malformed(path, "no state in it"))
}

/// The state follows the name, which is in parentheses and may hold some itself.
fn parse_state(text: &str) -> Option<char> {
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_time_is_the_first_number() {
        assert_eq!(
            parse_schedstat("123740 0 1\n"),
            Some(Duration::from_nanos(123_740))
        );
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 0 1"), None);
    }

    #[test]
    fn the_state_follows_the_name_whatever_is_in_it() {
        assert_eq!(parse_state("12 (CPU 0/KVM) S 1 2"), Some('S'));
        assert_eq!(parse_state("12 (a) R) R 1 2"), Some('R'));
        assert_eq!(parse_state("12 (cut"), None);
        assert_eq!(parse_state(""), None);
    }

    #[test]
    fn a_thread_that_looks_at_itself_runs_and_one_that_sleeps_does_not() {
        let pid = std::process::id();
        // SAFETY: gettid has no preconditions.
        let own = unsafe { libc::gettid() }.cast_unsigned();
        let mut clock = VcpuClock::default();
        clock.run_on(pid, &[own]);
        assert!(clock.any_runs(pid).unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            // SAFETY: as above.
            tell.send(unsafe { libc::gettid() }.cast_unsigned())
                .unwrap();
            let _ = held.recv();
        });
        clock.run_on(pid, &[told.recv().unwrap()]);
        while clock.any_runs(pid).unwrap() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(hold);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_busy_thread_s_time_grows() {
        let pid = std::process::id();
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() }.cast_unsigned();
        let before = thread_time(pid, tid).unwrap();
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(60) {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        std::thread::sleep(Duration::from_millis(1));
        assert!(sum > 0);
        assert!(thread_time(pid, tid).unwrap() > before);
    }

    #[test]
    fn a_clock_keeps_the_time_of_threads_that_have_ended() {
        let pid = std::process::id();
        // SAFETY: gettid has no preconditions.
        let own = unsafe { libc::gettid() }.cast_unsigned();
        // A switch brings the scheduler's sum up to date.
        std::thread::sleep(Duration::from_millis(2));
        let mut clock = VcpuClock::default();
        clock.run_on(pid, &[own]);
        let first = clock.total(pid).unwrap();
        assert!(first > Duration::ZERO);
        clock.run_on(pid, &[]);
        let ended = clock.total(pid).unwrap();
        assert!(ended >= first);
        assert_eq!(clock.total(pid).unwrap(), ended);
        clock.run_on(pid, &[own, u32::MAX]);
        assert!(clock.total(pid).unwrap() >= ended);
    }

    #[test]
    fn a_thread_that_is_not_there_is_an_error() {
        assert!(thread_time(std::process::id(), u32::MAX).is_err());
    }
}
