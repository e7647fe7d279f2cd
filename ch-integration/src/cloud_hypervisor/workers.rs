//! Cloud Hypervisor's threads, as /proc shows them: which are virtio workers, and whether each is
//! back in its epoll_wait.
//!
//! `vm.resume` wakes parked workers and returns at once. A `vm.pause` that comes before a worker
//! has run again finds it parked still, and waits for it at a barrier for good.

use std::fs;
use std::time::{Duration, Instant};

use super::machine;
use crate::error::VmmError;
use crate::limits;
use crate::vcpu_time::threads_named;

/// Between two looks at a worker that is not ready.
const POLL: Duration = Duration::from_micros(200);

/// Whether a thread of this name runs guest code.
pub(super) fn is_vcpu(name: &str) -> bool {
    name.strip_prefix("vcpu")
        .is_some_and(|id| !id.is_empty() && id.parse::<u32>().is_ok())
}

/// Whether a thread of this name serves a virtio device: it begins with the device's id. Those of
/// `machine`, and those that Cloud Hypervisor gives to its own, which begin with an underscore.
fn is_worker(name: &str) -> bool {
    [machine::NIC_ID, machine::DISK_ID, "_"]
        .iter()
        .any(|id| name.starts_with(id))
}

/// Waits until each virtio worker has been seen in epoll_wait.
pub(super) fn wait_until_ready(pid: u32) -> Result<(), VmmError> {
    let deadline = Instant::now() + limits::WORKERS_READY_TIMEOUT;
    for (tid, name) in threads_named(pid, is_worker)? {
        while parked(pid, tid) {
            if Instant::now() >= deadline {
                return Err(VmmError::timeout(
                    format!("virtio worker {name} back in epoll_wait"),
                    limits::WORKERS_READY_TIMEOUT,
                ));
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Whether a thread is not known to be out of its parking place: it is runnable, or in a call
/// other than epoll_wait.
fn parked(pid: u32, tid: u32) -> bool {
    // Without the file (a kernel built without it, or a thread that is gone) the gap has to do.
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"));
    text.is_ok_and(|text| !in_epoll_wait(&text))
}

fn in_epoll_wait(text: &str) -> bool {
    let number = text
        .split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    let calls = [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
    ];
    number.is_some_and(|number: libc::c_long| calls.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_apart_by_name() {
        assert!(is_vcpu("vcpu0") && is_vcpu("vcpu12"));
        assert!(!is_vcpu("vcpu") && !is_vcpu("vcpux") && !is_vcpu("vmm"));
        assert!(is_worker("__rng") && is_worker("plover0_ctrl") && is_worker("disk0_q0"));
        for name in [
            "vmm",
            "vcpu0",
            "http-server",
            "event-monitor",
            "kvm-nx-lpage-re",
        ] {
            assert!(!is_worker(name), "{name}");
        }
    }

    #[test]
    fn only_epoll_wait_counts_as_ready() {
        assert!(in_epoll_wait(
            "232 0x4 0x7f 0x64 0xffffffff 0x0 0x8 0x7ffd 0x7fe8\n"
        ));
        assert!(in_epoll_wait("281 0x4 0x7f\n"));
        assert!(
            !in_epoll_wait("202 0x7f 0x80 0x0\n"),
            "a futex is where a worker is parked"
        );
        assert!(!in_epoll_wait("running\n"));
        assert!(!in_epoll_wait(""));
    }

    #[test]
    fn a_process_without_workers_is_ready_and_a_parked_one_times_out() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("__parked".to_owned())
            .spawn(move || receive.recv())
            .unwrap();
        let tid = loop {
            let found = threads_named(std::process::id(), |name| name == "__parked").unwrap();
            if let Some((tid, _)) = found.first() {
                break *tid;
            }
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(parked(std::process::id(), tid));
        drop(send);
        thread.join().unwrap().unwrap_err();
        assert!(!parked(std::process::id(), tid));
    }
}
