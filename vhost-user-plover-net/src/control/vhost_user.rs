//! The vhost-user server: one VMM at a time, one connection after another on the same socket.
//! A connection that ends, for whatever reason, leaves the server listening.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::shutdown;
use tracing::{error, info, warn};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

use super::backend::Backend;
use super::card::CardConfig;
use super::endpoint::Endpoint;
use super::mailbox::mailbox;
use super::memory::MemoryListener;
use super::relay::Relay;
use super::session::{Session, Station, lock};
use super::vring::making_vrings_of;
use crate::error::ServerError;
use crate::event_fd::EventFd;
use crate::guest_nic::{FaultReport, GuestNic};
use crate::limits::{ACCEPT_RETRY_MS, FAULT_REPORTS};
use crate::metrics::ControlCounters;
use crate::ring::{VmmMemory, WrittenPages};

/// What a card is made with.
pub struct NicConfig {
    /// Told of every memory table, on the control thread.
    pub on_memory: MemoryListener,
    /// The log of our own writes, if its reader was given it before there is a memory table.
    pub written_pages: Option<Arc<WrittenPages>>,
    /// What the card is to the guest.
    pub card: CardConfig,
}

/// The control thread's end of a card.
pub struct ControlSide {
    station: Station,
    card: CardConfig,
    faults: Receiver<FaultReport>,
}

/// Makes a card: one end for the server, one for the poll core.
pub fn channel(config: NicConfig) -> io::Result<(ControlSide, GuestNic)> {
    let (caller, callee) = mailbox()?;
    let (fault_sender, faults) = bounded(FAULT_REPORTS);
    let station = Station {
        caller,
        listener: config.on_memory,
        written: config.written_pages,
    };
    Ok((
        ControlSide {
            station,
            card: config.card,
            faults,
        },
        GuestNic::new(callee, fault_sender),
    ))
}

/// A running server. Ends with [`Self::stop`] or when dropped.
pub struct VhostUserServer {
    ending: Arc<Ending>,
    listener: Option<Arc<UnixListener>>,
    counters: Arc<ControlCounters>,
    threads: Vec<JoinHandle<()>>,
    stop_log: Option<Sender<()>>,
}

struct Ending {
    wanted: EventFd,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    ended: bool,
    vmm: Option<UnixStream>,
}

impl VhostUserServer {
    /// Listens on `socket`, replacing what is there.
    pub fn start(socket: &Path, control: ControlSide) -> Result<Self, ServerError> {
        let endpoint = Endpoint::listen(socket).map_err(|source| ServerError::Listen {
            path: socket.to_owned(),
            source,
        })?;
        Self::start_at(endpoint, control)
    }

    /// Connects to `socket`, where the VMM listens, again and again: whenever one side was
    /// restarted, they find each other.
    pub fn start_as_client(socket: &Path, control: ControlSide) -> Result<Self, ServerError> {
        Self::start_at(Endpoint::connect(socket), control)
    }

    fn start_at(endpoint: Endpoint, control: ControlSide) -> Result<Self, ServerError> {
        let ending = Arc::new(Ending {
            wanted: EventFd::new().map_err(ServerError::EventFd)?,
            connection: Mutex::default(),
        });
        let counters = Arc::new(ControlCounters::default());
        let (stop_log, log_stopped) = bounded(0);
        let mut server = Self {
            ending: Arc::clone(&ending),
            listener: endpoint.listener(),
            counters: Arc::clone(&counters),
            threads: Vec::new(),
            stop_log: Some(stop_log),
        };
        let ControlSide {
            station,
            card,
            faults,
        } = control;
        server.spawn("plover-ringlog", move || log_faults(&faults, &log_stopped))?;
        let serving = Serving {
            endpoint,
            station: Arc::new(Mutex::new(station)),
            card,
            counters,
            ending,
        };
        server.spawn("plover-vhost", move || serving.run())?;
        Ok(server)
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Arc<ControlCounters> {
        &self.counters
    }

    /// Hangs up on the VMM, stops listening and waits for the threads.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(
        &mut self,
        thread: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), ServerError> {
        let handle = std::thread::Builder::new()
            .name(thread.to_owned())
            .spawn(run)
            .map_err(|source| ServerError::Thread { thread, source })?;
        self.threads.push(handle);
        Ok(())
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        {
            let mut connection = lock(&self.ending.connection);
            connection.ended = true;
            // First: a VMM that is hung up on may come again at once, and would be hung up on again.
            if let Some(listener) = self.listener.take() {
                let _ = shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            }
            if let Some(vmm) = &connection.vmm {
                let _ = vmm.shutdown(Shutdown::Both);
            }
        }
        self.ending.wanted.signal();
        self.stop_log = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a control thread panicked");
            }
        }
    }
}

