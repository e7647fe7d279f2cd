//! The VMM's process: forked, traced up to its exec stop, let go, and killed in the end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use super::inject;
use crate::error::VmmError;
use crate::limits;
use crate::vmm::{ExitReason, Tracker};

/// A VMM's process; killed and reaped when dropped.
#[derive(Debug)]
pub struct VmmProcess {
    child: Child,
    exited: Option<ExitReason>,
}

/// A process that was started, and what was taken from it on the way.
#[derive(Debug)]
pub struct Spawned {
    /// The process, running on its own.
    pub process: VmmProcess,
    /// Its userfaultfd and pidfd, or why there are none.
    pub tracker: Result<Tracker, String>,
}

/// Starts `command` with `passed` file descriptors under their own numbers and no others, in a
/// process group of its own, to be killed with the calling *thread*.
///
/// The child asks to be traced, so the kernel stops it at the end of its exec. There a
/// userfaultfd of its new address space is taken, and it is let go. If that fails the process
/// runs on without a tracker.
pub fn spawn(command: &mut Command, passed: &[BorrowedFd<'_>]) -> Result<Spawned, VmmError> {
    let binary = PathBuf::from(command.get_program());
    let not_elf = why_not_elf(&binary);
    let parent = std::process::id();
    let passed: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    command.process_group(0);
    // SAFETY: the closure only makes system calls and reads memory that was allocated before the
    // fork, which is what may be done between fork and exec.
    unsafe {
        command.pre_exec(move || prepare_child(parent, &passed));
    }
    let child = command.spawn().map_err(|source| VmmError::Start {
        binary: binary.clone(),
        source,
    })?;
    let process = VmmProcess {
        child,
        exited: None,
    };
    let tracker = inject::take_tracker_at_exec_stop(process.pid(), not_elf.as_deref())
        .map_err(|error| error.to_string());
    Ok(Spawned { process, tracker })
}

/// Runs in the child, between fork and exec.
fn prepare_child(parent: u32, passed: &[RawFd]) -> io::Result<()> {
    let check = |result: libc::c_long| {
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: these calls take numbers only and act on the calling process.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        // The parent may have died before the line above.
        if libc::getppid().cast_unsigned() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // A library of ours may have opened files without close-on-exec.
        check(libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ))?;
        for fd in passed {
            check(libc::fcntl(*fd, libc::F_SETFD, 0).into())?;
        }
        check(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))
    }
}

/// A script's exec stop is that of its interpreter, whose address space the VMM will not keep.
fn why_not_elf(binary: &std::path::Path) -> Option<String> {
    let mut magic = [0; 4];
    let read = File::open(binary).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if magic == *b"\x7fELF" => None,
        Ok(()) => Some(format!(
            "{binary:?} is no ELF executable but a script that starts one"
        )),
        Err(error) => Some(format!("{binary:?} can't be read: {error}")),
    }
}

impl VmmProcess {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn exit_reason(&mut self) -> Option<ExitReason> {
        if self.exited.is_none() {
            self.exited = match self.child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(status.into()),
                Err(_) => Some(ExitReason::Unknown),
            };
        }
        self.exited
    }

    /// Kills it and waits for its end, for a bounded time.
    pub fn kill(&mut self) {
        if self.exit_reason().is_some() {
            return;
        }
        if let Err(error) = self.child.kill() {
            tracing::warn!(pid = self.pid(), %error, "killing the VMM");
        }
        let deadline = Instant::now() + limits::REAP_TIMEOUT;
        while self.exit_reason().is_none() {
            if Instant::now() >= deadline {
                tracing::warn!(pid = self.pid(), "the killed VMM is not gone yet");
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
