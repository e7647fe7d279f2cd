//! The node's side of the control socket: blocking calls with a bound on each.
//!
//! Requests other than `attach` return once they are sent; their outcome comes as an event.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use plover_types::{Position, SyncId, SyncKind};

use crate::control::{Attach, AttachReport, ControlSocket, Event, Request, Side};
use crate::error::ClientError;
use crate::guest_memory::RegionSpec;

/// Between tries to reach a hasher that is still starting.
const RETRY: Duration = Duration::from_millis(5);

/// A descriptor of the VMM's address space and of its process.
#[derive(Clone, Copy, Debug)]
pub struct TrackerFds<'a> {
    /// The userfaultfd of the VMM's address space.
    pub uffd: BorrowedFd<'a>,
    /// The VMM's pidfd.
    pub pidfd: BorrowedFd<'a>,
    /// The VMM's process id, in our namespace.
    pub pid: u32,
}

/// Everything that an attach hands over. The descriptors are duplicated by sending.
#[derive(Clone, Debug)]
pub struct AttachFds<'a> {
    /// The guest's memory, each region with its file.
    pub regions: Vec<(RegionSpec, BorrowedFd<'a>)>,
    /// The backend's log of written pages.
    pub backend_log: BorrowedFd<'a>,
    /// The staging file.
    pub staging: BorrowedFd<'a>,
    /// For tracking written pages; none makes every round compare all memory.
    pub tracker: Option<TrackerFds<'a>>,
}

/// An event with the descriptor that came with it.
#[derive(Debug)]
pub struct Delivered {
    /// The event.
    pub event: Event,
    /// The device state, with `Staged`.
    pub device_state: Option<OwnedFd>,
}

/// A connection to the hasher on this host.
#[derive(Debug)]
pub struct Client {
    socket: ControlSocket,
    waiting: VecDeque<Delivered>,
    call_max: Duration,
}

impl Client {
    /// Connects, trying again until `call_max` is over: the hasher may be starting. Later calls
    /// that send have the same bound.
    ///
    /// # Errors
    /// If nobody listens at the path within that time.
    pub fn connect(path: &Path, call_max: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + call_max;
        loop {
            match connect_once(path) {
                Ok(fd) => {
                    let socket = ControlSocket::new(fd, call_max)?;
                    return Ok(Self {
                        socket,
                        waiting: VecDeque::new(),
                        call_max,
                    });
                }
                Err(_) if Instant::now() < deadline => sleep(RETRY),
                Err(error) => {
                    let source = io::Error::from(error);
                    return Err(ClientError::Connect {
                        path: path.to_owned(),
                        source,
                    });
                }
            }
        }
    }

    /// Hands guest memory over. Events that come before the answer are kept for `next_event`.
    ///
    /// # Errors
    /// If the hasher refuses, or does not answer within `wait`.
    pub fn attach(
        &mut self,
        group: &str,
        fds: &AttachFds<'_>,
        continues: bool,
        wait: Duration,
    ) -> Result<AttachReport, ClientError> {
        let attach = Attach {
            group: group.to_owned(),
            regions: fds.regions.iter().map(|region| region.0).collect(),
            tracked_pid: fds.tracker.map(|tracker| tracker.pid),
            continues,
        };
        let mut all: Vec<_> = fds.regions.iter().map(|region| region.1).collect();
        all.extend([fds.backend_log, fds.staging]);
        all.extend(
            fds.tracker
                .iter()
                .flat_map(|tracker| [tracker.uffd, tracker.pidfd]),
        );
        self.socket.send(&Request::Attach(attach), &all)?;
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                None => return Err(ClientError::Timeout(wait)),
                Some(Delivered {
                    event: Event::Attached(report),
                    ..
                }) => return Ok(report),
                Some(Delivered {
                    event: Event::Refused { request, reason },
                    ..
                }) => {
                    return Err(ClientError::Refused { request, reason });
                }
                Some(other) => self.waiting.push_back(other),
            }
        }
    }

    /// Starts a round. The VM is paused and its rings are frozen.
    ///
    /// # Errors
    /// If the hasher is gone or takes nothing.
    pub fn begin_round(
        &self,
        sync: SyncId,
        side: Side,
        kind: SyncKind,
        position: Position,
    ) -> Result<(), ClientError> {
        self.socket.send(
            &Request::BeginRound {
                sync,
                side,
                kind,
                position,
            },
            &[],
        )
    }

    /// Hands the primary's device state over, as a file that is read from its start.
    ///
    /// # Errors
    /// If the hasher is gone or takes nothing.
    pub fn device_state(&self, sync: SyncId, state: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.socket.send(&Request::DeviceState { sync }, &[state])
    }

    /// Backup: applies what is staged.
    ///
    /// # Errors
    /// If the hasher is gone or takes nothing.
    pub fn apply(&self, sync: SyncId) -> Result<(), ClientError> {
        self.socket.send(&Request::Apply { sync }, &[])
    }

    /// Primary: the sync is complete.
    ///
    /// # Errors
    /// If the hasher is gone or takes nothing.
    pub fn finish(&self, sync: SyncId) -> Result<(), ClientError> {
        self.socket.send(&Request::Finish { sync }, &[])
    }

    /// Gives the sync up.
    ///
    /// # Errors
    /// If the hasher is gone or takes nothing.
    pub fn abort(&self, sync: SyncId) -> Result<(), ClientError> {
        self.socket.send(&Request::Abort { sync }, &[])
    }

    /// The next event, or none within `wait`. After polling the descriptor call it until it
    /// returns none: events may have been kept by `attach`.
    ///
    /// # Errors
    /// If the hasher is gone or sends what is no event.
    pub fn next_event(&mut self, wait: Duration) -> Result<Option<Delivered>, ClientError> {
        match self.waiting.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.receive(wait),
        }
    }

    /// The bound of calls that send.
    #[must_use]
    pub fn call_max(&self) -> Duration {
        self.call_max
    }

    fn receive(&self, wait: Duration) -> Result<Option<Delivered>, ClientError> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that a short wait is no busy loop.
            let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::from(millis)) {
                Ok(0) if Instant::now() >= deadline => return Ok(None),
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => break,
                Err(error) => {
                    let source = error.into();
                    return Err(ClientError::Io {
                        doing: "poll",
                        source,
                    });
                }
            }
        }
        let (event, mut fds) = self.socket.receive::<Event>()?;
        Ok(Some(Delivered {
            event,
            device_state: fds.pop(),
        }))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn connect_once(path: &Path) -> Result<OwnedFd, nix::Error> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}
