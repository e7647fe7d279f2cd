//! What became of datagrams, and why a link cannot be set up.

use plover_types::NodeId;

/// Why a link was not set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecureError {
    /// A peer is given this node's own key, or two peers share one.
    #[error("node {0} has the public key of another node; each node needs a key file of its own")]
    SharedKey(NodeId),
    /// Two peers have one id.
    #[error("node {0} is listed twice")]
    SharedId(NodeId),
    /// A key that agrees with everybody.
    #[error("the public key of node {0} is none; make one with `plover keygen`")]
    WeakKey(NodeId),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// There is no session with the peer yet, or no more. The caller drops the datagram, as the
/// network may; who sends again sends after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no session with this node")]
pub struct NoSession;

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SecureCounters {
    /// Datagrams sealed, keep-alives included.
    pub sealed: u64,
    /// Datagrams opened, keep-alives included.
    pub opened: u64,
    /// Datagrams not sealed since there was no session.
    pub no_session: u64,
    /// Datagrams of nobody's session or handshake: strangers', and late ones of sessions that
    /// ended.
    pub strangers: u64,
    /// Datagrams that are not what somebody with the keys made.
    pub forged: u64,
    /// Datagrams that came before, or so late that nobody knows.
    pub replayed: u64,
    /// Datagrams of an impossible length or kind.
    pub malformed: u64,
    /// Datagrams of another version.
    pub other_version: u64,
    /// Handshakes not looked at since too many came.
    pub limited: u64,
    /// Handshakes that both sides began at once, and this side let go.
    pub crossed: u64,
    /// Handshakes begun, each retry counted.
    pub handshakes_begun: u64,
    /// Sessions made.
    pub sessions: u64,
}
