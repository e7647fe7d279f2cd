//! The `[vmm]` section: the VMM and the guest's machine.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::vmm::VmmKind;

/// How guest instructions are run by QEMU. Cloud Hypervisor always uses KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// KVM where `kvm_intel` or `kvm_amd` is loaded, else TCG.
    #[default]
    Auto,
    /// QEMU's own translator.
    Tcg,
    /// KVM.
    Kvm,
}

impl Accel {
    /// What `auto` means on this host. A /dev/kvm alone says little: that of kvm-pvm opens and
    /// does not run a stock kernel.
    pub fn resolve(self) -> Self {
        let hardware = ["kvm_intel", "kvm_amd"]
            .iter()
            .any(|module| Path::new("/sys/module").join(module).exists());
        match self {
            Self::Auto if hardware => Self::Kvm,
            Self::Auto => Self::Tcg,
            chosen => chosen,
        }
    }
}

/// The VMM and the guest's machine: equal on both replicas but for the paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// `qemu` or `cloud-hypervisor`.
    pub kind: VmmKind,
    /// The VMM's executable; default: `$PLOVER_CLOUD_HYPERVISOR` (Cloud Hypervisor), then `$PATH`.
    pub binary: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default = "default_cmdline")]
    pub cmdline: String,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The file that guest memory lives in, on a tmpfs; made at start.
    pub ram_path: PathBuf,
    /// vCPUs: 1, 2 or 4.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Further arguments of the VMM; what can't be protected is refused by name.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// A library for `LD_PRELOAD`, given to the VMM alone.
    pub preload: Option<PathBuf>,
    /// How QEMU runs guest instructions: `auto`, `tcg` or `kvm`.
    #[serde(default)]
    pub accel: Accel,
}

fn default_cmdline() -> String {
    "console=ttyS0".to_owned()
}

fn default_vcpus() -> u32 {
    1
}
