//! The thread that a poll core runs on: its core, its priority, its timers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tracing::{info, warn};

/// How much better than others' the poll core's scheduling priority is.
const NICE: libc::c_int = -15;

/// Runs `poll` on a thread of its own and sets `stop` when it ends: a node without its poll core
/// serves nobody.
pub(super) fn start(
    core: Option<u32>,
    stop: &Arc<AtomicBool>,
    poll: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let stop = Arc::clone(stop);
    std::thread::Builder::new()
        .name("plover-poll".to_owned())
        .spawn(move || {
            let _ended = SetOnDrop(stop);
            prepare(core);
            poll();
        })
        .context("start the poll thread")
}

/// Set however the thread ends, by a panic too.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn prepare(core: Option<u32>) {
    if let Some(core) = core {
        let mut set = nix::sched::CpuSet::new();
        let pinned = set
            .set(core as usize)
            .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
        if let Err(error) = pinned {
            warn!(core, %error, "poll.core cannot be used; the poll core runs on any");
        }
    }
    // Both only make it slower where they are refused.
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        info!(%error, "sleeps of the poll core are rounded");
    }
    // SAFETY: plain numbers; 0 means the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        info!("the poll core has no better priority than other threads");
    }
}
