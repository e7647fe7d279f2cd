//! The machine's description, as Cloud Hypervisor's API and its snapshots carry it.
//!
//! Both replicas make it from their own configuration. It names ids and slots, so that a state
//! captured from one machine finds its devices in the other.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::VmmConfig;
use crate::launch::{Nic, RamFile};
use crate::refuse::CloudHypervisorArgs;

/// Ring entries of each of the NIC's queues.
const QUEUE_ENTRIES: u32 = 256;

/// The NIC's id.
pub(super) const NIC_ID: &str = "plover0";

/// The disks' ids begin with this.
pub(super) const DISK_ID: &str = "disk";

pub(super) fn describe(
    config: &VmmConfig,
    extra: &CloudHypervisorArgs,
    ram: &RamFile,
    nic: Option<&Nic<'_>>,
    run_dir: &Path,
) -> Value {
    let mut machine = json!({
        "cpus": {"boot_vcpus": config.vcpus, "max_vcpus": config.vcpus},
        // A file that is named and shared stays out of a snapshot.
        "memory": {"size": 0, "zones": [
            {"id": "mem0", "size": ram.bytes(), "shared": true, "file": ram.path()},
        ]},
        "payload": {"kernel": config.kernel, "cmdline": config.cmdline},
        "serial": {"mode": "File", "file": run_dir.join("serial.log")},
        "console": {"mode": "Off"},
        "rng": {"src": "/dev/urandom"},
        "watchdog": extra.watchdog,
        "pvpanic": extra.pvpanic,
    });
    if let Some(initrd) = &config.initrd {
        machine["payload"]["initramfs"] = json!(initrd);
    }
    if let Some(nic) = nic {
        machine["net"] = json!([{
            "id": NIC_ID,
            "vhost_user": true,
            "vhost_socket": nic.socket,
            "mac": nic.mac,
            "mtu": nic.mtu,
            "num_queues": 2 * u32::from(nic.queue_pairs),
            "queue_size": QUEUE_ENTRIES,
        }]);
    }
    if !extra.disks.is_empty() {
        let disk = |(index, path)| json!({"id": format!("{DISK_ID}{index}"), "path": path, "readonly": true});
        machine["disks"] = extra.disks.iter().enumerate().map(disk).collect();
    }
    machine
}
