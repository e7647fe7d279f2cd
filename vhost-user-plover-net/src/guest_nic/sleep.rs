//! How a core that found nothing to do sleeps without missing a guest's kick.

use std::os::fd::{AsRawFd, RawFd};

use super::GuestNic;
use super::slot::Slot;

impl GuestNic {
    /// Asks the guest for kicks. False if there is work already: then don't sleep.
    /// After a true, wait for one of [`Self::wake_fds`] or a timeout, then [`Self::after_sleep`].
    pub fn prepare_sleep(&mut self) -> bool {
        self.asleep = true;
        let mut found_work = false;
        for pair in &mut self.pairs[..self.pairs_used] {
            if pair.receive_starved {
                let before = pair.receive.offered();
                pair.receive.want_kicks(true);
                found_work |= pair.receive.offered() != before;
            }
            pair.transmit.want_kicks(true);
        }
        if found_work || self.tx_pending() || !self.mailbox.is_empty() {
            self.after_sleep();
            return false;
        }
        true
    }

    /// What to wait for: commands, and kicks of running rings.
    pub fn wake_fds(&self) -> impl Iterator<Item = RawFd> {
        let kicks = self
            .used()
            .iter()
            .flat_map(|pair| pair.slots().into_iter().filter_map(Slot::kick_fd));
        std::iter::once(self.mailbox.doorbell().as_raw_fd()).chain(kicks)
    }

    /// The core is awake: no more kicks, please.
    pub fn after_sleep(&mut self) {
        if !std::mem::take(&mut self.asleep) {
            return;
        }
        self.mailbox.doorbell().drain();
        for pair in &mut self.pairs[..self.pairs_used] {
            for slot in pair.slots_mut() {
                slot.drain_kicks();
                slot.want_kicks(false);
            }
        }
    }
}
