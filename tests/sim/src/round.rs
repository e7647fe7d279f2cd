//! A sync as the modelled drivers and hashers of two nodes do it, step by step. What each
//! does with the bytes is in [`crate::hashing`].

use plover_types::{Position, SyncId, SyncKind};
use rand::Rng;
use replication::epoch::{CopyEvent, Side};

use crate::driver::{Job, Round};
use crate::queue::What;
use crate::step::Step;
use crate::violation::Violation;
use crate::world::World;

/// How often a step looks whether the other side is there; then the sync failed here.
const TRIES_MAX: u32 = 40;

/// What became of a step.
pub(crate) enum Done {
    /// The next one follows.
    Next,
    /// The other side is not there yet.
    NotYet,
    /// The sync cannot go on here.
    Failed,
    /// Nothing follows by itself.
    Rest,
}

impl World {
    /// A sync begins on this node.
    pub(crate) fn begin_round(&mut self, host: usize, sync: SyncId, kind: SyncKind, side: Side) {
        self.hosts[host].driver.round = Some(Round::new(sync, kind, side));
        self.enter_step(host, Step::Pause);
    }

    /// The end is committed: what is staged is applied.
    pub(crate) fn commit_round(&mut self, host: usize, sync: SyncId, position: Position) {
        let is_staged = |round: &&mut Round| round.sync == sync && round.package.is_some();
        match self.hosts[host].driver.round.as_mut().filter(is_staged) {
            Some(round) => {
                round.position = position;
                self.enter_step(host, Step::Commit);
            }
            None => self.load_failed(host, sync),
        }
    }

    fn enter_step(&mut self, host: usize, step: Step) {
        let Some(round) = &mut self.hosts[host].driver.round else {
            return;
        };
        let (sync, side) = (round.sync, round.side);
        (round.step, round.tries) = (step, 0);
        self.trace(host, || format!("{} {step:?} of sync {sync}", part(side)));
        let delay = self.step_delay(step);
        // A promise waits for the group, not for a job.
        if step != Step::Staged {
            let count = self.hosts[host].driver.start(Job::Step);
            self.schedule(host, delay, What::Job(count));
        }
        self.aim(host, sync, side, step, delay);
        if step == Step::Staged {
            self.promise(host);
        }
    }

    fn step_delay(&mut self, step: Step) -> u64 {
        let longest = match step {
            Step::Pause | Step::Send => 3_000,
            Step::Staged => 500,
            // Most loads are quick; some take longer than an election.
            Step::Load if self.random.random_ratio(1, 12) => 600_000,
            Step::Load => 12_000,
            _ => 900,
        };
        self.random.random_range(50..longest)
    }

    /// If a fault waits for this step, it comes while the step is under way.
    fn aim(&mut self, host: usize, sync: SyncId, side: Side, step: Step, delay: u64) {
        if !self.faults_on {
            return;
        }
        let now = self.now_us;
        let fits = |aim: &crate::settings::Aim| {
            aim.from_us <= now && (aim.side, aim.step) == (side.into(), step)
        };
        if let Some(at) = self.settings.aims.iter().position(fits) {
            let aim = self.settings.aims.remove(at);
            let after = self.random.random_range(0..delay);
            self.schedule(host, after, What::Interrupt(sync, step, aim.by));
        }
    }

    /// The present step's time is up.
    pub(crate) fn step_done(&mut self, host: usize) -> Result<(), Violation> {
        let fails = std::mem::take(&mut self.hosts[host].driver.fails);
        let Some(mut round) = self.hosts[host].driver.round.take() else {
            return Ok(());
        };
        let (sync, side, step) = (round.sync, round.side, round.step);
        let done = if fails {
            Done::Failed
        } else {
            self.do_step(host, &mut round)?
        };
        if self.hosts[host].driver.round.is_none() {
            self.hosts[host].driver.round = Some(round);
        }
        match done {
            Done::Rest => {}
            Done::Next => match step.next(side.into()) {
                Some(next) => self.enter_step(host, next),
                None => self.hosts[host].driver.round = None,
            },
            Done::NotYet => self.try_again(host),
            Done::Failed => self.fail_step(host, sync, side, step)?,
        }
        Ok(())
    }

