//! End-to-end tests: a real group on this machine, real VMs, a real server and its clients.
//!
//! Here is what the scenarios in `tests/tests/` are told with; the group itself is the demo's.
//! Times and counts are printed, never asserted, but for those that say that something happened.

pub mod cable;
pub mod capture;
pub mod card;
mod cluster;
pub mod deliveries;
pub mod frames;
pub mod memory;
pub mod redis;
pub mod talk;
pub mod testpmd;
pub mod verifier;
pub mod vm;

pub use cluster::{Child, Cluster, median, options};

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

/// With this variable set, a machine that cannot run the tests fails them.
const REQUIRED: &str = "PLOVER_E2E_REQUIRED";

/// End-to-end tests take turns, whatever runs them: the machine has few cores.
const TURN_FILE: &str = "/run/lock/plover-e2e";

/// The turn of a test; the next one's when it is dropped.
pub struct Turn(#[expect(dead_code, reason = "its lock counts")] Flock<File>);

/// Waits for the test's turn. `None`, with a line that says what is missing, where the tests
/// cannot run; `make deps` installs it.
pub fn turn() -> Result<Option<Turn>> {
    turn_unless(lack())
}

/// As [`turn`], for a test that needs no VM.
pub fn turn_without_vm(lack: Option<String>) -> Result<Option<Turn>> {
    let not_root = || (!nix::unistd::geteuid().is_root()).then(|| "needs root".to_owned());
    turn_unless(lack.or_else(not_root))
}

fn turn_unless(lack: Option<String>) -> Result<Option<Turn>> {
    if let Some(lack) = lack {
        let line = format!("SKIPPED: {lack}; `make deps` installs what is missing");
        ensure!(std::env::var_os(REQUIRED).is_none(), line);
        eprintln!("{line}");
        return Ok(None);
    }
    let file = File::create(TURN_FILE).with_context(|| format!("create {TURN_FILE}"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("wait for this test's turn")?;
    Ok(Some(Turn(lock)))
}

fn lack() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let programs = [
        "/usr/bin/qemu-system-x86_64",
        "/usr/bin/redis-benchmark",
        "/bin/busybox",
    ];
    if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
        return Some(format!("{missing} is not there"));
    }
    let cache = ch_integration::demo::guest::cache_dir();
    let has_kernel = |folder: &Path| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
            })
    };
    let folders = [
        Path::new("/boot").to_owned(),
        cache.join("guest-kernel/boot"),
    ];
    (!folders.iter().any(|folder| has_kernel(folder)))
        .then(|| "there is no Debian cloud kernel for the guest".to_owned())
}

/// A number from the environment, or its default.
#[must_use]
pub fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
