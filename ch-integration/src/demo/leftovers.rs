//! What runs leave behind: namespaces and guest memories of a run that was killed itself, and
//! the records of all runs, of which the last few are kept.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::network;
use super::node_config::pid_of_ram_dir;

/// Parent of the runs' folders. On a disk: the nodes' votes are synced there.
pub(super) const RUNS_DIR: &str = "/var/tmp/plover-demo";
/// Folders of earlier runs that are kept; each has some 50 MB of records.
const RUNS_KEPT: usize = 5;

/// Removes what runs left behind whose process is gone.
pub fn clean() -> Result<()> {
    for name in network::clean_leftovers()? {
        eprintln!("removed namespace {name} of a run that is gone");
    }
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let pid = pid_of_ram_dir(&entry.file_name().to_string_lossy());
        if pid.is_some_and(is_gone) {
            remove_folder(&entry.path())?;
        }
    }
    remove_old_runs(Path::new(RUNS_DIR))
}

fn remove_old_runs(folder: &Path) -> Result<()> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split_once('-').and_then(|(pid, _)| pid.parse().ok());
        let changed = entry.metadata().and_then(|metadata| metadata.modified());
        if let (Some(true), Ok(changed)) = (pid.map(is_gone), changed) {
            runs.push((changed, entry.path()));
        }
    }
    runs.sort();
    let surplus = runs.len().saturating_sub(RUNS_KEPT);
    runs.iter()
        .take(surplus)
        .try_for_each(|(_, path)| remove_folder(path))
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        // Another run may be cleaning up at the same time.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above the kernel's largest pid (4194304).
    const NO_PID: u32 = 9_000_000;

    #[test]
    fn only_folders_of_runs_that_are_gone_are_removed_and_the_last_few_stay() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: String| fs::create_dir(folder.path().join(name)).unwrap();
        (0..RUNS_KEPT + 2).for_each(|n| make(format!("{NO_PID}-{n}")));
        make(format!("{}-0", std::process::id()));
        make("notes".to_owned());
        remove_old_runs(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), RUNS_KEPT + 2);
        assert!(folder.path().join("notes").exists());
        assert!(
            folder
                .path()
                .join(format!("{}-0", std::process::id()))
                .exists()
        );
    }
}
