//! The connection between two hashers: frames over TLS over TCP, every wait bounded, handshakes
//! included.
//!
//! What a message means is not known here; see `exchange`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use plover_types::{LogIndex, NodeId, SyncId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificate::{CertificateKey, Certifier};
use crate::error::{ProtocolError, RoundError};
use crate::limits::{CONNECT_MAX, PEER_SILENCE_MAX};
use crate::protocol::{FrameHeader, HEADER_BYTES, Message};
use crate::secure::{LinkKeys, cause_of};
use crate::stream::Stream;

const NO_SYNC: SyncId = SyncId(LogIndex(0));

/// Bytes that a payload's buffer grows by at a time, so that a length in a header alone does
/// not make us allocate.
const READ_STEP_BYTES: usize = 1 << 20;

/// Who we are to a peer.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The replica group.
    pub group: String,
    /// This node.
    pub node: NodeId,
    /// Its key and the peer's; none where security is switched off.
    pub keys: Option<LinkKeys>,
}

/// A connection whose hello was exchanged and whose key is agreed.
#[derive(Debug)]
pub struct PeerLink {
    stream: Stream,
    certifier: Certifier,
    initiated: bool,
    put_back: Option<(SyncId, Message)>,
    buffer: BytesMut,
    in_use: bool,
    /// The device state of the last round that was done on this connection.
    pub state_base: Vec<u8>,
    /// Bytes sent, since it was last set to 0.
    pub sent_bytes: u64,
    /// Bytes received, since it was last set to 0.
    pub received_bytes: u64,
}

impl PeerLink {
    /// Connects, says hello and chooses the key.
    ///
    /// # Errors
    /// If nobody answers in time, or who answers is not the peer.
    pub async fn connect(peer: SocketAddr, own: &Identity) -> Result<Self, RoundError> {
        let attempt = async {
            let stream = TcpStream::connect(peer)
                .await
                .map_err(|source| RoundError::Connect { peer, source })?;
            let stream = Stream::connected(stream, own.keys.as_ref()).await;
            let mut link = Self::over(stream.map_err(broken("greeting"))?, true);
            link.send(NO_SYNC, &own.hello()).await?;
            let hello = link.receive(NO_SYNC).await?;
            own.check(hello)?;
            let key = CertificateKey::generate();
            link.send(NO_SYNC, &Message::Key(key.clone())).await?;
            link.certifier = Certifier::new(&key);
            link.at_rest();
            Ok(link)
        };
        timeout(CONNECT_MAX, attempt)
            .await
            .unwrap_or(Err(RoundError::Silent("connecting")))
    }

    /// Answers a host that connected to us.
    ///
    /// # Errors
    /// If it says nothing in time, or is not the peer.
    pub async fn accept(stream: TcpStream, own: &Identity) -> Result<Self, RoundError> {
        let attempt = async {
            let stream = Stream::accepted(stream, own.keys.as_ref()).await;
            let mut link = Self::over(stream.map_err(broken("greeting"))?, false);
            let hello = link.receive(NO_SYNC).await?;
            own.check(hello)?;
            link.send(NO_SYNC, &own.hello()).await?;
            match link.receive(NO_SYNC).await? {
                Message::Key(key) => link.certifier = Certifier::new(&key),
                other => return Err(order(&other, "key").into()),
            }
            link.at_rest();
            Ok(link)
        };
        timeout(CONNECT_MAX, attempt)
            .await
            .unwrap_or(Err(RoundError::Silent("handshake")))
    }

