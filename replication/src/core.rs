//! The core of a node: raft-rs, the group's state, the local copy, the lease and the input
//! cursor, behind `step(event) -> actions`. No IO, no clock, no thread: the driver says what time
//! it is and does what the actions say.
//!
//! Order of actions is order of execution. `Send`s of what must be durable first come only after
//! the matching [`Event::Persisted`].

use std::collections::VecDeque;
use std::time::Duration;

use arrayvec::ArrayVec;
use bytes::Bytes;
use plover_types::limits::GROUP_NODES;
use plover_types::{
    Generation, LogEntry, LogIndex, Mode, NodeId, PacketBurst, Position, RoleEntry, SyncId,
    SyncKind, Term,
};
use raft::eraftpb::{Entry, HardState, Message, MessageType, Snapshot};
use raft::{RawNode, StateRole};

use crate::epoch::{CopyCommand, CopyEvent, LocalCopy};
use crate::group::{Applied, GroupState};
use crate::input::InputCursor;
use crate::lease::Lease;
use crate::limits::{
    ABORTED_IN_A_ROW_MAX, APPEND_BYTES_MAX, APPENDS_IN_FLIGHT_MAX, AWAITING_PERSIST_MAX,
    CLOCK_DRIFT_PERMILLE, COMPACT_ENTRIES, ELECTION_GRACE_TICKS, ELECTION_STAGGER_TICKS,
    HANDOVER_RETRY_TIMEOUTS, LOG_BYTES_MAX, PEER_LOST_TIMEOUTS, RETRY_AFTER_ABORT,
    RETRY_AFTER_FILL, RETRY_AFTER_FILL_MAX, UNCOMMITTED_BYTES_MAX,
};
use crate::output_rule::{self, OutputPolicy};
use crate::plan::{OnBackupLoss, Peer, Plan, View, plan};
use crate::storage::LogStorage;
use crate::wire::{Body, CopyReport, Envelope, check_against_log};

/// A member of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its id.
    pub id: NodeId,
    /// Whether it may hold a copy of the VM; a witness may not.
    pub is_replica: bool,
}

/// What a core is made with.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub own: NodeId,
    /// All members, this one included, in the same order on every node.
    pub nodes: Vec<NodeSpec>,
    /// Length of a tick. [`Event::Tick`] must not come more often.
    pub tick: Duration,
    /// Ticks without a leader before an election (the first node's; the others' follow).
    pub election_ticks: u32,
    /// When a sync that does not finish is given up.
    pub sync_timeout: Duration,
    /// What to do without a backup.
    pub on_backup_loss: OnBackupLoss,
    /// Whether the driver persists: then it answers each [`Action::Persist`].
    pub is_durable: bool,
    /// Whether this node ran before under this id. It then grants no vote for one election
    /// timeout: a lease that it acknowledged may still be running.
    pub is_restarted: bool,
    /// Random, per process start.
    pub incarnation: u64,
    /// Hash of what both hosts must have in common.
    pub host_facts_hash: u64,
}

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// One tick passed since the last one, or more.
    Tick,
    /// A checked message of a peer arrived.
    Receive(Envelope),
    /// What the action with this number asked for is on disk.
    Persisted(u64),
    /// The disk failed: from now on this node acknowledges nothing.
    PersistFailed,
    /// The driver of the copy reports.
    Copy(CopyEvent),
}

/// What goes to disk before anything that depends on it is sent.
#[derive(Clone, Debug)]
pub struct Persist {
    /// Comes back in [`Event::Persisted`].
    pub number: u64,
    /// Entries to append; they replace what is there from the first one's index on.
    pub entries: Vec<Entry>,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// A snapshot that replaces the log, if one was received.
    pub snapshot: Option<Snapshot>,
}

