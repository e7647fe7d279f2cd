//! Finds the VMM's executable.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::VmmError;
use crate::vmm::VmmKind;

/// Names the Cloud Hypervisor executable when the configuration does not.
pub(crate) const CLOUD_HYPERVISOR_ENV: &str = "PLOVER_CLOUD_HYPERVISOR";

/// The executable of `kind`: the configured one, else `$PLOVER_CLOUD_HYPERVISOR` (Cloud
/// Hypervisor only), else the first in `$PATH`.
pub(crate) fn find(kind: VmmKind, configured: Option<&Path>) -> Result<PathBuf, VmmError> {
    let (name, fix) = match kind {
        VmmKind::Qemu => ("qemu-system-x86_64", "apt-get install qemu-system-x86"),
        VmmKind::CloudHypervisor => (
            "cloud-hypervisor",
            "take v53.0 from https://github.com/cloud-hypervisor/cloud-hypervisor/releases and \
             set vmm.binary or $PLOVER_CLOUD_HYPERVISOR",
        ),
    };
    let missing = |looked: String| VmmError::BinaryMissing {
        name: name.to_owned(),
        looked,
        fix: fix.to_owned(),
    };
    if let Some(path) = configured {
        return executable(path).ok_or_else(|| missing(format!("vmm.binary = {path:?}")));
    }
    if kind == VmmKind::CloudHypervisor
        && let Some(path) = std::env::var_os(CLOUD_HYPERVISOR_ENV)
    {
        let path = PathBuf::from(path);
        return executable(&path)
            .ok_or_else(|| missing(format!("${CLOUD_HYPERVISOR_ENV} = {path:?}")));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .find_map(|folder| executable(&folder.join(name)))
        .ok_or_else(|| missing(format!("$PATH = {}", folders.display())))
}

/// `path` without links, if it is a file that may be executed.
fn executable(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let metadata = path.metadata().ok()?;
    (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_is_not_there_is_named_with_its_fix() {
        let error = find(VmmKind::Qemu, Some(Path::new("/no/such/qemu"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/no/such/qemu"), "{text}");
        assert!(text.contains("apt-get install qemu-system-x86"), "{text}");
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_no_binary() {
        assert!(executable(Path::new("/etc/passwd")).is_none());
        assert!(executable(Path::new("/bin/sh")).is_some());
    }
}
