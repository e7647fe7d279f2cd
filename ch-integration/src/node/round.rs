//! A sync, step by step, as this node's driver does it:
//!
//! ```text
//! begin    quiesce, pause the VMM, freeze the rings, tell the hasher; the primary captures state
//! events   copied out (primary: thaw, resume) or staged (backup: promise), or failed
//! finish   primary: the sync ended, the hasher forgets its pending pages
//! commit   backup: apply the staged set, load the state, go on at the primary's position, resume
//! abort    undo: the hasher takes its pages back, a paused copy runs again
//! ```

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hasher::control::{Event as HasherEvent, Side as HasherSide};
use hasher::stats::RoundStats;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plover_types::{Position, SyncId, SyncKind};
use replication::epoch::{CopyEvent, Side};
use tracing::{info, warn};
use vhost_user_plover_net::poll::{PollCommand, PollEvent};

use super::driver::Driver;
use super::journal::SyncSummary;
use super::verifier;

/// Writing a staged set into memory: bounded by memory bandwidth, with room for a busy host.
const APPLY_MAX: Duration = Duration::from_secs(20);

/// Bytes of a captured state at most; QEMU's is about 1 MB, Cloud Hypervisor's 40 kB.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// How long a primary stands still for what was written since the last sync; a healthy one does for
/// milliseconds, a busy host's for tens.
const PAUSE_MAX: Duration = Duration::from_millis(1500);

/// How long the end of a sync waits for the hasher's last figures.
const SENT_WAIT: Duration = Duration::from_millis(5);

/// With `debug.die_at_step`: the node dies once this file is in its state folder.
const ARMED_FILE: &str = "armed";

/// A sync at work here.
pub struct Round {
    /// Its name.
    pub sync: SyncId,
    kind: SyncKind,
    side: Side,
    /// Since when the VM has been paused.
    paused_at: Option<Instant>,
    pause: Duration,
    /// Time in the VMM's own calls.
    vmm_time: Duration,
    position: Position,
    held: usize,
    stats: RoundStats,
    /// Primary: the hasher has sent everything.
    is_sent: bool,
    /// Backup: the primary's state, once all is staged.
    staged_state: Option<OwnedFd>,
    reason: Option<String>,
}

impl Round {
    /// Whether this node promised to keep what is staged.
    pub fn is_staged(&self) -> bool {
        self.staged_state.is_some()
    }

    /// Whether the VM stands still for it.
    pub fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }
}

impl Driver {
    pub(super) fn begin(&mut self, sync: SyncId, kind: SyncKind, side: Side) -> Result<()> {
        self.step(sync, "pause");
        let was_running = self.machine()?.is_running;
        let begun = self.pause_and_freeze(sync, kind, side, was_running);
        let position = match begun {
            Ok(position) => position,
            Err(error) => {
                // The sync cannot go on here. The VM may run, or stand still, or hang.
                warn!(%sync, "{error:#}");
                self.fail(sync, &format!("{error:#}"));
                self.tell(PollCommand::Thaw { sync: Some(sync) });
                if was_running {
                    self.machine()?
                        .vmm
                        .resume()
                        .context("resume the VM after a failed pause")?;
                }
                return Ok(());
            }
        };
        if let Err(error) = self.begin_hashing(sync, kind, side, position) {
            self.restart_hasher(&format!("{error:#}"));
        }
        Ok(())
    }

    fn pause_and_freeze(
        &mut self,
        sync: SyncId,
        kind: SyncKind,
        side: Side,
        was_running: bool,
    ) -> Result<Position> {
        if was_running {
            let longest = Duration::from_millis(self.config.sync.quiet_max_ms.into());
            self.tell(PollCommand::Quiesce { sync, longest });
            self.answer("quiesce", longest, |event| match event {
                PollEvent::Quiet(quiet) if *quiet == sync => Some(()),
                _ => None,
            })?;
        }
        let start = Instant::now();
        if was_running {
            self.machine()?.vmm.pause().context("pause the VM")?;
        }
        let vmm_time = start.elapsed();
        self.tell(PollCommand::Freeze { sync, side });
        let (position, held) = self.answer("freeze", Duration::ZERO, |event| match event {
            PollEvent::Frozen {
                sync: frozen,
                position,
                held,
            } if *frozen == sync => Some((*position, *held)),
            _ => None,
        })?;
        self.round = Some(Round {
            sync,
            kind,
            side,
            paused_at: was_running.then_some(start),
            pause: Duration::ZERO,
            vmm_time,
            position,
            held,
            stats: RoundStats::default(),
            is_sent: false,
            staged_state: None,
            reason: None,
        });
        Ok(position)
    }

