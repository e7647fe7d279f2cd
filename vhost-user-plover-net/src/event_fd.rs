//! Eventfds: our own doorbell, and those that the VMM hands over, which are checked to be ones.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd as NixEventFd};

/// An eventfd that never blocks.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

/// Why an fd from the VMM was refused.
#[derive(Debug, thiserror::Error)]
pub enum EventFdError {
    /// It is something else: writing to it could block or do harm.
    #[error("it is {0:?}")]
    NotAnEventFd(String),
    /// It could not be looked at, duplicated or made non-blocking.
    #[error("it can't be prepared")]
    Prepare(#[from] io::Error),
}

impl EventFd {
    /// A new eventfd of our own.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(NixEventFd::from_value_and_flags(0, flags)?.into()))
    }

    /// A duplicate of an fd that the VMM sent. The VMM's own is made non-blocking too, as it is
    /// for every VMM known: a signal must not stop the poll core.
    pub fn from_vmm(file: &File) -> Result<Self, EventFdError> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(EventFdError::NotAnEventFd(link.display().to_string()));
        }
        let own = file.as_fd().try_clone_to_owned()?;
        let flags = fcntl(&own, FcntlArg::F_GETFL).map_err(io::Error::from)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&own, FcntlArg::F_SETFL(flags)).map_err(io::Error::from)?;
        Ok(Self(own))
    }

    /// Wakes whoever waits for it. A full counter is as good as a signal.
    #[inline]
    pub fn signal(&self) {
        let _ = nix::unistd::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets signals that came so far.
    #[inline]
    pub fn drain(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
