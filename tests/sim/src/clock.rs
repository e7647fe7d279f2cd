//! Hosts' clocks: each starts somewhere and runs a little fast or slow, and how fast changes.

use std::time::Duration;

/// Fastest and slowest clock against the world's time, in parts per million. Two of them differ by
/// less than what the lease allows (`CLOCK_DRIFT_PERMILLE`).
pub(crate) const DRIFT_PPM_MAX: i64 = 4_900;

const _: () = assert!(
    2 * DRIFT_PPM_MAX <= replication::limits::CLOCK_DRIFT_PERMILLE as i64 * 1000,
    "clocks drift within the bound that the lease assumes"
);

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    since_us: u64,
    local_us: u64,
    rate_ppm: i64,
}

impl Clock {
    /// A clock that shows `local_us` at the world's start.
    pub(crate) fn new(local_us: u64, rate_ppm: i64) -> Self {
        Self {
            since_us: 0,
            local_us,
            rate_ppm,
        }
    }

    fn local_us(&self, now_us: u64) -> u64 {
        let passed = (now_us - self.since_us) as i64;
        let local = self.local_us as i64 + passed + passed * self.rate_ppm / 1_000_000;
        local as u64
    }

    /// What it shows.
    pub(crate) fn at(&self, now_us: u64) -> Duration {
        Duration::from_micros(self.local_us(now_us))
    }

    /// From now on it runs at another rate.
    pub(crate) fn set_rate(&mut self, now_us: u64, rate_ppm: i64) {
        *self = Self {
            since_us: now_us,
            local_us: self.local_us(now_us),
            rate_ppm,
        };
    }
}
