//! A node: the core with its clock, its frames and its disk. The only place in this crate that
//! knows real time. The caller owns the port and the thread: it hands in frames that came, sends
//! the frames that are handed out, and does those actions that concern VMM, hasher and guest.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use plover_types::limits::GROUP_NODES_MAX;
use plover_types::{LogIndex, NodeId, NodeSpec, Term};

use crate::core::{Action, Core, CoreConfig, CoreError, Event, Persist, members_at_start};
use crate::durable::{
    DurableError, DurableLog, DurableWriter, Owner, PersistRequest, Recovered, SnapshotChange,
    SnapshotState, SubmitError,
};
use crate::group::GroupState;
use crate::identity::{IdentityError, claim_in_memory};
use crate::link::{Link, LinkConfig, LinkError, Place};
use crate::storage::{LogError, LogStorage};
use crate::ticks::Ticks;
use crate::wire::{self, GroupId, WireError};

/// Where a node keeps its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk, synced before anything that depends on it is sent. The node keeps its identity
    /// across a restart.
    Disk,
    /// In memory: commits wait for no disk, and a restart loses the identity.
    Memory,
}

/// Reads how a member is reached out of its place in the log; none if there is nothing in it that
/// this node can use.
pub type Locate = Box<dyn Fn(&NodeSpec) -> Option<Place> + Send>;

