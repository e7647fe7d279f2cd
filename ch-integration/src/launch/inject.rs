//! Takes a userfaultfd out of a freshly executed process: at its exec stop, one system call is
//! made in its name, the descriptor is taken and closed there, and everything is put back.
//!
//! At that stop the process has its final address space, to which a userfaultfd is bound, and has
//! run no instruction of its program; a seccomp filter of the VMM does not exist yet.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::limits;
use crate::vmm::Tracker;

/// Why no userfaultfd could be taken.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The process is a wrapper around the VMM.
    #[error("{0}")]
    Wrapper(String),
    /// The process did not come to its exec stop.
    #[error("the process did not stop at its exec: {0}")]
    NoExecStop(String),
    /// A ptrace call failed.
    #[error("{what}: {source}")]
    Ptrace {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: nix::Error,
    },
    /// A system call made in the name of the process failed.
    #[error("{call} in the VMM's name: {source}{hint}")]
    Call {
        /// The system call.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The descriptor could not be taken over.
    #[error("{call}: {source}")]
    Take {
        /// The system call.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Not built for this processor.
    #[error("system calls can be made in a VMM's name on x86_64 only")]
    Architecture,
}

/// Waits for the exec stop of `pid`, a child of the calling thread that asked to be traced, takes
/// a userfaultfd and a pidfd of it unless `wrapper` says why not, and lets it go in any case.
pub(super) fn take_tracker_at_exec_stop(
    pid: u32,
    wrapper: Option<&str>,
) -> Result<Tracker, InjectError> {
    let pid = Pid::from_raw(pid.cast_signed());
    wait_for_trap(pid, |signal| ptrace::cont(pid, signal))
        .map_err(|error| InjectError::NoExecStop(error.to_string()))?;
    let taken = match wrapper {
        Some(why) => Err(InjectError::Wrapper(why.to_owned())),
        None => take_tracker(pid),
    };
    ptrace::detach(pid, None).map_err(|source| InjectError::Ptrace {
        what: "detaching from the VMM",
        source,
    })?;
    taken
}

fn take_tracker(pid: Pid) -> Result<Tracker, InjectError> {
    let pidfd = pidfd_open(pid)?;
    let uffd = arch::take_userfaultfd(pid, &pidfd)?;
    Ok(Tracker { uffd, pidfd })
}

/// Waits until `pid` stops with SIGTRAP. Another signal that comes first is delivered by `go_on`.
fn wait_for_trap(pid: Pid, go_on: impl Fn(Signal) -> nix::Result<()>) -> Result<(), InjectError> {
    let fail = |source| InjectError::Ptrace {
        what: "waiting for the VMM to stop",
        source,
    };
    let deadline = Instant::now() + limits::EXEC_STOP_TIMEOUT;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)).map_err(fail)? {
            WaitStatus::StillAlive if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(20));
            }
            WaitStatus::StillAlive => return Err(fail(nix::Error::ETIMEDOUT)),
            WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
            WaitStatus::Stopped(_, signal) => go_on(signal).map_err(fail)?,
            _ => return Err(fail(nix::Error::ESRCH)),
        }
    }
}

fn pidfd_open(pid: Pid) -> Result<OwnedFd, InjectError> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    own(fd, "pidfd_open")
}

fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> Result<OwnedFd, InjectError> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    own(fd, "pidfd_getfd")
}

fn own(fd: libc::c_long, call: &'static str) -> Result<OwnedFd, InjectError> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(InjectError::Take {
            call,
            source: io::Error::last_os_error(),
        }),
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::*;

    /// `syscall` in the first two bytes of a little-endian word.
    const SYSCALL: i64 = 0x050f;
    const SYSCALL_MASK: i64 = 0xffff;
    /// In `orig_rax`: the process is in no system call that could be restarted.
    const NO_CALL: u64 = u64::MAX;

    /// Makes a userfaultfd in the stopped process, takes it, and closes it there.
    pub(super) fn take_userfaultfd(pid: Pid, pidfd: &OwnedFd) -> Result<OwnedFd, InjectError> {
        let fail = |what| move |source| InjectError::Ptrace { what, source };
        let saved = ptrace::getregs(pid).map_err(fail("reading the VMM's registers"))?;
        let at = saved.rip as ptrace::AddressType;
        let word = ptrace::read(pid, at).map_err(fail("reading the VMM's code"))?;
        ptrace::write(pid, at, (word & !SYSCALL_MASK) | SYSCALL)
            .map_err(fail("writing the VMM's code"))?;
        let taken = make_and_take(pid, pidfd, &saved);
        ptrace::write(pid, at, word).map_err(fail("restoring the VMM's code"))?;
        ptrace::setregs(pid, saved).map_err(fail("restoring the VMM's registers"))?;
        taken
    }

    fn make_and_take(
        pid: Pid,
        pidfd: &OwnedFd,
        saved: &libc::user_regs_struct,
    ) -> Result<OwnedFd, InjectError> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned();
        let fd = call(pid, saved, libc::SYS_userfaultfd, flags.into())?;
        if fd < 0 {
            let source = io::Error::from_raw_os_error(errno(fd));
            let hint = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; run as root, or sysctl -w vm.unprivileged_userfaultfd=1"
                }
                _ => "",
            };
            return Err(InjectError::Call {
                call: "userfaultfd",
                source,
                hint,
            });
        }
        let taken = pidfd_getfd(pidfd, RawFd::try_from(fd).unwrap_or(-1));
        let closed = call(pid, saved, libc::SYS_close, fd.cast_unsigned())?;
        if closed != 0 {
            let source = io::Error::from_raw_os_error(errno(closed));
            return Err(InjectError::Call {
                call: "close",
                source,
                hint: "",
            });
        }
        taken
    }

    /// The errno in a failed system call's result.
    fn errno(result: i64) -> i32 {
        i32::try_from(-result).unwrap_or(libc::EIO)
    }

    /// Makes one system call in the stopped process, at the `syscall` instruction under rip.
    fn call(
        pid: Pid,
        saved: &libc::user_regs_struct,
        number: libc::c_long,
        argument: u64,
    ) -> Result<i64, InjectError> {
        let fail = |what| move |source| InjectError::Ptrace { what, source };
        let mut regs = *saved;
        regs.rax = number.cast_unsigned();
        regs.rdi = argument;
        regs.orig_rax = NO_CALL;
        ptrace::setregs(pid, regs).map_err(fail("setting the VMM's registers"))?;
        ptrace::step(pid, None).map_err(fail("stepping the VMM"))?;
        wait_for_trap(pid, |signal| ptrace::step(pid, signal))?;
        let regs = ptrace::getregs(pid).map_err(fail("reading the VMM's registers"))?;
        Ok(regs.rax.cast_signed())
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use super::*;

    pub(super) fn take_userfaultfd(_: Pid, _: &OwnedFd) -> Result<OwnedFd, InjectError> {
        Err(InjectError::Architecture)
    }
}
