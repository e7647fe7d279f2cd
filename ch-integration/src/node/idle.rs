//! Do the vCPUs rest? Judged by the CPU time that they used since the last look, against what the
//! same guest uses when it rests: that floor is learned while it runs, not a fixed number.

use std::time::{Duration, Instant};

/// Between two looks. The scheduler's sum is exact for threads that sleep; one that runs without a
/// break is seen at the next tick, at most 4 ms late.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The floor may rise this much a second, in permille of a CPU: a guest whose rest became busier
/// (a new timer) counts as resting again after a while.
const FLOOR_RISE_PERMILLE: f64 = 2.0;

/// Above the floor by less than this share of a CPU is rest.
const MARGIN: f64 = 0.03;

/// Watches the vCPUs of one VMM.
#[derive(Debug)]
pub struct IdleGauge {
    last: Option<(Instant, Duration)>,
    /// Lowest share of a CPU that was seen.
    floor: f64,
    is_idle: bool,
}

impl Default for IdleGauge {
    fn default() -> Self {
        Self {
            last: None,
            floor: MARGIN,
            is_idle: false,
        }
    }
}

impl IdleGauge {
    /// Takes a look: `used` is the CPU time of the vCPUs so far. Returns whether they rest.
    pub fn look(&mut self, now: Instant, used: Duration) -> bool {
        if let Some((last, before)) = self.last.replace((now, used)) {
            let passed = now.saturating_duration_since(last).as_secs_f64();
            if passed > 0.0 {
                let share = used.saturating_sub(before).as_secs_f64() / passed;
                self.floor =
                    (self.floor + FLOOR_RISE_PERMILLE / 1000.0 * passed).min(share.max(0.0));
                self.is_idle = share <= self.floor + MARGIN;
            }
        }
        self.is_idle
    }

    /// The VM was stopped or replaced: the next look is a first one.
    pub fn reset(&mut self) {
        self.last = None;
        self.is_idle = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds looks a millisecond apart that each used `share` of a CPU; returns the last answer.
    fn feed(
        gauge: &mut IdleGauge,
        clock: &mut (Instant, Duration),
        share: f64,
        looks: u32,
    ) -> bool {
        let mut idle = false;
        for _ in 0..looks {
            clock.0 += LOOK_INTERVAL;
            clock.1 += LOOK_INTERVAL.mul_f64(share);
            idle = gauge.look(clock.0, clock.1);
        }
        idle
    }

    #[test]
    fn a_guest_that_sleeps_rests_and_one_that_computes_does_not() {
        let mut gauge = IdleGauge::default();
        let mut clock = (Instant::now(), Duration::ZERO);
        assert!(feed(&mut gauge, &mut clock, 0.0, 3));
        assert!(!feed(&mut gauge, &mut clock, 0.9, 3));
        assert!(feed(&mut gauge, &mut clock, 0.01, 3));
    }

    #[test]
    fn the_floor_follows_a_guest_whose_rest_became_busier() {
        let mut gauge = IdleGauge::default();
        let mut clock = (Instant::now(), Duration::ZERO);
        feed(&mut gauge, &mut clock, 0.0, 10);
        assert!(!feed(&mut gauge, &mut clock, 0.1, 10));
        assert!(feed(&mut gauge, &mut clock, 0.1, 60_000));
    }
}
