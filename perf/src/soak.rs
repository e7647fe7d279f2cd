//! Sums up a soak: what the checker says of each of its runs, as medians with spread.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::measured::Measured;

/// What is taken from a run's report: its JSON path, its name, its unit, and what one of it is in
/// that unit.
const FIGURES: [(&str, &str, &str, f64); 12] = [
    ("/acknowledged", "requests acknowledged", "", 1.0),
    ("/lost", "requests lost", "", 1.0),
    ("/broken_connections", "connections broken", "", 1.0),
    ("/outages/0/gap_us", "time without service", "ms", 1e-3),
    ("/outages/0/detection_us", "  detection", "ms", 1e-3),
    ("/outages/0/election_us", "  election", "ms", 1e-3),
    ("/outages/0/takeover_us", "  takeover", "ms", 1e-3),
    ("/outages/0/first_answer_us", "  first answer", "ms", 1e-3),
    ("/syncs/ended", "syncs in a run", "", 1.0),
    (
        "/syncs/pause_median_us",
        "pause, median of a run",
        "ms",
        1e-3,
    ),
    ("/syncs/union_median", "pages written in a sync", "", 1.0),
    ("/syncs/same_page_rate", "same-page rate", "", 1.0),
];

/// Reads the checker's report in each run's folder.
pub fn run(folder: &Path) -> Result<Vec<Measured>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("read {}; name a soak's folder", folder.display()))?;
    let mut reports = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let path = entry.path().join("report.json");
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let report: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no report", path.display()))?;
        reports.push(report);
    }
    let mut rows = vec![Measured::new("runs", "", vec![reports.len() as f64])];
    for (path, name, unit, scale) in FIGURES {
        let samples: Vec<f64> = reports
            .iter()
            .filter_map(|report| report.pointer(path).and_then(Value::as_f64))
            .map(|value| value * scale)
            .collect();
        if !samples.is_empty() {
            rows.push(Measured::new(name, unit, samples));
        }
    }
    Ok(rows)
}
