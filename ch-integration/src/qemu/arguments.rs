//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use crate::config::{Accel, VmmConfig};
use crate::launch::{Nic, RamFile};

/// The arguments for a guest that waits, stopped, for its first `cont` or for a state.
pub(super) fn arguments(
    config: &VmmConfig,
    ram: &RamFile,
    nic: Option<&Nic<'_>>,
    run_dir: &Path,
    qmp: BorrowedFd<'_>,
) -> Vec<OsString> {
    let mut args = Arguments::default();
    // KVM's `host` and TCG's `max` are the widest models; `refuse` compares two hosts' CPUs.
    let (accel, cpu) = match config.accel.resolve() {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg | Accel::Auto => ("tcg", "max"),
    };
    args.pair("-accel", accel);
    args.pair("-machine", "q35,memory-backend=mem");
    args.pair("-cpu", cpu);
    // With room for one CPU only, TCG leaves out the guest's memory barriers, and a virtio ring
    // shared with another process needs them: an interrupt or a kick would get lost.
    let vcpus_max = config.vcpus.max(2);
    args.pair("-smp", &format!("{},maxcpus={vcpus_max}", config.vcpus));
    args.pair("-m", &format!("{}M", config.memory_mib));
    args.pair(
        "-object",
        &format!(
            "memory-backend-file,id=mem,size={},mem-path={},share=on",
            ram.bytes(),
            escaped(ram.path())
        ),
    );
    if let Some(nic) = nic {
        let socket = escaped(nic.socket);
        args.pair("-chardev", &format!("socket,id=plover-nic,path={socket}"));
        let (mq, pairs) = match nic.queue_pairs {
            1 => ("off", 1),
            pairs => ("on", pairs),
        };
        args.pair(
            "-netdev",
            &format!("vhost-user,id=plover-net,chardev=plover-nic,queues={pairs}"),
        );
        // vectors=0: MSI-X with vhost-user under TCG crashes QEMU 7.2.
        args.pair(
            "-device",
            &format!(
                "virtio-net-pci,netdev=plover-net,mq={mq},vectors=0,romfile=,mac={},host_mtu={}",
                nic.mac, nic.mtu
            ),
        );
    }
    for flag in ["-nodefaults", "-no-user-config"] {
        args.single(flag);
    }
    args.pair("-display", "none");
    let serial = escaped(&super::serial_log(run_dir));
    args.pair("-chardev", &format!("file,id=plover-serial,path={serial}"));
    args.pair("-serial", "chardev:plover-serial");
    args.pair(
        "-chardev",
        &format!("socket,id=plover-qmp,fd={}", qmp.as_raw_fd()),
    );
    args.pair("-mon", "chardev=plover-qmp,mode=control");
    // A reset, power-off or panic is an output: the guest stops there, and others decide.
    args.pair(
        "-action",
        "reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause",
    );
    args.pair("-kernel", &config.kernel.to_string_lossy());
    if let Some(initrd) = &config.initrd {
        args.pair("-initrd", &initrd.to_string_lossy());
    }
    args.pair("-append", &config.cmdline);
    // -S: no instruction runs before boot() or load().
    args.single("-S");
    args.0.extend(config.extra_args.iter().map(OsString::from));
    args.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn single(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// In QEMU's option lists a comma in a value is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        assert_eq!(escaped(Path::new("/dev/shm/a,b")), "/dev/shm/a,,b");
    }
}