    fn begin_hashing(
        &mut self,
        sync: SyncId,
        kind: SyncKind,
        side: Side,
        position: Position,
    ) -> Result<()> {
        let hasher_side = match side {
            Side::Primary => HasherSide::Primary,
            Side::Backup => HasherSide::Backup,
        };
        let hasher = self.hasher.as_ref().context("there is no hasher")?;
        hasher
            .client
            .begin_round(sync, hasher_side, kind, position)?;
        if side == Side::Primary {
            // The hashers collect and compare while the VMM writes its state down.
            let start = Instant::now();
            let captured = self.machine()?.vmm.capture();
            let state = match captured {
                Ok(state) => state,
                Err(error) => {
                    // Without its state this sync cannot end; the VM itself is unharmed.
                    warn!(%error, "the VM's state could not be captured");
                    self.fail(sync, &error.to_string());
                    return Ok(());
                }
            };
            let file = state_file(&state).context("hand the VM's state to the hasher")?;
            if let Some(round) = &mut self.round {
                round.vmm_time += start.elapsed();
            }
            let hasher = self.hasher.as_ref().context("there is no hasher")?;
            hasher.client.device_state(sync, file.as_fd())?;
        }
        Ok(())
    }

    fn fail(&mut self, sync: SyncId, reason: &str) {
        if let Some(round) = &mut self.round
            && round.sync == sync
        {
            round.reason = Some(reason.to_owned());
        }
        self.report(CopyEvent::Failed { sync });
    }

    pub(super) fn on_hasher_event(
        &mut self,
        event: HasherEvent,
        state: Option<OwnedFd>,
    ) -> Result<()> {
        match event {
            HasherEvent::Step { sync, name } => {
                let name = serde_json::to_value(name).unwrap_or_default();
                self.step(sync, name.as_str().unwrap_or("unknown"));
            }
            HasherEvent::CopiedOut {
                sync,
                certificate,
                stats,
            } => {
                let Some(round) = self.round_of(sync) else {
                    return Ok(());
                };
                round.stats = stats;
                let position = round.position;
                if self.config.debug.verifier_socket.is_none() {
                    self.resume_paused(sync)?;
                }
                self.report(CopyEvent::CopiedOut {
                    sync,
                    certificate,
                    position,
                });
            }
            HasherEvent::Sent { sync, stats } => {
                if let Some(round) = self.round_of(sync) {
                    round.stats = stats;
                    round.is_sent = true;
                }
            }
            HasherEvent::Staged {
                sync,
                certificate,
                stats,
                ..
            } => {
                let Some(round) = self.round_of(sync) else {
                    return Ok(());
                };
                if !round.is_staged() {
                    round.stats = stats;
                }
                round.staged_state = state;
                self.step(sync, "staged");
                self.report(CopyEvent::Staged { sync, certificate });
            }
            HasherEvent::Failed { sync, reason } => {
                info!(%sync, reason, "the sync failed here");
                self.fail(sync, &reason);
            }
            HasherEvent::Refused { request, reason } => {
                warn!(request, reason, "the hasher refused");
                if let Some(round) = &self.round {
                    let sync = round.sync;
                    self.fail(sync, &reason);
                }
            }
            HasherEvent::PeerLost { reason } => {
                warn!(reason, "the connection to the peer's hasher was lost");
            }
            HasherEvent::Attached(_) | HasherEvent::Applied { .. } => {}
        }
        Ok(())
    }

    fn round_of(&mut self, sync: SyncId) -> Option<&mut Round> {
        self.round.as_mut().filter(|round| round.sync == sync)
    }

