//! What is promised of the replicated log.

use super::{ABSOLUTE, Bound, Promise, promise};
use crate::group;

/// CPU of a leader for a packet, in bursts of 32, encryption on.
const LEADER_CPU_NS_MAX: f64 = 100.0;
/// Commit of one packet, nothing else outstanding, encryption on.
const COMMIT_US_MAX: f64 = 10.0;

/// Median with 1 % loss against the one without: "unchanged".
const MEDIAN_RATIO_MAX: f64 = 1.1;
/// What 99 % may take beyond three round trips with 1 % loss.
const P99_EXCESS_MS_MAX: f64 = 1.0;
/// From the first request for votes to output that leaves.
const ELECTION_MS_MAX: f64 = 5.0;
/// `LOG_BYTES_MAX` of replication is 64 MiB, and is looked at before an entry goes in.
const LOG_MIB_MAX: f64 = 65.0;

const WITHOUT_ENCRYPTION: &str = "encryption is on by default; told for what it costs";
const PEER: &str = "what ours is held against";

/// All of it.
pub fn all() -> Vec<Promise> {
    let mut promises = cores();
    for system in group::SYSTEMS.into_iter().chain(["etcd"]) {
        promises.extend(system_rows(system));
    }
    promises.extend(two_cores());
    promises.extend(loss());
    promises.extend(failures());
    promises
}

/// The cores alone, without frames.
fn cores() -> Vec<Promise> {
    let mut promises = Vec::new();
    for packets in [1, 32] {
        promises.push(promise(
            format!("replication/commit/{packets}x64"),
            format!("commit of an entry of {packets} x 64 B, three nodes in one thread"),
            "us",
            Bound::Reported(ABSOLUTE),
        ));
        promises.push(promise(
            format!("replication/commit-bound/{packets}x64"),
            "  which bounds the log at",
            "Mpps",
            Bound::Reported(ABSOLUTE),
        ));
    }
    promises
}

/// The same commits through ours, with encryption and without, and through raft-rs.
fn system_rows(system: &'static str) -> Vec<Promise> {
    let words = words(system);
    let told = Bound::Reported(match system {
        "encrypted" => ABSOLUTE,
        "plain" => WITHOUT_ENCRYPTION,
        _ => PEER,
    });
    let mut promises = Vec::new();
    for packets in [1, 32] {
        let of = format!("{system}/{packets}x64");
        let entry = format!("entries of {packets} x 64 B, {words}");
        let bound = match (system, packets) {
            ("encrypted", 1) => Bound::AtMost(COMMIT_US_MAX),
            _ => told,
        };
        promises.extend([
            promise(
                format!("replication/one-outstanding/{of}/median"),
                format!("proposed to committed, one outstanding, {entry}: median"),
                "us",
                bound,
            ),
            promise(
                format!("replication/one-outstanding/{of}/p99"),
                format!("proposed to committed, one outstanding, {entry}: 99 %"),
                "us",
                told,
            ),
            promise(
                format!("replication/pipelined/{of}"),
                format!("commits when one is proposed at each turn, {entry}"),
                "kcommits/s",
                told,
            ),
        ]);
        if is_ours(system) {
            promises.extend(step_rows(&of, &entry, packets, told));
        }
    }
    if is_ours(system) {
        let bound = match system {
            "encrypted" => Bound::AtMost(LEADER_CPU_NS_MAX),
            _ => told,
        };
        promises.push(promise(
            format!("replication/leader-cpu/{system}/32x64"),
            format!("CPU of the leader for a committed packet of 64 B in bursts of 32, {words}"),
            "ns",
            bound,
        ));
    }
    promises
}

fn is_ours(system: &str) -> bool {
    matches!(system, "encrypted" | "plain")
}

/// The leader on one core and the followers on another.
fn two_cores() -> impl Iterator<Item = Promise> {
    [1, 32].into_iter().flat_map(|packets| {
        [("median", "median"), ("p99", "99 %")].map(|(name, words)| {
            promise(
                format!("replication/two-cores/{packets}x64/{name}"),
                format!(
                    "proposed to committed, one outstanding, entries of {packets} x 64 B, the \
                     leader on one core, both followers on another, net_memif between: {words}"
                ),
                "us",
                Bound::Reported(ABSOLUTE),
            )
        })
    })
}

