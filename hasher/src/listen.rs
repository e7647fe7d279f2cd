//! Opens the service's two sockets and feeds it: a thread reads the node's requests, a task
//! answers peers that connect. No request is carried out here.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::config::Config;
use crate::control::{ControlSocket, Request};
use crate::error::{ClientError, ServiceError, chain};
use crate::exchange::LinkSlot;
use crate::limits::{EVENT_SEND_MAX, HANDSHAKES_MAX};
use crate::link::{Identity, PeerLink};
use crate::service::{FromNode, Service};

/// Requests that wait while one is carried out.
const REQUESTS_WAITING: usize = 16;

/// Opens the sockets and serves until something breaks.
///
/// # Errors
/// If an argument is wrong, a socket cannot be opened, or a part of the service ends by itself.
pub async fn serve(config: Config) -> Result<(), ServiceError> {
    config.check()?;
    let keys = config.keys()?;
    if keys.is_none() {
        tracing::warn!("the link to the peer hasher is neither authenticated nor encrypted");
    }
    let peers = TcpListener::bind(config.listen)
        .await
        .map_err(|source| ServiceError::Listen {
            what: config.listen.to_string(),
            source,
        })?;
    let control = listen_control(&config.socket).map_err(|error| ServiceError::Listen {
        what: config.socket.display().to_string(),
        source: error.into(),
    })?;
    let inbound = Arc::new(LinkSlot::default());
    let (identity, known) = watch::channel(None);
    tokio::spawn(accept_peers(peers, inbound.clone(), known));
    let (to_service, from_node) = mpsc::channel(REQUESTS_WAITING);
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || read_nodes(&control, &to_service))
        .map_err(|source| ServiceError::Listen {
            what: "a thread".to_owned(),
            source,
        })?;
    tracing::info!(listen = %config.listen, socket = %config.socket.display(), "hasher serves");
    Service::new(config, keys, inbound, identity)
        .serve(from_node)
        .await
}

fn new_socket() -> Result<OwnedFd, nix::Error> {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

fn listen_control(path: &Path) -> Result<OwnedFd, nix::Error> {
    let address = UnixAddr::new(path)?;
    // A socket file that nobody listens on is left over from a process that was killed.
    let is_socket = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && connect(new_socket()?.as_raw_fd(), &address) == Err(nix::Error::ECONNREFUSED) {
        nix::unistd::unlink(path)?;
    }
    let control = new_socket()?;
    bind(control.as_raw_fd(), &address)?;
    listen(&control, Backlog::new(1)?)?;
    Ok(control)
}

/// One node at a time: the next one waits until the one before it is gone.
fn read_nodes(control: &OwnedFd, to_service: &mpsc::Sender<FromNode>) {
    loop {
        let accepted = match accept4(control.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel just made this descriptor for us.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept on the control socket");
                return;
            }
        };
        let Ok(socket) = ControlSocket::new(accepted, EVENT_SEND_MAX) else {
            continue;
        };
        if read_node(&Arc::new(socket), to_service).is_none() {
            return;
        }
    }
}

fn read_node(socket: &Arc<ControlSocket>, to_service: &mpsc::Sender<FromNode>) -> Option<()> {
    to_service
        .blocking_send(FromNode::Connected(socket.clone()))
        .ok()?;
    loop {
        let message = match socket.receive::<Request>() {
            Ok((request, fds)) => FromNode::Request(request, fds),
            Err(ClientError::Bad(reason)) => FromNode::Bad(reason),
            Err(error) => {
                tracing::info!(reason = chain(&error), "node disconnected");
                return to_service.blocking_send(FromNode::Disconnected).ok();
            }
        };
        to_service.blocking_send(message).ok()?;
    }
}

async fn accept_peers(
    listener: TcpListener,
    inbound: Arc<LinkSlot>,
    identity: watch::Receiver<Option<Identity>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the connection is gone already.
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!(%from, "too many connections at once");
            continue;
        };
        let Some(own) = identity.borrow().clone() else {
            tracing::debug!(%from, "a peer connected before our node said its group");
            continue;
        };
        let inbound = inbound.clone();
        tokio::spawn(async move {
            match PeerLink::accept(stream, &own).await {
                Ok(link) => inbound.put(link),
                Err(error) => tracing::warn!(%from, reason = chain(&error), "peer refused"),
            }
            drop(permit);
        });
    }
}
