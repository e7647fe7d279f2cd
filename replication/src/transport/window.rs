//! How many datagrams may be on the way to a peer: more while they arrive, fewer when they are
//! lost. It keeps a long entry from overrunning the rings and switches between the nodes.

use crate::limits::{WINDOW_DATAGRAMS_MAX, WINDOW_DATAGRAMS_MIN, WINDOW_DATAGRAMS_START};

/// The window of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    datagrams: u32,
    /// Below it grows by each acknowledged datagram, above by one a round trip.
    steep_until: u32,
    acknowledged: u32,
    /// Losses of datagrams before this number were counted already.
    reduced_until: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            datagrams: WINDOW_DATAGRAMS_START,
            steep_until: WINDOW_DATAGRAMS_MAX,
            acknowledged: 0,
            reduced_until: 0,
        }
    }
}

impl Window {
    pub(super) fn datagrams(&self) -> u32 {
        self.datagrams
    }

    /// So many datagrams arrived; `was_full`: the window was what held the next one back.
    pub(super) fn grow(&mut self, acknowledged: u32, was_full: bool) {
        if !was_full {
            return;
        }
        if self.datagrams < self.steep_until {
            self.datagrams += acknowledged;
        } else {
            self.acknowledged += acknowledged;
            if self.acknowledged >= self.datagrams {
                self.acknowledged = 0;
                self.datagrams += 1;
            }
        }
        self.datagrams = self.datagrams.min(WINDOW_DATAGRAMS_MAX);
    }

    /// Datagram `number` was lost; `next` is the next one's. Several losses of one round trip count
    /// once.
    pub(super) fn shrink(&mut self, number: u64, next: u64) {
        if number < self.reduced_until {
            return;
        }
        self.reduced_until = next;
        self.datagrams = (self.datagrams / 4 * 3).max(WINDOW_DATAGRAMS_MIN);
        self.steep_until = self.datagrams;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_only_where_it_is_what_limits() {
        let mut window = Window::default();
        window.grow(1000, false);
        assert_eq!(window.datagrams(), WINDOW_DATAGRAMS_START);
        window.grow(10, true);
        assert_eq!(window.datagrams(), WINDOW_DATAGRAMS_START + 10);
        window.grow(10_000, true);
        assert_eq!(window.datagrams(), WINDOW_DATAGRAMS_MAX);
    }

    #[test]
    fn losses_of_one_round_trip_count_once_and_it_never_closes() {
        let mut window = Window::default();
        window.shrink(5, 20);
        let after = window.datagrams();
        window.shrink(19, 30);
        assert_eq!(window.datagrams(), after);
        for number in 1..100 {
            window.shrink(20 * number, 20 * number + 1);
        }
        assert_eq!(window.datagrams(), WINDOW_DATAGRAMS_MIN);
        window.grow(WINDOW_DATAGRAMS_MIN, true);
        assert_eq!(window.datagrams(), WINDOW_DATAGRAMS_MIN + 1);
    }
}