    /// Lets a paused copy run again: its rings first, so that they are ready when the VMM is.
    fn resume_paused(&mut self, sync: SyncId) -> Result<()> {
        let Some(round) = self.round_of(sync) else {
            return Ok(());
        };
        let paused_at = round.paused_at.take();
        self.tell(PollCommand::Thaw { sync: Some(sync) });
        if let Some(paused_at) = paused_at {
            self.step(sync, "resume");
            let start = Instant::now();
            self.machine()?.vmm.resume().context("resume the VM")?;
            if let Some(round) = &mut self.round {
                round.vmm_time += start.elapsed();
                round.pause = paused_at.elapsed();
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, sync: SyncId) -> Result<()> {
        self.await_sent(sync)?;
        if let Some(hasher) = &self.hasher
            && let Err(error) = hasher.client.finish(sync)
        {
            self.restart_hasher(&error.to_string());
        }
        if self.config.debug.verifier_socket.is_some() {
            self.verify(sync);
            self.resume_paused(sync)?;
        }
        self.end_round(sync, None);
        Ok(())
    }

    /// The last figures of the round come from the hasher by another way than the end of the sync:
    /// they are waited for a moment, for the journal's sake.
    fn await_sent(&mut self, sync: SyncId) -> Result<()> {
        let deadline = Instant::now() + SENT_WAIT;
        while self.round_of(sync).is_some_and(|round| !round.is_sent) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(hasher) = &mut self.hasher else {
                return Ok(());
            };
            match hasher.client.next_event(left) {
                Ok(Some(delivered)) => {
                    self.on_hasher_event(delivered.event, delivered.device_state)?;
                }
                // The call that follows finds out what is wrong with the hasher.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// The backup's end of a sync. Redo: if the hasher dies in the middle, another one finds the
    /// staged set and applies it from the start. A copy that cannot be completed is void.
    pub(super) fn commit(&mut self, sync: SyncId, position: Position) -> Result<()> {
        self.step(sync, "commit");
        match self.apply_and_load(sync, position) {
            Ok(()) => {
                self.report(CopyEvent::Loaded { sync });
                self.end_round(sync, None);
                Ok(())
            }
            Err(error) => {
                let reason = format!("{error:#}");
                self.report(CopyEvent::LoadFailed { sync });
                self.end_round(sync, Some(&reason));
                Err(error)
            }
        }
    }

    fn apply_and_load(&mut self, sync: SyncId, position: Position) -> Result<()> {
        if let Err(error) = self.apply(sync) {
            self.restart_hasher(&format!("{error:#}"));
            self.apply(sync).context("apply the staged set again")?;
        }
        let state = self
            .round_of(sync)
            .and_then(|round| round.staged_state.take());
        let state = read_state(state.context("the staged state is gone")?)?;
        self.step(sync, "load");
        let start = Instant::now();
        let machine = self.machine()?;
        machine
            .vmm
            .load(&state)
            .context("load the primary's state")?;
        if machine.vmm.ram_mapping_changed() {
            self.attach(true)?;
        }
        self.tell(PollCommand::Replace { sync, position });
        let found = self.answer("replace", Duration::ZERO, |event| match event {
            PollEvent::Replaced {
                sync: replaced,
                found,
                ..
            } if *replaced == sync => Some(*found),
            _ => None,
        })?;
        if !found {
            bail!("the log does not reach back to {position}, where the primary stood");
        }
        if self.config.debug.verifier_socket.is_some() {
            self.verify(sync);
        }
        self.tell(PollCommand::Thaw { sync: Some(sync) });
        self.step(sync, "resume");
        let machine = self.machine()?;
        machine.vmm.resume().context("resume the loaded copy")?;
        machine.is_running = true;
        if let Some(round) = self.round_of(sync) {
            round.vmm_time += start.elapsed();
            round.pause = round
                .paused_at
                .take()
                .map_or(Duration::ZERO, |at| at.elapsed());
        }
        Ok(())
    }

    /// Has the staged set written into memory.
    fn apply(&mut self, sync: SyncId) -> Result<()> {
        let hasher = self.hasher.as_mut().context("there is no hasher")?;
        hasher.client.apply(sync)?;
        let deadline = Instant::now() + APPLY_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let hasher = self.hasher.as_mut().context("there is no hasher")?;
            let Some(delivered) = hasher.client.next_event(left)? else {
                bail!("the hasher did not apply the staged set within {APPLY_MAX:?}")
            };
            match delivered.event {
                HasherEvent::Applied {
                    sync: applied,
                    apply_us,
                } if applied == sync => {
                    if let Some(round) = self.round_of(sync) {
                        round.stats.times.apply_us = apply_us;
                    }
                    return Ok(());
                }
                HasherEvent::Failed {
                    sync: failed,
                    reason,
                } if failed == sync => bail!("{reason}"),
                other => self.on_hasher_event(other, delivered.device_state)?,
            }
        }
    }

    pub(super) fn abort(&mut self, sync: SyncId, resume: bool) -> Result<()> {
        // The VM first: it has waited long enough.
        let resumed = if resume {
            self.resume_paused(sync)
        } else {
            Ok(())
        };
        self.abort_hashing(sync);
        let reason = self.round_of(sync).and_then(|round| round.reason.take());
        self.end_round(
            sync,
            Some(reason.as_deref().unwrap_or("given up by the group")),
        );
        resumed
    }

    /// Tells the hasher that the sync is given up.
    pub(super) fn abort_hashing(&mut self, sync: SyncId) {
        if let Some(hasher) = &self.hasher
            && let Err(error) = hasher.client.abort(sync)
        {
            self.restart_hasher(&error.to_string());
        }
    }

    /// A primary whose hasher, or whose peer's, does not get on with the sync must not stand still
    /// for it: the guest goes on, and the group is told that the sync failed here.
    pub(super) fn bound_pause(&mut self) -> Result<()> {
        let Some(round) = &self.round else {
            return Ok(());
        };
        let longest = match round.kind {
            SyncKind::Delta => PAUSE_MAX,
            SyncKind::Fill => Duration::from_millis(self.config.sync.timeout_ms.into()),
        };
        let is_late = round.side == Side::Primary
            && round.paused_at.is_some_and(|at| at.elapsed() > longest)
            && self.config.debug.verifier_socket.is_none();
        if !is_late {
            return Ok(());
        }
        let sync = round.sync;
        warn!(%sync, ?longest, "the VM stood still too long for a sync; it goes on");
        self.resume_paused(sync)?;
        self.abort_hashing(sync);
        self.fail(sync, "the VM stood still too long");
        Ok(())
    }

    fn end_round(&mut self, sync: SyncId, aborted: Option<&str>) {
        let Some(round) = self.round.take_if(|round| round.sync == sync) else {
            return;
        };
        self.journal.sync(&SyncSummary {
            sync,
            kind: round.kind,
            aborted,
            stats: &round.stats,
            pause: round.pause,
            vmm: round.vmm_time,
            held: if round.side == Side::Primary {
                round.held
            } else {
                0
            },
        });
    }

    fn verify(&mut self, sync: SyncId) {
        let (Some(socket), Some(machine)) = (&self.config.debug.verifier_socket, &self.machine)
        else {
            return;
        };
        if let Err(error) = verifier::wait(socket, self.config.id, sync, &machine.ram_path) {
            warn!(%sync, "the verifier: {error:#}");
        }
    }

    /// Notes that a step begins; with `debug.die_at_step` a node that is armed dies here, as a host
    /// that loses its power does.
    fn step(&mut self, sync: SyncId, step: &str) {
        self.journal.step(sync, step);
        if self.config.debug.die_at_step.as_deref() == Some(step)
            && Path::new(&self.config.state_dir).join(ARMED_FILE).exists()
        {
            let vmm = self.machine.as_ref().map(|machine| machine.vmm.pid());
            let hasher = self
                .hasher
                .as_ref()
                .map(super::hasher_process::HasherProcess::pid);
            for pid in [vmm, hasher, Some(std::process::id())]
                .into_iter()
                .flatten()
            {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
    }
}

fn state_file(state: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(c"plover-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(state)?;
    Ok(file)
}

fn read_state(fd: OwnedFd) -> Result<Vec<u8>> {
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0))
        .context("read the staged state")?;
    let mut state = Vec::new();
    file.take(STATE_BYTES_MAX)
        .read_to_end(&mut state)
        .context("read the staged state")?;
    Ok(state)
}
