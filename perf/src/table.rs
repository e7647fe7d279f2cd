//! Figures as a table for people.

use crate::figure::Figure;
use crate::measured::Measured;

/// Prints figures as they were measured.
pub fn print_measured(figures: &[Measured]) {
    for figure in figures {
        println!(
            "{:<58} {} {:<8} {}",
            figure.name,
            number(figure.value()),
            figure.unit,
            between(figure.spread().map(|spread| (spread.min, spread.max)))
        );
    }
}

/// Prints results with their promises.
pub fn print_results(figures: &[Figure]) {
    for figure in figures {
        let promise = match (figure.promised, figure.holds) {
            (Some(limit), Some(true)) => format!("{} {limit}: holds", figure.sense),
            (Some(limit), _) => format!("{} {limit}: DOES NOT HOLD", figure.sense),
            (None, _) => "reported".to_owned(),
        };
        let spread = figure.spread.map(|spread| (spread.min, spread.max));
        println!(
            "{:<52} {} {:<10} {:<22} {promise}{}",
            figure.name,
            number(figure.value),
            figure.unit,
            between(spread),
            missing(figure)
        );
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| format!("{:>10}", "-"), |value| format!("{value:>10.3}"))
}

fn between(spread: Option<(f64, f64)>) -> String {
    spread.map_or_else(String::new, |(min, max)| format!("({min:.3} to {max:.3})"))
}

/// Why there is no value: the first line says it.
fn missing(figure: &Figure) -> String {
    match (&figure.value, &figure.reason) {
        (None, Some(reason)) => format!(" ({})", reason.lines().next().unwrap_or_default()),
        _ => String::new(),
    }
}
