//! What a node says of itself when it is asked.

use std::time::Duration;

use plover_types::{
    LogIndex, Member, NodeId, Position, RoleEntry, Standing, SyncId, SyncKind, Term,
};
use replication::core::{CoreCounters, FailoverProgress};
use replication::link::{GuardCounters, LinkStatus, links_of};
use replication::net::NetCounters;
use replication::node::{Node, NodeCounters};
use replication::transport::TransportCounters;
use replication::wire::CopyState;
use serde::Serialize;

use crate::guest_nic::{NicState, PairCounts};
use crate::path::admit::Refused;
use crate::path::outgoing::OutgoingCounters;
use crate::poll::StepCosts;

/// Packets at each step of the path, and where they were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathCounters {
    /// From the uplink.
    pub received: u64,
    /// Passed `admit`.
    pub admitted: u64,
    /// Shorter or longer than a packet may be.
    pub dropped_length: u64,
    /// For another station.
    pub dropped_foreign: u64,
    /// This node is not the primary.
    pub dropped_not_primary: u64,
    /// The log holds as much as it may: no sync finishes.
    pub dropped_log_full: u64,
    /// Too much input waits for the guest, or the guest's driver is not up yet.
    pub dropped_no_room: u64,
    /// Admitted, and the role was lost before they were in the log.
    pub dropped_role_lost: u64,
    /// Put into the log.
    pub proposed: u64,
    /// Entries whose packets had been kept in their buffers and were written into the log after
    /// all.
    pub entries_written_out: u64,
    /// Given to the guest.
    pub delivered: u64,
    /// Taken from the guest, as frames.
    pub taken: u64,
    /// Packets larger than a frame, cut into the frames that are counted as taken.
    pub transmit_cut: u64,
    /// Of these, those too long to send.
    pub transmit_dropped: u64,
    /// Those with an offload that does not fit the packet.
    pub transmit_malformed: u64,
    /// Those to be cut for whose frames there were no buffers.
    pub transmit_no_mbuf: u64,
    /// Left by the uplink.
    pub released: u64,
    /// Output of a copy that was replaced or voided.
    pub discarded: u64,
    /// Times the guest's addresses were announced.
    pub announcements: u64,
}

impl PathCounters {
    /// A packet from the uplink was not admitted.
    pub(crate) fn refuse(&mut self, why: Refused) {
        *match why {
            Refused::Length => &mut self.dropped_length,
            Refused::NotForGuest | Refused::FromGuest => &mut self.dropped_foreign,
            Refused::LogFull => &mut self.dropped_log_full,
            Refused::NotPrimary => &mut self.dropped_not_primary,
            Refused::NoRoom => &mut self.dropped_no_room,
        } += 1;
    }

    /// Takes over what was counted between the guest's rings and the queue.
    pub(crate) fn outgoing(&mut self, counters: OutgoingCounters) {
        self.transmit_cut = counters.cut;
        self.transmit_dropped = counters.too_long;
        self.transmit_malformed = counters.malformed;
        self.transmit_no_mbuf = counters.no_mbuf;
    }
}

/// A peer as its last report shows it.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its id.
    pub node: NodeId,
    /// How old the report is.
    pub age_ms: u64,
    /// Its copy.
    pub copy: String,
    /// Whether that copy runs now.
    pub copy_runs: bool,
    /// Its delivered position.
    pub delivered: Position,
    /// Whether its copy rests.
    pub is_idle: bool,
}

/// A member of the group.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    /// Its id.
    pub node: NodeId,
    /// Whether it may hold a copy.
    pub is_replica: bool,
    /// What its word counts: voter, learner, joining or leaving.
    pub standing: &'static str,
    /// The lost member whose place it takes.
    pub replaces: Option<NodeId>,
}

impl MemberStatus {
    fn of(member: &Member) -> Self {
        Self {
            node: member.spec.id,
            is_replica: member.spec.is_replica,
            standing: match member.standing {
                Standing::Voter => "voter",
                Standing::Learner { .. } => "learner",
                Standing::Joining { .. } => "joining",
                Standing::Leaving => "leaving",
            },
            replaces: member.standing.replaces(),
        }
    }
}

/// The sync in flight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SyncStatus {
    /// Its name.
    pub sync: SyncId,
    /// What it starts from.
    pub kind: SyncKind,
}

