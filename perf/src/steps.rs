//! Cycles a packet by step, as a backend of ours tells them when it ends: the last line of its
//! output that is a JSON object with `costs.steps`, or `steps`, in it.

use serde::Deserialize;

/// The steps of the path, in its order; each has a row.
pub const STEPS: [&str; 8] = [
    "rx",
    "admit",
    "propose",
    "replicate",
    "deliver",
    "tx",
    "hold",
    "release",
];

/// What a step costs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StepCost {
    /// Its name.
    pub step: String,
    /// None where no packet took it.
    pub cycles_per_packet: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Nested { costs: Costs },
    Plain(Costs),
}

#[derive(Deserialize)]
struct Costs {
    steps: Vec<StepCost>,
}

/// Finds the steps in what a process said.
pub fn parse(output: &str) -> Option<Vec<StepCost>> {
    output
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line.trim()).ok())
        .map(|line| match line {
            Line::Nested { costs } | Line::Plain(costs) => costs.steps,
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_steps_counts() {
        let output = "starting\n\
            {\"costs\":{\"turns\":1,\"steps\":[{\"step\":\"rx\",\"cycles_per_packet\":1.5}]}}\n\
            {\"costs\":{\"turns\":2,\"steps\":[{\"step\":\"rx\",\"packets\":2,\
            \"cycles_per_packet\":2.5},{\"step\":\"hold\",\"cycles_per_packet\":null}]}}\n\
            bye\n";
        let steps = parse(output).expect("steps");
        assert_eq!(steps[0].cycles_per_packet, Some(2.5));
        assert_eq!(steps[1].cycles_per_packet, None);
    }

    #[test]
    fn what_has_no_steps_has_none() {
        for output in ["", "{}", "[]", "{\"steps\":3}", "{\"steps\":[{}]}", "{"] {
            assert_eq!(parse(output), None, "{output}");
        }
    }
}
