use super::*;

fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn refused(kind: VmmKind, line: &str) -> String {
    let refusals = check_extra_args(kind, &args(line));
    assert_eq!(refusals.len(), 1, "{line}: {refusals:?}");
    refusals[0].to_string()
}

fn assert_table(kind: VmmKind, table: &[(&str, Reason)]) {
    for (line, reason) in table {
        let text = refused(kind, line);
        assert!(text.contains(reason.why), "{line}: {text}");
        assert!(text.ends_with(reason.fix), "{line}: {text}");
        let first = line
            .split_whitespace()
            .next()
            .unwrap()
            .trim_start_matches('-');
        let first = first.split('=').next().unwrap();
        assert!(text.contains(first), "{line} is not named: {text}");
    }
}

#[test]
fn each_thing_qemu_can_t_protect_is_refused_by_name_with_its_fix() {
    assert_table(
        VmmKind::Qemu,
        &[
            ("-drive file=disk.raw,if=virtio", WRITABLE_DISK),
            ("-drive file=disk.raw,readonly=off", WRITABLE_DISK),
            (
                "-blockdev driver=file,filename=disk.raw,node-name=d",
                WRITABLE_DISK,
            ),
            (
                r#"-blockdev {"driver":"file","filename":"d","read-only":false}"#,
                WRITABLE_DISK,
            ),
            ("-hda disk.raw", WRITABLE_DISK),
            ("-device vhost-user-blk-pci,chardev=c", VHOST_USER),
            ("-netdev vhost-user,id=n1,chardev=c", VHOST_USER),
            ("-device vfio-pci,host=03:00.0", VFIO),
            ("--device vfio-pci,host=03:00.0", VFIO),
            ("-device driver=vfio-pci,host=03:00.0", VFIO),
            ("-netdev vhost-vdpa,id=v", VDPA),
            ("-device virtio-balloon-pci", BALLOON),
            ("-device virtio-mem-pci,id=vm0", VIRTIO_MEM),
            ("-m 256M,slots=2,maxmem=1G", HOTPLUG),
            ("-device pc-dimm,memdev=m1", HOTPLUG),
            ("-tpmdev emulator,id=t,chardev=c", TPM),
            ("-device tpm-tis,tpmdev=t", TPM),
            ("-device vhost-vsock-pci,guest-cid=3", VSOCK),
            (
                "-virtfs local,path=/srv,mount_tag=t,security_model=none",
                SHARED_FS,
            ),
            ("-device vhost-user-fs-pci,chardev=c,tag=t", SHARED_FS),
            ("-device e1000,netdev=n1", OTHER_NIC),
            ("-device virtio-net-pci,netdev=n1", OTHER_NIC),
            ("-netdev user,id=n1", OTHER_NIC),
            ("-nic user", OTHER_NIC),
            ("-device usb-tablet", OTHER_INPUT),
            ("-device virtio-rng-pci", OTHER_INPUT),
            ("-chardev socket,id=c,path=/tmp/s", OTHER_INPUT),
            ("-object sev-guest,id=sev0", CONFIDENTIAL),
            ("-machine q35,confidential-guest-support=sev0", CONFIDENTIAL),
            ("-device virtio-pmem-pci,memdev=m", PMEM),
            ("-device nvdimm,memdev=m", PMEM),
            ("-device ivshmem-plain,memdev=m", SHARED_MEMORY),
            ("-vnc :0", GPU),
            ("-device virtio-gpu-pci", GPU),
            ("-incoming tcp:0:4444", MIGRATION),
            ("-qmp unix:/tmp/q,server=on", MONITOR),
            ("-s", DEBUGGER),
            ("-icount shift=auto", CLOCK),
            ("-device no-such-device", UNKNOWN),
            ("-no-such-option value", UNKNOWN),
            ("-name", NO_VALUE),
            ("stray", NOT_AN_OPTION),
        ],
    );
}

#[test]
fn each_thing_cloud_hypervisor_can_t_protect_is_refused_by_name_with_its_fix() {
    assert_table(
        VmmKind::CloudHypervisor,
        &[
            ("--disk path=disk.raw", WRITABLE_DISK),
            ("--disk path=disk.raw,readonly=off", WRITABLE_DISK),
            ("--disk vhost_user=true,socket=/tmp/s", VHOST_USER),
            ("--net vhost_user=true,socket=/tmp/s", VHOST_USER),
            ("--generic-vhost-user socket=/tmp/s", VHOST_USER),
            ("--net tap=tap0", OTHER_NIC),
            ("--net=tap=tap0", OTHER_NIC),
            ("--device path=/sys/bus/pci/devices/0000:03:00.0", VFIO),
            ("--user-device socket=/tmp/s", VFIO),
            ("--vdpa path=/dev/vhost-vdpa-0", VDPA),
            ("--balloon size=1G", BALLOON),
            (
                "--memory size=1G,hotplug_method=virtio-mem,hotplug_size=1G",
                VIRTIO_MEM,
            ),
            ("--memory size=1G,hotplug_size=1G", HOTPLUG),
            ("--memory-zone id=m,size=1G,hotplug_size=1G", HOTPLUG),
            ("--cpus boot=1,max=4", HOTPLUG),
            ("--tpm socket=/tmp/s", TPM),
            ("--vsock cid=3,socket=/tmp/s", VSOCK),
            ("--fs tag=t,socket=/tmp/s", SHARED_FS),
            ("--pmem file=f", PMEM),
            ("--ivshmem path=f", SHARED_MEMORY),
            ("--platform tdx=on", CONFIDENTIAL),
            ("--platform sev_snp=on", CONFIDENTIAL),
            ("--igvm f", CONFIDENTIAL),
            ("--restore source_url=file:///x", MIGRATION),
            ("--api-socket /tmp/s", MONITOR),
            ("--gdb path=/tmp/s", DEBUGGER),
            ("--console pty", OTHER_INPUT),
            ("--no-such-option x", UNKNOWN),
            ("stray", NOT_AN_OPTION),
        ],
    );
}

#[test]
fn options_with_a_key_of_their_own_point_to_it() {
    let text = refused(VmmKind::Qemu, "-smp 4");
    assert!(
        text.contains("use vmm.vcpus of the configuration"),
        "{text}"
    );
    let text = refused(VmmKind::CloudHypervisor, "--kernel k");
    assert!(
        text.contains("use vmm.kernel of the configuration"),
        "{text}"
    );
    let text = refused(VmmKind::CloudHypervisor, "--cpus boot=2");
    assert!(
        text.contains("use vmm.vcpus of the configuration"),
        "{text}"
    );
}

#[test]
fn harmless_arguments_and_read_only_disks_pass() {
    let line = "-name vm0 -cpu EPYC -drive file=d.img,if=virtio,readonly=on -no-hpet \
                -blockdev driver=file,filename=d,node-name=n,read-only=on \
                -device virtio-blk-pci,drive=n -device pvpanic";
    assert_eq!(check_extra_args(VmmKind::Qemu, &args(line)), vec![]);
    let line = "-v --log-file /tmp/ch.log --disk path=a,readonly=on path=b,readonly=on --watchdog";
    let allowed = parse_ch_args(&args(line)).unwrap();
    assert_eq!(allowed.process, args("-v --log-file /tmp/ch.log"));
    assert_eq!(allowed.disks, args("a b"));
    assert!(allowed.watchdog);
}

#[test]
fn all_refusals_are_told_at_once() {
    let refusals = check_extra_args(
        VmmKind::Qemu,
        &args("-hda a -device vfio-pci,host=1 -name ok -s"),
    );
    assert_eq!(refusals.len(), 3, "{refusals:?}");
}
