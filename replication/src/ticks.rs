//! Real time in ticks, for the core. Ticks that a busy host notices late are made up for, a few of
//! them: else a host that is always a little late would find a dead leader much too late. Not all:
//! the promise behind a lease counts the follower's ticks, so they must not run ahead of time.
//!
//! In any stretch of time *D* at most `D / tick + TICKS_MADE_UP_MAX + 2` ticks are given out; the
//! [lease](crate::lease) takes that into account.

use std::time::Duration;

use crate::limits::TICKS_MADE_UP_MAX;

/// Gives out ticks.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    tick: Duration,
    /// When the last tick was due.
    last: Duration,
}

impl Ticks {
    /// Ticks of this length, from `now` on.
    #[must_use]
    pub fn new(tick: Duration, now: Duration) -> Self {
        Self { tick, last: now }
    }

    /// Whether a tick is due; it is given out by this call. Ask again at once: another may be.
    pub fn due(&mut self, now: Duration) -> bool {
        if now < self.last + self.tick {
            return false;
        }
        // The host stood still: what is beyond the bound never was.
        let oldest = now.saturating_sub(self.tick * (TICKS_MADE_UP_MAX + 1));
        self.last = self.last.max(oldest) + self.tick;
        true
    }

    /// When the next tick is due.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.last + self.tick
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn count(ticks: &mut Ticks, now: Duration) -> u32 {
        (0..).take_while(|_| ticks.due(now)).count() as u32
    }

    #[test]
    fn a_host_that_is_a_little_late_loses_no_tick() {
        let mut ticks = Ticks::new(TICK, Duration::ZERO);
        let given: u32 = (1..=40).map(|turn| count(&mut ticks, ms(turn * 25))).sum();
        assert_eq!(given, 100);
    }

    #[test]
    fn a_host_that_stood_still_makes_up_for_a_few_ticks_only() {
        let mut ticks = Ticks::new(TICK, Duration::ZERO);
        assert_eq!(count(&mut ticks, ms(5000)), TICKS_MADE_UP_MAX + 1);
        assert_eq!(count(&mut ticks, ms(5005)), 0);
    }

    proptest! {
        /// The bound that the lease rests on, for every stretch between two turns.
        #[test]
        fn ticks_never_run_ahead_of_time(steps in proptest::collection::vec(1u64..60, 1..60)) {
            let mut ticks = Ticks::new(TICK, Duration::ZERO);
            let mut now = 0;
            let mut given: Vec<(u64, u64)> = Vec::new();
            let mut total = 0;
            for step in steps {
                now += step;
                total += u64::from(count(&mut ticks, ms(now)));
                given.push((now, total));
            }
            for (at, (from, before)) in given.iter().enumerate() {
                for (to, after) in &given[at..] {
                    // Ticks after the turn at `from`, up to and with the one at `to`.
                    let bound = (to - from) / 10 + u64::from(TICKS_MADE_UP_MAX) + 2;
                    prop_assert!(after - before <= bound);
                }
            }
        }
    }
}
