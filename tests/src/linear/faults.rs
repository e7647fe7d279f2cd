//! What happens to a group while clients work: drawn by a seed, each fault with the outcome that is
//! expected of it. How it is done is [`super::inflict`]'s.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A fault that lasts at least this long is noticed by the others, however busy the machine is:
/// ten election timeouts of the group.
pub const SURELY_NOTICED: Duration = Duration::from_millis(2500);
/// The longest fault.
pub const LASTS_MAX: Duration = Duration::from_secs(5);
/// The longest quiet before a fault: syncs come several times a second.
const QUIET_MAX_MS: u64 = 1500;

/// Whose host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The primary's, as of then.
    Primary,
    /// The backup's.
    Backup,
    /// The witness's.
    Witness,
}

/// A process of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// `plover node`.
    Node,
    /// The VMM.
    Vmm,
    /// The hasher.
    Hasher,
}

/// A network that a host is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The nodes'.
    Replication,
    /// The hashers'.
    Hashers,
    /// The clients'.
    Uplink,
}

/// What is lost on a wire, as its host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The link is down on both ends.
    Unplugged,
    /// Everything, silently.
    Both,
    /// What comes.
    In,
    /// What goes.
    Out,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSTOP, and SIGCONT after a while.
    Stop {
        /// Whose.
        whom: Whom,
        /// Which process.
        process: Process,
        /// Until it goes on.
        lasts: Duration,
    },
    /// A wire is cut, and mended after a while.
    Cut {
        /// Whose.
        whom: Whom,
        /// Which wire.
        wire: Wire,
        /// What is lost.
        way: Way,
        /// Until it is mended.
        lasts: Duration,
    },
    /// SIGKILL to one process that the host's node starts again.
    KillProcess {
        /// Whose.
        whom: Whom,
        /// Which process; not the node.
        process: Process,
    },
    /// SIGKILL to the witness, which is started again after a while.
    RestartWitness {
        /// Until it is started again.
        after: Duration,
    },
    /// SIGKILL to everything on a host, and its cables out, for good.
    KillHost {
        /// Whose.
        whom: Whom,
    },
}

/// Who is primary after a fault, and what it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// As before.
    Stays,
    /// The other replica.
    Moves,
    /// Depends on the moment: it was short, or what it hit may or may not be needed meanwhile.
    Either,
}

impl Fault {
    /// Who must be primary afterwards. That the group serves all the while, that nothing is lost
    /// and that it is protected again (unless a host is gone) is expected of each.
    #[must_use]
    pub fn expected(&self) -> Expected {
        match *self {
            Self::KillHost {
                whom: Whom::Primary,
            }
            | Self::KillProcess {
                whom: Whom::Primary,
                process: Process::Vmm,
            } => Expected::Moves,
            Self::Stop {
                whom: Whom::Primary,
                process: Process::Node,
                lasts,
            }
            | Self::Cut {
                whom: Whom::Primary,
                wire: Wire::Replication,
                lasts,
                ..
            } => {
                if lasts >= SURELY_NOTICED {
                    Expected::Moves
                } else {
                    Expected::Either
                }
            }
            // A VM that stands still on a live host may or may not be given up within the time.
            Self::Stop {
                whom: Whom::Primary,
                process: Process::Vmm,
                ..
            } => Expected::Either,
            // The link of the primary's uplink goes down with the cable.
            Self::Cut {
                whom: Whom::Primary,
                wire: Wire::Uplink,
                way: Way::Unplugged,
                ..
            } => Expected::Either,
            _ => Expected::Stays,
        }
    }

    /// Whether a host is gone for good.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::KillHost { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop {
                whom,
                process,
                lasts,
            } => write!(f, "{whom:?}: {process:?} stopped for {lasts:?}"),
            Self::Cut {
                whom,
                wire,
                way,
                lasts,
            } => write!(f, "{whom:?}: {wire:?} cut ({way:?}) for {lasts:?}"),
            Self::KillProcess { whom, process } => write!(f, "{whom:?}: {process:?} killed"),
            Self::RestartWitness { after } => {
                write!(f, "Witness: killed, started again after {after:?}")
            }
            Self::KillHost { whom } => write!(f, "{whom:?}: host killed"),
        }
    }
}

/// The faults of one group's life, each after a quiet time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Seed of the plan and of what the clients ask for.
    pub seed: u64,
    /// Quiet, then the fault.
    pub faults: Vec<(Duration, Fault)>,
}

