//! The driver of VMM and hasher: follows the commands of the node's core ([`CopyCommand`]) and
//! reports back ([`CopyEvent`]). It may block, for a bounded time; the poll core never waits for
//! it. How a sync goes is in [`super::round`].
//!
//! What dies is started again: a hasher (the sync in flight aborts, or its staged set is found and
//! applied again), a VMM (its copy is lost, and filled anew by the other replica).

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use plover_types::RoleEntry;
use replication::epoch::{CopyCommand, CopyEvent};
use serde_json::json;
use tracing::{debug, error, info, warn};
use vhost_user_plover_net::poll::{PollCommand, PollEvent};
use vhost_user_plover_net::{EventFd, MemoryEvent, VhostUserServer, WrittenPages};

use super::hasher_process::{HasherProcess, HasherSetup};
use super::idle::{IdleGauge, LOOK_INTERVAL};
use super::journal::Journal;
use super::machine::Machine;
use super::ram_layout;
use super::round::Round;
use super::status::NodeFacts;
use crate::config::NodeConfig;

/// Between two looks whether VMM and hasher live.
const HEALTH_INTERVAL: Duration = Duration::from_millis(20);

/// Before a VMM that could not be started again is tried once more.
const RELAUNCH_INTERVAL: Duration = Duration::from_secs(3);

/// The poll core answers within a few turns; an answer that takes this long means that it is gone.
const POLL_ANSWER_MAX: Duration = Duration::from_secs(5);

/// After a timeout, in case it was this process that stood still.
const POLL_ANSWER_GRACE: Duration = Duration::from_secs(1);

/// A report of the other replica that is older says nothing of its copy now.
const PEER_AGE_MAX: Duration = Duration::from_millis(500);

/// What comparing memory with the other copy needs.
pub struct Hashing {
    /// How to start the hasher.
    pub setup: HasherSetup,
    /// The backend's log of its own writes.
    pub written: Arc<WrittenPages>,
    /// Holds a staged set; outlives the hasher.
    pub staging: File,
}

/// What only a replica has.
pub struct Replica {
    /// None where there is no other copy: a group of one node.
    pub hashing: Option<Hashing>,
    /// Memory tables that the VMM sent.
    pub memory: Receiver<MemoryEvent>,
    /// The vhost-user server; ends with the driver.
    pub _server: VhostUserServer,
    /// Where the guest's RAM lies.
    pub regions: Vec<hasher::guest_memory::RegionSpec>,
    /// For the VMM's logs and captured states: on a tmpfs.
    pub run_dir: PathBuf,
}

/// What a driver is made of.
pub struct DriverSetup {
    /// The node's configuration.
    pub config: NodeConfig,
    /// To the poll core.
    pub poll: Sender<PollCommand>,
    /// Rung for each command.
    pub wake: Arc<EventFd>,
    /// From the poll core.
    pub events: Receiver<(Instant, PollEvent)>,
    /// Rung for each event.
    pub bell: Arc<EventFd>,
    /// What happened.
    pub journal: Journal,
    /// What status says of VMM and hasher.
    pub facts: Arc<NodeFacts>,
    /// When the node's clock was zero.
    pub clock_start: Instant,
    /// None on the witness.
    pub replica: Option<Replica>,
}

/// The driver.
pub struct Driver {
    pub(super) config: NodeConfig,
    poll: Sender<PollCommand>,
    wake: Arc<EventFd>,
    events: Receiver<(Instant, PollEvent)>,
    bell: Arc<EventFd>,
    pub(super) journal: Journal,
    facts: Arc<NodeFacts>,
    pub(super) clock_start: Instant,
    pub(super) replica: Option<Replica>,
    pub(super) hasher: Option<HasherProcess>,
    pub(super) machine: Option<Machine>,
    pub(super) round: Option<Round>,
    /// Events that came while an answer was waited for.
    backlog: VecDeque<(Instant, PollEvent)>,
    gauge: IdleGauge,
    told_idle: bool,
    next_look: Instant,
    next_health: Instant,
    next_launch: Instant,
    next_hasher: Instant,
    /// The committed role, as last heard.
    pub(super) role: Option<RoleEntry>,
    /// Why this node has nothing left to do.
    ended: Option<String>,
}

impl Driver {
    /// A driver, ready to run.
    pub fn new(setup: DriverSetup) -> Self {
        let now = Instant::now();
        Self {
            config: setup.config,
            poll: setup.poll,
            wake: setup.wake,
            events: setup.events,
            bell: setup.bell,
            journal: setup.journal,
            facts: setup.facts,
            clock_start: setup.clock_start,
            replica: setup.replica,
            hasher: None,
            machine: None,
            round: None,
            backlog: VecDeque::new(),
            gauge: IdleGauge::default(),
            told_idle: false,
            next_look: now,
            next_health: now,
            next_launch: now,
            next_hasher: now,
            role: None,
            ended: None,
        }
    }

