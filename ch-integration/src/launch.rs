//! Starts a VMM: checks what it is asked for, makes the guest's memory file, forks, and takes a
//! userfaultfd from it at its exec stop.
//!
//! What lives here: the order of these steps. Command lines and APIs are in `qemu` and
//! `cloud_hypervisor`; the ptrace work is in `inject`.
//!
//! The VMM dies with the *thread* that called [`launch`]: a VMM whose node is gone must not
//! serve, and Linux ties `PR_SET_PDEATHSIG` to the parent thread, not to its process. Call it
//! from a thread that lives as long as the VMM should.

mod binary;
mod inject;
mod process;
mod ram_file;

use std::path::Path;

pub use inject::InjectError;
pub use process::{Spawned, VmmProcess, spawn};
pub use ram_file::RamFile;

pub(crate) use binary::find as find_binary;

use crate::config::{GuestConfig, MacAddress, VmmConfig};
use crate::error::VmmError;
use crate::limits;
use crate::refuse;
use crate::vmm::{Launched, VmmKind};
use crate::{cloud_hypervisor, qemu};

/// The guest's one NIC: its socket, served by our backend, and its address.
#[derive(Clone, Debug)]
pub struct Nic<'a> {
    /// The vhost-user socket; the backend listens there already.
    pub socket: &'a Path,
    /// The NIC's address, the same on both replicas.
    pub mac: MacAddress,
    /// Largest payload of a frame.
    pub mtu: u16,
    /// Pairs of a receive and a transmit queue.
    pub queue_pairs: u8,
}

/// Launches the VMM that `config` names, its guest not yet booted. `nic_socket` is the vhost-user
/// socket where our backend listens already. Logs and sockets go to `run_dir`, which should be on
/// a tmpfs: captured states pass through it.
pub fn launch(
    config: &VmmConfig,
    nic_socket: &Path,
    guest: &GuestConfig,
    run_dir: &Path,
) -> Result<Launched, VmmError> {
    launch_machine(
        config,
        Some(&Nic {
            socket: nic_socket,
            mac: guest.mac,
            mtu: guest.mtu,
            queue_pairs: guest.queue_pairs,
        }),
        run_dir,
    )
}

/// As [`launch`], with or without the NIC: a guest without one is of use to tests of the driver.
pub fn launch_machine(
    config: &VmmConfig,
    nic: Option<&Nic<'_>>,
    run_dir: &Path,
) -> Result<Launched, VmmError> {
    let refusals = refuse::check_extra_args(config.kind, &config.extra_args);
    if !refusals.is_empty() {
        return Err(VmmError::Refused(refusals));
    }
    check_socket_path(&run_dir.join("api.sock"))?;
    if let Some(nic) = nic {
        check_socket_path(nic.socket)?;
    }
    let binary = find_binary(config.kind, config.binary.as_deref())?;
    std::fs::create_dir_all(run_dir)
        .map_err(|source| VmmError::io(format!("creating {run_dir:?}"), source))?;
    let ram = RamFile::create(&config.ram_path, config.memory_mib)?;
    match config.kind {
        VmmKind::Qemu => qemu::launch(config, &binary, nic, run_dir, ram),
        VmmKind::CloudHypervisor => cloud_hypervisor::launch(config, &binary, nic, run_dir, ram),
    }
}

/// The last lines of a VMM's log, where it says why it would not start.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last: Vec<&str> = text.lines().rev().take(3).collect();
    last.reverse();
    last.join(" / ")
}

fn check_socket_path(path: &Path) -> Result<(), VmmError> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes().len();
    if bytes <= limits::SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let detail = format!(
        "{bytes} bytes are more than the {} that a Unix socket's path may have; set state_dir to \
         a shorter path",
        limits::SOCKET_PATH_BYTES_MAX
    );
    Err(VmmError::malformed(format!("socket {path:?}"), detail))
}
