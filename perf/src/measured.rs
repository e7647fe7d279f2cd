//! One figure as it was measured, before it is held against a promise.

use crate::placement::Placement;
use crate::stats::{self, Spread};

/// A figure, its samples and how it was made.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Its name: `part/what/…`. The promise of the same name is held against it.
    pub name: String,
    /// What one of it is.
    pub unit: &'static str,
    /// The single values.
    pub samples: Vec<f64>,
    /// The command lines that made it, where processes were started for it.
    pub commands: Vec<String>,
    /// How near to each other the cores were.
    pub placement: Option<Placement>,
    /// What to know about it; why there is no value, where there is none.
    pub reason: Option<String>,
}

impl Measured {
    /// A figure from its samples.
    pub fn new(name: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            name: name.into(),
            unit,
            samples,
            commands: Vec::new(),
            placement: None,
            reason: None,
        }
    }

    /// A figure that could not be measured. Where something is promised of it, it fails
    /// the check like one that does not hold.
    pub fn failed(name: impl Into<String>, unit: &'static str, reason: impl Into<String>) -> Self {
        Self {
            reason: Some(reason.into()),
            ..Self::new(name, unit, Vec::new())
        }
    }

    /// The median of the samples.
    pub fn value(&self) -> Option<f64> {
        stats::median(&self.samples)
    }

    /// Where the samples lie.
    pub fn spread(&self) -> Option<Spread> {
        stats::spread(&self.samples)
    }
}
