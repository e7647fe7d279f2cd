//! What can't be protected is refused at start, by name and with what to do instead.
//!
//! What lives here: the check of the VMM's further arguments, an allow-list with named refusals.
//! A host's own facts, which must equal the other's, are in `host_facts`.

mod cloud_hypervisor;
mod qemu;

use std::fmt;

pub use crate::host_facts::{HostFacts, compare, host_facts};

pub(crate) use cloud_hypervisor::{Allowed as CloudHypervisorArgs, parse as parse_ch_args};

use crate::vmm::VmmKind;

/// One thing that can't be protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for, in the words of the argument.
    pub what: String,
    /// Why it can't be protected.
    pub why: String,
    /// What to do instead.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.fix)
    }
}

/// All that must be refused among a VMM's further arguments.
pub fn check_extra_args(kind: VmmKind, args: &[String]) -> Vec<Refusal> {
    match kind {
        VmmKind::Qemu => qemu::check(args),
        VmmKind::CloudHypervisor => match cloud_hypervisor::parse(args) {
            Ok(_) => Vec::new(),
            Err(refusals) => refusals,
        },
    }
}

/// A reason that several arguments share.
#[derive(Clone, Copy)]
struct Reason {
    why: &'static str,
    fix: &'static str,
}

impl Reason {
    fn refuse(self, what: impl Into<String>) -> Refusal {
        Refusal {
            what: what.into(),
            why: self.why.to_owned(),
            fix: self.fix.to_owned(),
        }
    }
}

const WRITABLE_DISK: Reason = Reason {
    why: "a writable disk is not replicated",
    fix: "attach it read-only and put a tmpfs overlay over it in the guest, or use storage on \
          the network from inside the guest",
};
const VHOST_USER: Reason = Reason {
    why: "another vhost-user device keeps state in its own process and writes guest memory unseen",
    fix: "remove it; Plover's own NIC is the only vhost-user device of a protected guest",
};
const VFIO: Reason = Reason {
    why: "a VFIO device writes guest memory and keeps state where Plover can't see it",
    fix: "remove it, and give the hardware port to Plover as [uplink] port",
};
const VDPA: Reason = Reason {
    why: "a vDPA device writes guest memory and keeps state where Plover can't see it",
    fix: "remove it, and give the hardware port to Plover as [uplink] port",
};
const BALLOON: Reason = Reason {
    why: "a balloon gives memory back to the host behind the copy's back",
    fix: "remove it and set vmm.memory_mib to what the guest needs",
};
const VIRTIO_MEM: Reason = Reason {
    why: "virtio-mem changes guest memory while it runs",
    fix: "remove it and set vmm.memory_mib to what the guest needs",
};
const HOTPLUG: Reason = Reason {
    why: "hotplug would make the two machines unequal",
    fix: "configure memory, vCPUs and devices at start, equal on both replicas",
};
const TPM: Reason = Reason {
    why: "a vTPM keeps its state in its own process",
    fix: "remove it; keep the keys in the guest, or in a service on the network",
};
const VSOCK: Reason = Reason {
    why: "a vsock connection ends on one host and can't move to the other",
    fix: "remove it and talk to the guest over its network",
};
const SHARED_FS: Reason = Reason {
    why: "a shared file system's state lives on one host",
    fix: "remove it; use a file system on the network, or a read-only disk",
};
const OTHER_NIC: Reason = Reason {
    why: "only input that both copies get in the same order can be protected",
    fix: "remove it; the guest's one NIC is Plover's, see [guest] and [uplink]",
};
const OTHER_INPUT: Reason = Reason {
    why: "its input reaches one copy only",
    fix: "remove it and work with the guest over its network",
};
const CONFIDENTIAL: Reason = Reason {
    why: "a confidential guest's memory can't be read, so it can't be copied",
    fix: "run it as a plain guest, or unprotected",
};
const PMEM: Reason = Reason {
    why: "a persistent-memory device is a writable file mapped into the guest",
    fix: "remove it and use a read-only disk",
};
const SHARED_MEMORY: Reason = Reason {
    why: "memory shared with other processes is written unseen",
    fix: "remove it; processes can reach the guest over its network",
};
const GPU: Reason = Reason {
    why: "a display's state and input are on one host",
    fix: "remove it; use the serial log in the node's run directory, or a remote desktop service \
          in the guest",
};
const MIGRATION: Reason = Reason {
    why: "Plover itself saves and loads the guest's state",
    fix: "remove it; the backup's guest is filled by the first sync",
};
const MONITOR: Reason = Reason {
    why: "a second controller could run, stop or change the guest between syncs",
    fix: "remove it and ask `plover status`",
};
const DEBUGGER: Reason = Reason {
    why: "a debugger stops and changes one copy only",
    fix: "remove it; debug an unprotected guest",
};
const CLOCK: Reason = Reason {
    why: "it ties the guest's clock to instructions on one copy only",
    fix: "remove it",
};
const UNKNOWN: Reason = Reason {
    why: "Plover does not know that this is safe to protect",
    fix: "remove it, or report what it is needed for",
};
const NOT_AN_OPTION: Reason = Reason {
    why: "it stands where an option should",
    fix: "write vmm.extra_args as [\"-option\", \"value\", ...]",
};
const NO_VALUE: Reason = Reason {
    why: "its value is missing",
    fix: "write the value as the next element of vmm.extra_args",
};

/// Refuses an option that has a key of its own in the configuration.
fn own_key(option: &str, key: &str) -> Refusal {
    Refusal {
        what: option.to_owned(),
        why: "Plover sets it itself".to_owned(),
        fix: format!("use {key} of the configuration"),
    }
}

/// The value of `key` in an option list like `a=b,key=value`.
fn value_of<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',')
        .find_map(|item| item.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests;
