//! What goes wrong in the world, and when it is mended.

use plover_types::SyncId;
use rand::Rng;
use replication::core::Event;
use replication::epoch::{CopyEvent, Side};

use crate::clock::DRIFT_PPM_MAX;
use crate::driver::Job;
use crate::host::Host;
use crate::network::{FAIR, Network, Weather};
use crate::queue::What;
use crate::step::{Interruption, Step};
use crate::violation::Violation;
use crate::vm::Vm;
use crate::world::World;

impl World {
    /// One fault, drawn at random, and the time of the next.
    pub(crate) fn draw_fault(&mut self) -> Result<(), Violation> {
        if !self.faults_on {
            return Ok(());
        }
        let gap = self
            .random
            .random_range(20_000..self.settings.fault_gap_max_us);
        self.queue.push(self.now_us + gap, 0, 0, What::Fault);
        let host = self.random.random_range(0..self.hosts.len());
        self.outcome.faults += 1;
        match self.random.random_range(0..20) {
            0 => self.kill(host),
            1 => self.kill_witness(),
            2 | 3 => self.cut_pair(host),
            4 => self.isolate(host),
            5 | 6 => self.storm(),
            7 | 8 => self.stop(host),
            9 => self.lose_vm(host)?,
            10 | 11 => self.lose_hasher(host),
            12 => self.slow_disks(),
            13 => self.lose_disk(host)?,
            14 => self.lose_uplink(host),
            15 | 16 => self.squeeze(),
            17 => self.plan_failover(host)?,
            18 => {
                let replica = self.random_replica();
                self.kill(replica);
            }
            _ => self.bend_clock(host),
        }
        Ok(())
    }

    fn random_replica(&mut self) -> usize {
        let is_there =
            |host: &usize| self.hosts[*host].spec.is_replica && !self.hosts[*host].is_gone;
        let replicas: Vec<usize> = (0..self.hosts.len()).filter(is_there).collect();
        replicas[self.random.random_range(0..replicas.len())]
    }

    fn duration(&mut self) -> u64 {
        self.random.random_range(20_000..900_000)
    }

    /// A fault that was aimed at a step.
    pub(crate) fn interrupt(
        &mut self,
        host: usize,
        sync: SyncId,
        step: Step,
        by: Interruption,
    ) -> Result<(), Violation> {
        let driver = &self.hosts[host].driver;
        let is_there = |round: &&crate::driver::Round| (round.sync, round.step) == (sync, step);
        if driver.round.as_ref().filter(is_there).is_none() || self.hosts[host].is_stopped {
            return Ok(());
        }
        self.outcome.faults += 1;
        match by {
            Interruption::Kill => self.kill(host),
            Interruption::Stop => self.stop(host),
            Interruption::Cut => self.cut_replicas(host),
            Interruption::Vmm => self.lose_vm(host)?,
            Interruption::Hasher => self.lose_hasher(host),
            Interruption::Error => {
                self.hosts[host].driver.fails = true;
                self.came_between(host, Interruption::Error);
            }
        }
        Ok(())
    }

    /// Notes what a fault came between, if a sync is at work there.
    fn came_between(&mut self, host: usize, by: Interruption) {
        let driver = &self.hosts[host].driver;
        let Some(round) = &driver.round else { return };
        let is_at_work = driver.job == Some(Job::Step) || round.step == Step::Staged;
        if is_at_work {
            self.outcome
                .coverage
                .interrupted(round.side, round.step, by);
        }
    }

    /// A fault is about to destroy this host's copy.
    pub(crate) fn destroys_copy(&mut self, host: usize) {
        let Some(role) = self.checker.newest_role().copied() else {
            return;
        };
        let own = self.hosts[host].id();
        // A role that stands in a log and may yet be committed decides, too: nothing can take it
        // back, and it may list this copy only.
        if self.hosts.iter().any(Host::has_undecided_role) {
            self.last_copy_destroyed = true;
        }
        let serves_on = |other: &Host| {
            other.id() != own && role.valid.contains(other.id()) && other.vm.is_alive
        };
        if role.valid.contains(own) && !self.hosts.iter().any(serves_on) {
            self.last_copy_destroyed = true;
        }
    }

    /// All processes of a node end at once.
    pub(crate) fn kill(&mut self, host: usize) {
        let delay = self.random.random_range(2_000..700_000);
        self.kill_for(host, delay);
    }

    /// A node with a disk starts again after this time; another one is replaced.
    pub(crate) fn kill_for(&mut self, host: usize, delay: u64) {
        let is_durable = self.hosts[host].disk.is_some();
        if self.hosts[host].core.is_none() || (!is_durable && !self.may_lose_one()) {
            return;
        }
        self.came_between(host, Interruption::Kill);
        self.destroys_copy(host);
        let it = &mut self.hosts[host];
        it.core = None;
        it.incarnation += 1;
        it.is_stopped = false;
        it.waiting.clear();
        it.hold.discard();
        it.vm = Vm::absent();
        it.driver.forget();
        let random = &mut self.random;
        let written = it.disk.as_mut().map(|disk| disk.crash(random));
        self.trace(host, || match written {
            Some((kept, lost)) => {
                format!("is killed; of its writes under way {kept} are kept, {lost} lost or torn")
            }
            None => "is killed, and its log with it".into(),
        });
        if is_durable {
            self.schedule(host, delay, What::Restart);
        } else {
            self.hosts[host].is_gone = true;
            self.bring_another(host);
        }
    }

    fn kill_witness(&mut self) {
        if let Some(host) = self.hosts.iter().position(|host| !host.spec.is_replica) {
            self.kill(host);
        }
    }

