//! Whether the results keep what is promised. What is not there is not kept.
//!
//! The promise is taken from [`crate::promises`] and the value from the file; that the file says
//! `holds` is not enough.

use crate::figure::Figure;
use crate::promises::{Bound, Promise};

/// Why a promise does not hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Broken {
    /// There is no such row.
    Missing {
        /// Its name.
        name: String,
    },
    /// There is a row without a value, of which something is promised or which does not say why.
    NotMeasured {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The value is not what was promised.
    Short {
        /// Its name.
        name: String,
        /// What was measured.
        value: f64,
        /// What was promised.
        bound: Bound,
    },
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "{name}: no such row"),
            Self::NotMeasured { name, reason } => write!(f, "{name}: not measured: {reason}"),
            Self::Short { name, value, bound } => match bound.limit() {
                Some(limit) => write!(f, "{name}: {value:.3}, promised {} {limit}", bound.sense()),
                None => write!(f, "{name}: {value:.3}"),
            },
        }
    }
}

/// What is broken, in the order of the promises.
pub fn broken(promises: &[Promise], rows: &[Figure]) -> Vec<Broken> {
    promises
        .iter()
        .filter_map(|promise| one(promise, rows))
        .collect()
}

/// Reported rows that have a reason instead of a value: not broken, but not to be overlooked.
pub fn excused<'a>(promises: &[Promise], rows: &'a [Figure]) -> Vec<&'a Figure> {
    let is_excused = |row: &&Figure| {
        let mut own = promises.iter().filter(|promise| promise.name == row.name);
        own.any(|promise| is_excused(promise, row))
    };
    rows.iter().filter(is_excused).collect()
}

fn is_excused(promise: &Promise, row: &Figure) -> bool {
    promise.bound.limit().is_none() && row.value.is_none() && row.reason.is_some()
}

fn one(promise: &Promise, rows: &[Figure]) -> Option<Broken> {
    let name = promise.name.clone();
    let Some(row) = rows.iter().find(|row| row.name == promise.name) else {
        return Some(Broken::Missing { name });
    };
    let Some(value) = row.value else {
        if is_excused(promise, row) {
            return None;
        }
        let reason = row.reason.clone().unwrap_or_default();
        return Some(Broken::NotMeasured { name, reason });
    };
    (promise.bound.holds(value) == Some(false)).then_some(Broken::Short {
        name,
        value,
        bound: promise.bound,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::measured::Measured;

    fn promises() -> Vec<Promise> {
        let promise = |name: &str, bound| Promise {
            name: name.to_owned(),
            what: String::new(),
            unit: "ratio",
            bound,
        };
        vec![
            promise("a/kept", Bound::AtLeast(1.0)),
            promise("a/told", Bound::Reported("depends")),
        ]
    }

    fn row(name: &str, samples: Vec<f64>) -> Figure {
        let measured = Measured::new(name, "ratio", samples);
        Figure::judged(measured, None, &Machine::default())
    }

    #[test]
    fn kept_and_reported_rows_pass() {
        let rows = [row("a/kept", vec![1.0]), row("a/told", vec![0.1])];
        assert!(broken(&promises(), &rows).is_empty());
    }

    #[test]
    fn a_missing_row_fails_like_a_false_one_reported_or_not() {
        let names: Vec<String> = ["a/kept", "a/told"].map(str::to_owned).into();
        let missing: Vec<Broken> = names
            .into_iter()
            .map(|name| Broken::Missing { name })
            .collect();
        assert_eq!(broken(&promises(), &[]), missing);
    }

    #[test]
    fn a_row_that_says_it_holds_is_measured_again() {
        let mut lie = row("a/kept", vec![0.5]);
        lie.holds = Some(true);
        lie.promised = Some(0.1);
        let found = broken(&promises(), &[lie, row("a/told", vec![1.0])]);
        assert!(matches!(found[..], [Broken::Short { .. }]), "{found:?}");
    }

    #[test]
    fn a_row_without_a_value_fails() {
        let found = broken(
            &promises(),
            &[row("a/kept", vec![]), row("a/told", vec![1.0])],
        );
        assert!(
            matches!(found[..], [Broken::NotMeasured { .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn a_reported_row_may_say_why_it_has_no_value() {
        let kept = row("a/kept", vec![1.0]);
        let failed = |reason: Option<&str>| {
            let mut row = row("a/told", vec![]);
            row.reason = reason.map(str::to_owned);
            [kept.clone(), row]
        };
        let told = failed(Some("no such driver"));
        assert!(broken(&promises(), &told).is_empty());
        assert_eq!(excused(&promises(), &told), [&told[1]]);
        let silent = failed(None);
        assert_eq!(broken(&promises(), &silent).len(), 1);
        assert!(excused(&promises(), &silent).is_empty());
    }

    #[test]
    fn a_reason_does_not_excuse_what_is_promised() {
        let mut kept = row("a/kept", vec![]);
        kept.reason = Some("no such driver".to_owned());
        let rows = [kept, row("a/told", vec![1.0])];
        assert_eq!(broken(&promises(), &rows).len(), 1);
        assert!(excused(&promises(), &rows).is_empty());
    }
}
