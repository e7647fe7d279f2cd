//! A watch over the primary's guest: it was given something to do and does nothing, while the
//! backup's guest, given the same, does.
//!
//! A guest gives a *sign of life* whenever it moves an index of its rings; its host tells the core
//! so, and each report names the position at the last sign. The two copies get the same input, so a
//! guest that hangs on what it was sent, or boots anew, stands still on both hosts, and nothing can
//! be done about that here. One that stands still alone is its host's fault.
//!
//! ```text
//!   0            1/2            1                       2      x the configured time
//!   |-- stands --|-- stands -----|-- stands --------------|
//!                 from here on     no sync begins, one      the other copy stands, too:
//!                 the backup's     whose pause hangs is      said once, and all goes on
//!                 signs count      given up; the backup
//!                                  went on: handed over
//! ```

use plover_types::{Mode, Position, SyncKind};

use super::{Action, Core, Notice};
use crate::epoch::{LocalCopy, Progress, Side};

/// What is known of the guests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watchdog {
    /// How long a guest may stand still; 0: nobody watches.
    after_ticks: u64,
    /// The next packet for the guest when it last gave a sign of life.
    sign: Position,
    /// The next packet once the guest was given something after that.
    given: Option<Position>,
    stands: Option<Stands>,
}

/// A guest that has something to do and does nothing.
#[derive(Clone, Copy, Debug)]
struct Stands {
    /// Since this tick: a node that was stopped itself has not looked meanwhile.
    since: u64,
    /// The backup's last sign when half of the time had passed: an older one may be of a guest that
    /// hung a moment later than ours.
    backup: Option<Position>,
    /// What was said of it: that it stands still alone, or not alone.
    told: Option<bool>,
}

impl Core {
    /// How long the primary's guest may stand still while the backup's goes on; zero: for ever.
    pub fn set_watchdog(&mut self, after: std::time::Duration) {
        let ticks = after
            .as_micros()
            .div_ceil(self.config.tick.as_micros().max(1));
        self.watchdog.after_ticks = u64::try_from(ticks).unwrap_or(u64::MAX / 4);
    }

    /// Whether somebody has to look whether the guest moves its rings.
    #[must_use]
    pub fn watches_guest(&self) -> bool {
        self.watchdog.after_ticks > 0
    }

    /// The guest moved an index of its rings, or has none that it could move.
    pub fn guest_gave_sign(&mut self) {
        self.watchdog.sign = self.cursor.position();
        self.watchdog.given = None;
        self.watchdog.stands = None;
    }

    /// The next packet for this node's guest when it last gave a sign of life.
    pub(super) fn last_sign(&self) -> Position {
        self.watchdog.sign
    }

    pub(super) fn guest_was_given(&mut self) {
        let position = self.cursor.position();
        self.watchdog.given.get_or_insert(position);
    }

    /// Once a tick.
    pub(super) fn watch_guest(&mut self) {
        if !self.is_watched() || !self.guest_has_work() {
            self.watchdog.stands = None;
            return;
        }
        let (ticks, after) = (self.ticks, self.watchdog.after_ticks);
        let backup = self.backup_sign();
        let stands = self.watchdog.stands.get_or_insert(Stands {
            since: ticks,
            backup: None,
            told: None,
        });
        let stood = ticks - stands.since;
        if stands.backup.is_none() && stood * 2 >= after {
            stands.backup = backup;
        }
        if self.stood().is_some_and(|stood| stood >= 2 * after) {
            self.tell_guest_stands();
        }
    }

    /// Says once that the guest stands still, and once that it does so alone.
    pub(super) fn tell_guest_stands(&mut self) {
        let is_alone = self.guest_stands_alone();
        if let Some(stands) = &mut self.watchdog.stands
            && stands.told != Some(is_alone)
            && stands.told != Some(true)
        {
            stands.told = Some(is_alone);
            self.counters.guest_stood += u64::from(is_alone);
            self.actions
                .push(Action::Note(Notice::GuestStands { is_alone }));
        }
    }

    /// The guest has stood still for the configured time: no sync helps, and the one whose pause
    /// hangs keeps the backup from showing whether it goes on. Not for longer than that once more:
    /// if both stand still, output that is held has to get out.
    pub(super) fn guest_stands(&self) -> bool {
        let after = self.watchdog.after_ticks;
        self.stood()
            .is_some_and(|stood| stood >= after && stood < 2 * after)
    }

    /// So it has, and the backup's guest has done something with what ours was given.
    pub(super) fn guest_stands_alone(&self) -> bool {
        let after = self.watchdog.after_ticks;
        if self.stood().is_none_or(|stood| stood < after) {
            return false;
        }
        let before = self.watchdog.stands.and_then(|stands| stands.backup);
        let (Some(before), Some(sign)) = (before, self.backup_sign()) else {
            return false;
        };
        let at = self.cursor.position();
        let waits = Position {
            packet: at.packet.saturating_add(1),
            ..at
        };
        sign > before && sign >= self.watchdog.given.unwrap_or(waits)
    }

    fn stood(&self) -> Option<u64> {
        let stands = self.watchdog.stands?;
        Some(self.ticks - stands.since)
    }

    /// Input was delivered since the last sign, or waits.
    fn guest_has_work(&self) -> bool {
        self.watchdog.given.is_some() || self.cursor.position().index <= self.applied
    }

    /// Whether the guest runs here for clients, and there is another copy. A fill pauses it for as
    /// long as it takes.
    fn is_watched(&self) -> bool {
        let runs = match self.copy {
            LocalCopy::Running { .. } => true,
            LocalCopy::Syncing {
                sync,
                side: Side::Primary,
                progress,
            } => sync.kind == SyncKind::Delta && progress != Progress::Failed,
            _ => false,
        };
        self.watchdog.after_ticks > 0
            && runs
            && self.leads()
            && self.is_primary()
            && self
                .group
                .role()
                .is_some_and(|role| role.mode == Mode::Protected)
    }

    /// What the backup last said of its guest, in this generation.
    fn backup_sign(&self) -> Option<Position> {
        let backup = self.peers.iter().find(|peer| peer.spec.is_replica)?;
        let (_, at_tick, report) = backup.report?;
        let counts = self.is_recent(at_tick) && report.generation == self.group.generation();
        counts.then_some(report.sign)
    }
}
