//! The core of a node: raft-rs, the group's state, the local copy, the lease and the input
//! cursor, behind `step(event) -> actions`. No IO, no clock, no thread: the driver says what time
//! it is and does what the actions say.
//!
//! Order of actions is order of execution. `Send`s of what must be durable first come only after
//! the matching [`Event::Persisted`].

mod apply;
mod detection;
mod failover;
mod lead;
mod log;
mod membership;
mod messages;
mod types;
mod view;
mod watchdog;

use std::collections::VecDeque;
use std::time::Duration;

use plover_types::limits::GROUP_SIZES;
use plover_types::{Generation, LogIndex, NodeId, Packet, PacketBurst, Position, SyncId};
use raft::eraftpb::Message;
use raft::{RawNode, StateRole};

use crate::epoch::{CopyCommand, CopyEvent, LocalCopy};
use crate::group::{GroupState, names_members};
use crate::input::{InputCursor, KeptPackets, NothingKept};
use crate::lease::Lease;
use crate::limits::{
    APPEND_BYTES_MAX, APPENDS_IN_FLIGHT_MAX, CLOCK_DRIFT_PERMILLE, ELECTION_GRACE_TICKS,
    ELECTION_STAGGER_TICKS, LOG_BYTES_MAX, PEER_LOST_TIMEOUTS, RETRY_AFTER_FILL,
    UNCOMMITTED_BYTES_MAX,
};
use crate::output_rule::{self, OutputPolicy};
use crate::planted::{Bug, planted};
use crate::storage::LogStorage;
use crate::wire::CopyReport;

pub use failover::{FailoverProgress, FailoverRefused};
pub use membership::members_at_start;
pub use plover_types::NodeSpec;
pub use types::{Action, CoreConfig, CoreCounters, CoreError, Event, Notice, Persist};

#[derive(Clone, Debug)]
struct PeerState {
    spec: NodeSpec,
    /// When a snapshot was last sent to it.
    snapshot_sent: Option<Duration>,
    /// When it came, on the clock and in this node's ticks.
    report: Option<(Duration, u64, CopyReport)>,
}

impl PeerState {
    fn new(spec: NodeSpec) -> Self {
        Self {
            spec,
            snapshot_sent: None,
            report: None,
        }
    }
}

/// Messages that wait for a Ready to be durable.
struct AwaitingPersist {
    /// Number of the request to the disk.
    number: u64,
    /// Last of raft-rs's numbers that it covers.
    ready: u64,
    messages: Vec<Message>,
    snapshot_index: Option<u64>,
}

/// The core of a node.
pub struct Core {
    config: CoreConfig,
    raft: RawNode<LogStorage>,
    group: GroupState,
    applied: LogIndex,
    copy: LocalCopy,
    cursor: InputCursor,
    lease: Lease,
    peers: Vec<PeerState>,
    actions: Vec<Action>,
    awaiting: VecDeque<AwaitingPersist>,
    now: Duration,
    /// Ticks so far. Peers are judged silent by these: a node that was stopped itself has not
    /// heard them, and must not take that for their loss.
    ticks: u64,
    /// Votes are withheld until then.
    votes_from: Duration,
    last_heard: Duration,
    seen_leader: (u64, u64),
    seen_role: StateRole,
    /// An entry of the leader's own term is applied: all before it is, too.
    leads_since_term: u64,
    /// Index of this leader's last control proposal; the next waits until it is applied.
    proposed: LogIndex,
    handed_over_at: Option<Duration>,
    sync_wanted: bool,
    sync_began_at: Duration,
    aborted_in_a_row: u32,
    not_before: Duration,
    fill_wait: Duration,
    idle: bool,
    uplink_up: bool,
    report_sequence: u64,
    reported: Option<LocalCopy>,
    /// The guest ran here once, or may have before a restart.
    has_run: bool,
    /// The last entry that was there when this node started again.
    recovered: LogIndex,
    is_mute: bool,
    detection: detection::Detection,
    /// The last planned failover that was asked for here.
    failover: Option<failover::Failover>,
    watchdog: watchdog::Watchdog,
    /// The log lists this node.
    is_member: bool,
    /// The last node that was heard after it was replaced.
    gone_heard: Option<NodeId>,
    counters: CoreCounters,
}

