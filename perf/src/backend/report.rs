//! What was seen while the backend ran: rates, and what each step cost, as lines of JSON.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vhost_user_plover_net::status::{PathCounters, Status};

use super::driver::Watcher;

/// What the nodes said of themselves.
#[derive(Default)]
pub struct Report {
    /// The first node's counters when packets had begun to move.
    first: Option<(Instant, PathCounters)>,
    last: Option<(Instant, PathCounters)>,
    /// All nodes, as they were last.
    nodes: Vec<(u64, Box<Status>)>,
}

impl Report {
    /// Asks all nodes.
    pub fn look(&mut self, watchers: &[Watcher]) {
        let answers = watchers
            .iter()
            .map(|watcher| Some((watcher.node, watcher.status()?)));
        // A core that is paused says nothing; what it said before stays.
        let Some(nodes) = answers.collect::<Option<Vec<_>>>() else {
            return;
        };
        let now = Instant::now();
        let path = nodes[0].1.path;
        if self.first.is_none() && path.delivered + path.released > 0 {
            self.first = Some((now, path));
        }
        self.last = Some((now, path));
        self.nodes = nodes;
    }

    /// Prints rates over the whole time in which packets moved, then each step of each node.
    pub fn print(&self) -> Result<()> {
        println!("{}", self.rates());
        for (node, status) in &self.nodes {
            let hertz = status.costs.cycles_per_second;
            for cost in &status.costs.steps {
                let line = json!({
                    "node": node,
                    "step": cost.step,
                    "packets": cost.packets,
                    "cycles": cost.cycles,
                    "cycles_per_packet": cost.cycles_per_packet,
                    "ns_per_packet": cost.cycles_per_packet.map(|cycles| cycles * 1e9 / hertz),
                });
                println!("{line}");
            }
            let counters = serde_json::to_value((&status.path, status.costs.turns))
                .context("write the counters")?;
            println!("{}", json!({"node": node, "counters": counters}));
        }
        Ok(())
    }

    fn rates(&self) -> Value {
        let (Some((from, first)), Some((to, last))) = (self.first, self.last) else {
            return json!({"seconds": 0, "nodes": self.nodes.len()});
        };
        let seconds = (to - from).as_secs_f64();
        let mpps = |count: fn(&PathCounters) -> u64| {
            (count(&last) - count(&first)) as f64 / seconds.max(1e-9) / 1e6
        };
        json!({
            "nodes": self.nodes.len(),
            "seconds": seconds,
            "received_mpps": mpps(|path| path.received),
            "delivered_mpps": mpps(|path| path.delivered),
            "taken_mpps": mpps(|path| path.taken),
            "released_mpps": mpps(|path| path.released),
        })
    }
}
