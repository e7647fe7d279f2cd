//! A B A B …: samples of several pairs in turn, kept where the cores were as near before as after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::placement::{Classes, Placement, round_trip_ns};

/// Fewer complete rounds than this are no result.
const ROUNDS_MIN: usize = 3;
/// So many samples may be taken again because the cores moved while one was taken.
const RETRIES: usize = 24;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often the processes are started anew: where they lie in memory makes a difference.
    pub starts: usize,
    /// Samples of each pair at each start.
    pub rounds: usize,
    /// How long a sample takes.
    pub window: Duration,
    /// How long to wait, in all, for cores that were seen nearer to each other before.
    pub patience: Duration,
}

/// What was measured of one pair in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    round: usize,
    rate: f64,
    before_ns: f64,
    after_ns: f64,
}

/// What was kept of a pair: rates by round.
pub type Series = BTreeMap<usize, f64>;

/// What was kept of all pairs.
pub struct Kept {
    /// By pair, in the order given; why there is nothing, for a pair that failed.
    pub series: Vec<Result<Series, String>>,
    /// How near the cores were.
    pub placement: Placement,
}

/// The samples of several pairs while they are taken.
pub struct Rounds {
    cores: (usize, usize),
    effort: Effort,
    samples: Vec<Vec<Sample>>,
    /// Every round trip of this run, and those known from runs before.
    probes_ns: Vec<f64>,
    last_ns: f64,
    retries_left: usize,
    patience_left: Duration,
}

impl Rounds {
    /// For so many pairs. `known_ns` are round trips that these cores had before.
    pub fn new(
        pairs: usize,
        cores: (usize, usize),
        effort: Effort,
        known_ns: &[f64],
    ) -> Result<Self> {
        let last_ns = round_trip_ns(cores)?;
        Ok(Self {
            cores,
            effort,
            samples: vec![Vec::new(); pairs],
            probes_ns: [known_ns, &[last_ns]].concat(),
            last_ns,
            retries_left: RETRIES,
            patience_left: effort.patience,
        })
    }

    /// Takes a sample of one pair, again while the cores are not near and there is patience.
    /// `sample` leaves the cores to the probe.
    pub fn measure(
        &mut self,
        at: usize,
        round: usize,
        mut sample: impl FnMut(Duration) -> Result<f64>,
    ) -> Result<()> {
        loop {
            self.wait_for_near()?;
            let before_ns = self.last_ns;
            let rate = sample(self.effort.window)?;
            let after_ns = self.probe()?;
            self.samples[at].push(Sample {
                round,
                rate,
                before_ns,
                after_ns,
            });
            if (self.is_near(before_ns) && self.is_near(after_ns)) || self.retries_left == 0 {
                return Ok(());
            }
            self.retries_left -= 1;
        }
    }

    fn probe(&mut self) -> Result<f64> {
        self.last_ns = round_trip_ns(self.cores)?;
        self.probes_ns.push(self.last_ns);
        Ok(self.last_ns)
    }

    fn is_near(&self, round_trip_ns: f64) -> bool {
        Classes::of(&self.probes_ns).find(round_trip_ns) == Some(0)
    }

    /// Probing keeps both cores busy, so the hypervisor has reason to move them together.
    fn wait_for_near(&mut self) -> Result<()> {
        while !self.is_near(self.last_ns) && !self.patience_left.is_zero() {
            let start = Instant::now();
            crate::interrupt::sleep(Duration::from_millis(20))?;
            self.probe()?;
            self.patience_left = self.patience_left.saturating_sub(start.elapsed());
        }
        Ok(())
    }

    /// The samples of the nearest class in which enough rounds are complete.
    pub fn select(self, failures: Vec<Option<String>>) -> Result<Kept> {
        let classes = Classes::of(&self.probes_ns);
        let runs: Vec<usize> = (0..failures.len())
            .filter(|at| failures[*at].is_none())
            .collect();
        let counts: Vec<usize> = (0..classes.ranges.len())
            .map(|class| self.complete(&runs, &classes, class))
            .collect();
        let wanted = counts.iter().copied().max().unwrap_or(0).min(ROUNDS_MIN);
        let class = counts
            .iter()
            .position(|count| *count >= wanted)
            .unwrap_or(0);
        ensure!(
            runs.is_empty() || counts.get(class).is_some_and(|count| *count >= ROUNDS_MIN),
            "the cores moved too often: {counts:?} complete rounds by class {:?} ns",
            classes.ranges
        );
        let taken: usize = self.samples.iter().map(Vec::len).sum();
        let mut kept = 0;
        let series = failures
            .into_iter()
            .zip(&self.samples)
            .map(|(failure, samples)| match failure {
                Some(reason) => Err(reason),
                None => {
                    let series = of_class(samples, &classes, class);
                    kept += series.len();
                    Ok(series)
                }
            })
            .collect();
        let range = classes.ranges.get(class).copied().unwrap_or_default();
        Ok(Kept {
            series,
            placement: Placement {
                cores: self.cores,
                class,
                classes: classes.ranges.len(),
                round_trip_ns_min: range.0,
                round_trip_ns_max: range.1,
                discarded: taken - kept,
            },
        })
    }