impl Core {
    /// A core over a fresh or recovered log.
    ///
    /// # Errors
    /// When the node is not a member, or the recovered state contradicts itself.
    pub fn new(
        config: CoreConfig,
        mut storage: LogStorage,
        now: Duration,
    ) -> Result<Self, CoreError> {
        let own = config.own;
        if !GROUP_SIZES.contains(&config.nodes.len()) {
            return Err(CoreError::NodeCount(config.nodes.len()));
        }
        let place = config
            .nodes
            .iter()
            .filter(|node| node.is_replica)
            .chain(config.nodes.iter().filter(|node| !node.is_replica))
            .position(|node| node.id == own)
            .ok_or(CoreError::NotMember(own))?;
        let is_alone = config.nodes.len() == 1;
        if is_alone && (config.is_durable || !config.nodes[0].is_replica) {
            return Err(CoreError::Alone(own));
        }
        let mut group = GroupState::of(members_at_start(&config));
        let mut applied = LogIndex(0);
        if let Some((index, _, data)) = storage.snapshot_data()
            && !data.is_empty()
        {
            group = GroupState::decode(data.clone()).ok_or(CoreError::Snapshot)?;
            if !names_members(data) {
                group.set_members(members_at_start(&config));
            }
            applied = index;
            storage.set_commit(applied);
        }
        let recovered = storage.last();
        let raft_config = raft_config(&config, place, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut raft = RawNode::new(&raft_config, storage, &logger)?;
        if is_alone {
            // There is no other vote to wait for, and no leader that could be heard.
            raft.campaign()?;
        }
        let lease = Lease::new(config.nodes.len(), config.tick, config.election_ticks);
        let timeout = config.tick * config.election_ticks;
        let withheld = timeout + timeout * CLOCK_DRIFT_PERMILLE / 1000 + config.tick;
        let peers = config
            .nodes
            .iter()
            .filter(|node| node.id != own)
            .map(|spec| PeerState::new(spec.clone()))
            .collect();
        let mut cursor = InputCursor::default();
        cursor.seek(Position::start_of(applied.next()));
        let is_member = group.members().standing(own).is_some();
        let mut core = Self {
            is_member,
            gone_heard: None,
            failover: None,
            detection: detection::Detection::default(),
            watchdog: watchdog::Watchdog::default(),
            votes_from: if config.is_restarted {
                now + withheld
            } else {
                now
            },
            raft,
            group,
            applied,
            copy: LocalCopy::Absent,
            cursor,
            lease,
            peers,
            actions: Vec::new(),
            awaiting: VecDeque::new(),
            now,
            ticks: 0,
            last_heard: now,
            seen_leader: (0, 0),
            seen_role: StateRole::Follower,
            leads_since_term: 0,
            proposed: LogIndex(0),
            handed_over_at: None,
            sync_wanted: false,
            sync_began_at: now,
            aborted_in_a_row: 0,
            not_before: now,
            fill_wait: RETRY_AFTER_FILL,
            idle: false,
            // Until it was looked at.
            uplink_up: true,
            report_sequence: 0,
            reported: None,
            has_run: config.is_restarted,
            recovered,
            is_mute: false,
            counters: CoreCounters::default(),
            config,
        };
        if *core.group.members() != members_at_start(&core.config) {
            core.follow_members();
        }
        Ok(core)
    }

    /// Takes one event; what is to be done comes out of [`Self::take_actions`].
    pub fn step(&mut self, now: Duration, event: Event) {
        self.now = now;
        let is_tick = matches!(event, Event::Tick);
        match event {
            Event::Tick if self.awaits_snapshot() || self.is_mute => self.ticks += 1,
            Event::Tick => {
                self.ticks += 1;
                self.raft.tick();
                self.give_up_lost_snapshots();
                self.watch_failover();
                self.watch_guest();
            }
            Event::Receive(envelope) => self.receive(envelope),
            Event::Persisted(number) => self.persisted(number),
            Event::PersistFailed => self.is_mute = true,
            Event::Copy(event) => self.copy_event(event),
        }
        self.settle();
        let changed = self.reported != Some(self.copy);
        if changed {
            self.actions.push(Action::Note(Notice::Copy(self.copy)));
        }
        if is_tick || changed {
            self.send_reports();
        }
    }

    fn copy_event(&mut self, event: CopyEvent) {
        self.copy.on_event(event);
        if planted(Bug::ApplyBeforeCommit)
            && let LocalCopy::Staged { sync, .. } = self.copy
        {
            let position = Position::start_of(sync.id.0);
            let (sync, command) = (
                sync.id,
                CopyCommand::Commit {
                    sync: sync.id,
                    position,
                },
            );
            self.actions.push(Action::Copy(command));
            self.copy = LocalCopy::Loading { sync };
        }
        self.has_run |= event == CopyEvent::Booted;
        // The first primary's VMM died before its guest ran: nothing is lost, it boots again.
        let is_first = self.group.role().is_some_and(|role| {
            role.primary == self.config.own && role.generation == Generation(1)
        });
        if is_first && !self.has_run && self.copy == LocalCopy::Ready {
            self.copy = LocalCopy::Booting;
            self.actions.push(Action::Copy(CopyCommand::Boot));
        }
    }

    /// Proposes a burst of input. Returns its place in the log.
    ///
    /// # Errors
    /// Gives the burst back if it cannot be proposed now; it must be kept and offered again, for
    /// it was admitted.
    ///
    /// # Panics
    /// If it is a stub, and this core takes none.
    pub fn propose(&mut self, now: Duration, burst: PacketBurst) -> Result<LogIndex, PacketBurst> {
        assert!(
            self.takes_stubs() || !burst.is_stub(),
            "a stub in a log that others read"
        );
        self.now = now;
        if !self.may_propose() {
            return Err(burst);
        }
        if self.propose_bytes(burst.encoded().clone()).is_err() {
            self.counters.proposals_refused += 1;
            return Err(burst);
        }
        let index = LogIndex(self.raft.raft.raft_log.last_index());
        self.settle();
        Ok(index)
    }

    /// Whether nobody but this node's copy reads the log: then an input entry may be proposed as
    /// a stub, with the packets kept by the caller until they are delivered. Where this becomes
    /// false, [`Self::write_out`] is due.
    #[must_use]
    pub fn takes_stubs(&self) -> bool {
        let followed = self.raft.raft.prs().iter().count();
        self.peers.is_empty() && followed == 1 && !self.config.is_durable
    }

    /// Takes what is to be done, in order. Hand the emptied buffer back with
    /// [`Self::recycle`] so that nothing is allocated next time.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Gives the buffer of [`Self::take_actions`] back.
    pub fn recycle(&mut self, mut actions: Vec<Action>) {
        actions.clear();
        if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    /// Offers committed packets in order, one by one, until `give` answers false: that one stays
    /// next. As [`Self::deliver_runs`].
    pub fn deliver(&mut self, mut give: impl FnMut(Position, &Packet<'_>) -> bool) -> usize {
        self.deliver_runs(|first, packets| {
            let mut position = first;
            let taken = packets.iter().take_while(|packet| {
                let is_taken = give(position, packet);
                position.packet += 1;
                is_taken
            });
            taken.count()
        })
    }

    /// Offers committed packets in order, in runs; see [`InputCursor::deliver`].
    ///
    /// A copy whose next input is no longer in the log missed it, and is void.
    pub fn deliver_runs(&mut self, give: impl FnMut(Position, &[Packet<'_>]) -> usize) -> usize {
        self.deliver_kept(&NothingKept, give)
    }

    /// As [`Self::deliver_runs`], with those packets that the caller keeps.
    pub fn deliver_kept(
        &mut self,
        kept: &impl KeptPackets,
        give: impl FnMut(Position, &[Packet<'_>]) -> usize,
    ) -> usize {
        let store = self.raft.raft.raft_log.store();
        if self.cursor.position().index < store.first() && self.copy.can_serve() {
            self.missed_input();
            return 0;
        }
        let offered = self.cursor.deliver(
            self.applied,
            |index| store.entry(index).map(|entry| entry.data.clone()),
            kept,
            give,
        );
        if offered.given > 0 {
            self.guest_was_given();
        }
        if offered.is_lost && self.copy.can_serve() {
            self.missed_input();
        }
        offered.given
    }

    fn missed_input(&mut self) {
        self.counters.input_missed += 1;
        let actions = &mut self.actions;
        self.copy
            .on_snapshot(|command| actions.push(Action::Copy(command)));
    }

    /// The backup's copy was replaced: delivery goes on at `position`. Returns false if the log
    /// does not reach back that far.
    #[must_use]
    pub fn seek(&mut self, position: Position) -> bool {
        self.cursor.seek(if planted(Bug::ReplayOffByOne) {
            Position {
                packet: position.packet + 1,
                ..position
            }
        } else {
            position
        });
        self.guest_gave_sign();
        position.index >= self.raft.raft.raft_log.store().first() || position.index > self.applied
    }

    /// The copy runs again after `sync` (none: for the first time): input beyond the sync point may
    /// be delivered. The barrier of a later sync stays.
    pub fn lift_barrier(&mut self, sync: Option<SyncId>) {
        if sync.is_none_or(|sync| self.cursor.barrier() == Some(sync.0)) {
            self.cursor.set_barrier(None);
        }
    }

    /// Whether input from some entry on waits for a sync.
    #[must_use]
    pub fn holds_input_back(&self) -> bool {
        self.cursor.barrier().is_some()
    }

    /// Whether all input before the barrier was delivered.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.cursor.is_drained(self.applied)
    }

    /// Asks for a sync as soon as one may start.
    pub fn want_sync(&mut self, now: Duration) {
        self.now = now;
        if !self.sync_wanted {
            self.sync_wanted = true;
            self.settle();
        }
    }

    /// What this node tells its peers about itself; at once if the copy came to rest or woke up.
    pub fn set_condition(&mut self, now: Duration, idle: bool, uplink_up: bool) {
        self.now = now;
        let changed = (self.idle, self.uplink_up) != (idle, uplink_up);
        (self.idle, self.uplink_up) = (idle, uplink_up);
        if changed {
            self.send_reports();
        }
    }

    /// Whether a frame may leave by the uplink now. Check before each transmit burst.
    #[must_use]
    pub fn may_transmit(&self, now: Duration) -> bool {
        self.is_serving() && (self.lease.holds(now) || planted(Bug::LeaseIgnored))
    }

    /// Whether this node is the primary, leads, and its copy is its own and current.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        let is_shut = self.handed_over_at.is_some() && !planted(Bug::HandOverWithOpenUplink);
        self.leads() && self.is_primary() && self.copy.serves() && !is_shut
    }

    /// Whether a burst offered now would be taken.
    #[must_use]
    pub fn may_propose(&self) -> bool {
        self.leads()
            && self.is_primary()
            && self.copy.can_serve()
            && self.handed_over_at.is_none()
            && !self.is_mute
            && self.log_has_room()
    }

    /// Whether the log takes more input.
    #[must_use]
    pub fn log_has_room(&self) -> bool {
        self.log_bytes() < LOG_BYTES_MAX
    }

    /// What happens to a packet that the guest sends now. `closed`: an epoch is closed and
    /// neither ended nor aborted ([`HoldQueue::has_closed`](output_rule::HoldQueue::has_closed)).
    #[must_use]
    pub fn output_policy(&self, closed: bool) -> OutputPolicy {
        let sync = self.group.sync();
        let closed = closed || sync.is_some_and(|sync| sync.ended);
        output_rule::policy(self.config.own, self.group.role(), sync, closed)
    }

    fn leads(&self) -> bool {
        let applies_own_term = self.leads_since_term == self.raft.raft.term;
        self.raft.raft.state == StateRole::Leader
            && (applies_own_term || planted(Bug::LeadBeforeOwnTerm))
    }

    fn is_primary(&self) -> bool {
        self.group
            .role()
            .is_some_and(|role| role.primary == self.config.own)
    }

    fn is_recent(&self, at_tick: u64) -> bool {
        let silent = self.ticks.saturating_sub(at_tick);
        silent <= u64::from(self.config.election_ticks * PEER_LOST_TIMEOUTS)
    }

    /// Brings everything to rest after an event: raft-rs's output, committed entries, the plan.
    fn settle(&mut self) {
        loop {
            self.drain_raft();
            self.watch_leadership();
            if !self.act_on_plan() && !self.raft.has_ready() {
                break;
            }
        }
    }
}

fn raft_config(config: &CoreConfig, place: usize, applied: LogIndex) -> raft::Config {
    let election_tick = config.election_ticks as usize;
    let timeout = election_tick + ELECTION_GRACE_TICKS + place * ELECTION_STAGGER_TICKS;
    raft::Config {
        id: config.own.0,
        election_tick,
        heartbeat_tick: 1,
        min_election_tick: timeout,
        max_election_tick: timeout + 1,
        applied: applied.0,
        max_size_per_msg: APPEND_BYTES_MAX,
        max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        check_quorum: true,
        pre_vote: true,
        ..raft::Config::default()
    }
}
