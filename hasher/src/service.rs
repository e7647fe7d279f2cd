//! The service: takes the node's requests one after the other, owns what is attached, and runs
//! one round at a time as a task of its own.
//!
//! What happens inside a round is in `sync_round`; the sockets are opened in `listen`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use plover_types::SyncId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::attachment::{Attachment, read_state, state_file};
use crate::config::Config;
use crate::control::{AttachReport, ControlSocket, Event, Request, Side};
use crate::error::{RoundError, ServiceError, chain};
use crate::exchange::LinkSlot;
use crate::link::{Identity, PeerLink};
use crate::secure::LinkKeys;
use crate::stage::{StageHeader, StagedBody};
use crate::stats::{RoundStats, Step, StepTimes};
use crate::sync_round::{Cancel, Ending, Round, run};

/// Sends events to the node. A node that is gone is noticed by who reads its socket.
#[derive(Clone, Debug)]
pub struct Events {
    socket: Arc<ControlSocket>,
}

impl Events {
    /// Events go to this socket.
    #[must_use]
    pub fn new(socket: Arc<ControlSocket>) -> Self {
        Self { socket }
    }

    /// Sends an event.
    pub fn emit(&self, event: &Event) {
        if let Err(error) = self.socket.send(event, &[]) {
            tracing::warn!(error = chain(&error), "event not taken by the node");
        }
    }

    /// Sends an event with the device state as a file.
    pub fn emit_with_state(&self, event: &Event, state: &[u8]) {
        let sent = state_file(state)
            .map_err(|error| chain(&error))
            .and_then(|file| {
                self.socket
                    .send(event, &[file.as_fd()])
                    .map_err(|e| chain(&e))
            });
        if let Err(error) = sent {
            tracing::warn!(error, "event with device state not taken by the node");
        }
    }
}

/// What the control socket brings.
#[derive(Debug)]
pub enum FromNode {
    /// A node connected.
    Connected(Arc<ControlSocket>),
    /// It asks for something.
    Request(Request, Vec<OwnedFd>),
    /// It sent what is no request.
    Bad(String),
    /// It is gone.
    Disconnected,
}

/// A round under way.
#[derive(Debug)]
struct Running {
    sync: SyncId,
    side: Side,
    cancel: Option<oneshot::Sender<Cancel>>,
    state: mpsc::Sender<Vec<u8>>,
    task: JoinHandle<(Round, Result<Ending, RoundError>)>,
    /// The node finished the sync before we saw the peer's last word.
    finished: bool,
}

/// A round that ended well and waits for the commit.
#[derive(Clone, Copy, Debug)]
struct Settled {
    sync: SyncId,
    side: Side,
}

/// The service's state.
#[derive(Debug)]
pub struct Service {
    config: Config,
    keys: Option<LinkKeys>,
    events: Option<Events>,
    attached: Option<Attachment>,
    running: Option<Running>,
    settled: Option<Settled>,
    link: Option<PeerLink>,
    inbound: Arc<LinkSlot>,
    identity: watch::Sender<Option<Identity>>,
}

impl Service {
    /// A service to which nothing is attached. `identity` is set once a node says its group.
    #[must_use]
    pub fn new(
        config: Config,
        keys: Option<LinkKeys>,
        inbound: Arc<LinkSlot>,
        identity: watch::Sender<Option<Identity>>,
    ) -> Self {
        Self {
            config,
            keys,
            events: None,
            attached: None,
            running: None,
            settled: None,
            link: None,
            inbound,
            identity,
        }
    }

    /// Serves until the control socket's reader ends.
    ///
    /// # Errors
    /// If a part of the service ended by itself.
    pub async fn serve(
        mut self,
        mut from_node: mpsc::Receiver<FromNode>,
    ) -> Result<(), ServiceError> {
        loop {
            tokio::select! {
                message = from_node.recv() => match message {
                    Some(message) => self.handle(message).await?,
                    None => return Err(ServiceError::Ended("the control socket's reader")),
                },
                ended = round_end(&mut self.running) => self.settle(ended?),
                reason = link_end(&mut self.link) => {
                    self.link = None;
                    self.emit(&Event::PeerLost { reason: reason.to_string() });
                }
            }
        }
    }

    async fn handle(&mut self, message: FromNode) -> Result<(), ServiceError> {
        match message {
            FromNode::Connected(socket) => self.events = Some(Events::new(socket)),
            FromNode::Request(request, fds) => self.request(request, fds).await?,
            FromNode::Bad(reason) => self.refuse("message", reason),
            FromNode::Disconnected => {
                self.stop_round(Cancel::NodeGone).await?;
                (self.events, self.attached, self.settled, self.link) = (None, None, None, None);
            }
        }
        Ok(())
    }