/// Something to do outside.
#[derive(Debug)]
pub enum Action {
    /// Send a message.
    Send(Envelope),
    /// Make this durable, then say [`Event::Persisted`].
    Persist(Persist),
    /// The log before `to` is not needed any more; `data` stands for everything up to `index`.
    Compact {
        /// First entry to keep.
        to: LogIndex,
        /// The snapshot's index.
        index: LogIndex,
        /// The snapshot's term.
        term: Term,
        /// The snapshot.
        data: Bytes,
        /// Term, vote and commit as they were then: a snapshot stands for committed entries only.
        hard_state: HardState,
    },
    /// A command for the driver of the copy.
    Copy(CopyCommand),
    /// The sync ended: its epoch may leave.
    EndEpoch(SyncId),
    /// The sync was given up: its epoch merges into the next.
    AbortEpoch(SyncId),
    /// Something to tell the operator.
    Note(Notice),
}

/// What an operator, a test or a log wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// This node sees a leader, or none (id 0).
    Leader {
        /// The term.
        term: Term,
        /// The leader.
        leader: NodeId,
    },
    /// This node asks for votes.
    Campaign {
        /// The term in which it does.
        term: Term,
        /// When it last heard a leader.
        last_heard: Duration,
    },
    /// A role was committed and applied.
    Role(RoleEntry),
    /// A sync starts.
    SyncBegan(crate::group::SyncInFlight),
    /// A sync ended.
    SyncEnded {
        /// Which.
        sync: crate::group::SyncInFlight,
        /// Where both copies go on.
        position: Position,
    },
    /// A sync was given up.
    SyncAborted(crate::group::SyncInFlight),
    /// This leader asks another node to lead.
    HandOver {
        /// The other node.
        to: NodeId,
    },
    /// The state of this node's copy changed.
    Copy(LocalCopy),
    /// The other replica's host has other facts: its copy will not be filled.
    HostsDiffer {
        /// The other replica.
        node: NodeId,
    },
}

/// Counts of what was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CoreCounters {
    /// Messages that do not fit the log.
    pub messages_unfit: u64,
    /// Messages that raft-rs refused.
    pub messages_refused: u64,
    /// Votes withheld after a restart.
    pub votes_withheld: u64,
    /// Committed entries whose bytes are no entry.
    pub entries_malformed: u64,
    /// Control entries proposed under another role.
    pub entries_ignored: u64,
    /// Times that a copy's next input was no longer in the log.
    pub input_missed: u64,
    /// Bursts that could not be proposed at once.
    pub proposals_refused: u64,
}

#[derive(Debug)]
struct PeerState {
    spec: NodeSpec,
    /// When a snapshot was last sent to it.
    snapshot_sent: Option<Duration>,
    /// When it came, on the clock and in this node's ticks.
    report: Option<(Duration, u64, CopyReport)>,
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
    /// The guest ran here once.
    has_run: bool,
    is_mute: bool,
    counters: CoreCounters,
}

