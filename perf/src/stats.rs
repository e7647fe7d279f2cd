//! Medians and their spread.

use serde::{Deserialize, Serialize};

/// Where samples lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The lowest sample.
    pub min: f64,
    /// A quarter of the samples lies below.
    pub quartile_low: f64,
    /// A quarter of the samples lies above.
    pub quartile_high: f64,
    /// The highest sample.
    pub max: f64,
}

/// The middle sample, of an even number the mean of the two in the middle. None of none.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(&sorted(samples), 0.5)
}

/// The sample below which this share of them lies; none of none.
pub fn share(samples: &[f64], share: f64) -> Option<f64> {
    quantile(&sorted(samples), share)
}

/// Where samples lie; none of none.
pub fn spread(samples: &[f64]) -> Option<Spread> {
    let sorted = sorted(samples);
    Some(Spread {
        min: *sorted.first()?,
        quartile_low: quantile(&sorted, 0.25)?,
        quartile_high: quantile(&sorted, 0.75)?,
        max: *sorted.last()?,
    })
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Between two samples it is interpolated.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = share * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let part = position - below as f64;
    Some(sorted[below] * (1.0 - part) + sorted[above] * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_one_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn shares_are_counted_from_the_lowest() {
        let samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(share(&samples, 0.99), Some(99.0));
        assert_eq!(share(&samples, 0.0), Some(0.0));
        assert_eq!(share(&[], 0.5), None);
    }

    #[test]
    fn what_is_no_number_is_not_a_sample() {
        assert_eq!(median(&[f64::NAN, 5.0, f64::INFINITY]), Some(5.0));
        assert_eq!(spread(&[f64::NAN]), None);
    }

    #[test]
    fn quartiles_lie_between_lowest_and_highest() {
        let spread = spread(&[5.0, 1.0, 2.0, 4.0, 3.0]).expect("five samples");
        assert_eq!(
            (
                spread.min,
                spread.quartile_low,
                spread.quartile_high,
                spread.max
            ),
            (1.0, 2.0, 4.0, 5.0)
        );
    }
}