    /// How many rounds have a sample of the class from each pair that ran.
    fn complete(&self, runs: &[usize], classes: &Classes, class: usize) -> usize {
        let series: Vec<Series> = runs
            .iter()
            .map(|at| of_class(&self.samples[*at], classes, class))
            .collect();
        let Some((first, others)) = series.split_first() else {
            return 0;
        };
        first
            .keys()
            .filter(|round| others.iter().all(|other| other.contains_key(round)))
            .count()
    }
}

/// The last sample of each round that has the class before and after it.
fn of_class(samples: &[Sample], classes: &Classes, class: usize) -> Series {
    samples
        .iter()
        .filter(|sample| {
            classes.find(sample.before_ns) == Some(class)
                && classes.find(sample.after_ns) == Some(class)
        })
        .map(|sample| (sample.round, sample.rate))
        .collect()
}

/// A against B, round by round: what drifts, drifts for both.
pub fn ratios(a: &Series, b: &Series) -> Vec<f64> {
    a.iter()
        .filter_map(|(round, a)| Some(a / b.get(round)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(round: usize, rate: f64, before_ns: f64, after_ns: f64) -> Sample {
        Sample {
            round,
            rate,
            before_ns,
            after_ns,
        }
    }

    fn rounds(samples: Vec<Vec<Sample>>) -> Rounds {
        let probes_ns = samples
            .iter()
            .flatten()
            .flat_map(|sample| [sample.before_ns, sample.after_ns])
            .collect();
        Rounds {
            cores: (0, 1),
            effort: Effort {
                starts: 1,
                rounds: 3,
                window: Duration::ZERO,
                patience: Duration::ZERO,
            },
            samples,
            probes_ns,
            last_ns: 60.0,
            retries_left: 0,
            patience_left: Duration::ZERO,
        }
    }

    #[test]
    fn samples_across_a_move_are_thrown_away() {
        let near: Vec<Sample> = (0..4).map(|at| sample(at, 40.0, 60.0, 62.0)).collect();
        let mut moved = near.clone();
        moved.insert(1, sample(1, 20.0, 60.0, 200.0));
        let kept = rounds(vec![near, moved]).select(vec![None, None]);
        let kept = kept.expect("four rounds");
        assert_eq!(kept.placement.discarded, 1);
        assert_eq!((kept.placement.class, kept.placement.classes), (0, 2));
        let series: Vec<Series> = kept.series.into_iter().map(|s| s.expect("ran")).collect();
        assert_eq!(ratios(&series[0], &series[1]), [1.0; 4]);
    }

    #[test]
    fn far_is_taken_where_near_was_too_short() {
        let mut samples: Vec<Sample> = (1..6).map(|at| sample(at, 20.0, 200.0, 210.0)).collect();
        samples.insert(0, sample(0, 40.0, 60.0, 60.0));
        let kept = rounds(vec![samples])
            .select(vec![None])
            .expect("far rounds");
        assert_eq!(kept.placement.class, 1);
        assert_eq!(kept.placement.discarded, 1);
    }

    #[test]
    fn too_few_rounds_are_an_error() {
        let samples = vec![sample(0, 40.0, 60.0, 60.0), sample(1, 40.0, 60.0, 60.0)];
        assert!(rounds(vec![samples]).select(vec![None]).is_err());
    }

    #[test]
    fn a_pair_that_failed_does_not_take_the_others_along() {
        let near: Vec<Sample> = (0..3).map(|at| sample(at, 40.0, 60.0, 62.0)).collect();
        let kept = rounds(vec![near, Vec::new()])
            .select(vec![None, Some("died".to_owned())])
            .expect("three rounds");
        assert_eq!(kept.series[1], Err("died".to_owned()));
        assert_eq!(kept.series[0].as_ref().map(BTreeMap::len), Ok(3));
    }

    #[test]
    fn rounds_that_only_one_has_make_no_ratio() {
        let a = Series::from([(0, 2.0), (1, 3.0)]);
        let b = Series::from([(1, 2.0), (2, 9.0)]);
        assert_eq!(ratios(&a, &b), [1.5]);
    }
}