impl Plan {
    /// The plan of a seed: so many faults that leave three hosts, then a host dies.
    #[must_use]
    pub fn draw(seed: u64, passing: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut faults = Vec::with_capacity(passing + 1);
        for _ in 0..passing {
            faults.push((quiet(&mut random), draw_passing(&mut random)));
        }
        let whom = match random.random_range(0..4) {
            0 => Whom::Backup,
            _ => Whom::Primary,
        };
        faults.push((quiet(&mut random), Fault::KillHost { whom }));
        Self { seed, faults }
    }

    /// The short form: the primary's node stands still for as long as it gets, and when all is well
    /// again the host of the one that took over dies.
    #[must_use]
    pub fn short() -> Self {
        let stop = Fault::Stop {
            whom: Whom::Primary,
            process: Process::Node,
            lasts: LASTS_MAX,
        };
        let whom = Whom::Primary;
        Self {
            seed: 1,
            faults: vec![
                (Duration::from_millis(500), stop),
                (Duration::from_millis(500), Fault::KillHost { whom }),
            ],
        }
    }
}

fn quiet(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(0..QUIET_MAX_MS))
}

/// A third are too short to be sure that anybody notices.
fn lasts(random: &mut StdRng) -> Duration {
    let longest = u64::try_from(LASTS_MAX.as_millis()).unwrap_or(0);
    Duration::from_millis(match random.random_range(0..3) {
        0 => random.random_range(20..600),
        _ => random.random_range(600..=longest),
    })
}

fn draw_passing(random: &mut StdRng) -> Fault {
    let replica = [Whom::Primary, Whom::Primary, Whom::Backup][random.random_range(0..3)];
    let any = [Whom::Primary, Whom::Backup, Whom::Witness][random.random_range(0..3)];
    let lasts = lasts(random);
    match random.random_range(0..100) {
        0..20 => Fault::Stop {
            whom: any,
            process: Process::Node,
            lasts,
        },
        20..30 => Fault::Stop {
            whom: replica,
            process: Process::Vmm,
            lasts,
        },
        30..38 => Fault::Stop {
            whom: replica,
            process: Process::Hasher,
            lasts,
        },
        38..68 => Fault::Cut {
            whom: any,
            wire: Wire::Replication,
            way: way(random),
            lasts,
        },
        68..76 => Fault::Cut {
            whom: replica,
            wire: Wire::Hashers,
            way: way(random),
            lasts,
        },
        76..84 => Fault::Cut {
            whom: replica,
            wire: Wire::Uplink,
            way: way(random),
            lasts,
        },
        84..90 => Fault::KillProcess {
            whom: replica,
            process: Process::Vmm,
        },
        90..95 => Fault::KillProcess {
            whom: replica,
            process: Process::Hasher,
        },
        _ => Fault::RestartWitness { after: lasts },
    }
}

fn way(random: &mut StdRng) -> Way {
    [Way::Unplugged, Way::Both, Way::In, Way::Out][random.random_range(0..4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same_plan_and_only_the_last_fault_is_final() {
        assert_eq!(Plan::draw(7, 4), Plan::draw(7, 4));
        assert_ne!(Plan::draw(7, 4), Plan::draw(8, 4));
        for seed in 0..200 {
            let plan = Plan::draw(seed, 4);
            let finals: Vec<bool> = plan.faults.iter().map(|(_, f)| f.is_final()).collect();
            assert_eq!(finals, [false, false, false, false, true]);
        }
    }

    #[test]
    fn every_kind_is_drawn_and_none_outlasts_the_bound() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            for (_, fault) in Plan::draw(seed, 4).faults {
                let (kind, lasts) = match fault {
                    Fault::Stop {
                        whom,
                        process,
                        lasts,
                    } => (format!("stop {whom:?} {process:?}"), lasts),
                    Fault::Cut {
                        whom,
                        wire,
                        way,
                        lasts,
                    } => (format!("cut {whom:?} {wire:?} {way:?}"), lasts),
                    Fault::KillProcess { whom, process } => {
                        (format!("kill {whom:?} {process:?}"), LASTS_MAX)
                    }
                    Fault::RestartWitness { after } => ("restart".to_owned(), after),
                    Fault::KillHost { whom } => (format!("host {whom:?}"), LASTS_MAX),
                };
                assert!(lasts <= LASTS_MAX);
                kinds.insert(kind);
            }
        }
        // 3 + 2 + 2 stops, 12 + 8 + 8 cuts, 4 kills of a process, the restart, 2 of a host.
        assert_eq!(kinds.len(), 42, "{kinds:?}");
    }
}
