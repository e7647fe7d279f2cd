//! Starts a process for each scenario and takes down what it tells.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;

use super::{Scenario, Told};
use crate::interrupt;
use crate::measured::Measured;
use crate::process::Process;
use crate::promises;

/// The last line of a process that told everything.
pub const DONE: &str = "{\"done\":true}\n";

/// Measures all scenarios, or one.
pub fn measure(
    only: Option<Scenario>,
    is_quick: bool,
    cores: (usize, usize),
    keep: &mut impl FnMut(Vec<Measured>) -> Result<()>,
) -> Result<()> {
    let all = Scenario::value_variants();
    for scenario in all
        .iter()
        .filter(|one| only.is_none_or(|only| only == **one))
    {
        println!("replication: {}", scenario.name());
        let rows = one(*scenario, is_quick, cores)?;
        keep(rows)?;
    }
    Ok(())
}

/// The figures of one scenario; those that its process did not tell say why.
fn one(scenario: Scenario, is_quick: bool, cores: (usize, usize)) -> Result<Vec<Measured>> {
    let (told, command) = listen(scenario, is_quick, cores);
    interrupt::check()?;
    let failure = match &told {
        Ok(_) => "it was not told".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let told = told.unwrap_or_default();
    let promised = promises::all().into_iter();
    let rows = promised.filter(|promise| scenario.tells(&promise.name));
    Ok(rows
        .map(|promise| row(promise.name, promise.unit, &told, &failure, &command))
        .collect())
}

fn row(
    name: String,
    unit: &'static str,
    told: &[Told],
    failure: &str,
    command: &[String],
) -> Measured {
    let mut row = match told.iter().find(|told| told.name == name) {
        Some(told) => Measured {
            reason: told.reason.clone(),
            placement: told.placement,
            ..Measured::new(name, unit, told.samples.clone())
        },
        None => Measured::failed(name, unit, failure),
    };
    row.commands = command.to_vec();
    row
}

/// What the process told, and its command line.
fn listen(
    scenario: Scenario,
    is_quick: bool,
    cores: (usize, usize),
) -> (Result<Vec<Told>>, Vec<String>) {
    let mut commands = Vec::new();
    let mut attempt = || {
        let program = std::env::current_exe().context("find this program")?;
        let mut arguments = vec![
            "group".to_owned(),
            scenario.name(),
            format!("--cores={},{}", cores.0, cores.1),
        ];
        arguments.extend(is_quick.then(|| "--quick".to_owned()));
        let program = program.display().to_string();
        let mut process = Process::start(&program, &arguments)?;
        commands.push(process.command().to_owned());
        let output = process.expect(DONE, scenario.patience(is_quick))?;
        let told = parse(&output);
        ensure!(!told.is_empty(), "it told nothing:\n{output}");
        // Programs that it measured against have command lines of their own.
        commands.extend(told.iter().flat_map(|told| told.commands.clone()));
        commands.dedup();
        Ok(told)
    };
    (attempt(), commands)
}

fn parse(output: &str) -> Vec<Told> {
    let lines = output.lines();
    lines
        .filter_map(|line| serde_json::from_str(line.trim()).ok())
        .collect()
}

impl Scenario {
    /// As it is written on the command line.
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// How long it may take.
    fn patience(self, is_quick: bool) -> Duration {
        Duration::from_secs(if is_quick { 90 } else { 300 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_lines() {
        let output = "EAL: something\n{\"name\":\"a\",\"samples\":[1.0]}\n{\"done\":true}\n";
        let told = parse(output);
        assert_eq!(told.len(), 1);
        let row = row("a".to_owned(), "us", &told, "failed", &["x".to_owned()]);
        assert_eq!((row.value(), row.commands.len()), (Some(1.0), 1));
    }

    #[test]
    fn what_was_not_told_says_why() {
        let row = row("a".to_owned(), "us", &[], "it died", &[]);
        assert_eq!(row.value(), None);
        assert_eq!(row.reason.as_deref(), Some("it died"));
    }

    #[test]
    fn each_figure_of_a_group_belongs_to_one_scenario() {
        for promise in promises::all() {
            let scenarios = Scenario::value_variants().iter();
            let count = scenarios.filter(|one| one.tells(&promise.name)).count();
            let is_ours = promise.name.starts_with("replication/")
                && !promise.name.starts_with("replication/commit/")
                && !promise.name.starts_with("replication/commit-bound/");
            assert_eq!(count, usize::from(is_ours), "{}", promise.name);
        }
    }
}
