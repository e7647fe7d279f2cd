//! How often something may be done: so many at once, and so many a second.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: u32,
    at_once: u32,
    left: u32,
    /// When it was last filled up.
    filled: Duration,
}

impl Bucket {
    pub(super) fn new(per_second: u32, at_once: u32) -> Self {
        Self {
            per_second,
            at_once,
            left: at_once,
            filled: Duration::ZERO,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let each = Duration::from_secs(1) / self.per_second;
        let passed = now.saturating_sub(self.filled);
        let earned = u32::try_from(passed.as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.at_once);
            // What is left of the passed time counts towards the next one.
            self.filled = match each.checked_mul(earned) {
                Some(used) => self.filled.saturating_add(used),
                None => now,
            };
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_its_content_at_once_and_then_its_rate() {
        let mut bucket = Bucket::new(10, 3);
        let start = Duration::from_secs(1_000_000);
        let taken = (0..10).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        let taken = (0..1000)
            .filter(|ms| bucket.take(start + Duration::from_millis(*ms)))
            .count();
        assert!((9..=10).contains(&taken), "{taken}");
        assert!(bucket.take(Duration::MAX));
    }
}