    pub(crate) fn stop(&mut self, host: usize) {
        if self.hosts[host].is_up() {
            self.came_between(host, Interruption::Stop);
            self.trace(host, || "stands still".into());
            self.hosts[host].is_stopped = true;
            let delay = self.duration();
            self.schedule(host, delay, What::Continue);
        }
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, delay: u64) {
        self.trace(from, || format!("cannot reach node {}", to + 1));
        self.network.cut(from, to);
        self.schedule(from, delay, What::MendLink(from, to));
    }

    fn cut_pair(&mut self, host: usize) {
        let count = self.hosts.len();
        let other = (host + self.random.random_range(1..count.max(2))) % count;
        let delay = self.duration();
        self.cut(host, other, delay);
        if self.random.random() {
            self.cut(other, host, delay);
        }
    }

    fn isolate(&mut self, host: usize) {
        let delay = self.duration();
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut(host, other, delay);
            self.cut(other, host, delay);
        }
    }

    /// The two replicas lose each other; the witness hears both.
    fn cut_replicas(&mut self, host: usize) {
        self.came_between(host, Interruption::Cut);
        let delay = self.duration();
        for other in 0..self.hosts.len() {
            if other != host && self.hosts[other].spec.is_replica {
                self.came_between(other, Interruption::Cut);
                self.cut(host, other, delay);
                self.cut(other, host, delay);
            }
        }
    }

    fn storm(&mut self) {
        self.network.weather = Weather {
            loss_permille: self.random.random_range(0..250),
            duplicate_permille: self.random.random_range(0..250),
            short_permille: self.random.random_range(0..50),
            delay_max_us: self.random.random_range(200..60_000),
        };
        let weather = self.network.weather;
        self.trace(0, || format!("and all others: {weather:?}"));
        let delay = self.duration();
        self.schedule(0, delay, What::MendWeather);
    }

    /// The VMM of a host ends; another one is started.
    pub(crate) fn lose_vm(&mut self, host: usize) -> Result<(), Violation> {
        let it = &self.hosts[host];
        if !it.is_up() || !it.spec.is_replica || it.driver.job == Some(Job::Launch) {
            return Ok(());
        }
        self.trace(host, || "loses its VMM".into());
        self.came_between(host, Interruption::Vmm);
        self.destroys_copy(host);
        let it = &mut self.hosts[host];
        it.vm = Vm::absent();
        it.hold.discard();
        it.driver.forget();
        self.report(host, CopyEvent::Lost);
        self.launch(host);
        self.pump(host)
    }

    /// The hasher of a host ends, and is started again. What is staged is in a file.
    fn lose_hasher(&mut self, host: usize) {
        if !self.hosts[host].is_up() || !self.hosts[host].spec.is_replica {
            return;
        }
        self.trace(host, || "loses its hasher".into());
        self.came_between(host, Interruption::Hasher);
        let half = self.random.random_range(0..8);
        let it = &mut self.hosts[host];
        let driver = &mut it.driver;
        driver.tracker_lost = true;
        let Some(round) = &mut driver.round else {
            return;
        };
        match (round.step, round.side) {
            // The driver starts over from the first staged page.
            (Step::Apply, _) => {
                let pages = round.package.iter().flat_map(|package| &package.pages);
                for (page, bytes) in pages.take(half) {
                    it.vm.image.set_page(*page, bytes);
                }
            }
            (Step::Pause | Step::Staged | Step::Commit | Step::Load, _)
            | (Step::Resume, Side::Backup) => {}
            (Step::Resume | Step::Send, Side::Primary) => {
                round.package = None;
                driver.fails = driver.job.is_some() && round.step == Step::Send;
            }
            _ => driver.fails = true,
        }
    }

    fn slow_disks(&mut self) {
        self.trace(0, || "and all others: slow disks".into());
        self.slow_disks = true;
        let delay = self.duration();
        self.schedule(0, delay, What::MendDisks);
    }

    /// A disk takes no more writes: the node acknowledges nothing from then on, until it is
    /// started again with the disk mended.
    fn lose_disk(&mut self, host: usize) -> Result<(), Violation> {
        let it = &mut self.hosts[host];
        if !it.is_up() || it.disk.is_none() || it.disk_failed {
            return Ok(());
        }
        it.disk_failed = true;
        self.trace(host, || "cannot write to its disk".into());
        let now = self.local(host);
        self.core(host).step(now, Event::PersistFailed);
        let delay = self.duration();
        self.schedule(host, delay, What::Repair);
        self.pump(host)
    }

    fn lose_uplink(&mut self, host: usize) {
        self.trace(host, || "loses its uplink".into());
        self.hosts[host].uplink_up = false;
        let delay = self.duration();
        self.schedule(host, delay, What::MendUplink);
    }

    fn bend_clock(&mut self, host: usize) {
        let rate = self.random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
        self.trace(host, || format!("'s clock runs {rate} ppm fast"));
        let now = self.now_us;
        self.hosts[host].clock.set_rate(now, rate);
    }

    /// Something works again.
    pub(crate) fn mend(&mut self, host: usize, what: &What) {
        match what {
            What::MendLink(from, to) => self.network.mend(*from, *to),
            What::MendWeather => self.network.weather = FAIR,
            What::MendDisks => self.slow_disks = false,
            What::MendUplink => self.hosts[host].uplink_up = true,
            What::Heal => {
                self.trace(0, || "and all others: no more faults".into());
                self.faults_on = false;
                self.slow_disks = false;
                self.network = Network::default();
                for host in &mut self.hosts {
                    host.uplink_up = true;
                }
                self.first_settled = Some(self.next_packet);
                self.settled_seen = self.next_packet;
            }
            other => unreachable!("nothing to mend: {other:?}"),
        }
    }
}
