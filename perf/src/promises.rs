//! What is promised: the one place. The table of perf/SPEC.md is made from it, results are held
//! against it. A promise equals what was asked for; changing one needs a decision record.

mod replication;

use std::fmt::Write as _;

use crate::datapath::Uplink;

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not below.
    AtLeast(f64),
    /// Not above.
    AtMost(f64),
    /// Below.
    Below(f64),
    /// Nothing is promised, for this reason.
    Reported(&'static str),
}

impl Bound {
    /// Whether a value keeps it; none where nothing is promised.
    pub fn holds(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::Below(limit) => Some(value < limit),
            Self::Reported(_) => None,
        }
    }

    /// The promised number.
    pub fn limit(self) -> Option<f64> {
        match self {
            Self::AtLeast(limit) | Self::AtMost(limit) | Self::Below(limit) => Some(limit),
            Self::Reported(_) => None,
        }
    }

    /// How the number is meant.
    pub fn sense(self) -> &'static str {
        match self {
            Self::AtLeast(_) => "at least",
            Self::AtMost(_) => "at most",
            Self::Below(_) => "below",
            Self::Reported(_) => "reported",
        }
    }
}

/// A figure and what it must be.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The figure's name; its first part is what `--only` takes.
    pub name: String,
    /// What it is, in words.
    pub what: String,
    /// What one of it is.
    pub unit: &'static str,
    /// What it must be.
    pub bound: Bound,
}

/// The parts that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The packet path.
    Datapath,
    /// Page digests.
    Hasher,
    /// The input log.
    Replication,
}