/// What a node is made with.
pub struct NodeSetup<'a> {
    /// The core; `is_durable` and `is_restarted` are filled in here.
    pub core: CoreConfig,
    /// The way to the peers.
    pub link: LinkConfig,
    /// Where the log and the identity are kept.
    pub state_dir: &'a Path,
    /// Whether the log is on disk.
    pub durability: Durability,
    /// Where members are that the log names.
    pub locate: Locate,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The link's configuration.
    #[error("the replication link")]
    Link(#[from] LinkError),
    /// The node may not come back under its id.
    #[error("this node's identity")]
    Identity(#[from] IdentityError),
    /// The log on disk.
    #[error("the log on disk")]
    Durable(#[from] DurableError),
    /// The recovered log contradicts itself.
    #[error("the recovered log")]
    Log(#[from] LogError),
    /// The core.
    #[error("the consensus core")]
    Core(#[from] CoreError),
}

/// Counts of what a node refused, beside the core's and the transport's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeCounters {
    /// Messages whose bytes were none of this group's.
    pub messages_malformed: u64,
    /// Messages of our own that could not be encoded.
    pub messages_unencodable: u64,
    /// Requests that the disk was too slow to take at once.
    pub persists_delayed: u64,
}

/// A node of the group.
pub struct Node {
    core: Core,
    link: Link,
    writer: Option<DurableWriter>,
    /// Requests that the writer had no room for, in order.
    unsubmitted: Vec<PersistRequest>,
    own: NodeId,
    /// Those that are listened to.
    members: Vec<NodeId>,
    /// Where they are, and where those are that were members before.
    peers: Vec<(NodeId, Place)>,
    locate: Locate,
    group: GroupId,
    started: Instant,
    ticks: Ticks,
    last_persist: u64,
    counters: NodeCounters,
}

/// A log that is new notes the members that its group starts with: a configuration may be another
/// when the node starts again.
fn note_members(
    log: &mut DurableLog,
    recovered: &mut Recovered,
    core: &CoreConfig,
) -> Result<(), DurableError> {
    if *recovered != Recovered::default() {
        return Ok(());
    }
    let start = SnapshotState {
        index: LogIndex(0),
        term: Term(0),
        data: GroupState::of(members_at_start(core)).encode(),
    };
    log.append(&[PersistRequest {
        snapshot: Some(SnapshotChange::Taken(start.clone())),
        ..PersistRequest::default()
    }])?;
    recovered.snapshot = Some(start);
    Ok(())
}

impl Node {
    /// Recovers what is on disk, or claims the identity, and makes the core.
    ///
    /// # Errors
    /// Names what is wrong with the configuration, the identity or the log.
    pub fn start(setup: NodeSetup<'_>) -> Result<Self, NodeError> {
        let NodeSetup {
            mut core,
            link,
            state_dir,
            durability,
            locate,
        } = setup;
        let peers = link.places();
        let group = link.group;
        let owner = Owner {
            group,
            node: core.own,
        };
        let members = members_at_start(&core);
        let voters: Vec<NodeId> = members.list().iter().map(|it| it.spec.id).collect();
        let (storage, writer) = match durability {
            Durability::Memory => {
                claim_in_memory(state_dir, owner)?;
                (LogStorage::new(&voters), None)
            }
            Durability::Disk => {
                let (mut log, mut recovered) = DurableLog::open(state_dir, owner)?;
                note_members(&mut log, &mut recovered, &core)?;
                core.is_restarted = recovered.hard_state.term > 0;
                let storage = LogStorage::restore(&voters, &recovered)?;
                (storage, Some(DurableWriter::start(log)?))
            }
        };
        core.is_durable = writer.is_some();
        let (own, tick) = (core.own, core.tick);
        Ok(Self {
            core: Core::new(core, storage, Duration::ZERO)?,
            link: Link::new(link)?,
            writer,
            unsubmitted: Vec::new(),
            own,
            members: peers.iter().map(|(node, _)| *node).collect(),
            peers,
            locate,
            group,
            started: Instant::now(),
            ticks: Ticks::new(tick, Duration::ZERO),
            last_persist: 0,
            counters: NodeCounters::default(),
        })
    }

    /// Time on the node's clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// What the node's clock calls `now`, as a monotonic instant.
    #[must_use]
    pub fn instant_of(&self, at: Duration) -> Instant {
        self.started + at
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The core, to propose to, deliver from and report to.
    pub fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Gives the core the ticks that are due, and takes what the disk finished. [`Self::drain`] sends
    /// what is due on the link.
    ///
    /// # Errors
    /// The disk failed; the error comes once, and this node acknowledges nothing any more.
    pub fn poll(&mut self, now: Duration) -> Result<(), DurableError> {
        while self.ticks.due(now) {
            self.core.step(now, Event::Tick);
        }
        self.link.poll(now);
        self.submit_waiting();
        match self.writer.as_mut().and_then(DurableWriter::completed) {
            None => Ok(()),
            Some(Ok(number)) => {
                self.core.step(now, Event::Persisted(number));
                Ok(())
            }
            Some(Err(error)) => {
                self.core.step(now, Event::PersistFailed);
                Err(error)
            }
        }
    }

    /// Takes a frame from the replication port: hostile until checked, and opened in place. Returns
    /// whether it completed a message.
    pub fn receive_frame(&mut self, now: Duration, frame: &mut [u8]) -> bool {
        self.link.receive(now, frame);
        let mut is_message = false;
        while let Some((sender, bytes)) = self.link.next_message() {
            is_message |= self.receive_message(now, sender, bytes);
        }
        is_message
    }

    fn receive_message(&mut self, now: Duration, sender: NodeId, bytes: Bytes) -> bool {
        let members = &self.members;
        let own = self.own;
        let known = |node| members.contains(&node);
        match wire::decode(bytes, self.group, own, known) {
            Ok(envelope) if envelope.from == sender => {
                self.core.step(now, Event::Receive(envelope));
                true
            }
            Err(WireError::From(node)) if self.core.is_gone(node) => {
                self.core.heard_gone(node);
                false
            }
            _ => {
                self.counters.messages_malformed += 1;
                false
            }
        }
    }

    /// Does what the core asks, and what is due on the link: frames go to `send` (the parts of each),
    /// requests to the disk, everything else to `act`. Returns how many actions there were, and
    /// datagrams sent.
    pub fn drain(
        &mut self,
        now: Duration,
        mut send: impl FnMut(&[&[u8]]),
        mut act: impl FnMut(Action),
    ) -> usize {
        let mut actions = self.core.take_actions();
        let count = actions.len();
        for action in actions.drain(..) {
            match action {
                Action::Send(envelope) => {
                    if self.link.send(now, &envelope, &mut send).is_err() {
                        self.counters.messages_unencodable += 1;
                    }
                }
                Action::Persist(persist) => self.persist(persist),
                Action::Compact {
                    to,
                    index,
                    term,
                    data,
                    hard_state,
                } => {
                    let Some(last_dropped) = to.0.checked_sub(1) else {
                        continue;
                    };
                    let state = SnapshotState { index, term, data };
                    self.submit(PersistRequest {
                        number: self.last_persist,
                        hard_state: Some(hard_state),
                        snapshot: Some(SnapshotChange::Taken(state)),
                        compacted: self.core.compacted().filter(|(at, _)| at.0 == last_dropped),
                        ..PersistRequest::default()
                    });
                }
                Action::Members(specs) => {
                    self.follow_members(&specs);
                    act(Action::Members(specs));
                }
                other => act(other),
            }
        }
        self.core.recycle(actions);
        count + self.link.pump(now, send)
    }

    /// Datagrams go to these from now on. Those that were members are still heard, to be told apart from
    /// strangers, unless another has their address now.
    fn follow_members(&mut self, specs: &[NodeSpec]) {
        let others = specs.iter().filter(|spec| spec.id != self.own);
        let known = std::mem::take(&mut self.peers);
        let place_of = |spec: &NodeSpec| {
            let mut known = known.iter().filter(|(node, _)| *node == spec.id);
            (self.locate)(spec).or_else(|| known.next().map(|(_, place)| *place))
        };
        let located = others.filter_map(|spec| Some((spec.id, place_of(spec)?)));
        let mut peers: Vec<_> = located.collect();
        self.members = peers.iter().map(|(node, _)| *node).collect();
        let is_new = |(node, _): &&(NodeId, Place)| !self.members.contains(node);
        peers.extend(known.iter().filter(is_new).take(GROUP_NODES_MAX));
        self.link.set_peers(&peers);
        self.peers = peers;
    }

    fn persist(&mut self, persist: Persist) {
        self.last_persist = persist.number;
        let snapshot = persist.snapshot.map(|mut snapshot| {
            let metadata = snapshot.get_metadata();
            let (index, term) = (
                plover_types::LogIndex(metadata.index),
                plover_types::Term(metadata.term),
            );
            SnapshotChange::Installed(SnapshotState {
                index,
                term,
                data: snapshot.take_data(),
            })
        });
        self.submit(PersistRequest {
            number: persist.number,
            entries: persist.entries,
            hard_state: Some(persist.hard_state),
            snapshot,
            compacted: None,
        });
    }

    fn submit(&mut self, request: PersistRequest) {
        self.unsubmitted.push(request);
        self.submit_waiting();
    }

    fn submit_waiting(&mut self) {
        let Some(writer) = &self.writer else { return };
        let mut waiting = std::mem::take(&mut self.unsubmitted).into_iter();
        for request in waiting.by_ref() {
            match writer.submit(request) {
                Ok(()) => {}
                Err(SubmitError::Full(request)) => {
                    self.counters.persists_delayed += 1;
                    self.unsubmitted.push(*request);
                    break;
                }
                // The error itself came out of `completed`; nothing is acknowledged any more.
                Err(SubmitError::Stopped(_)) => return,
            }
        }
        self.unsubmitted.extend(waiting);
        // Bounded: the core takes no more messages while too much waits for the disk.
    }

    /// Counts of what was refused.
    #[must_use]
    pub fn counters(&self) -> &NodeCounters {
        &self.counters
    }

    /// The link: how the way to each peer is, and its counts.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// When this node has something to do, even if nothing is heard until then.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.link.due().min(self.ticks.next())
    }
}