/// Why a core could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// raft-rs refused the configuration.
    #[error("the consensus core refused its configuration")]
    Raft(#[from] raft::Error),
    /// This node is not a member.
    #[error("node {0} is not among the nodes of the group")]
    NotMember(NodeId),
    /// The group has too many nodes.
    #[error("a group has {GROUP_NODES} nodes, not {0}")]
    NodeCount(usize),
    /// The recovered snapshot is not one of ours.
    #[error("the stored snapshot of the group's state cannot be read; see docs/operations.md")]
    Snapshot,
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
        if config.nodes.len() != GROUP_NODES {
            return Err(CoreError::NodeCount(config.nodes.len()));
        }
        let place = config
            .nodes
            .iter()
            .filter(|node| node.is_replica)
            .chain(config.nodes.iter().filter(|node| !node.is_replica))
            .position(|node| node.id == own)
            .ok_or(CoreError::NotMember(own))?;
        let mut group = GroupState::default();
        let mut applied = LogIndex(0);
        if let Some((index, _, data)) = storage.snapshot_data()
            && !data.is_empty()
        {
            group = GroupState::decode(data.clone()).ok_or(CoreError::Snapshot)?;
            applied = index;
            storage.set_commit(applied);
        }
        let raft_config = raft_config(&config, place, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&raft_config, storage, &logger)?;
        let lease = Lease::new(config.nodes.len(), config.tick, config.election_ticks);
        let timeout = config.tick * config.election_ticks;
        let withheld = timeout + timeout * CLOCK_DRIFT_PERMILLE / 1000 + config.tick;
        let peers = config
            .nodes
            .iter()
            .filter(|node| node.id != own)
            .map(|spec| PeerState {
                spec: *spec,
                snapshot_sent: None,
                report: None,
            })
            .collect();
        let mut cursor = InputCursor::default();
        cursor.seek(Position::start_of(applied.next()));
        Ok(Self {
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
            has_run: false,
            is_mute: false,
            counters: CoreCounters::default(),
            config,
        })
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

    /// Proposes a burst of input.
    ///
    /// # Errors
    /// Gives the burst back if it cannot be proposed now; it must be kept and offered again, for
    /// it was admitted.
    pub fn propose(&mut self, now: Duration, burst: PacketBurst) -> Result<(), PacketBurst> {
        self.now = now;
        if !self.may_propose() {
            return Err(burst);
        }
        if self.propose_bytes(burst.encoded().clone()).is_err() {
            self.counters.proposals_refused += 1;
            return Err(burst);
        }
        self.settle();
        Ok(())
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

    /// Offers committed packets in order; see [`InputCursor::deliver`].
    ///
    /// A copy whose next input is no longer in the log missed it, and is void.
    pub fn deliver(&mut self, give: impl FnMut(Position, &[u8]) -> bool) -> usize {
        let store = self.raft.raft.raft_log.store();
        if self.cursor.position().index < store.first() && self.copy.can_serve() {
            self.counters.input_missed += 1;
            let actions = &mut self.actions;
            self.copy
                .on_snapshot(|command| actions.push(Action::Copy(command)));
            return 0;
        }
        self.cursor.deliver(
            self.applied,
            |index| store.entry(index).map(|entry| entry.data.clone()),
            give,
        )
    }

    /// The backup's copy was replaced: delivery goes on at `position`. Returns false if the log
    /// does not reach back that far.
    #[must_use]
    pub fn seek(&mut self, position: Position) -> bool {
        self.cursor.seek(position);
        position.index >= self.raft.raft.raft_log.store().first() || position.index > self.applied
    }

    /// The copy runs again after `sync` (none: for the first time): input beyond the sync point may
    /// be delivered. The barrier of a later sync stays.
    pub fn lift_barrier(&mut self, sync: Option<SyncId>) {
        if sync.is_none_or(|sync| self.cursor.barrier() == Some(sync.0)) {
            self.cursor.set_barrier(None);
        }
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
        self.is_serving() && self.lease.holds(now)
    }

    /// Whether this node is the primary, leads, and its copy is its own and current.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.leads() && self.is_primary() && self.copy.serves() && self.handed_over_at.is_none()
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

    /// The committed state.
    #[must_use]
    pub fn group(&self) -> &GroupState {
        &self.group
    }

    /// This node's copy.
    #[must_use]
    pub fn copy(&self) -> &LocalCopy {
        &self.copy
    }

    /// The next packet to deliver.
    #[must_use]
    pub fn position(&self) -> Position {
        self.cursor.position()
    }

    /// Index up to which the log is applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The leader that this node knows, and the term.
    #[must_use]
    pub fn leader(&self) -> (Option<NodeId>, Term) {
        let leader = self.raft.raft.leader_id;
        (
            (leader != raft::INVALID_ID).then_some(NodeId(leader)),
            Term(self.raft.raft.term),
        )
    }

    /// The last report of each peer, and when it came.
    pub fn reports(&self) -> impl Iterator<Item = (NodeId, Duration, &CopyReport)> {
        self.peers.iter().filter_map(|peer| {
            peer.report
                .as_ref()
                .map(|(at, _, report)| (peer.spec.id, *at, report))
        })
    }

    /// Whether the other replica says that it is idle (or there is none to wait for).
    #[must_use]
    pub fn backup_is_idle(&self) -> bool {
        self.peers
            .iter()
            .filter(|peer| peer.spec.is_replica)
            .all(|peer| peer.report.is_none_or(|(_, _, report)| report.idle))
    }

    /// Counts of what was refused.
    #[must_use]
    pub fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    /// The entry at `index`, for checkers.
    #[must_use]
    pub fn log_entry(&self, index: LogIndex) -> Option<(Term, Bytes)> {
        let entry = self.raft.raft.raft_log.store().entry(index)?;
        Some((Term(entry.term), entry.data.clone()))
    }

    /// Term, vote and commit, as last handed out to be persisted.
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        self.raft.raft.raft_log.store().hard_state()
    }

    /// The last entry that the log no longer has, and its term.
    #[must_use]
    pub fn compacted(&self) -> Option<(LogIndex, Term)> {
        Some(self.raft.raft.raft_log.store().compacted()).filter(|(index, _)| index.0 > 0)
    }

    /// Bytes of log in memory.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.raft.raft.raft_log.store().bytes()
    }

    fn leads(&self) -> bool {
        self.raft.raft.state == StateRole::Leader && self.leads_since_term == self.raft.raft.term
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

    fn receive(&mut self, envelope: Envelope) {
        match envelope.body {
            Body::Report(report) => self.receive_report(envelope.from, report),
            Body::Raft(message) => self.receive_raft(envelope.from, message),
        }
    }

    fn receive_report(&mut self, from: NodeId, report: CopyReport) {
        let now = self.now;
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.spec.id == from) else {
            return;
        };
        let is_newer = peer.report.is_none_or(|(_, _, last)| {
            last.incarnation != report.incarnation || last.sequence < report.sequence
        });
        if !is_newer {
            return;
        }
        let known = peer.report.map(|(_, _, last)| last.host_facts_hash);
        let differs = peer.spec.is_replica
            && self.config.host_facts_hash != 0
            && report.host_facts_hash != self.config.host_facts_hash;
        if differs && known != Some(report.host_facts_hash) {
            self.actions
                .push(Action::Note(Notice::HostsDiffer { node: from }));
        }
        peer.report = Some((now, self.ticks, report));
    }

    fn receive_raft(&mut self, from: NodeId, mut message: Message) {
        if self.is_mute || self.awaiting.len() > AWAITING_PERSIST_MAX {
            self.counters.messages_refused += 1;
            return;
        }
        let kind = message.get_msg_type();
        let asks_for_vote = matches!(
            kind,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if asks_for_vote && self.now < self.votes_from {
            self.counters.votes_withheld += 1;
            return;
        }
        if self.awaits_snapshot() || check_against_log(&message, &self.raft.raft.raft_log).is_err()
        {
            self.counters.messages_unfit += 1;
            return;
        }
        match kind {
            MessageType::MsgHeartbeatResponse => {
                let round = message.take_context();
                if message.term == self.raft.raft.term
                    && let Ok(round) = <[u8; 8]>::try_from(&round[..])
                {
                    self.lease.acknowledge(from, u64::from_le_bytes(round));
                }
            }
            MessageType::MsgSnapshot
                if GroupState::decode(message.get_snapshot().data.clone()).is_none() =>
            {
                self.counters.messages_unfit += 1;
                return;
            }
            MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot
                if message.term >= self.raft.raft.term =>
            {
                self.last_heard = self.now;
            }
            _ => {}
        }
        if self.raft.step(message).is_err() {
            self.counters.messages_refused += 1;
        }
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

    fn drain_raft(&mut self) {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            let messages = ready.take_messages();
            self.send_raft(messages);
            let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
            if let Some(snapshot) = &snapshot {
                self.restore(snapshot);
            }
            let committed = ready.take_committed_entries();
            let entries = ready.take_entries();
            let must_sync = ready.must_sync() || snapshot.is_some();
            let store = self.raft.mut_store();
            store
                .append(&entries)
                .expect("raft-rs appends behind its own log");
            if let Some(hard_state) = ready.hs() {
                store.set_hard_state(hard_state.clone());
            }
            let hard_state = store.hard_state().clone();
            let number = ready.number();
            let messages = ready.take_persisted_messages();
            self.raft.advance_append_async(ready);
            let snapshot_index = snapshot
                .as_ref()
                .map(|snapshot| snapshot.get_metadata().index);
            let waiting = AwaitingPersist {
                number,
                ready: number,
                messages,
                snapshot_index,
            };
            if self.config.is_durable && must_sync {
                let persist = Persist {
                    number,
                    entries,
                    hard_state,
                    snapshot,
                };
                self.actions.push(Action::Persist(persist));
                self.awaiting.push_back(waiting);
            } else if let Some(last) = self.awaiting.back_mut() {
                // Nothing of its own for the disk, but what was there before must be durable
                // first: raft-rs takes the number as "all up to here".
                last.ready = number;
                last.messages.extend(waiting.messages);
            } else {
                self.is_durable_now(waiting);
            }
            self.apply(&committed);
        }
    }

    fn persisted(&mut self, number: u64) {
        if self.is_mute {
            return;
        }
        while self
            .awaiting
            .front()
            .is_some_and(|awaiting| awaiting.number <= number)
        {
            if let Some(awaiting) = self.awaiting.pop_front() {
                self.is_durable_now(awaiting);
            }
        }
    }

    fn is_durable_now(&mut self, awaiting: AwaitingPersist) {
        self.raft.on_persist_ready(awaiting.ready);
        if let Some(index) = awaiting.snapshot_index {
            self.raft.advance_apply_to(index);
        }
        self.send_raft(awaiting.messages);
    }

    /// A received snapshot is not durable yet. raft-rs would look for entries before it when it
    /// starts an election now, so time and messages stand still until it is.
    fn awaits_snapshot(&self) -> bool {
        self.awaiting
            .iter()
            .any(|awaiting| awaiting.snapshot_index.is_some())
    }

    fn send_raft(&mut self, messages: Vec<Message>) {
        if self.is_mute {
            return;
        }
        let mut round = None;
        for mut message in messages {
            if message.get_msg_type() == MessageType::MsgHeartbeat {
                let number = *round.get_or_insert_with(|| self.lease.start_round(self.now));
                message.set_context(number.to_le_bytes().to_vec().into());
            }
            let (from, to) = (self.config.own, NodeId(message.to));
            if message.get_msg_type() == MessageType::MsgSnapshot
                && let Some(peer) = self.peers.iter_mut().find(|peer| peer.spec.id == to)
            {
                peer.snapshot_sent = Some(self.now);
            }
            self.actions.push(Action::Send(Envelope {
                from,
                to,
                body: Body::Raft(message),
            }));
        }
    }

    /// raft-rs sends nothing to a follower until its snapshot is reported as arrived or lost. Ours
    /// are single messages on a network that may lose them: one that is not answered within an
    /// election timeout is lost, and the next heartbeat's answer sends another.
    fn give_up_lost_snapshots(&mut self) {
        let timeout = self.config.tick * self.config.election_ticks;
        for peer in &mut self.peers {
            if peer
                .snapshot_sent
                .is_some_and(|sent| self.now >= sent + timeout)
            {
                peer.snapshot_sent = None;
                self.raft
                    .report_snapshot(peer.spec.id.0, raft::SnapshotStatus::Failure);
            }
        }
    }

    fn send_reports(&mut self) {
        self.report_sequence += 1;
        self.reported = Some(self.copy);
        let report = CopyReport {
            sequence: self.report_sequence,
            incarnation: self.config.incarnation,
            generation: self.group.generation(),
            applied: self.applied,
            copy: self.copy.report(),
            delivered: self.needed_position(),
            idle: self.idle,
            uplink_up: self.uplink_up,
            host_facts_hash: self.config.host_facts_hash,
        };
        for peer in &self.peers {
            let (from, to) = (self.config.own, peer.spec.id);
            self.actions.push(Action::Send(Envelope {
                from,
                to,
                body: Body::Report(report),
            }));
        }
    }

    /// A snapshot from the leader: the log up to it is gone, and with it input that a copy here
    /// would have needed.
    fn restore(&mut self, snapshot: &Snapshot) {
        self.raft
            .mut_store()
            .apply_snapshot(snapshot)
            .expect("raft-rs restores only snapshots ahead of its log");
        self.applied = LogIndex(snapshot.get_metadata().index);
        let actions = &mut self.actions;
        self.copy
            .on_snapshot(|command| actions.push(Action::Copy(command)));
        self.cursor.seek(Position::start_of(self.applied.next()));
        match GroupState::decode(snapshot.data.clone()) {
            Some(group) => self.group = group,
            None => self.counters.entries_malformed += 1,
        }
        self.sync_began_at = self.now;
    }

    fn apply(&mut self, committed: &[Entry]) {
        for entry in committed {
            self.applied = LogIndex(entry.index);
            if entry.term == self.raft.raft.term && self.raft.raft.state == StateRole::Leader {
                self.leads_since_term = entry.term;
            }
            if entry.data.is_empty() {
                continue;
            }
            match LogEntry::decode(&entry.data) {
                Ok(LogEntry::Input(_)) => {}
                Ok(entry) => self.apply_control(&entry),
                Err(_) => self.counters.entries_malformed += 1,
            }
        }
        if let Some(last) = committed.last() {
            self.raft.advance_apply_to(last.index);
            self.compact();
        }
    }

    fn apply_control(&mut self, entry: &LogEntry) {
        let applied = self.group.apply(self.applied, entry);
        let actions = &mut self.actions;
        match applied {
            Applied::Ignored => self.counters.entries_ignored += 1,
            Applied::Input => {}
            Applied::Role { sync, .. } => {
                if let Some(sync) = sync.filter(|sync| !sync.ended) {
                    actions.push(Action::AbortEpoch(sync.id));
                    actions.push(Action::Note(Notice::SyncAborted(sync)));
                }
                if let Some(role) = self.group.role() {
                    if role.mode == Mode::Protected {
                        self.fill_wait = RETRY_AFTER_FILL;
                    }
                    actions.push(Action::Note(Notice::Role(*role)));
                }
                self.aborted_in_a_row = 0;
                self.not_before = self.now;
                self.handed_over_at = None;
            }
            Applied::SyncBegan(sync) => {
                actions.push(Action::Note(Notice::SyncBegan(sync)));
                self.sync_began_at = self.now;
                self.sync_wanted = false;
            }
            Applied::SyncEnded { sync, position, .. } => {
                actions.push(Action::EndEpoch(sync.id));
                actions.push(Action::Note(Notice::SyncEnded { sync, position }));
                self.aborted_in_a_row = 0;
            }
            Applied::SyncAborted(sync) => {
                actions.push(Action::AbortEpoch(sync.id));
                actions.push(Action::Note(Notice::SyncAborted(sync)));
                self.aborted_in_a_row += 1;
                let wait = match sync.kind {
                    SyncKind::Delta => RETRY_AFTER_ABORT,
                    SyncKind::Fill => {
                        let wait = self.fill_wait;
                        self.fill_wait = (wait * 2).min(RETRY_AFTER_FILL_MAX);
                        wait
                    }
                };
                self.not_before = self.now + wait;
            }
        }
        let (cursor, index) = (&mut self.cursor, self.applied);
        self.copy
            .on_applied(self.config.own, self.group.role(), &applied, |command| {
                match command {
                    CopyCommand::Begin { sync, .. } => cursor.set_barrier(Some(sync.0)),
                    CopyCommand::Boot => cursor.seek(Position::start_of(index.next())),
                    _ => {}
                }
                actions.push(Action::Copy(command));
            });
    }

    fn watch_leadership(&mut self) {
        let raft = &self.raft.raft;
        if raft.state != self.seen_role {
            let asks = |role| matches!(role, StateRole::PreCandidate | StateRole::Candidate);
            if asks(raft.state) && !asks(self.seen_role) {
                let notice = Notice::Campaign {
                    term: Term(raft.term),
                    last_heard: self.last_heard,
                };
                self.actions.push(Action::Note(notice));
            }
            self.seen_role = raft.state;
            self.lease.reset();
            self.handed_over_at = None;
            self.proposed = LogIndex(0);
        }
        if (raft.term, raft.leader_id) != self.seen_leader {
            self.seen_leader = (raft.term, raft.leader_id);
            let notice = Notice::Leader {
                term: Term(raft.term),
                leader: NodeId(raft.leader_id),
            };
            self.actions.push(Action::Note(notice));
        }
    }

    /// Does what a leader should do next. True if something changed.
    fn act_on_plan(&mut self) -> bool {
        if !self.leads() || self.is_mute || self.applied < self.proposed {
            return false;
        }
        match self.decide() {
            Plan::Wait => false,
            Plan::Propose(entry) => self.propose_control(&entry),
            Plan::HandOver(to) => self.hand_over(to),
        }
    }

    fn decide(&self) -> Plan {
        let peers: ArrayVec<Peer<'_>, GROUP_NODES> = self
            .peers
            .iter()
            .map(|peer| Peer {
                id: peer.spec.id,
                is_replica: peer.spec.is_replica,
                report: peer
                    .report
                    .as_ref()
                    .filter(|(_, at_tick, _)| self.is_recent(*at_tick))
                    .map(|(_, _, report)| report),
            })
            .collect();
        let may_begin = self.now >= self.not_before;
        plan(&View {
            own: self.config.own,
            group: &self.group,
            copy: &self.copy,
            peers: &peers,
            host_facts_hash: self.config.host_facts_hash,
            uplink_up: self.uplink_up,
            sync_wanted: self.sync_wanted && may_begin,
            sync_age: self.now.saturating_sub(self.sync_began_at),
            sync_timeout: self.config.sync_timeout,
            aborted_in_a_row: self.aborted_in_a_row,
            aborted_max: ABORTED_IN_A_ROW_MAX,
            fill_allowed: may_begin,
            on_backup_loss: self.config.on_backup_loss,
        })
    }

    fn propose_control(&mut self, entry: &LogEntry) -> bool {
        if self.propose_bytes(entry.encode()).is_err() {
            return false;
        }
        self.proposed = LogIndex(self.raft.raft.raft_log.last_index());
        true
    }

    /// Stops transmitting first (`handed_over_at` closes the uplink), then asks the other node to
    /// start an election.
    fn hand_over(&mut self, to: NodeId) -> bool {
        let retry = self.config.tick * self.config.election_ticks * HANDOVER_RETRY_TIMEOUTS;
        if self.handed_over_at.is_some_and(|at| self.now < at + retry) {
            return false;
        }
        self.handed_over_at = Some(self.now);
        self.actions.push(Action::Note(Notice::HandOver { to }));
        self.raft.transfer_leader(to.0);
        true
    }

    fn propose_bytes(&mut self, data: Bytes) -> raft::Result<()> {
        let entry = Entry {
            data,
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.own.0;
        message.set_entries(vec![entry].into());
        self.raft.step(message)
    }

    /// The first input that this copy may still have to be given: one that is being loaded goes
    /// back to the sync's position.
    fn needed_position(&self) -> Position {
        let at = self.cursor.position();
        match (&self.copy, self.group.last_end()) {
            (LocalCopy::Loading { .. }, Some((_, position))) => at.min(position),
            _ => at,
        }
    }

    /// Drops the part of the log that no copy needs: what lies before the last sync's position
    /// while the group is protected, before the primary's delivered position otherwise, and
    /// nothing while a sync is in flight.
    fn compact(&mut self) {
        let Some(role) = self.group.role() else {
            return;
        };
        if self.group.sync().is_some() {
            return;
        }
        let needed = match role.mode {
            Mode::Protected => self.group.last_end().map(|(_, position)| position),
            Mode::Unprotected if role.primary == self.config.own => Some(self.needed_position()),
            Mode::Unprotected => self
                .peers
                .iter()
                .find(|peer| peer.spec.id == role.primary)
                .and_then(|peer| peer.report)
                .map(|(_, _, report)| report.delivered),
        };
        let Some(needed) = needed else { return };
        let to = needed.index.min(self.applied);
        let store = self.raft.mut_store();
        if to.0 < store.first().0 + COMPACT_ENTRIES {
            return;
        }
        let Some(term) = store.term_of(self.applied) else {
            return;
        };
        let data = self.group.encode();
        let compacted = store
            .set_snapshot_data(self.applied, term, data.clone())
            .and_then(|()| store.compact(to));
        match compacted {
            Ok(()) => {
                if self.config.is_durable {
                    let hard_state = self.hard_state().clone();
                    self.actions.push(Action::Compact {
                        to,
                        index: self.applied,
                        term,
                        data,
                        hard_state,
                    });
                }
            }
            Err(error) => unreachable!("compacting an applied log: {error}"),
        }
    }

    /// The generation of the committed role.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.group.generation()
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
