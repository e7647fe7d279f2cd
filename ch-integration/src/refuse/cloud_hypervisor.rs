//! Cloud Hypervisor's arguments: which are allowed, and why others are not.
//!
//! The guest's machine is described to Cloud Hypervisor through its API, so the allowed options
//! come out of here taken apart: those of the process, and the read-only disks.

use super::{
    BALLOON, CONFIDENTIAL, DEBUGGER, GPU, HOTPLUG, MIGRATION, MONITOR, NOT_AN_OPTION, OTHER_INPUT,
    OTHER_NIC, PMEM, Reason, Refusal, SHARED_FS, SHARED_MEMORY, TPM, UNKNOWN, VDPA, VFIO,
    VHOST_USER, VIRTIO_MEM, VSOCK, WRITABLE_DISK, own_key, value_of,
};

/// What is allowed, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Options of the process.
    pub process: Vec<String>,
    /// Paths of read-only disks, in their order.
    pub disks: Vec<String>,
    /// `--watchdog` was given.
    pub watchdog: bool,
    /// `--pvpanic` was given.
    pub pvpanic: bool,
}

/// Takes `args` apart, or says all that must be refused.
pub(crate) fn parse(args: &[String]) -> Result<Allowed, Vec<Refusal>> {
    let mut allowed = Allowed::default();
    let mut refusals = Vec::new();
    let mut rest = args.iter().map(String::as_str).peekable();
    while let Some(argument) = rest.next() {
        if !argument.starts_with('-') {
            refusals.push(NOT_AN_OPTION.refuse(argument));
            continue;
        }
        let (option, joined) = match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (argument, None),
        };
        let mut values: Vec<&str> = joined.into_iter().collect();
        while let Some(value) = rest.next_if(|next| joined.is_none() && !next.starts_with('-')) {
            values.push(value);
        }
        refusals.extend(take(option, &values, &mut allowed));
    }
    if refusals.is_empty() {
        Ok(allowed)
    } else {
        Err(refusals)
    }
}

fn take(option: &str, values: &[&str], allowed: &mut Allowed) -> Vec<Refusal> {
    let what = || [&[option], values].concat().join(" ");
    let refuse = |reason: Reason| vec![reason.refuse(what())];
    match option {
        "-v" | "-vv" | "-vvv" | "--log-file" | "--log-format" | "--seccomp" => {
            allowed.process.push(option.to_owned());
            allowed
                .process
                .extend(values.iter().map(|&value| value.to_owned()));
            Vec::new()
        }
        "--disk" => values
            .iter()
            .flat_map(|&value| disk(value, allowed))
            .collect(),
        "--watchdog" => {
            allowed.watchdog = true;
            Vec::new()
        }
        "--pvpanic" => {
            allowed.pvpanic = true;
            Vec::new()
        }
        "--net"
            if values
                .iter()
                .any(|net| value_of(net, "vhost_user") == Some("true")) =>
        {
            refuse(VHOST_USER)
        }
        "--net" => refuse(OTHER_NIC),
        "--memory" | "--memory-zone" if values.iter().any(|value| is_virtio_mem(value)) => {
            refuse(VIRTIO_MEM)
        }
        "--memory" | "--memory-zone"
            if values
                .iter()
                .any(|value| value_of(value, "hotplug_size").is_some()) =>
        {
            refuse(HOTPLUG)
        }
        "--cpus" if values.iter().any(|value| value_of(value, "max").is_some()) => refuse(HOTPLUG),
        "--platform" if values.iter().any(|value| is_confidential(value)) => refuse(CONFIDENTIAL),
        _ => match reason(option) {
            Ok(reason) => refuse(reason),
            Err(key) => vec![own_key(option, key)],
        },
    }
}

/// Why an option is refused whatever its value, or the key that sets it.
fn reason(option: &str) -> Result<Reason, &'static str> {
    Ok(match option {
        "--balloon" => BALLOON,
        "--device" | "--user-device" => VFIO,
        "--vdpa" => VDPA,
        "--vsock" => VSOCK,
        "--fs" => SHARED_FS,
        "--generic-vhost-user" => VHOST_USER,
        "--pmem" => PMEM,
        "--tpm" => TPM,
        "--ivshmem" | "--pvmemcontrol" => SHARED_MEMORY,
        "--igvm" | "--host-data" | "--sgx-epc" => CONFIDENTIAL,
        "--restore" | "--migration" => MIGRATION,
        "--api-socket"
        | "--event-monitor"
        | "--dbus-service-name"
        | "--dbus-object-path"
        | "--dbus-system-bus"
        | "--no-shutdown" => MONITOR,
        "--gdb" => DEBUGGER,
        "--debug-console" | "--console" | "--rng" => OTHER_INPUT,
        "--gpu" => GPU,
        "--cpus" => return Err("vmm.vcpus"),
        "--memory" => return Err("vmm.memory_mib"),
        "--memory-zone" => return Err("vmm.memory_mib and vmm.ram_path"),
        "--kernel" | "--firmware" => return Err("vmm.kernel"),
        "--initramfs" => return Err("vmm.initrd"),
        "--cmdline" => return Err("vmm.cmdline"),
        "--serial" => return Err("the serial log in the node's run directory, no key"),
        _ => UNKNOWN,
    })
}

fn disk(value: &str, allowed: &mut Allowed) -> Option<Refusal> {
    const UNKNOWN_KEY: Reason = Reason {
        why: "of a disk's keys only path and readonly=on are known to be safe",
        fix: "write it as path=FILE,readonly=on",
    };
    let what = format!("--disk {value}");
    if value_of(value, "vhost_user").is_some_and(|vhost| vhost != "off" && vhost != "false")
        || value_of(value, "vhost_socket").is_some()
        || value_of(value, "socket").is_some()
    {
        return Some(VHOST_USER.refuse(what));
    }
    if !matches!(value_of(value, "readonly"), Some("on" | "true")) {
        return Some(WRITABLE_DISK.refuse(what));
    }
    let known = |item: &str| item.starts_with("path=") || item.starts_with("readonly=");
    match value_of(value, "path") {
        Some(path) if value.split(',').all(known) => {
            allowed.disks.push(path.to_owned());
            None
        }
        _ => Some(UNKNOWN_KEY.refuse(what)),
    }
}

fn is_virtio_mem(value: &str) -> bool {
    value_of(value, "hotplug_method") == Some("virtio-mem")
}

fn is_confidential(value: &str) -> bool {
    ["tdx", "sev_snp"]
        .iter()
        .any(|key| matches!(value_of(value, key), Some("on" | "true")))
}
