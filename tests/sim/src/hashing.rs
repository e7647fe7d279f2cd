//! What each step of a sync does with the bytes of the two copies.

use plover_types::{SyncId, SyncKind};
use rand::Rng;
use replication::epoch::{CopyEvent, Side};

use crate::check::SyncPoint;
use crate::driver::{Package, Round};
use crate::host::Host;
use crate::round::Done;
use crate::step::Step;
use crate::violation::Violation;
use crate::vm::{ALL_PAGES, Image, PageBits, certify, pages};
use crate::world::World;

impl World {
    pub(crate) fn pause_primary(&mut self, host: usize, round: &mut Round) -> Done {
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

    pub(crate) fn pause_backup(&mut self, host: usize) -> Done {
        self.hosts[host].vm.is_paused = true;
        Done::Next
    }

    pub(crate) fn collect(&mut self, host: usize, round: &mut Round) -> Done {
        let it = &mut self.hosts[host];
        let knows = round.kind == SyncKind::Delta && !it.driver.tracker_lost;
        let written = std::mem::take(&mut it.vm.written);
        round.pending = if knows { written } else { ALL_PAGES };
        it.driver.tracker_lost = false;
        Done::Next
    }

    /// The other side of this sync, if its hasher is there and past `step`.
    fn partner(&self, host: usize, sync: SyncId, step: Step) -> Option<(&Round, &Image)> {
        let is_partner = |(other, it): &(usize, &Host)| {
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

    pub(crate) fn exchange(&mut self, host: usize, round: &mut Round) -> Done {
        let Some((partner, image)) = self.partner(host, round.sync, Step::Exchange) else {
            return Done::NotYet;
        };
        round.union = round.pending | partner.pending;
        if round.side == Side::Primary {
            round.theirs = digests(image, round.union);
        }
        Done::Next
    }

    pub(crate) fn copy_out(&mut self, host: usize, round: &mut Round) -> Done {
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
    pub(crate) fn resume_primary(&mut self, host: usize, round: &mut Round) -> Done {
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

    pub(crate) fn arrive(&mut self, host: usize, round: &mut Round) -> Done {
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
    pub(crate) fn verify(&mut self, host: usize, round: &mut Round) -> Done {
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

    /// Redo: whatever a hasher that died left behind is written over.
    pub(crate) fn apply(&mut self, host: usize, round: &mut Round) -> Done {
        let Some(package) = &round.package else {
            return Done::Failed;
        };
        for (page, bytes) in &package.pages {
            self.hosts[host].vm.image.set_page(*page, bytes);
        }
        Done::Next
    }

    pub(crate) fn load(&mut self, host: usize, round: &mut Round) -> Done {
        if self.faults_on && self.random.random_ratio(1, 100) {
            return Done::Failed;
        }
        let Some(package) = &round.package else {
            return Done::Failed;
        };
        self.hosts[host].vm.image.cpu = package.cpu;
        Done::Next
    }

    pub(crate) fn resume_backup(
        &mut self,
        host: usize,
        round: &mut Round,
    ) -> Result<Done, Violation> {
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
}

fn digests(image: &Image, union: PageBits) -> Vec<u32> {
    pages(union)
        .map(|page| crc32fast::hash(image.page(page)))
        .collect()
}
