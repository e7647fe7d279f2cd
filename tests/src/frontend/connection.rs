//! The VMM's half: the vhost-user messages that give the backend memory and rings.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::{Memory, vmm_address};
use super::ring::DriverRing;

/// The log of a migration; never wanted here.
const LOG_ALL: u64 = 1 << 26;

/// How long a backend may take to listen.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// A connection to a backend. Dropping it is what a dead VMM looks like.
pub(super) struct Connection {
    frontend: Frontend,
    stream: UnixStream,
    pub(super) features: u64,
    kicks: Vec<EventFd>,
    _calls: Vec<EventFd>,
}

impl Connection {
    /// Agrees on those of `wanted` that the backend offers.
    pub(super) fn open(stream: UnixStream, wanted: u64, rings: u64) -> Result<Self> {
        let mut frontend = Frontend::from_stream(stream.try_clone()?, rings);
        frontend.set_owner()?;
        let offered = frontend.get_features().context("hear of features")?;
        let protocol = frontend.get_protocol_features()?;
        let protocol =
            protocol & (VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ);
        frontend.set_protocol_features(protocol)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let features = offered & wanted & !LOG_ALL;
        frontend
            .set_features(features)
            .context("agree on features")?;
        Ok(Self {
            frontend,
            stream,
            features,
            kicks: Vec::new(),
            _calls: Vec::new(),
        })
    }

    /// Gives the backend memory and rings, and lets these run from their used indexes on.
    pub(super) fn start(&mut self, memory: &Memory, rings: &[DriverRing], size: u16) -> Result<()> {
        let frontend = &mut self.frontend;
        frontend
            .set_mem_table(&[memory.region()])
            .context("give memory")?;
        for (queue, ring) in rings.iter().enumerate() {
            let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
            frontend.set_vring_num(queue, size)?;
            frontend.set_vring_base(queue, ring.used_index()?)?;
            let addresses = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: vmm_address(ring.descriptors()),
                used_ring_addr: vmm_address(ring.used()),
                avail_ring_addr: vmm_address(ring.available()),
                log_addr: None,
            };
            frontend.set_vring_addr(queue, &addresses)?;
            frontend.set_vring_call(queue, &call)?;
            frontend.set_vring_kick(queue, &kick)?;
            frontend
                .set_vring_enable(queue, true)
                .context("enable a ring")?;
            self.kicks.push(kick);
            self._calls.push(call);
        }
        Ok(())
    }

    /// Stops all rings, as a driver that resets its device. Returns their indexes.
    pub(super) fn stop(&mut self, rings: usize) -> Result<Vec<u32>> {
        self.kicks.clear();
        self._calls.clear();
        (0..rings)
            .map(|queue| {
                let base = self.frontend.get_vring_base(queue);
                base.with_context(|| format!("stop ring {queue}"))
            })
            .collect()
    }

    pub(super) fn kick(&self, queue: usize) -> Result<()> {
        match self.kicks.get(queue) {
            Some(kick) => kick.write(1).context("kick"),
            None => Ok(()),
        }
    }

    /// Whether the backend hung up, as it does when it dies.
    pub(super) fn is_gone(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        !matches!(
            recv(self.stream.as_raw_fd(), &mut [0], flags),
            Err(nix::errno::Errno::EAGAIN) | Ok(1)
        )
    }
}

/// Where the backend is met.
pub(super) enum Meeting {
    /// It listens there.
    Connect(PathBuf),
    /// It comes here.
    Listen(UnixListener),
}

impl Meeting {
    pub(super) fn new(socket: &Path, listens: bool) -> Result<Self> {
        if !listens {
            return Ok(Self::Connect(socket.to_owned()));
        }
        // Left by a VMM that died.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).context("listen for a backend")?;
        listener.set_nonblocking(true)?;
        Ok(Self::Listen(listener))
    }

    /// Waits for the backend.
    pub(super) fn meet(&self) -> Result<UnixStream> {
        let deadline = Instant::now() + CONNECT_MAX;
        loop {
            match self.try_once() {
                Ok(stream) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("meet a backend");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn try_once(&self) -> std::io::Result<UnixStream> {
        match self {
            Self::Connect(socket) => UnixStream::connect(socket),
            Self::Listen(listener) => listener.accept().map(|(stream, _)| stream),
        }
    }
}
