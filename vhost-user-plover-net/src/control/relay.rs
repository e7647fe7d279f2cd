//! Passes vhost-user messages between the VMM's connection and the crate that handles them, one
//! whole message at a time, fds with it. What a message means is not looked at here, but for a
//! log of writes (SET_LOG_BASE): the crate maps it without a look at the size of its file, and a
//! write behind the end would kill us.
//!
//! It exists for another message: QEMU's virtio-net enables its rings before it sends any features
//! (7.2 and others), and the crate drops a VMM that does. So the crate is told first that
//! VHOST_USER_F_PROTOCOL_FEATURES is accepted, which is what such a VMM takes for granted. The
//! VMM's own SET_FEATURES, when it comes, replaces that.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::error::Refusal;
use crate::limits::{MEMORY_REGIONS_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_TIMEOUT};

const HEADER_BYTES: usize = 12;
const SIZE_OFFSET: usize = 8;
const SET_FEATURES: u32 = 2;
const SET_LOG_BASE: u32 = 6;
const VERSION: u32 = 1;
/// Fds that the kernel lets one message carry. With room for fewer it would cut the list short,
/// and those that did arrive would be ours, and unknown.
const KERNEL_FDS_MAX: usize = 253;

/// One VMM's connection.
pub(super) struct Relay {
    vmm: UnixStream,
    handler: UnixStream,
    refusal: Option<Refusal>,
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
                refusal: None,
            },
            listener,
        ))
    }

    /// Another handle on the VMM's connection, to hang up with.
    pub(super) fn vmm(&self) -> io::Result<UnixStream> {
        self.vmm.try_clone()
    }

    /// Passes messages until either side ends, then ends the other.
    /// Says why, if it was the relay that refused.
    pub(super) fn run(mut self) -> Option<Refusal> {
        // An error is an end: the side that caused it sees its connection closed.
        let _ = self.pass_all();
        let _ = self.handler.shutdown(Shutdown::Write);
        // The handler ends when it has read what was passed; its last reply may be under way.
        while matches!(self.pass_reply(), Ok(true)) {}
        let _ = self.vmm.shutdown(Shutdown::Both);
        self.refusal
    }

    fn check_log(&mut self, message: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let Some(log) = fds.first() else {
            return Ok(());
        };
        let (bytes, offset) = (wide_field(message, 0), wide_field(message, 8));
        let end = bytes.saturating_add(offset);
        let file = File::from(log.try_clone()?).metadata()?.len();
        if end > file {
            self.refusal = Some(Refusal::LogPastFileEnd { end, file });
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
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
        let body_bytes = field(&message, SIZE_OFFSET);
        // A body that no message may have is left to the handler to refuse, by its header.
        let end = HEADER_BYTES
            + if body_bytes > MESSAGE_BODY_BYTES_MAX {
                0
            } else {
                body_bytes
            };
        filled += read_full(&mut self.vmm, &mut message[HEADER_BYTES..end])?;
        if field(&message, 0) == SET_LOG_BASE as usize && filled == end {
            self.check_log(&message, &fds)?;
        }
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

/// A field of the header: request, flags, size.
fn field(message: &[u8], at: usize) -> usize {
    let mut field = [0; 4];
    field.copy_from_slice(&message[at..at + 4]);
    u32::from_le_bytes(field) as usize
}

/// A 64-bit field of the body.
fn wide_field(message: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&message[HEADER_BYTES + at..][..8]);
    u64::from_le_bytes(field)
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
    let mut space = cmsg_space!([RawFd; KERNEL_FDS_MAX]);
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
    if fds.len() > MEMORY_REGIONS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
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
