//! How long a round trip takes, and so when a datagram counts as lost (RFC 6298, RFC 9002).

use std::time::Duration;

use crate::limits::{PROBE_MARGIN_MIN, PROBE_UNMEASURED, REORDER_TIME_MIN};

/// The way to a peer and back, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
}

impl RoundTrip {
    pub(super) fn measure(&mut self, took: Duration) {
        self.latest = took;
        match &mut self.smoothed {
            None => {
                self.smoothed = Some(took);
                self.variation = took / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(took)) / 4;
                *smoothed = (*smoothed * 7 + took) / 8;
            }
        }
    }

    /// The smoothed round trip, once there is one.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// How long after its sending a datagram that a later one overtook is lost.
    pub(super) fn overtaken_after(&self) -> Duration {
        let longest = self.smoothed.unwrap_or(PROBE_UNMEASURED).max(self.latest);
        (longest * 9 / 8).max(REORDER_TIME_MIN)
    }

    /// How long after the last sending one that nothing follows is sent again.
    pub(super) fn probe_after(&self) -> Duration {
        self.smoothed.map_or(PROBE_UNMEASURED, |smoothed| {
            smoothed + (self.variation * 4).max(PROBE_MARGIN_MIN)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_way_is_known_and_probed_soon_after_its_round_trip() {
        let mut way = RoundTrip::default();
        assert_eq!(way.probe_after(), PROBE_UNMEASURED);
        for _ in 0..100 {
            way.measure(2 * MS);
        }
        assert_eq!(way.smoothed(), Some(2 * MS));
        assert!(way.probe_after() <= 2 * MS + PROBE_MARGIN_MIN);
        assert_eq!(way.overtaken_after(), 2 * MS * 9 / 8);
    }

    #[test]
    fn an_unsteady_way_is_given_time() {
        let mut way = RoundTrip::default();
        for number in 0..100 {
            way.measure(if number % 2 == 0 { MS } else { 9 * MS });
        }
        assert!(way.probe_after() > 15 * MS, "{:?}", way.probe_after());
    }
}