    fn over(stream: Stream, initiated: bool) -> Self {
        Self {
            stream,
            certifier: Certifier::new(&CertificateKey([0; 48])),
            initiated,
            put_back: None,
            buffer: BytesMut::new(),
            in_use: false,
            state_base: Vec::new(),
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// Whether this side connected: the primary's must.
    #[must_use]
    pub fn initiated(&self) -> bool {
        self.initiated
    }

    /// Whether a byte of a round that has not ended well went over it, so that nobody knows where
    /// its messages stand.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// A round ended well: the next one may use it.
    pub fn at_rest(&mut self) {
        self.in_use = false;
    }

    /// The hashes under this connection's key.
    #[must_use]
    pub fn certifier(&self) -> &Certifier {
        &self.certifier
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the connection breaks or takes nothing for too long.
    pub async fn send(&mut self, sync: SyncId, message: &Message) -> Result<(), RoundError> {
        let (header, payload) = message.encode(sync);
        let doing = message.name();
        self.in_use = true;
        self.sent_bytes += (header.len() + payload.len()) as u64;
        let mut parts = [io::IoSlice::new(&header), io::IoSlice::new(&payload)];
        let mut rest = &mut parts[..];
        io::IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = timeout(PEER_SILENCE_MAX, self.stream.write_vectored(rest))
                .await
                .map_err(|_| RoundError::Silent(doing))?
                .map_err(broken(doing))?;
            if written == 0 {
                return Err(broken(doing)(io::ErrorKind::WriteZero.into()));
            }
            io::IoSlice::advance_slices(&mut rest, written);
        }
        // TLS may still hold a part of it.
        timeout(PEER_SILENCE_MAX, self.stream.flush())
            .await
            .map_err(|_| RoundError::Silent(doing))?
            .map_err(broken(doing))
    }

    /// Receives the next message of `sync`, waiting for it no longer than the peer may be silent.
    ///
    /// # Errors
    /// If the connection breaks, the message is bad, belongs to another sync, or is an abort.
    pub async fn receive(&mut self, sync: SyncId) -> Result<Message, RoundError> {
        match self.receive_any(PEER_SILENCE_MAX).await? {
            (got, _) if got != sync => Err(ProtocolError::Sync { got, want: sync }.into()),
            (_, Message::Abort { code, reason }) => Err(RoundError::PeerAborted { code, reason }),
            (_, message) => Ok(message),
        }
    }

    /// Receives the next message, whichever sync it names.
    ///
    /// # Errors
    /// If the connection breaks or the message is bad.
    pub async fn receive_any(&mut self, wait: Duration) -> Result<(SyncId, Message), RoundError> {
        if let Some(message) = self.put_back.take() {
            return Ok(message);
        }
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, wait).await?;
        let header = FrameHeader::decode(&header)?;
        let bytes = header.payload_bytes();
        while self.buffer.len() < bytes {
            self.read_some(bytes).await?;
        }
        let payload = self.buffer.split();
        self.received_bytes += (HEADER_BYTES + payload.len()) as u64;
        Ok((header.sync(), header.message(payload.freeze())?))
    }

    /// Makes a message the next one to be received; nothing else is under way.
    pub fn put_back(&mut self, sync: SyncId, message: Message) {
        self.at_rest();
        self.put_back = Some((sync, message));
    }

    async fn fill(&mut self, mut into: &mut [u8], wait: Duration) -> Result<(), RoundError> {
        while !into.is_empty() {
            let got = received(timeout(wait, self.stream.read(into)).await)?;
            self.in_use = true;
            into = &mut into[got..];
        }
        Ok(())
    }

    /// Reads on towards a payload of so many bytes. The buffer is used again once the payloads
    /// before are dropped, and grows in steps.
    async fn read_some(&mut self, bytes: usize) -> Result<(), RoundError> {
        let step = (bytes - self.buffer.len()).min(READ_STEP_BYTES);
        self.buffer.reserve(step);
        let mut room = (&mut self.buffer).limit(step);
        received(timeout(PEER_SILENCE_MAX, self.stream.read_buf(&mut room)).await).map(|_| ())
    }

    /// Returns when the connection has ended although no round used it. Safe to drop and call
    /// again.
    pub async fn lost_while_idle(&mut self) -> io::Error {
        let mut byte = [0];
        match self.stream.tcp().peek(&mut byte).await {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            // The peer has begun the next round. Whoever takes it up will see how it goes on.
            Ok(_) => std::future::pending().await,
            Err(error) => error,
        }
    }
}

impl Identity {
    fn hello(&self) -> Message {
        Message::Hello {
            group: self.group.clone(),
            node: self.node,
        }
    }

    fn check(&self, hello: Message) -> Result<(), ProtocolError> {
        match hello {
            Message::Hello { group, node } if group == self.group && node != self.node => Ok(()),
            Message::Hello { group, node } => Err(ProtocolError::Identity { group, node }),
            other => Err(order(&other, "hello")),
        }
    }
}

/// The error for a message out of turn.
pub(crate) fn order(got: &Message, want: &'static str) -> ProtocolError {
    ProtocolError::Order {
        got: got.name(),
        want,
    }
}

fn received(
    read: Result<io::Result<usize>, tokio::time::error::Elapsed>,
) -> Result<usize, RoundError> {
    let got = read.map_err(|_| RoundError::Silent("nothing came"))?;
    match got.map_err(broken("receiving"))? {
        0 => Err(broken("receiving")(io::ErrorKind::UnexpectedEof.into())),
        got => Ok(got),
    }
}

fn broken(doing: &'static str) -> impl Fn(io::Error) -> RoundError {
    move |source| match cause_of(&source) {
        Some(source) => RoundError::Secure { doing, source },
        None => RoundError::Link { doing, source },
    }
}
