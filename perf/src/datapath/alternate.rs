//! A B A B …: samples of several pairs in turn, kept where the cores were as near before as after.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::contestant::Pair;
use crate::placement::{Classes, Placement, round_trip_ns};

/// Fewer complete rounds than this are no result.
const ROUNDS_MIN: usize = 3;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of each pair.
    pub rounds: usize,
    /// How long a sample takes.
    pub window: Duration,
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

/// Measures the pairs in turn.
pub fn alternate(
    pairs: &mut [Result<Pair, String>],
    cores: (usize, usize),
    effort: Effort,
) -> Result<Kept> {
    let mut rounds = Rounds::new(pairs.len(), cores)?;
    for round in 0..effort.rounds {
        for (at, slot) in pairs.iter_mut().enumerate() {
            let failure = match slot {
                Ok(pair) => rounds.measure(at, round, pair, effort).err(),
                Err(_) => None,
            };
            if let Some(error) = failure {
                crate::interrupt::check()?;
                *slot = Err(format!("{error:#}"));
            }
        }
    }
    let failures = pairs.iter().map(|pair| pair.as_ref().err().cloned());
    rounds.select(failures.collect())
}

struct Rounds {
    cores: (usize, usize),
    samples: Vec<Vec<Sample>>,
    probes_ns: Vec<f64>,
    /// How many samples may still be taken again.
    retries_left: usize,
}

impl Rounds {
    fn new(pairs: usize, cores: (usize, usize)) -> Result<Self> {
        const RETRIES: usize = 24;
        Ok(Self {
            cores,
            samples: vec![Vec::new(); pairs],
            probes_ns: vec![round_trip_ns(cores)?],
            retries_left: RETRIES,
        })
    }

    /// Takes a sample, again while the cores are not near and there is patience.
    fn measure(&mut self, at: usize, round: usize, pair: &mut Pair, effort: Effort) -> Result<()> {
        loop {
            let before_ns = self.probes_ns.last().copied().unwrap_or(f64::NAN);
            let rate = pair.sample(effort.window)?;
            let after_ns = round_trip_ns(self.cores)?;
            self.probes_ns.push(after_ns);
            self.samples[at].push(Sample {
                round,
                rate,
                before_ns,
                after_ns,
            });
            let classes = Classes::of(&self.probes_ns);
            let is_near = classes.find(before_ns) == Some(0) && classes.find(after_ns) == Some(0);
            if is_near || self.retries_left == 0 {
                return Ok(());
            }
            self.retries_left -= 1;
        }
    }

    /// The samples of the nearest class in which enough rounds are complete.
    fn select(self, failures: Vec<Option<String>>) -> Result<Kept> {
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
            samples,
            probes_ns,
            retries_left: 0,
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
