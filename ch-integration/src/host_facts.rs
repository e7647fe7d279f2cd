//! What must be equal on both hosts before protection starts: a state captured on one has to mean
//! the same on the other.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Accel, GuestConfig, MacAddress, VmmConfig};
use crate::error::VmmError;
use crate::vmm::VmmKind;

/// Two clocks' rates count as equal within this many parts per million: beyond what measuring
/// one costs in precision, far below what two models differ by.
const TSC_TOLERANCE_PPM: u64 = 500;

/// How long the TSC is measured against the monotonic clock.
const TSC_WINDOW: Duration = Duration::from_millis(20);

/// One host's facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// The VMM.
    pub vmm_kind: VmmKind,
    /// Its version as it names it itself.
    pub vmm_version: String,
    /// How guest instructions are run.
    pub accel: Accel,
    /// `model name` of /proc/cpuinfo.
    pub cpu_model: String,
    /// `flags` of /proc/cpuinfo.
    pub cpu_flags: BTreeSet<String>,
    /// TSC ticks per millisecond; 0 where there is no TSC.
    pub tsc_khz: u64,
    /// Guest memory.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// The guest kernel's command line.
    pub cmdline: String,
    /// Fingerprint of the guest's kernel file.
    pub kernel_fingerprint: u64,
    /// Fingerprint of the guest's initramfs file; 0 without one.
    pub initrd_fingerprint: u64,
    /// Further arguments of the VMM.
    pub extra_args: Vec<String>,
    /// The guest's card.
    pub card: CardFacts,
}

/// What the guest's driver found in its card, and takes with it to the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardFacts {
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Largest payload of a frame.
    pub mtu: u16,
    /// Pairs of queues.
    pub queue_pairs: u8,
    /// Whether offloads are offered.
    pub offloads: bool,
}

impl From<&GuestConfig> for CardFacts {
    fn from(guest: &GuestConfig) -> Self {
        Self {
            mac: guest.mac,
            mtu: guest.mtu,
            queue_pairs: guest.queue_pairs,
            offloads: guest.offloads,
        }
    }
}

/// This host's facts for a guest of `config` with the card `guest` on a VMM of `vmm_version`.
pub fn host_facts(
    config: &VmmConfig,
    guest: &GuestConfig,
    vmm_version: &str,
) -> Result<HostFacts, VmmError> {
    let cpuinfo = read("/proc/cpuinfo")?;
    let initrd_fingerprint = config.initrd.as_deref().map_or(Ok(0), fingerprint)?;
    let accel = match config.kind {
        VmmKind::Qemu => config.accel.resolve(),
        VmmKind::CloudHypervisor => Accel::Kvm,
    };
    Ok(HostFacts {
        vmm_kind: config.kind,
        vmm_version: vmm_version.to_owned(),
        accel,
        cpu_model: field(&cpuinfo, "model name").to_owned(),
        cpu_flags: field(&cpuinfo, "flags")
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        tsc_khz: measure_tsc_khz(),
        memory_mib: config.memory_mib,
        vcpus: config.vcpus,
        cmdline: config.cmdline.clone(),
        kernel_fingerprint: fingerprint(&config.kernel)?,
        initrd_fingerprint,
        extra_args: config.extra_args.clone(),
        card: guest.into(),
    })
}

/// What differs between two hosts, by name; empty if a state of one can be loaded on the other.
pub fn compare(a: &HostFacts, b: &HostFacts) -> Vec<String> {
    let mut differences = Vec::new();
    let mut differs = |name: &str, a: &dyn ToString, b: &dyn ToString, fix: &str| {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            differences.push(format!("{name}: {a} here, {b} there; {fix}"));
        }
    };
    differs("VMM", &a.vmm_kind, &b.vmm_kind, "set vmm.kind alike");
    differs(
        "VMM version",
        &a.vmm_version,
        &b.vmm_version,
        "install the same version on both",
    );
    let accel = |facts: &HostFacts| format!("{:?}", facts.accel).to_lowercase();
    differs(
        "vmm.accel",
        &accel(a),
        &accel(b),
        "set it alike, or load the same KVM module",
    );
    differs(
        "CPU model",
        &a.cpu_model,
        &b.cpu_model,
        "use two hosts of one model",
    );
    differs(
        "vmm.memory_mib",
        &a.memory_mib,
        &b.memory_mib,
        "set it alike",
    );
    differs("vmm.vcpus", &a.vcpus, &b.vcpus, "set it alike");
    differs("vmm.cmdline", &a.cmdline, &b.cmdline, "set it alike");
    let hex = |fingerprint: u64| format!("fingerprint {fingerprint:016x}");
    let same_file = "copy the same file to both";
    differs(
        "vmm.kernel",
        &hex(a.kernel_fingerprint),
        &hex(b.kernel_fingerprint),
        same_file,
    );
    differs(
        "vmm.initrd",
        &hex(a.initrd_fingerprint),
        &hex(b.initrd_fingerprint),
        same_file,
    );
    let joined = |facts: &HostFacts| format!("{:?}", facts.extra_args);
    differs("vmm.extra_args", &joined(a), &joined(b), "set it alike");
    let (card, other) = (&a.card, &b.card);
    differs("guest.mac", &card.mac, &other.mac, "set it alike");
    differs("guest.mtu", &card.mtu, &other.mtu, "set it alike");
    differs(
        "guest.queue_pairs",
        &card.queue_pairs,
        &other.queue_pairs,
        "set it alike",
    );
    differs(
        "guest.offloads",
        &card.offloads,
        &other.offloads,
        "set it alike",
    );
    let only = |a: &HostFacts, b: &HostFacts| {
        let flags = a.cpu_flags.difference(&b.cpu_flags);
        flags.map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    differs(
        "CPU flags only one has",
        &only(a, b),
        &only(b, a),
        "use two hosts of one model with equal firmware settings and microcode",
    );
    if !rates_equal(a.tsc_khz, b.tsc_khz) {
        differences.push(format!(
            "TSC rate: {} kHz here, {} kHz there; use two hosts of one model",
            a.tsc_khz, b.tsc_khz
        ));
    }
    differences
}

