//! Faults that try the lease: a primary is left with one voter, so that the other one asks for
//! votes without end; then it loses that voter, too, whose promise is all that is left.

use plover_types::NodeId;
use rand::Rng;

use crate::queue::What;
use crate::world::World;

/// Longer than the other voter takes to ask for votes.
const ALONE_US: u64 = 1_000_000;

/// What is under way arrives within this time.
const SETTLE_US: u64 = 60_000;

impl World {
    pub(crate) fn squeeze(&mut self) {
        let Some(primary) = self.checker.newest_role().map(|role| role.primary) else {
            return;
        };
        let Some(primary) = self.index_of(primary) else {
            return;
        };
        let mut others: Vec<usize> = (0..self.hosts.len())
            .filter(|other| *other != primary && !self.hosts[*other].is_gone)
            .collect();
        if others.len() != 2 {
            return;
        }
        if self.random.random() {
            others.swap(0, 1);
        }
        // The other voter can win only with a log that is complete: a group at rest.
        if self.random.random_ratio(3, 4) {
            self.quiet_until_us = self.now_us + SETTLE_US + ALONE_US;
        }
        let at = self.now_us + SETTLE_US;
        self.queue
            .push(at, primary, 0, What::PartVoter(others[0], others[1]));
    }

    pub(crate) fn part_voter(&mut self, primary: usize, other: usize, voter: usize) {
        if !self.faults_on {
            return;
        }
        self.cut(primary, other, ALONE_US);
        self.cut(other, primary, ALONE_US);
        let after = self.random.random_range(180_000..700_000);
        let with_restart = self.random.random();
        let at = self.now_us + after;
        self.queue
            .push(at, primary, 0, What::Squeeze(voter, with_restart));
    }

    /// Some hand-overs: the new leader is heard by everybody but the old one.
    pub(crate) fn part_from(&mut self, host: usize, to: NodeId) {
        if !self.faults_on || !self.random.random_ratio(1, 3) {
            return;
        }
        if let Some(to) = self.index_of(to) {
            self.outcome.faults += 1;
            self.cut(to, host, 250_000);
        }
    }

    pub(crate) fn squeeze_now(&mut self, primary: usize, voter: usize, with_restart: bool) {
        if !self.faults_on {
            return;
        }
        self.outcome.faults += 1;
        self.cut(primary, voter, 400_000);
        self.cut(voter, primary, 400_000);
        if with_restart && self.hosts[voter].disk.is_some() {
            let delay = self.random.random_range(1_000..40_000);
            self.kill_for(voter, delay);
        }
    }
}
