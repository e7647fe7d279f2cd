//! The control socket between a node and its hasher: the messages, and one JSON object with its
//! descriptors per packet (Unix socket, SOCK_SEQPACKET, SCM_RIGHTS).
//!
//! ```text
//! node ──▶ hasher   Attach, BeginRound, DeviceState, Apply, Finish, Abort
//! node ◀── hasher   Attached or Refused; Step, CopiedOut, Sent, Staged, Applied, Failed; PeerLost
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use plover_types::{Certificate, Position, SyncId, SyncKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ClientError;
use crate::guest_memory::RegionSpec;
use crate::limits::{CONTROL_BYTES_MAX, CONTROL_FDS_MAX};
use crate::stats::{RoundStats, Step};

/// Which copy this host's is, in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Its memory is the one that both have afterwards.
    Primary,
    /// Its memory is made equal.
    Backup,
}

/// What an `Attach` brings. Its descriptors, in this order: one per region, the backend's log,
/// the staging file, then (if `tracked_pid` is there) userfaultfd and pidfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The replica group's name; the peer hasher must say the same.
    pub group: String,
    /// The guest's memory.
    pub regions: Vec<RegionSpec>,
    /// The VMM process, if its written pages can be tracked.
    pub tracked_pid: Option<u32>,
    /// The VMM mapped the same memory anew and has not run since the last sync was applied: what
    /// is known of written pages stays. False makes the next union all memory.
    pub continues: bool,
}

/// A node's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Guest memory, (re)mapped by the VMM. Answered by `Attached` or `Refused`.
    Attach(Attach),
    /// The VM is paused and its rings are frozen: start the round.
    BeginRound {
        /// The sync.
        sync: SyncId,
        /// Which copy is ours.
        side: Side,
        /// What the sync starts from.
        kind: SyncKind,
        /// Our delivered position.
        position: Position,
    },
    /// Primary: the device state, as one descriptor.
    DeviceState {
        /// The sync.
        sync: SyncId,
    },
    /// Backup: the sync was committed, write what is staged into memory. May be repeated.
    Apply {
        /// The sync.
        sync: SyncId,
    },
    /// Primary: the sync was committed.
    Finish {
        /// The sync.
        sync: SyncId,
    },
    /// The sync is given up; its pages are dirty again, what was staged is dropped.
    Abort {
        /// The sync.
        sync: SyncId,
    },
}

/// How memory was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReport {
    /// "userfaultfd" or "full scan".
    pub tracker: String,
    /// Why it is not a better one.
    pub reason: Option<String>,
    /// Pages of the guest.
    pub pages: u64,
    /// After so many completed delta rounds the rotating slice has been over all memory.
    pub slice_rounds: u64,
}

/// A hasher's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Memory is attached.
    Attached(AttachReport),
    /// A request could not be carried out at all.
    Refused {
        /// The request's name.
        request: String,
        /// Why.
        reason: String,
    },
    /// A step of the round begins.
    Step {
        /// The sync.
        sync: SyncId,
        /// The step.
        name: Step,
    },
    /// Primary: guest memory is not read any more, the VM may run.
    CopiedOut {
        /// The sync.
        sync: SyncId,
        /// Over the union.
        certificate: Certificate,
        /// Up to here.
        stats: RoundStats,
    },
    /// Primary: the backup has staged and verified everything.
    Sent {
        /// The sync.
        sync: SyncId,
        /// Of the whole round.
        stats: RoundStats,
    },
    /// Backup: everything is staged and verified. The device state comes as a descriptor.
    Staged {
        /// The sync.
        sync: SyncId,
        /// Over the union.
        certificate: Certificate,
        /// The primary's delivered position at the sync point.
        position: Position,
        /// Of the whole round; all zero if the staged set was found after a restart.
        stats: RoundStats,
    },
    /// Backup: memory is written.
    Applied {
        /// The sync.
        sync: SyncId,
        /// Time of writing it, in microseconds.
        apply_us: u64,
    },
    /// The round, or applying it, failed.
    Failed {
        /// The sync.
        sync: SyncId,
        /// Why.
        reason: String,
    },
    /// The connection to the peer hasher was lost between rounds; the next round makes a new one.
    PeerLost {
        /// What was seen.
        reason: String,
    },
}

/// One end of the control socket.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
}

