//! QEMU's arguments: which are allowed, and why others are not.

use super::{
    BALLOON, CLOCK, CONFIDENTIAL, DEBUGGER, GPU, HOTPLUG, MIGRATION, MONITOR, NO_VALUE,
    NOT_AN_OPTION, OTHER_INPUT, OTHER_NIC, PMEM, Reason, Refusal, SHARED_FS, SHARED_MEMORY, TPM,
    UNKNOWN, VDPA, VFIO, VHOST_USER, VIRTIO_MEM, VSOCK, WRITABLE_DISK, own_key, value_of,
};

/// All that must be refused in `args`.
pub(super) fn check(args: &[String]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut rest = args.iter().map(String::as_str);
    while let Some(argument) = rest.next() {
        let Some(option) = argument.strip_prefix('-') else {
            refusals.push(NOT_AN_OPTION.refuse(argument));
            continue;
        };
        let option = option.strip_prefix('-').unwrap_or(option);
        let mut value = || rest.next().filter(|value| !value.starts_with('-'));
        let refusal = match option_rule(option) {
            Rule::Allow { takes_value: false } => None,
            Rule::Allow { takes_value: true } => {
                value().is_none().then(|| NO_VALUE.refuse(argument))
            }
            Rule::Refuse {
                reason,
                takes_value,
            } => {
                let what = takes_value.then(value).flatten();
                Some(reason.refuse(named(option, what)))
            }
            Rule::Own(key) => {
                value();
                Some(own_key(argument, key))
            }
            Rule::Look(look) => match value() {
                Some(value) => look(value).map(|reason| reason.refuse(named(option, Some(value)))),
                None => Some(NO_VALUE.refuse(argument)),
            },
            Rule::Unknown => {
                // Its value, if it takes one, is part of it, not the next option.
                let mut ahead = rest.clone();
                if ahead.next().is_some_and(|next| !next.starts_with('-')) {
                    rest = ahead;
                }
                Some(UNKNOWN.refuse(argument))
            }
        };
        refusals.extend(refusal);
    }
    refusals
}

fn named(option: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("-{option} {value}"),
        None => format!("-{option}"),
    }
}

enum Rule {
    Allow {
        takes_value: bool,
    },
    Refuse {
        reason: Reason,
        takes_value: bool,
    },
    /// Plover sets it, from this key.
    Own(&'static str),
    /// It depends on the value.
    Look(fn(&str) -> Option<Reason>),
    Unknown,
}

fn option_rule(option: &str) -> Rule {
    let refuse = |reason| Rule::Refuse {
        reason,
        takes_value: true,
    };
    match option {
        "name" | "uuid" | "smbios" | "cpu" | "rtc" | "msg" | "D" | "d" | "trace" | "sandbox"
        | "runas" | "overcommit" | "L" => Rule::Allow { takes_value: true },
        "no-hpet" | "no-acpi" => Rule::Allow { takes_value: false },
        "device" => Rule::Look(device),
        "object" => Rule::Look(object),
        "drive" => Rule::Look(drive),
        "blockdev" => Rule::Look(blockdev),
        "chardev" => Rule::Look(chardev),
        "cdrom" => Rule::Allow { takes_value: true },
        "hda" | "hdb" | "hdc" | "hdd" | "mtdblock" | "sd" | "pflash" | "fda" | "fdb" => {
            refuse(WRITABLE_DISK)
        }
        "netdev" | "net" | "nic" => Rule::Look(netdev),
        "fsdev" | "virtfs" => refuse(SHARED_FS),
        "tpmdev" => refuse(TPM),
        "usbdevice" | "parallel" | "virtioconsole" => refuse(OTHER_INPUT),
        "usb" => Rule::Refuse {
            reason: OTHER_INPUT,
            takes_value: false,
        },
        "vnc" | "vga" | "spice" | "display" | "k" => refuse(GPU),
        "sdl" | "nographic" | "curses" | "gtk" => Rule::Refuse {
            reason: GPU,
            takes_value: false,
        },
        "audiodev" | "audio" => refuse(OTHER_INPUT),
        "incoming" | "loadvm" => refuse(MIGRATION),
        "snapshot" => Rule::Refuse {
            reason: MIGRATION,
            takes_value: false,
        },
        "qmp" | "qmp-pretty" | "monitor" | "mon" => refuse(MONITOR),
        "gdb" => refuse(DEBUGGER),
        "s" => Rule::Refuse {
            reason: DEBUGGER,
            takes_value: false,
        },
        "icount" => refuse(CLOCK),
        "daemonize" | "S" | "no-shutdown" | "no-reboot" | "preconfig" => Rule::Refuse {
            reason: MIGRATION_OF_CONTROL,
            takes_value: false,
        },
        "action" | "pidfile" | "chroot" | "add-fd" => refuse(MIGRATION_OF_CONTROL),
        "m" => Rule::Look(memory),
        "smp" => Rule::Own("vmm.vcpus"),
        "kernel" => Rule::Own("vmm.kernel"),
        "initrd" => Rule::Own("vmm.initrd"),
        "append" => Rule::Own("vmm.cmdline"),
        "accel" => Rule::Own("vmm.accel"),
        "enable-kvm" => Rule::Own("vmm.accel"),
        "M" | "machine" => Rule::Look(machine),
        "serial" => Rule::Own("the serial log in the node's run directory, no key"),
        "mem-path" => Rule::Own("vmm.ram_path"),
        "mem-prealloc" => Rule::Own("vmm.memory_mib"),
        _ => Rule::Unknown,
    }
}

const MIGRATION_OF_CONTROL: Reason = Reason {
    why: "Plover starts, stops and watches the VMM's process itself",
    fix: "remove it",
};
const MACHINE: Reason = Reason {
    why: "Plover chooses the machine: q35 with guest memory on its file",
    fix: "remove it; use vmm.memory_mib, vmm.vcpus and vmm.accel",
};

fn device(value: &str) -> Option<Reason> {
    let value = value.strip_prefix("driver=").unwrap_or(value);
    let model = value.split(',').next().unwrap_or(value);
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| model.starts_with(prefix));
    let has = |parts: &[&str]| parts.iter().any(|part| model.contains(part));
    if starts(&["vfio", "amd-xgbe", "calxeda"]) {
        Some(VFIO)
    } else if starts(&["vhost-vdpa"]) || has(&["vdpa"]) {
        Some(VDPA)
    } else if has(&["vsock"]) {
        Some(VSOCK)
    } else if starts(&["vhost-user-fs", "virtio-9p"]) {
        Some(SHARED_FS)
    } else if starts(&["vhost-user", "vhost-scsi"]) {
        Some(VHOST_USER)
    } else if has(&["balloon"]) {
        Some(BALLOON)
    } else if starts(&["virtio-mem"]) {
        Some(VIRTIO_MEM)
    } else if starts(&["pc-dimm", "cpu-"]) || model.ends_with("-cpu") {
        Some(HOTPLUG)
    } else if starts(&["nvdimm", "virtio-pmem", "cxl"]) {
        Some(PMEM)
    } else if starts(&["tpm-"]) {
        Some(TPM)
    } else if starts(&["ivshmem"]) {
        Some(SHARED_MEMORY)
    } else if has(&["vga", "VGA", "gpu", "qxl", "ramfb", "bochs-display"]) {
        Some(GPU)
    } else if starts(&[
        "usb",
        "qemu-xhci",
        "nec-usb",
        "ich9-usb",
        "piix",
        "virtio-serial",
    ]) || starts(&[
        "virtserialport",
        "virtconsole",
        "isa-serial",
        "pci-serial",
        "virtio-crypto",
    ]) || starts(&[
        "virtio-rng",
        "intel-hda",
        "AC97",
        "hda-",
        "smartcard",
        "ccid",
    ]) || has(&["keyboard", "mouse", "tablet", "input", "kbd"])
    {
        Some(OTHER_INPUT)
    } else if has(&[
        "-net", "e1000", "rtl8139", "ne2k", "vmxnet", "igb", "pcnet", "i8255",
    ]) {
        Some(OTHER_NIC)
    } else if starts(&[
        "virtio-blk",
        "scsi-cd",
        "scsi-hd",
        "ide-cd",
        "virtio-scsi",
        "pvpanic",
    ]) {
        // Whether a disk may be written is decided by its drive.
        None
    } else {
        Some(UNKNOWN)
    }
}

