//! What anybody may send, as scripts over bytes, and what must hold whatever they are. Each
//! scenario is a plain function: cargo-fuzz runs it, so does the driver for stable toolchains
//! ([`stable`]), and so does a test over the kept corpus. A scenario fails by a panic or a fault.

pub mod control;
pub mod entry;
pub mod frame;
mod guest;
mod input;
pub mod offload;
pub mod race;
pub mod ring;
pub mod stable;

/// A scenario: a name, as its target's and its corpus folder's, and what it does.
pub struct Scenario {
    /// Name.
    pub name: &'static str,
    /// Runs the script that the bytes are.
    pub run: fn(&[u8]),
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "ring",
        run: ring::run,
    },
    Scenario {
        name: "control",
        run: control::run,
    },
    Scenario {
        name: "offload",
        run: offload::run,
    },
    Scenario {
        name: "entry",
        run: entry::run,
    },
    Scenario {
        name: "frame",
        run: frame::run,
    },
];