fn rates_equal(a: u64, b: u64) -> bool {
    a.abs_diff(b).saturating_mul(1_000_000) <= a.max(b).saturating_mul(TSC_TOLERANCE_PPM)
}

fn read(path: &str) -> Result<String, VmmError> {
    fs::read_to_string(path).map_err(|source| VmmError::io(format!("reading {path}"), source))
}

/// The first `name : value` line's value.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

/// FNV-1a over a file: tells two builds apart. It guards against a mistake, not an attack, and
/// has the same value with every compiler, which std's hashers don't promise.
fn fingerprint(path: &Path) -> Result<u64, VmmError> {
    let bytes = fs::read(path).map_err(|source: io::Error| {
        VmmError::io(
            format!("reading {path:?}, which the guest boots from"),
            source,
        )
    })?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

#[cfg(target_arch = "x86_64")]
fn measure_tsc_khz() -> u64 {
    // SAFETY: every x86_64 has a TSC; Linux lets user space read it.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), ticks());
    while start.elapsed() < TSC_WINDOW {
        std::hint::spin_loop();
    }
    let (last, nanos) = (ticks(), start.elapsed().as_nanos());
    let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / nanos.max(1);
    u64::try_from(khz).unwrap_or(0)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure_tsc_khz() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> HostFacts {
        HostFacts {
            vmm_kind: VmmKind::Qemu,
            vmm_version: "7.2.22".to_owned(),
            accel: Accel::Tcg,
            cpu_model: "AMD EPYC".to_owned(),
            cpu_flags: ["sse4_2", "avx2"].map(str::to_owned).into(),
            tsc_khz: 2_600_000,
            memory_mib: 256,
            vcpus: 1,
            cmdline: "console=ttyS0".to_owned(),
            kernel_fingerprint: 1,
            initrd_fingerprint: 2,
            extra_args: Vec::new(),
            card: CardFacts {
                mac: "02:00:00:00:00:10".parse().unwrap(),
                mtu: 1500,
                queue_pairs: 1,
                offloads: true,
            },
        }
    }

    #[test]
    fn equal_hosts_have_no_difference_and_a_measured_rate_may_waver() {
        let mut other = facts();
        other.tsc_khz += 500;
        assert_eq!(compare(&facts(), &other), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_named_with_both_values_and_a_fix() {
        type Change = fn(&mut HostFacts);
        let table: [(&str, Change); 15] = [
            ("VMM: qemu here, cloud-hypervisor there", |f| {
                f.vmm_kind = VmmKind::CloudHypervisor;
            }),
            ("VMM version: 7.2.22 here, 8.0.0 there", |f| {
                f.vmm_version = "8.0.0".to_owned();
            }),
            ("vmm.accel: tcg here, kvm there", |f| f.accel = Accel::Kvm),
            ("CPU model: AMD EPYC here, Xeon there", |f| {
                f.cpu_model = "Xeon".to_owned();
            }),
            ("CPU flags only one has: avx2 here,  there", |f| {
                f.cpu_flags.remove("avx2");
            }),
            ("TSC rate: 2600000 kHz here, 2610000 kHz", |f| {
                f.tsc_khz = 2_610_000;
            }),
            ("vmm.memory_mib: 256 here, 512 there", |f| {
                f.memory_mib = 512;
            }),
            ("vmm.vcpus: 1 here, 2 there", |f| f.vcpus = 2),
            ("vmm.cmdline: ", |f| f.cmdline.push('x')),
            ("vmm.kernel: fingerprint 0000000000000001 here", |f| {
                f.kernel_fingerprint = 9;
            }),
            ("vmm.extra_args: [] here, [\"-s\"] there", |f| {
                f.extra_args.push("-s".to_owned());
            }),
            ("guest.mac: 02:00:00:00:00:10 here", |f| {
                f.card.mac = "02:00:00:00:00:11".parse().unwrap();
            }),
            ("guest.mtu: 1500 here, 9000 there", |f| f.card.mtu = 9000),
            ("guest.queue_pairs: 1 here, 2 there", |f| {
                f.card.queue_pairs = 2;
            }),
            ("guest.offloads: true here, false there", |f| {
                f.card.offloads = false;
            }),
        ];
        for (expected, change) in table {
            let mut other = facts();
            change(&mut other);
            let differences = compare(&facts(), &other);
            assert_eq!(differences.len(), 1, "{differences:?}");
            assert!(differences[0].starts_with(expected), "{differences:?}");
            assert!(differences[0].contains("; "), "{differences:?} has no fix");
        }
    }

    #[test]
    fn this_host_has_facts_that_equal_themselves_and_survive_json() {
        let config: VmmConfig = toml::from_str(
            "kind = \"qemu\"\nkernel = \"/bin/sh\"\nmemory_mib = 64\nram_path = \"/dev/shm/x\"",
        )
        .unwrap();
        let guest: GuestConfig = toml::from_str("mac = \"02:00:00:00:00:10\"").unwrap();
        let facts = host_facts(&config, &guest, "1").unwrap();
        assert!(!facts.cpu_flags.is_empty());
        let again = host_facts(&config, &guest, "1").unwrap();
        assert_eq!(compare(&facts, &again), Vec::<String>::new());
        let json = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<HostFacts>(&json).unwrap(), facts);
    }
}