    async fn request(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(), ServiceError> {
        match request {
            Request::Attach(attach) => {
                self.stop_round(Cancel::Abort).await?;
                self.settled = None;
                match Attachment::new(&attach, fds, self.attached.take()) {
                    Ok(attachment) => self.attach(attachment, attach.group),
                    Err(error) => self.refuse("attach", chain(&error)),
                }
            }
            Request::BeginRound {
                sync,
                side,
                kind,
                position,
            } => {
                self.stop_round(Cancel::Abort).await?;
                self.settled = None;
                self.begin(sync, side, kind, position);
            }
            Request::DeviceState { sync } => self.device_state(sync, fds).await,
            Request::Apply { sync } => self.apply(sync),
            Request::Finish { sync } => self.finish(sync),
            Request::Abort { sync } => self.abort(sync).await?,
        }
        Ok(())
    }

    fn attach(&mut self, mut attachment: Attachment, group: String) {
        let identity = Identity {
            group,
            node: self.config.node_id,
            keys: self.keys.clone(),
        };
        self.identity.send_replace(Some(identity));
        let pages = attachment.memory.layout().pages();
        let (tracker, reason) = attachment.tracker();
        tracing::info!(pages, tracker, reason, "guest memory attached");
        let slice = self.config.slice_pages(pages);
        self.emit(&Event::Attached(AttachReport {
            tracker: tracker.to_owned(),
            reason: reason.map(str::to_owned),
            pages,
            slice_rounds: pages.div_ceil(slice),
        }));
        if let Some((header, body)) = attachment.found_staged() {
            tracing::info!(sync = %header.sync, "a staged set was found");
            self.emit_staged(&header, &body, RoundStats::default());
        }
        self.attached = Some(attachment);
    }

    fn begin(
        &mut self,
        sync: SyncId,
        side: Side,
        kind: plover_types::SyncKind,
        position: plover_types::Position,
    ) {
        let (Some(attached), Some(events)) = (&mut self.attached, &self.events) else {
            return self.fail(sync, "no guest memory is attached".to_owned());
        };
        let (Some(written), Some(stage)) = (attached.written.take(), attached.stage.take()) else {
            return self.fail(sync, "guest memory is in use by another round".to_owned());
        };
        let Some(identity) = self.identity.borrow().clone() else {
            return self.fail(sync, "no group is known".to_owned());
        };
        attached.known_staged = None;
        let pages = attached.memory.layout().pages();
        let (state, device_state) = mpsc::channel(1);
        let (cancel, cancelled) = oneshot::channel();
        let round = Round {
            sync,
            side,
            kind,
            position,
            memory: attached.memory.clone(),
            written,
            stage,
            link: self.link.take(),
            inbound: self.inbound.clone(),
            identity,
            peer: self.config.peer,
            whole: attached.whole_next,
            slice: (attached.slice_cursor, self.config.slice_pages(pages)),
            threads: self.config.threads(),
            events: events.clone(),
            device_state,
            stats: RoundStats::default(),
        };
        let task = tokio::spawn(run(round, cancelled));
        let cancel = Some(cancel);
        self.running = Some(Running {
            sync,
            side,
            cancel,
            state,
            task,
            finished: false,
        });
    }

    /// Takes back what the round had, and says how it ended.
    fn settle(&mut self, (round, result): (Round, Result<Ending, RoundError>)) {
        let Some(running) = self.running.take() else {
            return;
        };
        let sync = running.sync;
        self.link = round.link;
        if let Some(attached) = &mut self.attached {
            attached.written = Some(round.written);
            attached.stage = Some(round.stage);
        }
        match result {
            Ok(ending) => self.settled_well(sync, &running, ending, round.stats),
            Err(RoundError::Aborted | RoundError::NodeGone) => {}
            Err(error) => {
                if error.is_mismatch() {
                    self.with_attached(|attached| attached.whole_next = true);
                }
                // A sync that the node finished is complete, whatever became of our link.
                if !running.finished {
                    self.fail(sync, chain(&error));
                }
            }
        }
    }

    fn settled_well(&mut self, sync: SyncId, running: &Running, ending: Ending, stats: RoundStats) {
        log_round(sync, &stats);
        self.settled = Some(Settled {
            sync,
            side: running.side,
        });
        match ending {
            Ending::Sent => self.emit(&Event::Sent { sync, stats }),
            Ending::Staged(header, body) => {
                self.with_attached(|attached| attached.known_staged = Some(sync));
                self.emit_staged(&header, &body, stats);
            }
        }
        if running.finished {
            self.finish(sync);
        }
    }

    fn emit_staged(&self, header: &StageHeader, body: &StagedBody, stats: RoundStats) {
        let Some(events) = &self.events else { return };
        let StageHeader {
            sync,
            certificate,
            position,
            ..
        } = *header;
        let event = Event::Staged {
            sync,
            certificate,
            position,
            stats,
        };
        events.emit_with_state(&event, body.state());
    }

    async fn device_state(&mut self, sync: SyncId, fds: Vec<OwnedFd>) {
        let running = self.running.as_ref().filter(|running| running.sync == sync);
        let Some(running) = running else {
            tracing::debug!(%sync, "device state for no round");
            return;
        };
        let state = running.state.clone();
        match read_state(fds) {
            // A round that has ended, or has its state already, takes no (other) one.
            Ok(bytes) => drop(state.try_send(bytes)),
            Err(error) => self.refuse("device_state", chain(&error)),
        }
    }

    fn apply(&mut self, sync: SyncId) {
        if self.running.is_some() {
            return self.fail(sync, "a round is under way".to_owned());
        }
        let Some(attached) = &mut self.attached else {
            return self.fail(sync, "no guest memory is attached".to_owned());
        };
        if let Some(events) = &self.events {
            events.emit(&Event::Step {
                sync,
                name: Step::Apply,
            });
        }
        let start = Instant::now();
        match attached.apply(sync) {
            Ok(pages) => {
                attached.completed(sync, Side::Backup, 0);
                let mut times = StepTimes::default();
                times.add(Step::Apply, start);
                tracing::info!(%sync, pages, apply_us = times.apply_us, "applied");
                self.emit(&Event::Applied {
                    sync,
                    apply_us: times.apply_us,
                });
            }
            Err(error) => self.fail(sync, chain(&error)),
        }
    }

    fn finish(&mut self, sync: SyncId) {
        if let Some(running) = self.running.as_mut().filter(|running| running.sync == sync) {
            running.finished = true;
            return;
        }
        let settled = self.settled.filter(|settled| settled.sync == sync);
        let Some(Settled {
            side: Side::Primary,
            ..
        }) = settled
        else {
            tracing::debug!(%sync, "finish for no round of ours");
            return;
        };
        self.settled = None;
        let config = self.config.clone();
        self.with_attached(|attached| {
            let slice = config.slice_pages(attached.memory.layout().pages());
            attached.completed(sync, Side::Primary, slice);
        });
    }

    async fn abort(&mut self, sync: SyncId) -> Result<(), ServiceError> {
        if self
            .running
            .as_ref()
            .is_some_and(|running| running.sync == sync)
        {
            return self.stop_round(Cancel::Abort).await;
        }
        if self.settled.is_some_and(|settled| settled.sync == sync) {
            self.settled = None;
            self.with_attached(Attachment::give_up);
        }
        Ok(())
    }

    async fn stop_round(&mut self, why: Cancel) -> Result<(), ServiceError> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        if let Some(cancel) = running.cancel.take() {
            // An error means that the round ended just now.
            let _ = cancel.send(why);
        }
        let ended = round_end(&mut self.running).await?;
        self.settle(ended);
        if let Some(settled) = self.settled.take() {
            self.abort_settled(settled);
        }
        Ok(())
    }