/// The control thread.
struct Serving {
    endpoint: Endpoint,
    station: Arc<Mutex<Station>>,
    card: CardConfig,
    counters: Arc<ControlCounters>,
    ending: Arc<Ending>,
}

impl Serving {
    fn run(mut self) {
        while let Some(vmm) = self.wait_for_vmm() {
            self.serve_one(vmm);
        }
    }

    /// The next VMM's connection, or why there is none; nothing when the server is to end.
    fn wait_for_vmm(&self) -> Option<io::Result<UnixStream>> {
        loop {
            let vmm = self.endpoint.wait(self.ending.wanted.as_fd());
            if lock(&self.ending.connection).ended {
                return None;
            }
            if let Some(vmm) = vmm {
                return Some(vmm);
            }
        }
    }

    fn serve_one(&mut self, vmm: io::Result<UnixStream>) {
        let session = Arc::new(Session::new(
            Arc::clone(&self.station),
            self.card,
            Arc::clone(&self.counters),
        ));
        self.counters.connections.add(1);
        let result = self.run_connection(&session, vmm);
        lock(&self.ending.connection).vmm = None;
        let refusal = session.take_refusal();
        if let Err(silent) = session.disconnect() {
            error!(error = %silent, "the poll core was not told that the VMM has gone");
        }
        match (refusal, result) {
            (Some(refusal), _) => {
                self.counters.connections_refused.add(1);
                let reason = chain(&refusal);
                warn!(reason, "VMM refused, its connection dropped");
            }
            (None, Ok(())) => info!("VMM disconnected"),
            (None, Err(ConnectionError::Daemon(end))) if is_hangup(&end) => {
                info!("VMM disconnected");
            }
            (None, Err(ConnectionError::Daemon(DaemonError::WaitDaemon(_)))) => {
                self.counters.handler_panics.add(1);
                error!("the message handler panicked, its connection dropped");
            }
            (None, Err(error @ (ConnectionError::Accept(_) | ConnectionError::Relay(_)))) => {
                let reason = chain(&error);
                warn!(reason, "a VMM can't be served");
                self.pause();
            }
            (None, Err(error)) => {
                self.counters.connections_refused.add(1);
                let reason = chain(&error);
                warn!(reason, "malformed message, connection dropped");
            }
        }
    }

    fn run_connection(
        &mut self,
        session: &Arc<Session>,
        vmm: io::Result<UnixStream>,
    ) -> Result<(), ConnectionError> {
        let vmm = vmm.map_err(ConnectionError::Accept)?;
        let (relay, handler) =
            Relay::new(vmm, self.endpoint.socket()).map_err(ConnectionError::Relay)?;
        self.set_hangup(relay.vmm().map_err(ConnectionError::Relay)?);
        let memory = GuestMemoryAtomic::new(VmmMemory::new());
        let backend = Backend(Arc::clone(session));
        let mut daemon = making_vrings_of(session, || {
            VhostUserDaemon::new("plover-vu-msg".to_owned(), backend, memory)
        })?;
        if let Err(silent) = session.connect() {
            session.refuse(silent.into());
        }
        daemon.start(&mut Listener::from(handler))?;
        if let Some(hangup) = daemon.shutdown_handle() {
            session.set_hangup(hangup);
        }
        if let Some(refusal) = relay.run() {
            session.refuse(refusal);
        }
        Ok(daemon.wait()?)
    }

    /// Lets the server's end hang up on the VMM; it may have come already.
    fn set_hangup(&self, vmm: UnixStream) {
        let mut connection = lock(&self.ending.connection);
        if connection.ended {
            let _ = vmm.shutdown(Shutdown::Both);
        }
        connection.vmm = Some(vmm);
    }

    fn pause(&self) {
        let mut fds = [PollFd::new(self.ending.wanted.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(ACCEPT_RETRY_MS));
    }
}

/// How a connection ended, if not by the VMM's leave.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("can't accept the connection")]
    Accept(#[source] io::Error),
    #[error("can't set up the way to the message handler")]
    Relay(#[source] io::Error),
    // The crate's error is no source: it says the whole of it itself.
    #[error("{0}")]
    Daemon(DaemonError),
}

impl From<DaemonError> for ConnectionError {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

const fn is_hangup(error: &DaemonError) -> bool {
    matches!(
        error,
        DaemonError::HandleRequest(ProtocolError::Disconnected)
    )
}

/// Logs ring faults until the server ends or the poll core does.
fn log_faults(faults: &Receiver<FaultReport>, stopped: &Receiver<()>) {
    loop {
        select! {
            recv(faults) -> report => match report {
                Ok(FaultReport { ring, fault }) => {
                    warn!(%ring, reason = %fault, "ring stopped: the guest broke it");
                }
                Err(_) => return,
            },
            recv(stopped) -> _ => return,
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