    /// Follows the core until `stop`. The VMM and the hasher are this thread's children: they end
    /// when it does.
    pub fn run(mut self, stop: &AtomicBool) -> Result<()> {
        if self.config.is_alone() {
            warn!("the group has no other node: the VM is not protected");
        }
        if self.replica.is_some() {
            self.start_hasher()?;
            self.launch()?;
        }
        while !stop.load(Ordering::Relaxed) {
            self.wait();
            while let Some((at, event)) = self.next_event() {
                self.on_poll_event(at, event);
            }
            self.take_hasher_events();
            self.check_memory_tables()?;
            self.look_after();
            if let Some(reason) = &self.ended {
                bail!("{reason}; it was the only copy of this VM");
            }
        }
        info!("stopping");
        if let Some(machine) = &mut self.machine {
            machine.vmm.kill();
        }
        Ok(())
    }

    /// Sleeps until the poll core or the hasher has something, or it is time for a look.
    fn wait(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        if let Some(hasher) = &self.hasher {
            fds.push(PollFd::new(hasher.client.as_fd(), PollFlags::POLLIN));
        }
        let millis = if self.machine.is_some() {
            LOOK_INTERVAL
        } else {
            HEALTH_INTERVAL
        }
        .as_millis();
        let timeout = PollTimeout::from(u16::try_from(millis).unwrap_or(1));
        // A signal only ends the wait early.
        let _ = poll(&mut fds, timeout);
        self.bell.drain();
    }

    fn next_event(&mut self) -> Option<(Instant, PollEvent)> {
        self.backlog
            .pop_front()
            .or_else(|| self.events.try_recv().ok())
    }

