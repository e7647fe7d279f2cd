//! What depends on time and on others: the actions that the group's core asks for, and when a copy
//! is quiet, idle, or due for a sync.

use std::time::Duration;

use plover_types::Mode;
use replication::core::Action;
use replication::epoch::{CopyCommand, LocalCopy};

use super::{PollCore, PollEvent};
use crate::guest_nic::GuestNic;
use crate::limits::{
    GUEST_LOOK_INTERVAL, IDLE_RINGS, IDLE_SYNC_INTERVAL, LINK_CHECK_INTERVAL, QUIET_RINGS,
};
use crate::path::announce::SEND_AFTER;

impl PollCore {
    /// Does what the core of the group asks, and sends what is due to the peers.
    pub(super) fn act(&mut self, now: Duration) -> usize {
        let (replication, todo) = (&mut self.replication, &mut self.todo);
        let count = self.node.drain(
            now,
            |frame| {
                // Without a port there are no peers to send to.
                if let Some(port) = replication {
                    port.send(frame);
                }
            },
            |action| todo.push(action),
        );
        if let Some(port) = replication {
            port.flush();
        }
        for action in std::mem::take(&mut self.todo).drain(..) {
            match action {
                Action::EndEpoch(sync) => {
                    self.hold.end(sync);
                    self.last_sync = now;
                }
                Action::AbortEpoch(sync) => {
                    self.hold.abort(sync);
                    self.last_sync = now;
                }
                Action::Copy(command) => {
                    if command == CopyCommand::Void {
                        self.leave_guest_alone();
                        self.counters.discarded += self.hold.discard() as u64;
                    }
                    self.tell(PollEvent::Command(command));
                }
                Action::Note(notice) => self.tell(PollEvent::Note(notice)),
                // The node does these itself.
                Action::Send(_)
                | Action::Persist(_)
                | Action::Compact { .. }
                | Action::Members(_) => {}
            }
        }
        count
    }

    /// What depends on time: quiet, idle, a sync that is due, the uplink.
    pub(super) fn watch(&mut self, now: Duration) {
        self.watch_serving(now);
        self.watch_guest(now);
        self.write_out_stale(now);
        if let Some(nic) = &self.nic
            && !self.guest_was_up
        {
            self.guest_was_up = nic.state().receive_runs;
        }
        if let Some((sync, deadline)) = self.quiet {
            let rests = now > self.last_ring_activity + QUIET_RINGS;
            if now >= deadline || (rests && self.node.core().is_drained()) {
                self.quiet = None;
                self.tell(PollEvent::Quiet(sync));
            }
        }
        if now >= self.last_link_check + LINK_CHECK_INTERVAL {
            self.last_link_check = now;
            self.uplink_up = self
                .uplink
                .as_ref()
                .is_some_and(|uplink| uplink.port().link_up());
        }
        let idle = self.vcpus_idle && now > self.last_ring_activity + IDLE_RINGS;
        self.node
            .core_mut()
            .set_condition(now, idle, self.uplink_up);
        if self.sync_is_due(now, idle) {
            self.node.core_mut().want_sync(now);
        }
    }

    /// Tells the core of the group when the guest did something. Guest memory is not looked at
    /// while the VM stands still for a sync, and rarely otherwise: each look takes cache lines away
    /// from the guest.
    fn watch_guest(&mut self, now: Duration) {
        let is_due = now >= self.last_guest_look + GUEST_LOOK_INTERVAL;
        if !is_due || self.is_frozen || !self.node.core().watches_guest() {
            return;
        }
        self.last_guest_look = now;
        let signs = self.nic.as_ref().and_then(GuestNic::signs_of_life);
        if signs.is_none() || signs != self.guest_signs {
            self.guest_signs = signs;
            self.node.core_mut().guest_gave_sign();
        }
    }

    fn watch_serving(&mut self, now: Duration) {
        let is_serving = self.node.core().is_serving();
        if is_serving == self.was_serving {
            return;
        }
        self.was_serving = is_serving;
        self.has_released = false;
        self.announce.clear();
        if is_serving {
            self.announce
                .extend(SEND_AFTER.iter().map(|after| now + *after));
        }
        self.tell(PollEvent::Serving(is_serving));
    }

    fn sync_is_due(&self, now: Duration, idle: bool) -> bool {
        let core = self.node.core();
        let protected = core
            .group()
            .role()
            .is_some_and(|role| role.mode == Mode::Protected);
        if !protected
            || !core.is_serving()
            || core.group().sync().is_some()
            || !matches!(core.copy(), LocalCopy::Running { .. })
        {
            return false;
        }
        let since = now.saturating_sub(self.last_sync);
        let held = self.hold.held();
        let full = held * 2 >= self.config.held_packets_max;
        let both_idle = idle && core.backup_is_idle();
        since >= self.config.sync_interval_min
            && (full
                || since >= IDLE_SYNC_INTERVAL
                || (held > 0 && (both_idle || since >= self.config.sync_interval_max)))
    }
}
