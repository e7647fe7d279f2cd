//! What became of frames.

/// Counts of frames and datagrams, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NetCounters {
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Datagrams of peers received.
    pub datagrams_received: u64,
    /// Datagrams lost because the next hop's MAC address is not known.
    pub unresolved: u64,
    /// Datagrams to no peer, or too long.
    pub unroutable: u64,
    /// Frames of other protocols, to other stations, addresses or ports.
    pub foreign: u64,
    /// Datagrams to us from an address that is no peer's.
    pub strangers: u64,
    /// Frames, packets and datagrams with lengths that contradict each other, and IP fragments.
    pub malformed: u64,
    /// Headers, datagrams and ICMP messages whose checksum does not match, or is missing.
    pub checksums: u64,
    /// Questions for a MAC address that we asked.
    pub questions_sent: u64,
    /// Answers to them, and announcements of peers and the gateway.
    pub neighbours_heard: u64,
    /// Questions for our MAC address that we answered.
    pub questions_answered: u64,
    /// Echo requests that we answered.
    pub echoes_answered: u64,
    /// Answers that were not given: too many were asked for.
    pub answers_withheld: u64,
    /// Complaints of routers that a datagram was too long for the way: the MTU is set too large.
    pub too_big: u64,
}
