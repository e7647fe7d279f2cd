//! A sync as the modelled drivers and hashers of two nodes do it, step by step, over real bytes.

use plover_types::{Position, SyncId, SyncKind};
use rand::Rng;
use replication::epoch::{CopyEvent, Side};

use crate::check::SyncPoint;
use crate::driver::{Job, Package, Round};
use crate::queue::What;
use crate::step::Step;
use crate::violation::Violation;
use crate::vm::{ALL_PAGES, Image, PageBits, certify, pages};
use crate::world::World;

/// How often a step looks whether the other side is there; then the sync failed here.
const TRIES_MAX: u32 = 40;

/// What became of a step.
enum Done {
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

    fn pause_primary(&mut self, host: usize, round: &mut Round) -> Done {
        let position = self.core(host).position();
        let is_current = self.core(host).group().sync().map(|sync| sync.id) == Some(round.sync);
        let policy = self.core(host).output_policy(true);
        let it = &mut self.hosts[host];
        it.vm.is_paused = true;
        // A sync that was given up meanwhile closes nothing.
        if is_current {
            it.hold.close(round.sync);
            it.hold.set_policy(policy);
            it.filling = (round.kind == SyncKind::Fill).then_some(round.sync);
        }
        round.position = position;
        let point = SyncPoint {
            image: it.vm.image.clone(),
            position,
            host_facts: it.host_facts,
        };
        self.checker.sync_point(round.sync, point);
        Done::Next
    }

    fn pause_backup(&mut self, host: usize) -> Done {
        self.hosts[host].vm.is_paused = true;
        Done::Next
    }

    fn collect(&mut self, host: usize, round: &mut Round) -> Done {
        let it = &mut self.hosts[host];
        let knows = round.kind == SyncKind::Delta && !it.driver.tracker_lost;
        let written = std::mem::take(&mut it.vm.written);
        round.pending = if knows { written } else { ALL_PAGES };
        it.driver.tracker_lost = false;
        Done::Next
    }

    /// The other side of this sync, if its hasher is there and past `step`.
    fn partner(&self, host: usize, sync: SyncId, step: Step) -> Option<(&Round, &Image)> {
        let is_partner = |(other, it): &(usize, &crate::host::Host)| {
            *other != host && it.is_up() && self.network.connects(host, *other)
        };
        self.hosts
            .iter()
            .enumerate()
            .filter(is_partner)
            .find_map(|(_, it)| {
                let round = it.driver.round.as_ref()?;
                (round.sync == sync && round.step >= step).then_some((round, &it.vm.image))
            })
    }

    fn exchange(&mut self, host: usize, round: &mut Round) -> Done {
        let Some((partner, image)) = self.partner(host, round.sync, Step::Exchange) else {
            return Done::NotYet;
        };
        round.union = round.pending | partner.pending;
        if round.side == Side::Primary {
            round.theirs = digests(image, round.union);
        }
        Done::Next
    }

    fn copy_out(&mut self, host: usize, round: &mut Round) -> Done {
        let image = &self.hosts[host].vm.image;
        let own = digests(image, round.union);
        let differing = pages(round.union)
            .zip(own.iter().zip(&round.theirs))
            .filter(|(_, (own, theirs))| own != theirs)
            .map(|(page, _)| (page, image.page(page).into()));
        let all = pages(round.union).map(|page| (page, image.page(page)));
        round.package = Some(Package {
            pages: differing.collect(),
            cpu: image.cpu,
            certificate: certify(round.sync, all),
        });
        Done::Next
    }

    /// The primary's VM runs again; what it sends belongs to the next epoch.
    fn resume_primary(&mut self, host: usize, round: &mut Round) -> Done {
        let (sync, position) = (round.sync, round.position);
        let Some(certificate) = round.package.as_ref().map(|package| package.certificate) else {
            return Done::Failed;
        };
        self.hosts[host].vm.is_paused = false;
        self.core(host).lift_barrier(Some(sync));
        let copied_out = CopyEvent::CopiedOut {
            sync,
            certificate,
            position,
        };
        self.report(host, copied_out);
        Done::Next
    }

    fn arrive(&mut self, host: usize, round: &mut Round) -> Done {
        let Some((partner, _)) = self.partner(host, round.sync, Step::Resume) else {
            return Done::NotYet;
        };
        let Some(mut package) = partner.package.clone() else {
            return Done::NotYet;
        };
        if self.faults_on
            && self.random.random_ratio(1, 80)
            && let Some((_, bytes)) = package.pages.first_mut()
        {
            bytes[7] ^= 0x40;
        }
        round.package = Some(package);
        Done::Next
    }

    /// The backup's memory under what is staged. A hasher that finds another certificate than the
    /// primary's says so; half of the time here it does not look, and the group must.
    fn verify(&mut self, host: usize, round: &mut Round) -> Done {
        let Some(package) = &mut round.package else {
            return Done::Failed;
        };
        let mut image = self.hosts[host].vm.image.clone();
        for (page, bytes) in &package.pages {
            image.set_page(*page, bytes);
        }
        let all = pages(round.union).map(|page| (page, image.page(page)));
        let found = certify(round.sync, all);
        if found != package.certificate {
            if self.random.random() {
                return Done::Failed;
            }
            package.certificate = found;
        }
        Done::Next
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

    /// Redo: whatever a hasher that died left behind is written over.
    fn apply(&mut self, host: usize, round: &mut Round) -> Done {
        let Some(package) = &round.package else {
            return Done::Failed;
        };
        for (page, bytes) in &package.pages {
            self.hosts[host].vm.image.set_page(*page, bytes);
        }
        Done::Next
    }

    fn load(&mut self, host: usize, round: &mut Round) -> Done {
        if self.faults_on && self.random.random_ratio(1, 100) {
            return Done::Failed;
        }
        let Some(package) = &round.package else {
            return Done::Failed;
        };
        self.hosts[host].vm.image.cpu = package.cpu;
        Done::Next
    }

    fn resume_backup(&mut self, host: usize, round: &mut Round) -> Result<Done, Violation> {
        let (sync, position) = (round.sync, round.position);
        let found = self.core(host).seek(position);
        self.hosts[host].hold.discard();
        if !found {
            self.given_up(host)?;
            return Ok(Done::Failed);
        }
        // Where the core really goes on, whatever it was told.
        let position = self.core(host).position();
        let it = &mut self.hosts[host];
        let facts = it.host_facts;
        self.checker
            .loaded(it.spec.id, sync, &it.vm.image, position, facts)?;
        it.vm.is_alive = true;
        it.vm.is_paused = false;
        it.passed = 0;
        self.core(host).lift_barrier(Some(sync));
        self.report(host, CopyEvent::Loaded { sync });
        Ok(Done::Next)
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

fn digests(image: &Image, union: PageBits) -> Vec<u32> {
    pages(union)
        .map(|page| crc32fast::hash(image.page(page)))
        .collect()
}
