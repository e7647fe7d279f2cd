//! `plover doctor`: whether this host can run a node. DPDK's part is `dpdk_config::preflight`; here
//! are the VMM, KVM and what a configuration names.

mod link;
mod plain_nic;

use std::path::Path;

use dpdk_config::preflight::{Check, Outcome, PreflightRequest, check as preflight};

use hasher::error::chain;

use crate::config::{Config, EalConfig, HugePages, NodeConfig, PortConfig, VmmConfig};
use crate::launch::find_binary;
use crate::vmm::VmmKind;

/// All checks. With a configuration, what it needs; without, what the demo needs.
pub fn check(config: Option<&Config>) -> Vec<Check> {
    match config {
        None => {
            let drivers = ["net_tap", "net_af_packet"].map(str::to_owned);
            let mut checks = preflight(&request(&EalConfig::default(), drivers.into()));
            checks.extend(vmm_checks(None));
            checks.push(kvm_check());
            checks
        }
        Some(Config::Node(config)) => check_node(config),
        Some(Config::PlainNic(config)) => plain_nic::check(config),
    }
}

fn check_node(config: &NodeConfig) -> Vec<Check> {
    let ports = [
        config.replication.port.as_ref(),
        config.uplink.as_ref().map(|uplink| &uplink.port),
    ];
    let drivers = ports.into_iter().flatten().filter_map(driver_of).collect();
    let mut checks = preflight(&request(&config.eal, drivers));
    if let Some(vmm) = &config.vmm {
        checks.extend(vmm_checks(Some(vmm)));
    }
    checks.push(kvm_check());
    checks.extend(link::checks(config));
    checks.extend(file_checks(config));
    checks.extend(keys_check(config));
    checks
}

fn request(eal: &EalConfig, drivers: Vec<String>) -> PreflightRequest {
    PreflightRequest {
        huge_pages: match eal.huge_pages {
            HugePages::On => dpdk_config::HugePages::On,
            HugePages::Off => dpdk_config::HugePages::Off,
        },
        memory_mib: eal.memory_mib,
        cores: 2,
        drivers,
    }
}

/// Whether nothing failed; warnings pass.
pub fn all_passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Failed)
}

/// A line a check, and a second with the fix where there is one.
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.outcome {
            Outcome::Ok => "ok     ",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED ",
        };
        text.push_str(&format!("{mark}  {}: {}\n", check.name, check.found));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("         fix: {fix}\n"));
        }
    }
    text
}

/// The driver of a virtual device: `net_tap` of `net_tap0,iface=dtap0`.
fn driver_of(port: &PortConfig) -> Option<String> {
    let device = port.vdev.as_ref()?.split(',').next().unwrap_or_default();
    let driver = device.trim_end_matches(|last: char| last.is_ascii_digit());
    Some(driver.to_owned())
}

/// Whether the VMM is there; without a wish, which ones are.
fn vmm_checks(wanted: Option<&VmmConfig>) -> Vec<Check> {
    let kinds: &[VmmKind] = match wanted {
        Some(vmm) => &[vmm.kind],
        None => &[VmmKind::Qemu, VmmKind::CloudHypervisor],
    };
    kinds
        .iter()
        .map(|kind| {
            let binary = wanted.and_then(|vmm| vmm.binary.as_deref());
            let name = format!("VMM {kind}");
            match find_binary(*kind, binary) {
                Ok(path) => Check {
                    name,
                    outcome: Outcome::Ok,
                    found: path.display().to_string(),
                    fix: None,
                },
                Err(error) => Check {
                    name,
                    // Without a configuration one VMM is enough.
                    outcome: if wanted.is_some() {
                        Outcome::Failed
                    } else {
                        Outcome::Warning
                    },
                    found: error.to_string(),
                    fix: Some(fix_for(*kind)),
                },
            }
        })
        .collect()
}

fn fix_for(kind: VmmKind) -> String {
    match kind {
        VmmKind::Qemu => "apt-get install qemu-system-x86".to_owned(),
        VmmKind::CloudHypervisor => {
            "install Cloud Hypervisor v53 and put it into PATH, or set PLOVER_CLOUD_HYPERVISOR"
                .to_owned()
        }
    }
}

fn kvm_check() -> Check {
    let hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).exists());
    let found = match (Path::new("/dev/kvm").exists(), hardware) {
        (true, true) => "hardware virtualization",
        (true, false) => "/dev/kvm without kvm_intel or kvm_amd: stock kernels do not run on it",
        (false, _) => "no /dev/kvm: QEMU emulates the guest's CPU",
    };
    Check {
        name: "KVM".to_owned(),
        outcome: if hardware {
            Outcome::Ok
        } else {
            Outcome::Warning
        },
        found: found.to_owned(),
        fix: (!hardware)
            .then(|| "modprobe kvm_intel or kvm_amd; enable VT-x or SVM in the BIOS".into()),
    }
}

/// Whether this node's key is its own and nobody else's to read. That no two nodes share one, the
/// configuration was checked for.
fn keys_check(config: &NodeConfig) -> Option<Check> {
    if config.is_alone() {
        return None;
    }
    let (outcome, found, fix) = match config.keys() {
        Ok(Some(keys)) => {
            let (file, public) = (config.key_file(), keys.identity.public());
            (Outcome::Ok, format!("{}, {public}", file.display()), None)
        }
        Ok(None) => (
            Outcome::Warning,
            "replication.security is off: whoever reaches the links between the hosts can read \
             and take over the group"
                .to_owned(),
            Some("make keys with `plover keygen`, and remove replication.security".to_owned()),
        ),
        Err(error) => {
            // The message says what to do, too.
            (Outcome::Failed, chain(&error), None)
        }
    };
    Some(Check {
        name: "keys".to_owned(),
        outcome,
        found,
        fix,
    })
}

fn file_checks(config: &NodeConfig) -> Vec<Check> {
    let Some(vmm) = &config.vmm else {
        return Vec::new();
    };
    let files = [
        ("vmm.kernel", Some(&vmm.kernel)),
        ("vmm.initrd", vmm.initrd.as_ref()),
    ];
    files
        .iter()
        .filter_map(|(key, path)| path.map(|path| (*key, path)))
        .map(|(key, path)| {
            let exists = path.is_file();
            Check {
                name: key.to_owned(),
                outcome: if exists { Outcome::Ok } else { Outcome::Failed },
                found: if exists {
                    path.display().to_string()
                } else {
                    format!("no {}", path.display())
                },
                fix: (!exists).then(|| format!("set {key} to the guest's file")),
            }
        })
        .collect()
}
