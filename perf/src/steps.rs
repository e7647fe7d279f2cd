//! Cycles a packet by step, as a backend of ours tells them when it ends: a JSON object a line,
//! of each node and step.

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

/// What a step costs one node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StepCost {
    /// Which node.
    pub node: u64,
    /// Its name.
    pub step: String,
    /// Packets that took it.
    pub packets: u64,
    /// Cycles that it took.
    pub cycles: u64,
}

/// What a backend told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told(Vec<StepCost>);

impl Told {
    /// Finds the steps in what a process said; none if it told nothing.
    pub fn parse(output: &str) -> Option<Self> {
        let costs: Vec<StepCost> = output
            .lines()
            .filter_map(|line| serde_json::from_str(line.trim()).ok())
            .collect();
        (!costs.is_empty()).then_some(Self(costs))
    }

    /// Cycles a packet of a step of the first node, which has the guest.
    pub fn cycles_per_packet(&self, step: &str) -> Option<f64> {
        let first = self.first_node()?;
        let cost = self
            .0
            .iter()
            .find(|cost| cost.node == first && cost.step == step)?;
        (cost.packets > 0).then(|| cost.cycles as f64 / cost.packets as f64)
    }

    /// Cycles of all other nodes for a packet that the first one proposes; none if there are none.
    pub fn followers(&self) -> Option<f64> {
        let first = self.first_node()?;
        let packets = self
            .0
            .iter()
            .find(|cost| cost.node == first && cost.step == "propose")?
            .packets;
        let others = self.0.iter().filter(|cost| cost.node != first);
        let cycles: u64 = others.map(|cost| cost.cycles).sum();
        (packets > 0 && cycles > 0).then(|| cycles as f64 / packets as f64)
    }

    fn first_node(&self) -> Option<u64> {
        self.0.iter().map(|cost| cost.node).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_first_node_and_all_of_the_others() {
        let told = Told::parse(
            "starting\n\
             {\"nodes\":3,\"seconds\":1.0}\n\
             {\"node\":1,\"step\":\"propose\",\"packets\":10,\"cycles\":50,\"cycles_per_packet\":5.0}\n\
             {\"node\":1,\"step\":\"hold\",\"packets\":0,\"cycles\":7}\n\
             {\"node\":2,\"step\":\"replicate\",\"packets\":0,\"cycles\":20}\n\
             {\"node\":3,\"step\":\"other\",\"packets\":0,\"cycles\":10}\n",
        )
        .expect("steps");
        assert_eq!(told.cycles_per_packet("propose"), Some(5.0));
        assert_eq!(told.cycles_per_packet("hold"), None);
        assert_eq!(told.cycles_per_packet("rx"), None);
        assert_eq!(told.followers(), Some(3.0));
    }

    #[test]
    fn what_has_no_steps_has_none() {
        for output in ["", "{}", "[]", "{\"step\":3}", "{\"node\":1}", "{"] {
            assert_eq!(Told::parse(output), None, "{output}");
        }
    }
}