fn object(value: &str) -> Option<Reason> {
    let kind = value.strip_prefix("qom-type=").unwrap_or(value);
    let kind = kind.split(',').next().unwrap_or(kind);
    match kind {
        "sev-guest" | "sev-snp-guest" | "tdx-guest" | "s390-pv-guest" | "pef-guest" => {
            Some(CONFIDENTIAL)
        }
        "memory-backend-file"
        | "memory-backend-ram"
        | "memory-backend-memfd"
        | "memory-backend-epc" => Some(MACHINE),
        "x-remote-object" | "x-vfio-user-server" | "vhost-user-backend" => Some(VHOST_USER),
        "input-linux" | "input-barrier" => Some(OTHER_INPUT),
        "filter-mirror" | "filter-redirector" | "filter-rewriter" | "filter-dump"
        | "filter-buffer" | "filter-replay" | "colo-compare" => Some(OTHER_NIC),
        "iothread" | "throttle-group" | "secret" => None,
        _ => Some(UNKNOWN),
    }
}

fn drive(value: &str) -> Option<Reason> {
    let read_only = ["readonly", "read-only"]
        .iter()
        .any(|key| matches!(value_of(value, key), Some("on" | "yes" | "true")));
    let cdrom = value_of(value, "media") == Some("cdrom");
    (!read_only && !cdrom).then_some(WRITABLE_DISK)
}

fn blockdev(value: &str) -> Option<Reason> {
    if value.trim_start().starts_with('{') {
        let parsed: Option<serde_json::Value> = serde_json::from_str(value).ok();
        let read_only = parsed
            .as_ref()
            .and_then(|node| node.get("read-only")?.as_bool());
        return (read_only != Some(true)).then_some(WRITABLE_DISK);
    }
    let read_only = matches!(value_of(value, "read-only"), Some("on" | "yes" | "true"));
    (!read_only).then_some(WRITABLE_DISK)
}

fn chardev(value: &str) -> Option<Reason> {
    match value.split(',').next().unwrap_or(value) {
        "file" | "null" | "ringbuf" => None,
        _ => Some(OTHER_INPUT),
    }
}

fn netdev(value: &str) -> Option<Reason> {
    let kind = value.split(',').next().unwrap_or(value);
    match kind.strip_prefix("type=").unwrap_or(kind) {
        "none" => None,
        "vhost-user" => Some(VHOST_USER),
        "vhost-vdpa" => Some(VDPA),
        _ => Some(OTHER_NIC),
    }
}

fn memory(value: &str) -> Option<Reason> {
    let hotplug = value_of(value, "maxmem").is_some() || value_of(value, "slots").is_some();
    Some(if hotplug { HOTPLUG } else { MACHINE })
}

fn machine(value: &str) -> Option<Reason> {
    let confidential = value_of(value, "confidential-guest-support").is_some()
        || value_of(value, "memory-encryption").is_some();
    Some(if confidential { CONFIDENTIAL } else { MACHINE })
}
