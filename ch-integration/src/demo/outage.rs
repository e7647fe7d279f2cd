//! What one kill cost: the time without service, and where it went.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::events::{EventKind, NodeEvent};
use super::history::Kill;
use super::network::Host;

/// Replies under way at the kill may still arrive: the outage begins at the latest this long
/// after it.
const IN_FLIGHT_NS: u64 = 200_000_000;

/// The time without service around one kill. Times in microseconds; `None`: the records don't
/// tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// The host that was killed.
    pub node: String,
    /// Step of a sync that triggered the kill; `None`: the clock did.
    pub trigger: Option<String>,
    /// Step of a sync that each replica had entered last, if that sync was under way.
    pub inside: BTreeMap<String, String>,
    /// Largest gap between consecutive replies, over all connections, that spans the kill.
    pub gap_us: Option<u64>,
    /// The host that serves after it.
    pub survivor: Option<String>,
    /// From the kill to the first campaign of another node; to the role that gives the backup up,
    /// if it was the backup that was killed.
    pub detection_us: Option<u64>,
    /// From the campaigner's last heartbeat to its campaign.
    pub heartbeat_to_campaign_us: Option<u64>,
    /// From the campaign to a leader known to the survivor.
    pub election_us: Option<u64>,
    /// From the leader to the survivor's uplink being open.
    pub takeover_us: Option<u64>,
    /// From there to the first reply at a client; includes the client's TCP retransmission.
    pub first_answer_us: Option<u64>,
}

/// The killed host was the backup's: the primary serves on, once the role says unprotected.
fn give_up_of_backup(outage: &mut Outage, kill: &Kill, others: &[(&str, &NodeEvent)]) {
    let role = first(
        others,
        |_, kind| matches!(kind, EventKind::Role { mode, .. } if mode == "unprotected"),
    );
    let Some((_, role)) = role else {
        return;
    };
    let EventKind::Role { primary, .. } = &role.kind else {
        return;
    };
    let names = others.iter().map(|(name, _)| *name);
    outage.survivor = names
        .filter(|name| primary.is_some() && nodes_id(name) == *primary)
        .map(str::to_owned)
        .next();
    outage.detection_us = Some(micros(kill.t_ns, role.t_ns));
}

/// What this kill cost, given the times of all replies in order.
pub fn of(kill: &Kill, replies: &[u64], nodes: &BTreeMap<String, Vec<NodeEvent>>) -> Outage {
    let mut outage = Outage {
        node: kill.node.clone(),
        trigger: kill.step.clone(),
        inside: steps_at(kill.t_ns, nodes),
        ..Outage::default()
    };
    let gap = longest_gap(kill.t_ns, replies);
    outage.gap_us = gap.map(|(from, to)| micros(from, to));
    let others: Vec<(&str, &NodeEvent)> = nodes
        .iter()
        .filter(|(name, _)| **name != kill.node)
        .flat_map(|(name, events)| events.iter().map(move |event| (name.as_str(), event)))
        .filter(|(_, event)| event.t_ns >= kill.t_ns)
        .collect();

    let serving = first(&others, |_, kind| *kind == EventKind::Serving);
    let Some((survivor, served)) = serving else {
        give_up_of_backup(&mut outage, kill, &others);
        return outage;
    };
    outage.survivor = Some(survivor.to_owned());
    outage.first_answer_us = gap
        .map(|(_, to)| to)
        .filter(|to| *to >= served.t_ns)
        .map(|to| micros(served.t_ns, to));

    let campaign = first(&others, |_, kind| {
        matches!(kind, EventKind::Campaign { .. })
    });
    let Some((_, campaign)) = campaign.filter(|(_, event)| event.t_ns <= served.t_ns) else {
        return outage;
    };
    outage.detection_us = Some(micros(kill.t_ns, campaign.t_ns));
    if let EventKind::Campaign {
        last_heartbeat_t_ns: Some(heard),
        ..
    } = campaign.kind
    {
        outage.heartbeat_to_campaign_us = Some(micros(heard, campaign.t_ns));
    }
    // The last leader that the survivor knew of before it served: an election may need a second
    // round, and a witness that wins hands over.
    let killed = nodes_id(&kill.node);
    let leader = others
        .iter()
        .filter(|(name, event)| *name == survivor && event.t_ns <= served.t_ns)
        .filter(|(_, event)| {
            matches!(&event.kind, EventKind::Leader { leader, .. }
                if *leader != 0 && Some(*leader) != killed)
        })
        .map(|(_, event)| event.t_ns)
        .max();
    outage.election_us = leader.map(|t_ns| micros(campaign.t_ns, t_ns));
    outage.takeover_us = leader.map(|t_ns| micros(t_ns, served.t_ns));
    outage
}

fn nodes_id(name: &str) -> Option<u64> {
    Host::ALL
        .into_iter()
        .find(|host| host.name() == name)
        .map(Host::id)
}

fn first<'a>(
    events: &[(&'a str, &'a NodeEvent)],
    wanted: impl Fn(&str, &EventKind) -> bool,
) -> Option<(&'a str, &'a NodeEvent)> {
    let hits = events
        .iter()
        .filter(|(name, event)| wanted(name, &event.kind));
    hits.min_by_key(|(_, event)| event.t_ns).copied()
}

/// Start and end of the largest gap between replies that spans the kill, or starts right after.
fn longest_gap(killed_ns: u64, replies: &[u64]) -> Option<(u64, u64)> {
    replies
        .windows(2)
        .map(|pair| (pair[0], pair[1]))
        .filter(|(from, to)| *to > killed_ns && *from <= killed_ns + IN_FLIGHT_NS)
        .max_by_key(|(from, to)| to - from)
}

/// The step that each replica was in. A sync is over for a node when it wrote its record.
fn steps_at(t_ns: u64, nodes: &BTreeMap<String, Vec<NodeEvent>>) -> BTreeMap<String, String> {
    let mut inside = BTreeMap::new();
    for (name, events) in nodes {
        let last = events
            .iter()
            .filter(|event| event.t_ns <= t_ns)
            .filter(|event| matches!(event.kind, EventKind::Step { .. } | EventKind::Sync(_)))
            .max_by_key(|event| event.t_ns);
        if let Some(EventKind::Step { step, .. }) = last.map(|event| &event.kind) {
            inside.insert(name.clone(), step.clone());
        }
    }
    inside
}

fn micros(from_ns: u64, to_ns: u64) -> u64 {
    to_ns.saturating_sub(from_ns) / 1000
}
