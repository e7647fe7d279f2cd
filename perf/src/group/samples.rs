//! Samples by the name of their figure, as they come.

use crate::measured::Measured;

/// Samples of some figures.
#[derive(Default)]
pub struct Samples(Vec<Measured>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.samples.push(value),
            None => self.0.push(Measured::new(name, unit, vec![value])),
        }
    }

    /// All of them.
    pub fn rows(self) -> Vec<Measured> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_name_are_one_figure() {
        let mut samples = Samples::default();
        samples.add("a", "us", 1.0);
        samples.add("b", "us", 5.0);
        samples.add("a", "us", 3.0);
        let rows = samples.rows();
        let values: Vec<_> = rows.iter().map(|row| (&*row.name, row.value())).collect();
        assert_eq!(values, [("a", Some(2.0)), ("b", Some(5.0))]);
    }
}
