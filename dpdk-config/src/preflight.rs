//! What a machine must have before DPDK and the data path start, each with the command that mends
//! it. Nothing is changed here, and EAL need not run.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::config::HugePages;
use crate::limits::MEMORY_MIB_DEFAULT;

/// What the machine is going to be used for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreflightRequest {
    /// Whether hugepages will be asked for.
    pub huge_pages: HugePages,
    /// MiB of memory that EAL will ask for.
    pub memory_mib: u32,
    /// Cores that the processes of this machine want for themselves.
    pub cores: usize,
    /// Drivers of the ports, e.g. `net_tap`.
    pub drivers: Vec<String>,
}

impl Default for PreflightRequest {
    fn default() -> Self {
        PreflightRequest {
            huge_pages: HugePages::Off,
            memory_mib: MEMORY_MIB_DEFAULT,
            cores: 2,
            drivers: vec!["net_tap".into(), "net_af_packet".into()],
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It runs, but slower or with less than promised.
    Warning,
    /// It will not run.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What mends it: a command where there is one. Set unless the outcome is [`Outcome::Ok`].
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Check {
        Check {
            name: name.into(),
            outcome: Outcome::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn bad(
        name: &str,
        outcome: Outcome,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check {
            name: name.into(),
            outcome,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Looks at everything that `request` needs.
pub fn check(request: &PreflightRequest) -> Vec<Check> {
    let mut checks = vec![library()];
    let folder = driver_folder();
    checks.extend(
        request
            .drivers
            .iter()
            .map(|driver| driver_plugin(&folder, driver)),
    );
    if request.drivers.iter().any(|driver| driver == "net_tap") {
        checks.push(tun_device(Path::new("/dev/net/tun")));
    }
    checks.push(huge_pages(request, Path::new("/sys/kernel/mm/hugepages")));
    checks.push(cores(available_cores(), request.cores));
    checks.push(kernel());
    checks.push(cpu(std::arch::is_x86_feature_detected!("sse4.2")));
    checks.push(capabilities(&read("/proc/self/status")));
    checks.push(clock(
        &read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        &read("/proc/cpuinfo"),
    ));
    checks
}

/// A file's text; empty if it cannot be read, which every check takes as "not there".
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn library() -> Check {
    // SAFETY: DPDK returns a C string that stays; the others return numbers.
    let (running, year, month) = unsafe {
        let version = CStr::from_ptr(dpdk_sys::rte_version())
            .to_string_lossy()
            .into_owned();
        (
            version,
            dpdk_sys::plover_header_year(),
            dpdk_sys::plover_header_month(),
        )
    };
    library_version(&running, &format!("{year}.{month:02}"))
}

fn library_version(running: &str, built_with: &str) -> Check {
    let version = running.trim_start_matches("DPDK ");
    if version == built_with || version.starts_with(&format!("{built_with}.")) {
        return Check::ok("libdpdk", running);
    }
    let found = format!("{running}, but built with the headers of {built_with}");
    Check::bad(
        "libdpdk",
        Outcome::Failed,
        found,
        "cargo clean -p dpdk-sys && cargo build",
    )
}

/// Where DPDK looks for drivers.
fn driver_folder() -> String {
    // SAFETY: a string constant.
    unsafe { CStr::from_ptr(dpdk_sys::plover_driver_folder()) }
        .to_string_lossy()
        .into_owned()
}

fn driver_plugin(folder: &str, driver: &str) -> Check {
    let name = format!("driver {driver}");
    let file = format!("librte_{driver}.so");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let has_it = entries.map(|entry| entry.file_name()).any(|found| {
        let found = found.to_string_lossy();
        found == file || found.starts_with(&format!("{file}."))
    });
    if has_it {
        return Check::ok(&name, format!("{folder}/{file}"));
    }
    // Debian names the package after the driver and the library's ABI, which ends the folder.
    let abi = folder
        .rsplit("pmds-")
        .next()
        .and_then(|abi| abi.split('.').next())
        .unwrap_or("");
    let package = format!("librte-{}{abi}", driver.replace('_', "-"));
    let found = format!("no {file} in {folder}");
    Check::bad(
        &name,
        Outcome::Failed,
        found,
        format!("apt-get install {package}"),
    )
}

fn tun_device(path: &Path) -> Check {
    let name = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok(name, "can be opened"),
        Err(error) if path.exists() => {
            let fix = "run as root, and in a container with --device /dev/net/tun";
            Check::bad(name, Outcome::Failed, error.to_string(), fix)
        }
        Err(error) => {
            let fix = "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200";
            Check::bad(name, Outcome::Failed, error.to_string(), fix)
        }
    }
}

fn huge_pages(request: &PreflightRequest, folder: &Path) -> Check {
    let name = "hugepages";
    if request.huge_pages == HugePages::Off {
        return Check::ok(name, "not asked for");
    }
    let free_mib = free_huge_mib(folder);
    let found = format!("{free_mib} MiB free, {} MiB wanted", request.memory_mib);
    if free_mib >= u64::from(request.memory_mib) {
        return Check::ok(name, found);
    }
    let pages = request.memory_mib.div_ceil(2);
    let fix = format!("sysctl -w vm.nr_hugepages={pages}  # or huge_pages = \"off\"");
    Check::bad(name, Outcome::Failed, found, fix)
}

/// MiB in free hugepages of all sizes: folders `hugepages-2048kB` with a file `free_hugepages`.
fn free_huge_mib(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let free: u64 = read(entry.path().join("free_hugepages"))
            .trim()
            .parse()
            .ok()?;
        Some(free * kib / 1024)
    });
    sizes.sum()
}

/// Cores that this process may run on.
fn available_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn cores(available: usize, wanted: usize) -> Check {
    let found = format!("{available} to run on, {wanted} wanted");
    if available >= wanted {
        return Check::ok("cores", found);
    }
    let fix = "keep poll = \"adaptive\", or give the machine (or its cpuset) more cores";
    Check::bad("cores", Outcome::Warning, found, fix)
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.trim();
    if has_pagemap_scan() {
        return Check::ok("kernel", format!("{release}, with PAGEMAP_SCAN"));
    }
    let found = format!("{release}, without PAGEMAP_SCAN (Linux 6.7): syncs find pages slower");
    let fix = "apt-get install -t bookworm-backports linux-image-amd64 && reboot";
    Check::bad("kernel", Outcome::Warning, found, fix)
}

/// Asks for an empty scan: a kernel without the call does not know the request.
fn has_pagemap_scan() -> bool {
    const PM_SCAN_ARG_WORDS: usize = 12;
    const PAGEMAP_SCAN: libc::c_ulong =
        libc::_IOWR::<[u64; PM_SCAN_ARG_WORDS]>(b'f' as u32, 16) as libc::c_ulong;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else {
        return false;
    };
    let mut argument = [0u64; PM_SCAN_ARG_WORDS];
    argument[0] = size_of_val(&argument) as u64;
    // SAFETY: `argument` is a pm_scan_arg: its size, and otherwise zero (no range, no output).
    let status = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut argument) };
    Errno::result(status).err() != Some(Errno::ENOTTY)
}

fn cpu(has_sse42: bool) -> Check {
    if has_sse42 {
        return Check::ok("cpu", "has SSE4.2");
    }
    let fix = "in a virtual machine, start it with the host's CPU model (-cpu host)";
    Check::bad(
        "cpu",
        Outcome::Failed,
        "no SSE4.2, which DPDK and the page digests need",
        fix,
    )
}

fn capabilities(status: &str) -> Check {
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.unwrap_or(0);
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|&(_, name)| name)
        .collect();
    if missing.is_empty() {
        return Check::ok("capabilities", "CAP_NET_ADMIN and CAP_NET_RAW");
    }
    let found = format!("missing: {}", missing.join(", "));
    let fix = "run as root: sudo plover …";
    Check::bad("capabilities", Outcome::Failed, found, fix)
}

fn clock(source: &str, cpuinfo: &str) -> Check {
    let source = source.trim();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or("");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let steady = has("constant_tsc") && has("nonstop_tsc");
    let found = format!(
        "clocksource {}, TSC {}",
        if source.is_empty() { "unknown" } else { source },
        if steady {
            "steady"
        } else {
            "not said to be steady"
        }
    );
    // kvm-clock is the TSC with the host's scale and offset.
    if matches!(source, "tsc" | "kvm-clock") && steady {
        return Check::ok("clock", found);
    }
    let fix = if steady {
        "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
    } else {
        "in a virtual machine, let it see an invariant TSC (-cpu host,+invtsc)"
    };
    Check::bad("clock", Outcome::Warning, found, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_is_looked_at_and_each_fault_has_a_fix() {
        let checks = check(&PreflightRequest::default());
        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "libdpdk",
                "driver net_tap",
                "driver net_af_packet",
                "/dev/net/tun",
                "hugepages",
                "cores",
                "kernel",
                "cpu",
                "capabilities",
                "clock"
            ]
        );
        for check in &checks {
            assert_eq!(
                check.fix.is_none(),
                check.outcome == Outcome::Ok,
                "{check:?}"
            );
            assert!(!check.found.is_empty(), "{check:?}");
        }
        // What these tests themselves run on.
        for check in checks.iter().filter(|check| check.name.contains("dpdk")) {
            assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
        }
    }

