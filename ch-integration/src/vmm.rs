//! What Plover asks of a VMM: the trait behind which QEMU and Cloud Hypervisor are driven.
//!
//! ```text
//!            launch()
//!               |
//!            waiting ---- boot() ----> running <---- resume() ----+
//!               |                         |                       |
//!               |                         +------ pause() ----> paused --- capture() -+
//!               |                                              |  ^  ^                |
//!               +---- load() ----------------------------------+--+  +----------------+
//! ```
//!
//! What lives here: the trait, its small types. What does not: how a process is started
//! (`launch`), or any protocol of a VMM.

use std::fmt;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::VmmError;

/// The VMMs that Plover drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmmKind {
    /// `qemu-system-x86_64`, by QMP.
    Qemu,
    /// `cloud-hypervisor`, by its REST API.
    CloudHypervisor,
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
        })
    }
}

/// How a VMM's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It is gone, and how is not known.
    Unknown,
}

impl From<ExitStatus> for ExitReason {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown reason"),
        }
    }
}

/// What a guest did that reaches beyond it. These are outputs: held, agreed, then acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestEvent {
    /// The guest asked for a reset. QEMU keeps it stopped; Cloud Hypervisor has already rebooted
    /// it when this is seen.
    Reset,
    /// The guest powered itself off. The VMM stays, its vCPUs stopped.
    Shutdown,
    /// The guest's kernel reported a panic (through a pvpanic device).
    Panic,
}

/// A guest on its VMM. One thread drives it; no method is called from two at once.
///
/// Every call is bounded in time by `limits`: a VMM that hangs yields [`VmmError::Timeout`], and
/// its state is then unknown. The process dies with the thread that launched it.
pub trait Vmm: Send {
    /// Which VMM this is.
    fn kind(&self) -> VmmKind;

    /// The VMM's version as it names it itself.
    fn version(&self) -> &str;

    /// Its process id.
    fn pid(&self) -> u32;

    /// Starts the guest from its kernel: on the primary of a fresh group, once.
    fn boot(&mut self) -> Result<(), VmmError>;

    /// Stops the vCPUs. When it returns, the guest and its devices write memory no more.
    fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets the vCPUs run again.
    fn resume(&mut self) -> Result<(), VmmError>;

    /// vCPU and device state of the paused guest, memory left out. The guest stays paused.
    fn capture(&mut self) -> Result<Vec<u8>, VmmError>;

    /// Takes another copy's state into this guest, which is paused or was never booted. Its
    /// memory was written before. The guest stays paused. May be called again and again.
    fn load(&mut self, state: &[u8]) -> Result<(), VmmError>;

    /// Whether the VMM has mapped guest memory; some do only with the first boot or load. Before,
    /// there is nothing to track.
    fn maps_ram(&self) -> bool;

    /// After [`Vmm::load`]: whether the VMM mapped guest memory anew, so that a tracker has to
    /// register the new mapping before [`Vmm::resume`]. After [`Vmm::boot`]: whether it mapped it
    /// only then; what the guest wrote before the tracker registers it is not known.
    fn ram_mapping_changed(&self) -> bool;

    /// CPU time of the vCPU threads so far, as the scheduler accounts it. It never goes back.
    fn vcpu_time(&self) -> Result<Duration, VmmError>;

    /// Whether a vCPU thread runs, or waits for a CPU, at this instant. The accounted time alone
    /// does not tell: of a thread that runs without a break it is brought up to date at ticks only.
    fn vcpus_run(&self) -> Result<bool, VmmError>;

    /// How the process ended, if it did.
    fn has_exited(&mut self) -> Option<ExitReason>;

    /// What the guest did since the last call. Never blocks.
    fn guest_events(&mut self) -> Vec<GuestEvent>;

    /// Kills the process and reaps it.
    fn kill(&mut self);
}

/// What a tracker of written pages needs: taken from the VMM at its exec stop.
#[derive(Debug)]
pub struct Tracker {
    /// A userfaultfd of the VMM's address space, `O_NONBLOCK`, before `UFFDIO_API`.
    pub uffd: OwnedFd,
    /// The VMM's process.
    pub pidfd: OwnedFd,
}

/// A launched VMM whose guest has not run yet.
pub struct Launched {
    /// The VMM.
    pub vmm: Box<dyn Vmm>,
    /// What a tracker of written pages needs, if it could be taken.
    pub tracker: Option<Tracker>,
    /// Why there is no tracker.
    pub tracker_reason: Option<String>,
}