impl Part {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Hasher, Self::Replication, Self::Datapath];

    /// The first part of its figures' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::Hasher => "hasher",
            Self::Replication => "replication",
        }
    }

    /// Whether a figure belongs to it.
    pub fn has(self, figure: &str) -> bool {
        figure
            .strip_prefix(self.name())
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The directions in which the data path is measured: name, words.
const DIRECTIONS: [(&str, &str); 3] = [
    ("guest-to-host", "guest to host"),
    ("host-to-guest", "host to guest"),
    ("forward", "forwarding both ways at once"),
];
/// The frames' sizes. What is promised is promised for the smallest and the largest.
const FRAME_BYTES: [usize; 3] = [64, 512, 1500];

const BETWEEN: &str = "promised for 64 B and 1500 B, told for what is between";
const ABSOLUTE: &str = "no ratio: it depends on the machine";

/// Everything that is promised or has to be reported.
pub fn all() -> Vec<Promise> {
    let mut promises = hasher();
    promises.extend(replication::all());
    promises.extend(rates());
    promises.extend(steps());
    promises.extend(costs());
    promises.extend(uplinks());
    promises
}

fn promise(
    name: impl Into<String>,
    what: impl Into<String>,
    unit: &'static str,
    bound: Bound,
) -> Promise {
    Promise {
        name: name.into(),
        what: what.into(),
        unit,
        bound,
    }
}

fn hasher() -> Vec<Promise> {
    let reason = Bound::Reported("nothing is promised yet");
    let mut promises = Vec::new();
    for (name, words) in [("in-order", "in order"), ("scattered", "in random order")] {
        for (what, rate) in [
            ("plain-read", "plain read of pages"),
            ("crc32c", "crate crc32c alone, pages"),
            ("digest", "CRC32C and certificate tag, pages"),
        ] {
            promises.push(promise(
                format!("hasher/{what}/{name}"),
                format!("{rate} {words}, one thread"),
                "GB/s",
                Bound::Reported(ABSOLUTE),
            ));
        }
        promises.push(promise(
            format!("hasher/digest-of-plain-read/{name}"),
            format!("digest and tag against a plain read, {words}"),
            "ratio",
            reason,
        ));
    }
    promises
}

/// Against testpmd, and the sequenced path against the plain one.
fn rates() -> Vec<Promise> {
    let mut promises = vec![promise(
        "datapath/selftest/guest-to-host/64",
        "testpmd's vhost against itself: what the instrument adds",
        "ratio",
        Bound::Reported("how far two equal backends differ"),
    )];
    for (direction, words) in DIRECTIONS {
        for bytes in FRAME_BYTES {
            let at = format!("{direction}/{bytes}");
            let ends = bytes != 512;
            let bound = |least| {
                if ends {
                    Bound::AtLeast(least)
                } else {
                    Bound::Reported(BETWEEN)
                }
            };
            let ratio = |name: &str, what: &str, bound| {
                promise(
                    format!("datapath/{name}/{at}"),
                    format!("{what}, {words}, {bytes} B"),
                    "ratio",
                    bound,
                )
            };
            let rate = |name: &str, what: &str| {
                promise(
                    format!("datapath/{name}/{at}"),
                    format!("{what}, {words}, {bytes} B"),
                    "Mpps",
                    Bound::Reported(ABSOLUTE),
                )
            };
            promises.extend([
                ratio(
                    "passthrough-of-testpmd",
                    "passthrough against testpmd's vhost",
                    bound(1.0),
                ),
                ratio(
                    "sequenced-of-passthrough",
                    "a log of one node against passthrough",
                    bound(0.7),
                ),
                rate("testpmd", "testpmd's vhost"),
                rate("passthrough", "passthrough"),
                rate("sequenced", "a log of one node"),
                rate("sequenced-three", "a log of three nodes"),
            ]);
        }
    }
    promises
}

/// Where the cycles of a sequenced packet go.
fn steps() -> Vec<Promise> {
    let mut promises = Vec::new();
    for (log, words) in [
        ("sequenced", "one node"),
        ("sequenced-three", "three nodes"),
    ] {
        for step in crate::steps::STEPS {
            promises.push(promise(
                format!("datapath/cycles/{log}/{step}"),
                format!("step {step}, a log of {words}, forwarding 64 B"),
                "cycles",
                Bound::Reported(ABSOLUTE),
            ));
        }
    }
    promises.push(promise(
        "datapath/cycles/sequenced-three/followers",
        "all that the two followers do on the same core, for a packet of the first",
        "cycles",
        Bound::Reported(ABSOLUTE),
    ));
    promises
}

/// What parts of the path cost, and what must not happen on it at all.
fn costs() -> Vec<Promise> {
    let mut promises: Vec<Promise> = DIRECTIONS
        .iter()
        .map(|(direction, words)| {
            promise(
                format!("datapath/cost/logging-writes/{direction}/64"),
                format!("what logging written pages takes of the rate, {words}, 64 B"),
                "share",
                Bound::AtMost(0.03),
            )
        })
        .collect();
    promises.extend([
        promise(
            "datapath/cost/step-counters/forward/64",
            "what counting cycles by step takes of the rate, forwarding 64 B",
            "share",
            Bound::Below(0.02),
        ),
        promise(
            "datapath/per-packet/allocations",
            "allocations on the hot path, counted by the tests in proofs.rs",
            "per packet",
            Bound::AtMost(0.0),
        ),
        promise(
            "datapath/per-packet/locks",
            "waits for a lock on the hot path while polling",
            "per packet",
            Bound::AtMost(0.0),
        ),
        promise(
            "datapath/per-packet/system-calls/passthrough",
            "system calls of the poll core under load, passthrough",
            "per packet",
            Bound::AtMost(0.0),
        ),
        promise(
            "datapath/per-packet/system-calls/sequenced",
            "system calls of the poll core under load, a log of one node",
            "per packet",
            Bound::AtMost(0.0),
        ),
    ]);
    promises
}

/// What passthrough brings through drivers that lead out of the process.
fn uplinks() -> impl Iterator<Item = Promise> {
    Uplink::ALL.into_iter().map(|uplink| {
        promise(
            uplink.figure(),
            format!(
                "passthrough over {}, guest to host, 64 B, counted by {}",
                uplink.driver(),
                uplink.far_end()
            ),
            "Mpps",
            Bound::Reported("bound by the driver and what it leads to"),
        )
    })
}

/// The table of perf/SPEC.md.
pub fn table() -> String {
    let mut table = String::from("| figure | what it is | promised |\n|---|---|---|\n");
    for promise in all() {
        let promised = match (promise.bound, promise.bound.limit()) {
            (Bound::Reported(reason), _) => format!("reported: {reason}"),
            (bound, Some(limit)) => format!("{} {limit}", bound.sense()),
            (bound, None) => bound.sense().to_owned(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            table,
            "| `{}` | {} ({}) | {promised} |",
            promise.name,
            promise.what.trim(),
            promise.unit
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bounds_at_their_limits() {
        assert_eq!(Bound::AtLeast(1.0).holds(1.0), Some(true));
        assert_eq!(Bound::AtLeast(1.0).holds(0.999), Some(false));
        assert_eq!(Bound::AtMost(0.03).holds(0.03), Some(true));
        assert_eq!(Bound::Below(0.02).holds(0.02), Some(false));
        assert_eq!(Bound::Reported("").holds(5.0), None);
        assert_eq!(Bound::AtLeast(1.0).holds(f64::NAN), Some(false));
    }

    #[test]
    fn names_are_unique_and_belong_to_a_part() {
        let mut names = BTreeSet::new();
        for promise in all() {
            assert!(
                Part::ALL.iter().any(|part| part.has(&promise.name)),
                "{}",
                promise.name
            );
            assert!(
                names.insert(promise.name.clone()),
                "twice: {}",
                promise.name
            );
        }
    }

    #[test]
    fn the_specification_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/SPEC.md");
        let text = std::fs::read_to_string(path).expect("perf/SPEC.md");
        assert!(
            text.contains(&table()),
            "perf/SPEC.md is not what promises.rs says; put in what `plover-perf promises` prints"
        );
    }
}