    #[test]
    fn another_library_than_the_headers_fails() {
        assert_eq!(
            library_version("DPDK 22.11.11", "22.11").outcome,
            Outcome::Ok
        );
        assert_eq!(library_version("DPDK 24.11", "24.11").outcome, Outcome::Ok);
        assert_eq!(
            library_version("DPDK 23.11.0", "22.11").outcome,
            Outcome::Failed
        );
        assert_eq!(
            library_version("DPDK 22.110", "22.11").outcome,
            Outcome::Failed
        );
    }

    #[test]
    fn a_missing_driver_is_answered_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let pmds = folder.path().join("pmds-23.0");
        fs::create_dir(&pmds).unwrap();
        let pmds = pmds.to_str().unwrap();
        let missing = driver_plugin(pmds, "net_af_packet");
        assert_eq!(missing.outcome, Outcome::Failed);
        assert_eq!(
            missing.fix.unwrap(),
            "apt-get install librte-net-af-packet23"
        );
        File::create(format!("{pmds}/librte_net_af_packet.so.23.0")).unwrap();
        assert_eq!(driver_plugin(pmds, "net_af_packet").outcome, Outcome::Ok);
        assert_eq!(driver_plugin(pmds, "net_af_pack").outcome, Outcome::Failed);
        assert_eq!(
            driver_plugin("/nonexistent", "net_tap").outcome,
            Outcome::Failed
        );
    }

    #[test]
    fn hugepages_are_counted_only_when_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        for (size, free) in [("hugepages-2048kB", "24\n"), ("hugepages-1048576kB", "0\n")] {
            fs::create_dir(folder.path().join(size)).unwrap();
            fs::write(folder.path().join(size).join("free_hugepages"), free).unwrap();
        }
        let mut request = PreflightRequest {
            huge_pages: HugePages::On,
            ..Default::default()
        };
        let short = huge_pages(&request, folder.path());
        assert_eq!(short.outcome, Outcome::Failed);
        assert!(short.found.contains("48 MiB free, 64"), "{short:?}");
        assert!(short.fix.unwrap().contains("vm.nr_hugepages=32"));
        request.memory_mib = 48;
        assert_eq!(huge_pages(&request, folder.path()).outcome, Outcome::Ok);
        request.huge_pages = HugePages::Off;
        assert_eq!(
            huge_pages(&request, Path::new("/nonexistent")).outcome,
            Outcome::Ok
        );
    }

    #[test]
    fn a_missing_tun_device_is_answered_with_how_to_make_it() {
        let folder = tempfile::tempdir().unwrap();
        let check = tun_device(&folder.path().join("tun"));
        assert_eq!(check.outcome, Outcome::Failed);
        assert!(check.fix.unwrap().contains("mknod"));
    }

    #[test]
    fn fewer_cores_than_wanted_is_a_warning() {
        assert_eq!(cores(2, 2).outcome, Outcome::Ok);
        assert_eq!(cores(1, 2).outcome, Outcome::Warning);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            capabilities("CapEff:\t000001ffffffffff\n").outcome,
            Outcome::Ok
        );
        let check = capabilities("Name:\tx\nCapEff:\t0000000000001000\n");
        assert_eq!(
            (check.outcome, check.found.as_str()),
            (Outcome::Failed, "missing: CAP_NET_RAW")
        );
        assert_eq!(capabilities("").outcome, Outcome::Failed);
    }

    #[test]
    fn a_clock_other_than_a_steady_tsc_is_a_warning() {
        let steady = "processor : 0\nflags : fpu constant_tsc nonstop_tsc\n";
        assert_eq!(clock("tsc\n", steady).outcome, Outcome::Ok);
        assert_eq!(clock("kvm-clock\n", steady).outcome, Outcome::Ok);
        assert!(clock("hpet\n", steady).fix.unwrap().contains("echo tsc"));
        assert!(
            clock("tsc\n", "flags : fpu\n")
                .fix
                .unwrap()
                .contains("invtsc")
        );
        assert_eq!(clock("", "").outcome, Outcome::Warning);
    }

    #[test]
    fn a_cpu_without_sse42_fails() {
        assert_eq!(
            (cpu(true).outcome, cpu(false).outcome),
            (Outcome::Ok, Outcome::Failed)
        );
    }
}
