//! The modelled work of the driver: commands in order, each with its delays.

use plover_types::Position;
use rand::Rng;
use replication::core::Event;
use replication::epoch::{CopyCommand, CopyEvent, Side};

use super::{Sabotage, What, World};
use crate::sim::check::Violation;
use crate::sim::driver::Job;
use crate::sim::vm::{Answer, Vm, certificate};

impl World {
    pub(super) fn command(&mut self, node: usize, command: CopyCommand) {
        self.trace(node, &command);
        let it = &mut self.nodes[node];
        if command == CopyCommand::Void {
            it.hold.discard();
        }
        it.driver.commands.push_back(command);
    }

    pub(super) fn run_driver(&mut self, node: usize) -> Result<(), Violation> {
        while self.nodes[node].driver.takes_command() {
            let Some(command) = self.nodes[node].driver.commands.pop_front() else {
                break;
            };
            let (job, delay) = match command {
                // A guest that runs keeps what it is; Boot comes for one that never did.
                CopyCommand::Boot => (Job::Boot, 5_000),
                CopyCommand::Begin { sync, side, .. } => (
                    Job::Quiesce { sync, side },
                    self.random.random_range(100..5_000),
                ),
                CopyCommand::Commit { sync, position } => (
                    Job::Load { sync, position },
                    // Most loads are quick; some take longer than an election.
                    if self.random.random_ratio(1, 10) {
                        self.random.random_range(20_000..600_000)
                    } else {
                        self.random.random_range(500..20_000)
                    },
                ),
                CopyCommand::Finish { .. } => continue,
                CopyCommand::Abort { sync, resume } => {
                    let it = &mut self.nodes[node];
                    it.driver.cancel();
                    it.driver.staged = None;
                    if resume {
                        it.vm.is_paused = false;
                    }
                    self.core(node).lift_barrier(Some(sync));
                    continue;
                }
                CopyCommand::Void => {
                    let it = &mut self.nodes[node];
                    it.driver.cancel();
                    it.vm.is_alive = false;
                    it.driver.staged = None;
                    it.hold.discard();
                    (Job::Launch, self.random.random_range(1_000..50_000))
                }
            };
            let count = self.nodes[node].driver.start(job);
            self.schedule(node, delay, What::Job(count));
        }
        Ok(())
    }

    pub(super) fn job_done(&mut self, node: usize, count: u64) -> Result<(), Violation> {
        let Some(job) = self.nodes[node].driver.complete(count) else {
            return Ok(());
        };
        match job {
            Job::Launch => self.report(node, CopyEvent::Ready),
            Job::Boot => {
                self.nodes[node].vm = Vm {
                    is_alive: true,
                    ..Vm::default()
                };
                self.report(node, CopyEvent::Booted);
            }
            Job::Quiesce { sync, side } => self.paused(node, sync, side),
            Job::CopyOut { sync, position } => {
                let it = &mut self.nodes[node];
                it.vm.is_paused = false;
                let memory = self.checker.memory_at(sync).unwrap_or_default();
                let certificate = certificate(memory);
                self.core(node).lift_barrier(Some(sync));
                self.report(
                    node,
                    CopyEvent::CopiedOut {
                        sync,
                        certificate,
                        position,
                    },
                );
            }
            Job::Stage { sync, tries } => self.stage(node, sync, tries),
            Job::Load { sync, position } => self.load(node, sync, position)?,
        }
        Ok(())
    }

    pub(super) fn report(&mut self, node: usize, event: CopyEvent) {
        let now = self.local(node);
        self.core(node).step(now, Event::Copy(event));
    }

    pub(super) fn paused(&mut self, node: usize, sync: plover_types::SyncId, side: Side) {
        if self.options.with_faults && self.random.random_ratio(1, 60) {
            self.report(node, CopyEvent::Failed { sync });
            return;
        }
        self.nodes[node].vm.is_paused = true;
        let job = match side {
            Side::Primary => {
                let group = self.core(node).group();
                let is_current = group.sync().is_some_and(|current| current.id == sync);
                if is_current {
                    self.nodes[node].hold.close(sync);
                    let policy = self.core(node).output_policy(true);
                    self.nodes[node].hold.set_policy(policy);
                }
                let memory = self.nodes[node].vm.memory.clone();
                self.checker.sync_point(sync, &memory);
                Job::CopyOut {
                    sync,
                    position: self.core(node).position(),
                }
            }
            Side::Backup => Job::Stage { sync, tries: 0 },
        };
        let delay = self.random.random_range(500..8_000);
        let count = self.nodes[node].driver.start(job);
        self.schedule(node, delay, What::Job(count));
    }

    /// The backup's hasher takes the primary's memory over the link between the two.
    pub(super) fn stage(&mut self, node: usize, sync: plover_types::SyncId, tries: u32) {
        let other = self.nodes[1 - node].spec.id;
        let own = self.nodes[node].spec.id;
        let is_linked = self.nodes[1 - node].core.is_some()
            && !self.nodes[1 - node].is_stopped
            && self.network.passes(own, other)
            && self.network.passes(other, own);
        let memory = self.checker.memory_at(sync).map(<[Answer]>::to_vec);
        match memory {
            Some(memory) if is_linked => {
                let it = &mut self.nodes[node];
                it.driver.staged = Some((sync, it.vm.difference(&memory)));
                if self.options.sabotage == Sabotage::ResumeStaged {
                    it.vm.is_paused = false;
                    self.core(node).lift_barrier(Some(sync));
                }
                let certificate = certificate(&memory);
                self.report(node, CopyEvent::Staged { sync, certificate });
            }
            _ if tries < 30 => {
                let count = self.nodes[node].driver.start(Job::Stage {
                    sync,
                    tries: tries + 1,
                });
                self.schedule(node, 2_000, What::Job(count));
            }
            _ => self.report(node, CopyEvent::Failed { sync }),
        }
    }

    pub(super) fn load(
        &mut self,
        node: usize,
        sync: plover_types::SyncId,
        position: Position,
    ) -> Result<(), Violation> {
        let own = self.nodes[node].spec.id;
        let staged = self.nodes[node].driver.staged.take();
        let fails = self.options.with_faults && self.random.random_ratio(1, 100);
        let Some((staged_sync, difference)) = staged.filter(|_| !fails) else {
            self.destroys_copy(node);
            self.nodes[node].vm.is_alive = false;
            self.nodes[node].hold.discard();
            self.report(node, CopyEvent::LoadFailed { sync });
            self.launch(node);
            return Ok(());
        };
        assert_eq!(staged_sync, sync, "the promise names its sync");
        let it = &mut self.nodes[node];
        it.vm.apply(&difference);
        self.checker.loaded(own, sync, &it.vm.memory)?;
        it.vm.is_alive = true;
        it.vm.is_paused = false;
        it.hold.discard();
        if self.options.sabotage == Sabotage::KeepPosition {
            self.core(node).lift_barrier(Some(sync));
        } else if !self.core(node).seek(position) {
            self.nodes[node].vm.is_alive = false;
            self.report(node, CopyEvent::LoadFailed { sync });
            self.launch(node);
            return Ok(());
        }
        self.core(node).lift_barrier(Some(sync));
        self.report(node, CopyEvent::Loaded { sync });
        Ok(())
    }
}