/// Where the time of a commit goes.
fn step_rows(of: &str, entry: &str, packets: usize, told: Bound) -> Vec<Promise> {
    let mode = if packets == 1 {
        "one outstanding"
    } else {
        "one proposed at each turn"
    };
    let steps = [
        ("receive", "the leader hears acknowledgements and commits"),
        ("propose", "the leader proposes"),
        ("send", "the leader's frames"),
        ("followers", "both followers, all they do"),
    ];
    steps
        .into_iter()
        .map(|(step, what)| {
            promise(
                format!("replication/step/{of}/{step}"),
                format!("{what}, for a commit, {mode}, {entry}"),
                "ns",
                told,
            )
        })
        .collect()
}

/// Over a wire that loses frames.
fn loss() -> Vec<Promise> {
    let mut promises = Vec::new();
    for (_, nodes) in group::loss::NODES_ALIVE {
        for percent in group::loss::PERCENT {
            promises.extend(loss_rows(nodes, percent));
        }
    }
    promises
}

fn loss_rows(nodes: &str, percent: u32) -> Vec<Promise> {
    let prefix = format!("replication/loss/{nodes}/{percent}-percent");
    let alive = match nodes {
        "three-nodes" => "all three nodes",
        _ => "one follower dead",
    };
    let at = format!("at {percent} % loss, round trip 50 us, {alive}");
    let told = Bound::Reported(ABSOLUTE);
    let row = |name: &str, what: &str, unit, bound| {
        promise(
            format!("{prefix}/{name}"),
            format!("{what} {at}"),
            unit,
            bound,
        )
    };
    let mut promises = vec![
        row("median", "commit of one packet, median,", "us", told),
        row("p99", "commit of one packet, 99 %,", "us", told),
    ];
    if percent > 0 {
        let bound = |limit| match percent {
            1 => Bound::AtMost(limit),
            _ => Bound::Reported("promised at 1 %"),
        };
        promises.push(row(
            "median-ratio",
            "its median against the one without loss",
            "ratio",
            bound(MEDIAN_RATIO_MAX),
        ));
        promises.push(row(
            "p99-beyond-three-round-trips",
            "what 99 % take beyond three round trips",
            "ms",
            bound(P99_EXCESS_MS_MAX),
        ));
    }
    promises
}

/// A primary that dies, a peer that stands still.
fn failures() -> [Promise; 7] {
    let told = Bound::Reported(ABSOLUTE);
    let stalled = |name: &str, what: &str, unit, bound| {
        let name = format!("replication/stalled-peer/{name}");
        promise(
            name,
            format!("{what}, 60 s of full input, the backup stalled"),
            unit,
            bound,
        )
    };
    [
        promise(
            "replication/election/serving",
            "the primary dies: from the first request for votes to held output leaving",
            "ms",
            Bound::AtMost(ELECTION_MS_MAX),
        ),
        promise(
            "replication/election/detection",
            "  from its death to that request",
            "ms",
            Bound::Reported("follows from the configured election timeout"),
        ),
        stalled(
            "log-max",
            "most that any log had in memory",
            "MiB",
            Bound::AtMost(LOG_MIB_MAX),
        ),
        stalled(
            "resident-growth",
            "growth of the process since before any input, three nodes",
            "MiB",
            told,
        ),
        stalled(
            "acknowledged-lost",
            "committed and missing on the guest's side or on the backup that takes over later",
            "bursts",
            Bound::AtMost(0.0),
        ),
        stalled(
            "acknowledged",
            "packets committed and delivered",
            "Mpackets",
            told,
        ),
        stalled("refused", "turns at which the log was full", "turns", told),
    ]
}

fn words(system: &str) -> &'static str {
    match system {
        "encrypted" => "three nodes on one thread over net_ring",
        "plain" => "the same without encryption",
        "etcd" => "etcd, three members over loopback, data in a tmpfs",
        _ => "raft-rs with its MemStorage, three nodes on one thread, no wire",
    }
}
