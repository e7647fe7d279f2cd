//! Where VMMs come from: they connect to our socket, or we to theirs. One at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::info;

use crate::limits::{CONNECT_RETRY_MS, LISTENER_FD_MIN};

/// One end of a vhost-user socket.
pub(super) struct Endpoint {
    socket: PathBuf,
    /// None: the VMM listens.
    listener: Option<Arc<UnixListener>>,
}

impl Endpoint {
    /// Listens on `socket`, replacing a socket that is there.
    pub(super) fn listen(socket: &Path) -> io::Result<Self> {
        remove_stale(socket)?;
        let listener = dying_first(UnixListener::bind(socket)?);
        // Accepting must not block: the client may be gone again by then.
        listener.set_nonblocking(true)?;
        info!(socket = %socket.display(), "waiting for a VMM");
        Ok(Self {
            socket: socket.to_owned(),
            listener: Some(Arc::new(listener)),
        })
    }

    /// Will connect to `socket`.
    pub(super) fn connect(socket: &Path) -> Self {
        info!(socket = %socket.display(), "looking for a VMM that listens");
        Self {
            socket: socket.to_owned(),
            listener: None,
        }
    }

    /// For who is to close it early, if we listen.
    pub(super) fn listener(&self) -> Option<Arc<UnixListener>> {
        self.listener.clone()
    }

    /// The socket's path.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until a VMM is there, or `ending` is readable, or for a while. Nothing: look whether
    /// to go on, and wait again.
    pub(super) fn wait(&self, ending: BorrowedFd<'_>) -> Option<io::Result<UnixStream>> {
        match &self.listener {
            Some(listener) => accept(listener, ending),
            None => self.call(ending),
        }
    }

    /// A pause comes first: a VMM that hangs up at once must not keep us busy. One that does not
    /// listen yet is no error.
    fn call(&self, ending: BorrowedFd<'_>) -> Option<io::Result<UnixStream>> {
        let mut fds = [PollFd::new(ending, PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(CONNECT_RETRY_MS));
        UnixStream::connect(&self.socket).ok().map(Ok)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

/// The listener under a high number. The kernel lets go of a killed process's files from the highest
/// number down; a VMM that sees its connection end must not find a listener that is about to go: of
/// those that connect again at once, Cloud Hypervisor gives up for good if that breaks in turn.
fn dying_first(listener: UnixListener) -> UnixListener {
    // A lower limit of open files only takes that certainty away.
    match fcntl(&listener, FcntlArg::F_DUPFD_CLOEXEC(LISTENER_FD_MIN)) {
        // SAFETY: a descriptor that was made just now, and is nobody else's.
        Ok(high) => unsafe { UnixListener::from_raw_fd(high) },
        Err(_) => listener,
    }
}

fn accept(listener: &UnixListener, ending: BorrowedFd<'_>) -> Option<io::Result<UnixStream>> {
    let mut fds = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(ending, PollFlags::POLLIN),
    ];
    // Interrupted by a signal: look again.
    let _ = poll(&mut fds, PollTimeout::NONE);
    if !fds[0].any().unwrap_or(false) {
        return None;
    }
    let accepted = listener.accept().and_then(|(vmm, _)| {
        vmm.set_nonblocking(false)?;
        Ok(vmm)
    });
    Some(accepted)
}

/// Removes a socket that an earlier run left behind; anything else there is an error of `bind`.
fn remove_stale(socket: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(socket),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