    /// The round ended well in the moment in which it was stopped.
    fn abort_settled(&mut self, settled: Settled) {
        tracing::debug!(sync = %settled.sync, "stopped a round that was complete");
        self.with_attached(Attachment::give_up);
    }

    fn with_attached(&mut self, act: impl FnOnce(&mut Attachment)) {
        if let Some(attached) = &mut self.attached {
            act(attached);
        }
    }

    fn emit(&self, event: &Event) {
        if let Some(events) = &self.events {
            events.emit(event);
        }
    }

    fn fail(&self, sync: SyncId, reason: String) {
        tracing::warn!(%sync, reason, "round failed");
        self.emit(&Event::Failed { sync, reason });
    }

    fn refuse(&self, request: &str, reason: String) {
        tracing::warn!(request, reason, "request refused");
        self.emit(&Event::Refused {
            request: request.to_owned(),
            reason,
        });
    }
}

async fn round_end(
    running: &mut Option<Running>,
) -> Result<(Round, Result<Ending, RoundError>), ServiceError> {
    match running {
        // A panic in a round is our own bug. The process ends; a new one knows nothing, so it
        // compares all memory.
        Some(running) => (&mut running.task)
            .await
            .map_err(|_| ServiceError::Ended("a round")),
        None => std::future::pending().await,
    }
}

async fn link_end(link: &mut Option<PeerLink>) -> std::io::Error {
    match link {
        Some(link) => link.lost_while_idle().await,
        None => std::future::pending().await,
    }
}

fn log_round(sync: SyncId, stats: &RoundStats) {
    match serde_json::to_string(stats) {
        Ok(stats) => tracing::info!(%sync, stats, "round"),
        Err(error) => tracing::warn!(%sync, %error, "round without printable figures"),
    }
}
