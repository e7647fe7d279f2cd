//! How a run ends: what was seen, and whether the group is what it should be once faults stopped.

use plover_types::{Mode, RoleEntry};
use replication::core::Core;
use replication::epoch::LocalCopy;
use replication::plan::OnBackupLoss;

use crate::coverage::Coverage;
use crate::violation::Violation;
use crate::world::World;

/// A group that is not at rest by then never will be: failed fills are repeated ever later.
const END_LATEST_US: u64 = 40_000_000;

/// Answers to packets that were sent after the world was healed, before a run counts as served.
const SETTLED_ANSWERS: u32 = 12;

/// What a run saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Things that happened to a host: ticks, messages, writes done, steps done, faults.
    pub events: u64,
    /// Packets that the client saw an answer to.
    pub answers: u64,
    /// Syncs that ended, fills among them.
    pub syncs: u64,
    /// Faults that came.
    pub faults: u64,
    /// Roles that were committed.
    pub roles: u64,
    /// Whether a valid copy was left at the end.
    pub survived: bool,
    /// What it went through.
    pub coverage: Coverage,
}

impl World {
    /// Whether faults left no valid copy: the group has nothing to serve any more.
    fn is_lost(&self) -> bool {
        self.checker
            .newest_role()
            .is_some_and(|role| !self.hosts.iter().any(|host| self.is_valid(role, host)))
    }

    fn is_valid(&self, role: &RoleEntry, host: &crate::host::Host) -> bool {
        role.valid.contains(host.id())
            && host.vm.is_alive
            && host
                .core
                .as_ref()
                .is_some_and(|core| core.copy().can_serve() || *core.copy() == LocalCopy::Ready)
    }

    /// A group whose hosts differ is never protected.
    fn may_be_protected(&self) -> bool {
        self.hosts.len() > 1 && !self.settings.unequal_hosts
    }

    /// A group that is told to wait for its backup does.
    fn may_serve(&self) -> bool {
        self.settings.on_backup_loss == OnBackupLoss::Continue || self.may_be_protected()
    }

    /// Whether nothing more is to be waited for.
    pub(crate) fn is_settled(&mut self) -> bool {
        if self.now_us >= END_LATEST_US {
            return true;
        }
        while self.settled_seen + 64 < self.next_packet
            || self.checker.was_answered(self.settled_seen)
        {
            self.settled_answers += u32::from(self.checker.was_answered(self.settled_seen));
            self.settled_seen += 1;
        }
        let is_protected =
            |role: &RoleEntry| role.mode == Mode::Protected || !self.may_be_protected();
        let is_served = self.settled_answers >= SETTLED_ANSWERS || !self.may_serve();
        let long_after = self.now_us > self.settings.faults_until_us + 1_500_000;
        (is_served && self.checker.newest_role().is_some_and(is_protected))
            || (long_after && self.is_lost())
            || (long_after && !self.may_serve())
    }

    pub(crate) fn finish(&mut self) -> Result<(), Violation> {
        self.outcome.answers = self.checker.answers();
        for host in 0..self.hosts.len() {
            if let Some(core) = &self.hosts[host].core {
                let line = format!(
                    "ends: leader {:?}, applied {}, copy {:?}, {:?}",
                    core.leader(),
                    core.applied(),
                    core.copy(),
                    core.counters()
                );
                self.trace(host, || line);
            }
        }
        self.outcome.survived = !self.is_lost();
        if !self.outcome.survived {
            return if self.last_copy_destroyed {
                Ok(())
            } else {
                Err(Violation::LostAll)
            };
        }
        if !self.options.with_faults {
            return Ok(());
        }
        if self.may_serve() && self.settled_answers < SETTLED_ANSWERS {
            return Err(Violation::NotServing);
        }
        let mode = self.checker.newest_role().map(|role| role.mode);
        if self.may_be_protected() && mode != Some(Mode::Protected) {
            return Err(Violation::NotProtected);
        }
        for host in &self.hosts {
            if host.core.as_ref().is_some_and(Core::is_serving) {
                self.checker.serves(host.id(), &host.vm.image)?;
            }
        }
        Ok(())
    }
}