impl ControlSocket {
    /// Takes a connected SOCK_SEQPACKET socket. A message that the other end does not take
    /// within `send_max` is an error.
    ///
    /// # Errors
    /// If the socket refuses the timeout.
    pub fn new(socket: OwnedFd, send_max: Duration) -> Result<Self, ClientError> {
        let millis = i64::try_from(send_max.as_millis()).unwrap_or(i64::MAX);
        setsockopt(
            &socket,
            sockopt::SendTimeout,
            &TimeVal::milliseconds(millis),
        )
        .map_err(io_error("set a timeout"))?;
        Ok(Self { socket })
    }

    /// Sends a message with its descriptors.
    ///
    /// # Errors
    /// If the message is too long or the other end is gone or does not take it.
    pub fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let bytes =
            serde_json::to_vec(message).map_err(|error| ClientError::Bad(error.to_string()))?;
        if bytes.len() > CONTROL_BYTES_MAX || fds.len() > CONTROL_FDS_MAX {
            let (bytes, fds) = (bytes.len(), fds.len());
            return Err(ClientError::Bad(format!(
                "{bytes} bytes, {fds} descriptors"
            )));
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        loop {
            let parts = [IoSlice::new(&bytes)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &parts, control, flags, None) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(ClientError::Closed),
                Err(error) => return Err(io_error("send")(error)),
            }
        }
    }

    /// Receives the next message with its descriptors. Blocks; poll the socket first for a bound.
    ///
    /// # Errors
    /// If the other end closed, or sent what is no message of this type.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), ClientError> {
        let (bytes, fds) = self.receive_packet()?;
        let message = serde_json::from_slice(&bytes);
        Ok((
            message.map_err(|error| ClientError::Bad(error.to_string()))?,
            fds,
        ))
    }

    fn receive_packet(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), ClientError> {
        let mut bytes = vec![0; CONTROL_BYTES_MAX];
        let mut space = cmsg_space!([RawFd; CONTROL_FDS_MAX]);
        let (length, truncated, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.socket.as_raw_fd();
            let got = match recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ECONNRESET) => return Err(ClientError::Closed),
                other => other.map_err(io_error("receive"))?,
            };
            let cut = got
                .flags
                .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
            break (
                got.bytes,
                cut,
                take_fds(got.cmsgs().map_err(io_error("receive"))?),
            );
        };
        if length == 0 {
            return Err(ClientError::Closed);
        }
        if truncated {
            return Err(ClientError::Bad("longer than a message may be".to_owned()));
        }
        bytes.truncate(length);
        Ok((bytes, fds))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn take_fds(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel just made these descriptors for us; nobody else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    fds
}

fn io_error(doing: &'static str) -> impl Fn(nix::Error) -> ClientError {
    move |error| ClientError::Io {
        doing,
        source: io::Error::from(error),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::testing::memfd;

    fn pair() -> (ControlSocket, OwnedFd) {
        let (one, two) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("socketpair");
        (
            ControlSocket::new(one, Duration::from_millis(200)).expect("socket"),
            two,
        )
    }

    #[test]
    fn messages_carry_their_descriptors() {
        let (one, two) = pair();
        let two = ControlSocket::new(two, Duration::from_secs(1)).expect("socket");
        let file = memfd(4096);
        let sync = SyncId::default();
        one.send(&Request::Apply { sync }, &[file.as_fd(), file.as_fd()])
            .expect("send");
        let (request, fds) = two.receive::<Request>().expect("receive");
        assert_eq!(request, Request::Apply { sync });
        assert_eq!(fds.len(), 2);
        drop(one);
        assert!(matches!(two.receive::<Request>(), Err(ClientError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, two) = pair();
        for bad in [
            &b"{"[..],
            b"{\"apply\":{\"sync\":-1}}",
            b"{\"launch\":{}}",
            &[0xff; 40],
        ] {
            nix::unistd::write(&two, bad).expect("write");
            assert!(matches!(one.receive::<Request>(), Err(ClientError::Bad(_))));
        }
        nix::unistd::write(&two, &[b' '; CONTROL_BYTES_MAX + 1]).expect("write");
        assert!(matches!(one.receive::<Request>(), Err(ClientError::Bad(_))));
    }

    #[test]
    fn an_end_that_does_not_read_is_an_error_in_time() {
        let (one, _two) = pair();
        let sync = SyncId::default();
        let full = (0..1_000_000).find_map(|_| one.send(&Request::Apply { sync }, &[]).err());
        assert!(matches!(full, Some(ClientError::Io { .. })), "{full:?}");
    }
}
