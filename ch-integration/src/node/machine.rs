//! The VMM of a replica with what belongs to it: its RAM file, its tracker, whether it runs.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hasher::client::{AttachFds, Client, TrackerFds};
use hasher::control::AttachReport;
use hasher::guest_memory::RegionSpec;
use tracing::{info, warn};
use vhost_user_plover_net::WrittenPages;

use crate::config::{GuestConfig, VmmConfig};
use crate::launch::launch;
use crate::vmm::{Launched, Tracker, Vmm};

/// Attaching maps all of guest memory and clears the tracker.
const ATTACH_MAX: Duration = Duration::from_secs(20);

/// A launched VMM.
pub struct Machine {
    /// The VMM.
    pub vmm: Box<dyn Vmm>,
    /// The guest runs, or is paused for a sync only.
    pub is_running: bool,
    tracker: Option<Tracker>,
    ram: File,
    /// The RAM file.
    pub ram_path: PathBuf,
    /// How the RAM file lies in the guest's address space.
    pub regions: Vec<RegionSpec>,
}

impl Machine {
    /// Launches the VMM, its guest not booted.
    pub fn launch(
        config: &VmmConfig,
        guest: &GuestConfig,
        socket: &Path,
        run_dir: &Path,
        regions: Vec<RegionSpec>,
    ) -> Result<Self> {
        let Launched {
            vmm,
            tracker,
            tracker_reason,
        } = launch(config, socket, guest, run_dir).context("launch the VMM")?;
        if let Some(reason) = tracker_reason {
            warn!(
                reason,
                "no userfaultfd: written pages are found by a slower way"
            );
        }
        let ram = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&config.ram_path)
            .with_context(|| format!("open the guest's RAM, {}", config.ram_path.display()))?;
        info!(pid = vmm.pid(), version = vmm.version(), "VMM launched");
        Ok(Self {
            vmm,
            is_running: false,
            tracker,
            ram,
            ram_path: config.ram_path.clone(),
            regions,
        })
    }

    /// Gives the guest's memory to the hasher. `continues`: the VMM mapped the same memory anew and
    /// has not run since the last sync was applied.
    pub fn attach(
        &self,
        client: &mut Client,
        group: &str,
        written: &WrittenPages,
        staging: &File,
        continues: bool,
    ) -> Result<AttachReport> {
        let tracker = self.tracker.as_ref().filter(|_| self.vmm.maps_ram());
        let tracker = tracker.map(|tracker| TrackerFds {
            uffd: tracker.uffd.as_fd(),
            pidfd: tracker.pidfd.as_fd(),
            pid: self.vmm.pid(),
        });
        let fds = AttachFds {
            regions: self
                .regions
                .iter()
                .map(|region| (*region, self.ram.as_fd()))
                .collect(),
            backend_log: written.file().as_fd(),
            staging: staging.as_fd(),
            tracker,
        };
        let report = client
            .attach(group, &fds, continues, ATTACH_MAX)
            .context("give the guest's memory to the hasher")?;
        info!(
            tracker = report.tracker,
            reason = report.reason,
            "guest memory attached"
        );
        Ok(report)
    }
}