    /// Waits for an answer of the poll core; other events wait their turn.
    pub(super) fn answer<T>(
        &mut self,
        what: &'static str,
        longest: Duration,
        fits: impl Fn(&PollEvent) -> Option<T>,
    ) -> Result<T> {
        let mut deadline = Instant::now() + longest + POLL_ANSWER_MAX;
        let mut waited_again = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok((at, event)) => match fits(&event) {
                    Some(answer) => return Ok(answer),
                    None => self.backlog.push_back((at, event)),
                },
                // This process may have been stopped, and the core with it: it gets a moment.
                Err(_) if !waited_again => {
                    waited_again = true;
                    deadline = Instant::now() + POLL_ANSWER_GRACE;
                }
                Err(_) => bail!("the poll core does not answer to {what}"),
            }
        }
    }

    /// Tells the core of the group.
    pub(super) fn report(&self, event: CopyEvent) {
        self.tell(PollCommand::Copy(event));
    }

    pub(super) fn tell(&self, command: PollCommand) {
        // Without the core the node stops; the main loop sees that by itself.
        let _ = self.poll.send(command);
        self.wake.signal();
    }

    fn on_poll_event(&mut self, at: Instant, event: PollEvent) {
        match event {
            PollEvent::Command(command) => self.follow(command),
            PollEvent::Note(notice) => self.note(at, &notice),
            PollEvent::Serving(true) => {
                info!("serving: the uplink is open");
                self.journal.write(at, "serving", json!({}));
            }
            PollEvent::Serving(false) => {
                info!("not serving: the uplink is shut");
                self.journal.write(at, "shut", json!({}));
            }
            PollEvent::FirstRelease => self.journal.write(at, "first_release", json!({})),
            PollEvent::DiskFailed(reason) => {
                error!(reason, "the log's disk failed: this node votes no more");
                self.journal
                    .write(at, "disk_failed", json!({ "reason": reason }));
            }
            // Answers that nobody waits for any more.
            PollEvent::Quiet(_) | PollEvent::Frozen { .. } | PollEvent::Replaced { .. } => {}
        }
    }

    fn follow(&mut self, command: CopyCommand) {
        debug!(?command, "command");
        let result = match command {
            CopyCommand::Boot => self.boot(),
            CopyCommand::Begin { sync, kind, side } => self.begin(sync, kind, side),
            CopyCommand::Finish { sync } => self.finish(sync),
            CopyCommand::Commit { sync, position } => self.commit(sync, position),
            CopyCommand::Abort { sync, resume } => self.abort(sync, resume),
            CopyCommand::Void => self.void(),
        };
        if let Err(error) = result {
            error!(?command, "{error:#}");
            self.give_up_machine(&format!("{error:#}"));
        }
    }

    /// The VMM does not do as it is told. It is killed only if that loses nothing: it has ended,
    /// its copy counts for nothing, or the other copy is known to run. The last copy is kept, in
    /// whatever state it is, for the operator.
    fn give_up_machine(&mut self, reason: &str) {
        let is_primary = self
            .role
            .is_some_and(|role| role.primary.0 == u64::from(self.config.id));
        let has_ended = self
            .machine
            .as_mut()
            .is_none_or(|machine| machine.vmm.has_exited().is_some());
        if !is_primary || has_ended || self.other_copy_runs() {
            return self.lose_machine(reason);
        }
        error!(
            reason,
            "this is the last copy that is known to run: its VMM is left as it is"
        );
        self.journal
            .write(Instant::now(), "copy_stuck", json!({ "reason": reason }));
    }

    /// Whether the other replica says, now, that its copy runs.
    fn other_copy_runs(&self) -> bool {
        let (reply, status) = bounded(1);
        self.tell(PollCommand::Status(reply));
        let Ok(status) = status.recv_timeout(POLL_ANSWER_MAX) else {
            return false;
        };
        status
            .peers
            .iter()
            .any(|peer| peer.copy_runs && Duration::from_millis(peer.age_ms) < PEER_AGE_MAX)
    }

    fn boot(&mut self) -> Result<()> {
        let machine = self.machine()?;
        machine.vmm.boot().context("boot the guest")?;
        machine.is_running = true;
        if machine.vmm.ram_mapping_changed() {
            // The guest runs already, so the next union is all memory.
            self.attach(false)?;
        }
        self.tell(PollCommand::Thaw { sync: None });
        self.report(CopyEvent::Booted);
        Ok(())
    }

    /// The copy is void: it stands still until it is filled.
    fn void(&mut self) -> Result<()> {
        warn!("this copy is void: the group goes on without it until it is filled");
        self.tell(PollCommand::Stop);
        self.drop_round();
        let machine = self.machine()?;
        if std::mem::take(&mut machine.is_running) {
            machine.vmm.pause().context("stop the void copy")?;
        }
        self.report(CopyEvent::Ready);
        Ok(())
    }

    pub(super) fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().context("there is no VMM")
    }

    /// The VMM is of no use any more: it is killed, and another started, unless nobody could fill it.
    pub(super) fn lose_machine(&mut self, reason: &str) {
        warn!(reason, "the copy is lost");
        self.tell(PollCommand::Stop);
        self.drop_round();
        if let Some(mut machine) = self.machine.take() {
            machine.vmm.kill();
        }
        self.journal
            .write(Instant::now(), "copy_lost", json!({ "reason": reason }));
        self.report(CopyEvent::Lost);
        self.gauge.reset();
        self.next_launch = Instant::now() + HEALTH_INTERVAL;
        if self.config.is_alone() {
            self.ended = Some(reason.to_owned());
        }
    }

    /// The hasher must not wait for a round that nobody follows any more.
    fn drop_round(&mut self) {
        if let Some(round) = self.round.take() {
            self.abort_hashing(round.sync);
        }
    }

    fn launch(&mut self) -> Result<()> {
        let (Some(replica), Some(vmm), Some(guest)) =
            (&self.replica, &self.config.vmm, &self.config.guest)
        else {
            return Ok(());
        };
        let socket = self.config.vhost_socket();
        let regions = replica.regions.clone();
        let machine = Machine::launch(vmm, guest, &socket, &replica.run_dir, regions)?;
        self.facts.set_vmm(machine.vmm.pid(), machine.vmm.version());
        self.machine = Some(machine);
        self.attach(false)?;
        self.report(CopyEvent::Ready);
        Ok(())
    }

    /// Gives guest memory to the hasher, if there is another copy to compare it with.
    pub(super) fn attach(&mut self, continues: bool) -> Result<()> {
        let Some(hashing) = hashing(&self.replica) else {
            return Ok(());
        };
        let (Some(machine), Some(hasher)) = (&self.machine, &mut self.hasher) else {
            bail!("no VMM or no hasher to attach");
        };
        let report = machine.attach(
            &mut hasher.client,
            &self.config.group.name,
            &hashing.written,
            &hashing.staging,
            continues,
        )?;
        self.facts.set_tracker(&report);
        Ok(())
    }

    fn start_hasher(&mut self) -> Result<()> {
        if let Some(hashing) = hashing(&self.replica) {
            let hasher = HasherProcess::start(&hashing.setup)?;
            self.facts.set_hasher(hasher.pid());
            self.hasher = Some(hasher);
        }
        Ok(())
    }

    /// The hasher died or its socket broke: the sync in flight fails here unless it is staged, and
    /// the next union is all memory. A hasher that does not come up is tried again later; the VM
    /// goes on without it.
    pub(super) fn restart_hasher(&mut self, reason: &str) {
        warn!(reason, "the hasher is started again");
        self.journal
            .write(Instant::now(), "hasher_lost", json!({ "reason": reason }));
        self.hasher = None;
        if let Some(round) = &self.round
            && !round.is_staged()
        {
            self.report(CopyEvent::Failed { sync: round.sync });
        }
        self.next_hasher = Instant::now() + RELAUNCH_INTERVAL;
        let started = self.start_hasher().and_then(|()| {
            if self.machine.is_some() {
                self.attach(false)
            } else {
                Ok(())
            }
        });
        if let Err(error) = started {
            error!("{error:#}");
            self.hasher = None;
        }
    }

    fn take_hasher_events(&mut self) {
        loop {
            let Some(hasher) = &mut self.hasher else {
                return;
            };
            let result = match hasher.client.next_event(Duration::ZERO) {
                Ok(None) => return,
                Ok(Some(delivered)) => {
                    self.on_hasher_event(delivered.event, delivered.device_state)
                }
                Err(error) => return self.restart_hasher(&error.to_string()),
            };
            if let Err(error) = result {
                error!("{error:#}");
                return self.give_up_machine(&format!("{error:#}"));
            }
        }
    }

    /// The VMM's memory table must say what the hasher was told.
    fn check_memory_tables(&mut self) -> Result<()> {
        let Some(replica) = &self.replica else {
            return Ok(());
        };
        while let Ok(event) = replica.memory.try_recv() {
            let MemoryEvent::Mapped(map) = event else {
                continue;
            };
            let theirs: Vec<_> = map
                .regions
                .iter()
                .map(|region| hasher::guest_memory::RegionSpec {
                    guest_phys_addr: region.guest_phys_addr,
                    size: region.size,
                    mmap_offset: region.mmap_offset,
                })
                .collect();
            if !ram_layout::agrees(&replica.regions, &theirs) {
                bail!(
                    "the VMM lays out guest memory as {theirs:?}, and {:?} was expected: this VMM \
                     or this memory size is not supported; choose another vmm.memory_mib",
                    replica.regions
                );
            }
        }
        Ok(())
    }

    /// Looks that depend on time: idle vCPUs, live children.
    fn look_after(&mut self) {
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + LOOK_INTERVAL;
            self.look_at_vcpus(now);
        }
        if now >= self.next_health {
            self.next_health = now + HEALTH_INTERVAL;
            self.check_health(now);
        }
    }

    fn look_at_vcpus(&mut self, now: Instant) {
        let is_paused = self.round.as_ref().is_some_and(Round::is_paused);
        let idle = match &self.machine {
            // A paused guest's rest is no measure for a running one's.
            Some(_) if is_paused => {
                self.gauge.reset();
                false
            }
            Some(machine) if machine.is_running => machine
                .vmm
                .vcpu_time()
                .inspect(|used| self.facts.set_vcpu_time(*used))
                .is_ok_and(|used| {
                    let rests = !machine.vmm.vcpus_run().unwrap_or(true);
                    self.gauge.look(now, used) && rests
                }),
            _ => false,
        };
        if idle != self.told_idle {
            self.told_idle = idle;
            self.tell(PollCommand::VcpusIdle(idle));
        }
    }

    fn check_health(&mut self, now: Instant) {
        if self.replica.is_none() {
            return;
        }
        if let Some(machine) = &mut self.machine {
            if let Some(reason) = machine.vmm.has_exited() {
                self.lose_machine(&format!("the VMM ended ({reason})"));
            } else {
                for event in machine.vmm.guest_events() {
                    warn!(
                        ?event,
                        "the guest stopped by itself; it does not serve any more"
                    );
                    self.journal.write(now, "guest", json!({ "what": event }));
                }
            }
        } else if now >= self.next_launch
            && let Err(error) = self.launch()
        {
            error!("{error:#}");
            self.machine = None;
            self.next_launch = now + RELAUNCH_INTERVAL;
        }
        if hashing(&self.replica).is_some()
            && self.hasher.as_mut().is_none_or(HasherProcess::has_exited)
            && now >= self.next_hasher
        {
            self.restart_hasher("the process ended");
        }
        if let Err(error) = self.bound_pause() {
            error!("{error:#}");
            self.give_up_machine(&format!("{error:#}"));
        }
    }
}

fn hashing(replica: &Option<Replica>) -> Option<&Hashing> {
    replica.as_ref()?.hashing.as_ref()
}
