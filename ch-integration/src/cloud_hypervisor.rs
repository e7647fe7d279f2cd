//! Cloud Hypervisor as the VMM.

use std::path::Path;

use crate::config::VmmConfig;
use crate::error::VmmError;
use crate::launch::{Nic, RamFile};
use crate::vmm::Launched;

pub(crate) fn launch(
    _config: &VmmConfig,
    _binary: &Path,
    _nic: Option<&Nic<'_>>,
    _run_dir: &Path,
    _ram: RamFile,
) -> Result<Launched, VmmError> {
    Err(VmmError::malformed("cloud-hypervisor", "next commit"))
}