    fn do_step(&mut self, host: usize, round: &mut Round) -> Result<Done, Violation> {
        let done = match (round.step, round.side) {
            (Step::Pause, Side::Primary) => self.pause_primary(host, round),
            (Step::Pause, Side::Backup) => self.pause_backup(host),
            (Step::Collect, _) => self.collect(host, round),
            (Step::Exchange, _) => self.exchange(host, round),
            (Step::Blocks, Side::Primary) => self.copy_out(host, round),
            (Step::Blocks, Side::Backup) => self.arrive(host, round),
            (Step::Verify, _) => self.verify(host, round),
            (Step::Resume, Side::Primary) => self.resume_primary(host, round),
            (Step::Send, _) => Done::Rest,
            (Step::Apply, _) => self.apply(host, round),
            (Step::Load, _) => self.load(host, round),
            (Step::Resume, Side::Backup) => return self.resume_backup(host, round),
            // Digests are taken where they are compared: nothing writes a paused copy.
            (Step::Digest | Step::Compare | Step::Stage | Step::Commit, _) => Done::Next,
            (Step::Staged, _) => Done::Rest,
        };
        Ok(done)
    }

    fn try_again(&mut self, host: usize) {
        let Some(round) = &mut self.hosts[host].driver.round else {
            return;
        };
        round.tries += 1;
        let (sync, is_late) = (round.sync, round.tries > TRIES_MAX);
        if is_late {
            self.report(host, CopyEvent::Failed { sync });
            return;
        }
        let count = self.hosts[host].driver.start(Job::Step);
        let delay = self.random.random_range(300..3_000);
        self.schedule(host, delay, What::Job(count));
    }

    /// A step ended in an error.
    fn fail_step(
        &mut self,
        host: usize,
        sync: SyncId,
        side: Side,
        step: Step,
    ) -> Result<(), Violation> {
        self.trace(host, || format!("{} {step:?} fails", part(side)));
        match (step, side) {
            (Step::Commit | Step::Apply | Step::Load, _) | (Step::Resume, Side::Backup) => {
                self.load_failed(host, sync);
            }
            // A VMM that does not resume is no copy any more.
            (Step::Resume, Side::Primary) => self.lose_vm(host)?,
            (Step::Pause, _) => {
                self.core(host).lift_barrier(Some(sync));
                self.report(host, CopyEvent::Failed { sync });
            }
            _ => self.report(host, CopyEvent::Failed { sync }),
        }
        Ok(())
    }

    fn promise(&mut self, host: usize) {
        let round = self.hosts[host].driver.round.as_ref();
        let Some((sync, package)) =
            round.and_then(|round| Some((round.sync, round.package.as_ref()?)))
        else {
            return;
        };
        let certificate = package.certificate;
        self.report(host, CopyEvent::Staged { sync, certificate });
    }

    /// The copy could not be made the primary's: it is void, and a new VMM is started.
    fn load_failed(&mut self, host: usize, sync: SyncId) {
        self.destroys_copy(host);
        let it = &mut self.hosts[host];
        it.vm.is_alive = false;
        it.vm.is_paused = true;
        it.hold.discard();
        it.driver.forget();
        self.report(host, CopyEvent::LoadFailed { sync });
        self.launch(host);
    }

    /// The sync is given up: everything is as before it, and its pages are dirty again.
    pub(crate) fn abort_round(&mut self, host: usize, sync: SyncId, resume: bool) {
        let it = &mut self.hosts[host];
        if let Some(round) = it.driver.round.take() {
            it.vm.written |= round.pending;
        }
        it.driver.job = None;
        if resume {
            it.vm.is_paused = false;
        }
        self.core(host).lift_barrier(Some(sync));
    }
}

fn part(side: Side) -> &'static str {
    match side {
        Side::Primary => "primary:",
        Side::Backup => "backup:",
    }
}
