//! One row of `results.json`: a figure, what was promised, whether it holds.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measured::Measured;
use crate::placement::Placement;
use crate::promises::{Bound, Promise};
use crate::stats::Spread;

/// A row of the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name, as in perf/SPEC.md.
    pub name: String,
    /// The median; none where it could not be measured.
    pub value: Option<f64>,
    /// What one of it is.
    pub unit: String,
    /// The promised number; none where nothing is promised.
    pub promised: Option<f64>,
    /// How the promised number is meant: at least, at most, below, reported.
    pub sense: String,
    /// Whether the promise is kept; none where nothing is promised.
    pub holds: Option<bool>,
    /// Why nothing is promised, or why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The single values.
    pub samples: Vec<f64>,
    /// Where they lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// How near to each other the cores were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// The exact command lines of the processes that were measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Where and when.
    pub machine: Machine,
}

impl Figure {
    /// Holds a figure against the promise of its name. A figure that nobody named is reported.
    pub fn judged(measured: Measured, promise: Option<&Promise>, machine: &Machine) -> Self {
        let bound = promise.map_or(Bound::Reported("not in perf/SPEC.md"), |promise| {
            promise.bound
        });
        let value = measured.value();
        let holds = match value {
            Some(value) => bound.holds(value),
            None => bound.limit().map(|_| false),
        };
        let reason = match bound {
            Bound::Reported(reason) if value.is_some() => {
                measured.reason.clone().or(Some(reason.to_owned()))
            }
            _ => measured.reason.clone(),
        };
        Self {
            value,
            unit: measured.unit.to_owned(),
            promised: bound.limit(),
            sense: bound.sense().to_owned(),
            holds,
            reason,
            spread: measured.spread(),
            name: measured.name,
            samples: measured.samples,
            placement: measured.placement,
            commands: measured.commands,
            machine: machine.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(bound: Bound) -> Promise {
        Promise {
            name: "datapath/x".to_owned(),
            what: String::new(),
            unit: "ratio",
            bound,
        }
    }

    fn judged(measured: Measured, bound: Bound) -> Figure {
        Figure::judged(measured, Some(&promise(bound)), &Machine::default())
    }

    #[test]
    fn the_median_is_held_against_the_promise() {
        let samples = vec![0.9, 1.2, 1.1];
        let figure = judged(
            Measured::new("datapath/x", "ratio", samples),
            Bound::AtLeast(1.0),
        );
        assert_eq!((figure.value, figure.holds), (Some(1.1), Some(true)));
    }

    #[test]
    fn a_promise_without_a_value_is_not_kept() {
        let failed = Measured::failed("datapath/x", "ratio", "no hugepages");
        let figure = judged(failed.clone(), Bound::AtLeast(1.0));
        assert_eq!(figure.holds, Some(false));
        assert_eq!(figure.reason.as_deref(), Some("no hugepages"));
        let reported = judged(failed, Bound::Reported("depends"));
        assert_eq!((reported.holds, reported.value), (None, None));
    }

    #[test]
    fn what_nobody_promised_is_reported() {
        let measured = Measured::new("datapath/x", "ratio", vec![1.0]);
        let figure = Figure::judged(measured, None, &Machine::default());
        assert_eq!(figure.holds, None);
        assert!(figure.reason.is_some());
    }
}
