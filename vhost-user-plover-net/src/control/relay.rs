//! Passes vhost-user messages between the VMM's connection and the crate that handles them, one
//! whole message at a time, fds with it. What a message means is not looked at here.
//!
//! It exists for one message: QEMU's virtio-net enables its rings before it sends any features
//! (7.2 and others), and the crate drops a VMM that does. So the crate is told first that
//! VHOST_USER_F_PROTOCOL_FEATURES is accepted, which is what such a VMM takes for granted. The
//! VMM's own SET_FEATURES, when it comes, replaces that.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::limits::{MEMORY_REGIONS_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_TIMEOUT};

const HEADER_BYTES: usize = 12;
const SIZE_OFFSET: usize = 8;
const SET_FEATURES: u32 = 2;
const VERSION: u32 = 1;

/// One VMM's connection.
pub(super) struct Relay {
    vmm: UnixStream,
    handler: UnixStream,
}

impl Relay {
    /// Between `vmm` and whoever accepts from the listener that comes back. The listener's name,
    /// next to the VMM's socket, is gone again.
    pub(super) fn new(vmm: UnixStream, socket: &Path) -> io::Result<(Self, UnixListener)> {
        // A VMM that stalls in the middle of a message, or does not read its replies, is dropped.
        vmm.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        vmm.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        let mut name = socket.as_os_str().to_owned();
        name.push(".handler");
        let name = Path::new(&name);
        match std::fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(name)?;
        let handler = UnixStream::connect(name);
        std::fs::remove_file(name)?;
        Ok((
            Self {
                vmm,
                handler: handler?,
            },
            listener,
        ))
    }

    /// Another handle on the VMM's connection, to hang up with.
    pub(super) fn vmm(&self) -> io::Result<UnixStream> {
        self.vmm.try_clone()
    }

    /// Passes messages until either side ends, then ends the other.
    pub(super) fn run(mut self) {
        // An error is an end: the side that caused it sees its connection closed.
        let _ = self.pass_all();
        let _ = self.handler.shutdown(Shutdown::Write);
        // The handler ends when it has read what was passed; its last reply may be under way.
        while matches!(self.pass_reply(), Ok(true)) {}
        let _ = self.vmm.shutdown(Shutdown::Both);
    }

    fn pass_all(&mut self) -> io::Result<()> {
        self.handler.write_all(&accept_protocol_features())?;
        loop {
            let (from_vmm, from_handler) = self.wait()?;
            if from_handler && !self.pass_reply()? {
                return Ok(());
            }
            if from_vmm && !self.pass_message()? {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut fds = [&self.vmm, &self.handler].map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => Ok((fds[0].any().unwrap_or(false), fds[1].any().unwrap_or(false))),
            Err(nix::errno::Errno::EINTR) => Ok((false, false)),
            Err(error) => Err(error.into()),
        }
    }

    /// Passes one message to the handler. False at the VMM's end.
    fn pass_message(&mut self) -> io::Result<bool> {
        let mut message = [0; HEADER_BYTES + MESSAGE_BODY_BYTES_MAX];
        let (mut filled, fds) = receive(&self.vmm, &mut message[..HEADER_BYTES])?;
        let whole = filled > 0 && {
            filled += read_full(&mut self.vmm, &mut message[filled..HEADER_BYTES])?;
            filled == HEADER_BYTES
        };
        if !whole {
            // Half a header: the handler will find it wanting.
            send(&self.handler, &message[..filled], &fds)?;
            return Ok(false);
        }
        let body_bytes = size_field(&message);
        // A body that no message may have is left to the handler to refuse, by its header.
        let end = HEADER_BYTES
            + if body_bytes > MESSAGE_BODY_BYTES_MAX {
                0
            } else {
                body_bytes
            };
        filled += read_full(&mut self.vmm, &mut message[HEADER_BYTES..end])?;
        send(&self.handler, &message[..filled], &fds)?;
        Ok(filled == end)
    }

    /// Passes bytes of a reply to the VMM; replies carry no fds. False at the handler's end.
    fn pass_reply(&mut self) -> io::Result<bool> {
        let mut bytes = [0; MESSAGE_BODY_BYTES_MAX];
        let count = self.handler.read(&mut bytes)?;
        self.vmm.write_all(&bytes[..count])?;
        Ok(count > 0)
    }
}

fn accept_protocol_features() -> Vec<u8> {
    let body = VhostUserVirtioFeatures::PROTOCOL_FEATURES
        .bits()
        .to_le_bytes();
    let header = [SET_FEATURES, VERSION, body.len() as u32].map(u32::to_le_bytes);
    [&header.concat()[..], &body].concat()
}

fn size_field(message: &[u8]) -> usize {
    let mut size = [0; 4];
    size.copy_from_slice(&message[SIZE_OFFSET..HEADER_BYTES]);
    u32::from_le_bytes(size) as usize
}

/// Reads until `to` is full or the stream ends.
fn read_full(from: &mut UnixStream, to: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < to.len() {
        match from.read(&mut to[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn receive(from: &UnixStream, to: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MEMORY_REGIONS_MAX]);
    let mut parts = [IoSliceMut::new(to)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel just gave us these fds; nobody else has them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((received.bytes, fds))
}

/// One message is one send: the handler wants a body in one piece.
fn send(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(
        to.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
