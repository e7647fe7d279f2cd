//! What goes wrong in the world, and when it is mended.

use rand::Rng;
use replication::epoch::CopyEvent;

use super::{Mend, NODES, Node, What, World};
use crate::sim::check::Violation;
use crate::sim::driver::Driver;
use crate::sim::network::Network;
use crate::sim::vm::Vm;

impl World {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        let node = self.random.random_range(0..3usize);
        let other = (node + self.random.random_range(1..3usize)) % 3;
        let (a, b) = (NODES[node].id, NODES[other].id);
        let until = self.now_us + self.random.random_range(20_000..900_000);
        match self.random.random_range(0..9) {
            0 => self.kill(node),
            1 | 2 => {
                self.network.set_cut(a, b, true);
                self.mends.push((until, Mend::Link(a, b)));
                if self.random.random_bool(0.6) {
                    self.network.set_cut(b, a, true);
                    self.mends.push((until, Mend::Link(b, a)));
                }
            }
            3 => {
                for third in NODES.iter().filter(|spec| spec.id != a) {
                    self.network.set_cut(a, third.id, true);
                    self.network.set_cut(third.id, a, true);
                    self.mends.push((until, Mend::Link(a, third.id)));
                    self.mends.push((until, Mend::Link(third.id, a)));
                }
            }
            4 => {
                self.network.loss_permille = self.random.random_range(0..200);
                self.network.duplicate_permille = self.random.random_range(0..200);
                self.network.corrupt_permille = self.random.random_range(0..50);
                self.network.delay_max_us = self.random.random_range(200..60_000);
                self.mends.push((until, Mend::Network));
            }
            5 | 6 => self.stop(node),
            7 => self.lose_vm(node)?,
            _ => self.kill(2),
        }
        Ok(())
    }

    /// A fault is about to destroy this node's copy.
    pub(super) fn destroys_copy(&mut self, node: usize) {
        let Some(role) = self.newest_role() else {
            return;
        };
        // A role that stands in a log and may yet be committed decides, too: nothing can take it
        // back, and it may list this copy only.
        if self.nodes.iter().any(Node::has_undecided_role) {
            self.last_copy_destroyed = true;
        }
        let serves_on = |other: &Node| {
            other.spec.id != self.nodes[node].spec.id
                && role.valid.contains(other.spec.id)
                && other.vm.is_alive
        };
        if role.valid.contains(self.nodes[node].spec.id) && !self.nodes.iter().any(serves_on) {
            self.last_copy_destroyed = true;
        }
    }

    pub(super) fn newest_role(&self) -> Option<plover_types::RoleEntry> {
        self.nodes
            .iter()
            .filter_map(|node| node.core.as_ref().and_then(|core| core.group().role()))
            .max_by_key(|role| role.generation)
            .copied()
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.trace(node, &"killed");
        let is_replica = self.nodes[node].spec.is_replica;
        if self.nodes[node].core.is_none() || (is_replica && self.replica_killed) {
            return;
        }
        self.destroys_copy(node);
        let it = &mut self.nodes[node];
        it.core = None;
        it.incarnation += 1;
        it.is_stopped = false;
        it.waiting.clear();
        it.hold.discard();
        it.vm = Vm::default();
        it.driver = Driver::default();
        it.unpersisted.clear();
        if is_replica {
            // Its log is gone: it cannot come back under its id.
            self.replica_killed = true;
        } else {
            let delay = self.random.random_range(10_000..800_000);
            self.schedule(node, delay, What::Restart);
        }
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.trace(node, &"stopped");
        if self.nodes[node].core.is_some() && !self.nodes[node].is_stopped {
            self.nodes[node].is_stopped = true;
            let delay = self.random.random_range(20_000..900_000);
            self.schedule(node, delay, What::Continue);
        }
    }

    pub(super) fn lose_vm(&mut self, node: usize) -> Result<(), Violation> {
        let it = &mut self.nodes[node];
        if it.core.is_none() || it.is_stopped || !it.vm.is_alive {
            return Ok(());
        }
        self.trace(node, &"VM lost");
        self.destroys_copy(node);
        let it = &mut self.nodes[node];
        it.vm = Vm::default();
        it.hold.discard();
        it.driver = Driver {
            count: it.driver.count,
            ..Driver::default()
        };
        self.report(node, CopyEvent::Lost);
        self.launch(node);
        self.pump(node)
    }

    pub(super) fn mend(&mut self) {
        let now = self.now_us;
        let (due, later) = std::mem::take(&mut self.mends)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.mends = later;
        let due: Vec<(u64, Mend)> = due;
        for (_, mend) in due {
            match mend {
                Mend::Link(from, to) => self.network.set_cut(from, to, false),
                Mend::Network => {
                    self.network.loss_permille = 0;
                    self.network.duplicate_permille = 0;
                    self.network.corrupt_permille = 0;
                    self.network.delay_max_us = Network::default().delay_max_us;
                }
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.mends.clear();
        self.network.heal();
        self.options.with_faults = false;
    }
}
