//! Which datagrams of a session came: the newest counter and a bit for each of the
//! [`REPLAY_WINDOW`] before it, as a ring, so that moving on shifts nothing.

use super::limits::REPLAY_WINDOW;

/// One word more than the window: the newest word is filled as the oldest is still needed.
const WORDS: usize = REPLAY_WINDOW / 64 * 2;

#[derive(Debug)]
pub(super) struct ReplayWindow {
    /// One past the newest counter; 0 before the first.
    end: u64,
    bits: Box<[u64; WORDS]>,
}

impl ReplayWindow {
    pub(super) fn new() -> Self {
        Self {
            end: 0,
            bits: Box::new([0; WORDS]),
        }
    }

    /// Whether this counter is neither too old nor marked. Ask before the datagram is opened.
    pub(super) fn is_new(&self, counter: u64) -> bool {
        if counter >= self.end {
            return counter < u64::MAX;
        }
        self.end - counter <= REPLAY_WINDOW as u64 && !self.is_marked(counter)
    }

    /// Marks a counter that [`Self::is_new`], once its datagram proved genuine.
    pub(super) fn mark(&mut self, counter: u64) {
        if counter >= self.end {
            self.move_on(counter);
        }
        let (word, bit) = place(counter);
        self.bits[word] |= bit;
    }

    /// Clears the words between the old end and the new one, at most all.
    fn move_on(&mut self, counter: u64) {
        let (first, last) = (self.end.div_ceil(64), counter / 64);
        for word in (first..=last).take(WORDS) {
            self.bits[(word % WORDS as u64) as usize] = 0;
        }
        self.end = counter + 1;
    }

    fn is_marked(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        self.bits[word] & bit != 0
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_counter_passes_once_in_any_order() {
        let mut window = ReplayWindow::new();
        for counter in [0, 2, 1, 63, 64, 62, 8191, 3, 8192, 65] {
            assert!(window.is_new(counter), "{counter}");
            window.mark(counter);
            assert!(!window.is_new(counter), "{counter}");
        }
        window.mark(3 * REPLAY_WINDOW as u64);
        assert!(!window.is_new(4), "too old");
        assert!(window.is_new(2 * REPLAY_WINDOW as u64 + 1));
    }

    #[test]
    fn the_last_counter_is_never_taken() {
        let mut window = ReplayWindow::new();
        assert!(window.is_new(u64::MAX - 1));
        window.mark(u64::MAX - 1);
        assert!(!window.is_new(u64::MAX) && !window.is_new(u64::MAX - 1));
        assert!(window.is_new(u64::MAX - 2));
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_came(steps in prop::collection::vec((0..3_u8, 0..40_000_u64), 1..300)) {
            let (mut window, mut seen, mut newest) = (ReplayWindow::new(), HashSet::new(), 0_u64);
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => newest + 1,
                    1 => newest + distance,
                    _ => newest.saturating_sub(distance),
                };
                let is_recent = seen.is_empty() || counter > newest || newest + 1 - counter <= REPLAY_WINDOW as u64;
                prop_assert_eq!(window.is_new(counter), is_recent && !seen.contains(&counter));
                if window.is_new(counter) {
                    window.mark(counter);
                    seen.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