/// A node's status.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The Raft leader, if one is known.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: Term,
    /// The committed role.
    pub role: Option<RoleEntry>,
    /// Whether this node serves now: primary, leader, its copy current, its lease live.
    pub is_serving: bool,
    /// This node's copy.
    pub copy: String,
    /// Seconds since the node's start.
    pub uptime_s: u64,
    /// From the last heartbeat of a leader that is gone to a replica's asking for votes, at most.
    pub detection_ms: u64,
    /// Failovers without a dead primary, by the hour, as this node saw them since its start.
    pub false_failovers_per_hour: f64,
    /// The sync in flight.
    pub sync: Option<SyncStatus>,
    /// The last sync that ended.
    pub last_sync: Option<SyncId>,
    /// Index up to which the log is applied.
    pub applied: LogIndex,
    /// The next packet to deliver.
    pub delivered: Position,
    /// Bytes of log in memory.
    pub log_bytes: usize,
    /// Packets that wait for their epoch.
    pub held: usize,
    /// Packets that may leave and have not yet.
    pub agreed: usize,
    /// The rings are stopped for a sync.
    pub is_frozen: bool,
    /// The guest's receive ring runs.
    pub receive_runs: bool,
    /// The guest's transmit ring runs.
    pub transmit_runs: bool,
    /// Why a ring was stopped, if by what guest memory held.
    pub ring_fault: Option<String>,
    /// Packets of each of the guest's queue pairs.
    pub pairs: Vec<PairCounts>,
    /// Counts the changes of the members so far.
    pub members_version: u64,
    /// The members, as far as this node knows.
    pub members: Vec<MemberStatus>,
    /// Whether this node has a vote.
    pub has_vote: bool,
    /// Whether this node takes no part any more: its disk failed, or another took its place.
    pub is_mute: bool,
    /// How far the last planned failover is that this node was asked for.
    pub failover: Option<FailoverProgress>,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// The path.
    pub path: PathCounters,
    /// What its steps cost.
    pub costs: StepCosts,
    /// The core.
    pub core: CoreCounters,
    /// The node.
    pub node: NodeCounters,
    /// The way to each peer.
    pub links: Vec<LinkStatus>,
    /// Messages and datagrams.
    pub transport: TransportCounters,
    /// Datagrams that were not what they should be.
    pub guard: GuardCounters,
    /// Frames.
    pub net: NetCounters,
}

impl Status {
    pub(crate) fn of(
        node: &Node,
        now: Duration,
        held: usize,
        agreed: usize,
        is_frozen: bool,
        nic: Option<NicState>,
        path: PathCounters,
    ) -> Self {
        let core = node.core();
        let (leader, term) = core.leader();
        let nic = nic.unwrap_or_default();
        let fault = nic.receive_fault.or(nic.transmit_fault);
        Self {
            leader,
            term,
            role: core.group().role().copied(),
            is_serving: core.may_transmit(now),
            copy: name_of(core.copy().report()),
            uptime_s: now.as_secs(),
            detection_ms: u64::try_from(core.detection().as_millis()).unwrap_or(u64::MAX),
            false_failovers_per_hour: per_hour(core.counters().false_failovers, now),
            sync: core.group().sync().map(|sync| SyncStatus {
                sync: sync.id,
                kind: sync.kind,
            }),
            last_sync: core.group().last_end().map(|(sync, _)| sync),
            applied: core.applied(),
            delivered: core.position(),
            log_bytes: core.log_bytes(),
            held,
            agreed,
            is_frozen,
            receive_runs: nic.receive_runs,
            transmit_runs: nic.transmit_runs,
            ring_fault: fault.map(|fault| fault.to_string()),
            pairs: Vec::new(),
            members_version: core.group().members().version(),
            members: core
                .group()
                .members()
                .list()
                .iter()
                .map(MemberStatus::of)
                .collect(),
            has_vote: core.has_vote(),
            is_mute: core.is_mute(),
            failover: core.failover(),
            peers: core
                .reports()
                .map(|(node, at, report)| PeerStatus {
                    node,
                    age_ms: u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX),
                    copy: name_of(report.copy),
                    copy_runs: matches!(report.copy, CopyState::Running | CopyState::Loaded { .. }),
                    delivered: report.delivered,
                    is_idle: report.idle,
                })
                .collect(),
            path,
            costs: StepCosts::default(),
            core: *core.counters(),
            node: *node.counters(),
            links: links_of(node.link(), now),
            transport: *node.link().transport_counters(),
            guard: node.link().guard_counters(),
            net: node.link().net_counters(),
        }
    }
}

/// By the hour; of a node that runs for less than one, as often as there were.
fn per_hour(count: u64, uptime: Duration) -> f64 {
    count as f64 / (uptime.as_secs_f64() / 3600.0).max(1.0)
}

/// The state of a copy in a word.
#[must_use]
pub fn name_of(copy: CopyState) -> String {
    match copy {
        CopyState::None => "absent",
        CopyState::Ready => "ready to be filled",
        CopyState::Running => "running",
        CopyState::Syncing { .. } => "syncing",
        CopyState::Staged { .. } => "staged",
        CopyState::Loading { .. } => "loading",
        CopyState::Loaded { .. } => "running",
        CopyState::Failed { .. } => "sync failed",
        CopyState::Void => "void",
    }
    .to_owned()
}
