//! CPU time of threads of another process, from `/proc/PID/task/TID/schedstat`.
//!
//! The scheduler's own sum: nanoseconds, brought up to date at each tick and switch, so a thread
//! that runs without a break is seen with the tick's resolution.

use std::fs;
use std::time::Duration;

use crate::error::VmmError;

/// CPU time of thread `tid` of process `pid` so far.
pub fn thread_time(pid: u32, tid: u32) -> Result<Duration, VmmError> {
    let path = format!("/proc/{pid}/task/{tid}/schedstat");
    let text = fs::read_to_string(&path)
        .map_err(|source| VmmError::io(format!("reading {path}"), source))?;
    parse_schedstat(&text).ok_or_else(|| VmmError::malformed(path, "no run time in it"))
}

/// Sum of [`thread_time`] over `tids`.
pub fn threads_time(pid: u32, tids: &[u32]) -> Result<Duration, VmmError> {
    tids.iter().map(|&tid| thread_time(pid, tid)).sum()
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
    fn a_thread_that_is_not_there_is_an_error() {
        assert!(thread_time(std::process::id(), u32::MAX).is_err());
    }
}
