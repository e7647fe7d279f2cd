//! The Cloud Hypervisor driver against the real VMM, where there is one: with a guest that counts.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use ch_integration::launch::launch_machine;
use ch_integration::vmm::{ExitReason, GuestEvent, Vmm, VmmKind};
use common::*;

/// A guest on kvm-pvm boots in 20 to 60 seconds.
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const ROUNDS: usize = 20;

struct Host {
    dir: PathBuf,
    vmm: Box<dyn Vmm>,
}

/// A host, or nothing (said on the standard output) where Cloud Hypervisor can't run.
fn host(folder: &tempfile::TempDir, name: &str) -> Option<Host> {
    host_with(folder, name, "", 1)
}

fn host_with(folder: &tempfile::TempDir, name: &str, cmdline: &str, vcpus: u32) -> Option<Host> {
    let mut config = match cloud_hypervisor_config(folder.path(), name) {
        Ok(config) => config,
        Err(reason) => {
            println!("skipped: {reason}");
            return None;
        }
    };
    config.cmdline.push(' ');
    config.cmdline.push_str(cmdline);
    config.vcpus = vcpus;
    let dir = folder.path().join(name);
    let vmm = launched(launch_machine(&config, None, &dir).unwrap());
    assert_eq!(vmm.kind(), VmmKind::CloudHypervisor);
    Some(Host { dir, vmm })
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn a_state_is_loaded_again_and_again_and_the_count_goes_on() {
    let folder = folder();
    let (Some(mut primary), Some(mut backup)) = (host(&folder, "a"), host(&folder, "b")) else {
        return;
    };
    println!("Cloud Hypervisor {}", primary.vmm.version());
    primary.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&primary.dir) >= 3);
    let mut times = Times::default();
    let mut after_first = None;
    let mut vcpu_time = Duration::ZERO;
    for round in 0..ROUNDS {
        times.take("pause", || primary.vmm.pause()).unwrap();
        let state = times.take("capture", || primary.vmm.capture()).unwrap();
        let before = serial(&primary.dir);
        if round > 0 {
            times.take("backup's pause", || backup.vmm.pause()).unwrap();
        }
        let pages = copy_ram(&primary.dir.join("ram"), &backup.dir.join("ram"));
        times.take("resume", || primary.vmm.resume()).unwrap();
        times.take("load", || backup.vmm.load(&state)).unwrap();
        assert!(backup.vmm.ram_mapping_changed());
        times
            .take("backup's resume", || backup.vmm.resume())
            .unwrap();
        // A restore begins the serial log anew.
        wait_for("counting on", SOON, || counts(&backup.dir).len() > 1);
        assert_goes_on(&before, &serial(&backup.dir));
        if round == 0 {
            println!("state {} bytes, {pages} pages", state.len());
        }
        let now = backup.vmm.vcpu_time().unwrap();
        assert!(
            now > vcpu_time,
            "vCPU time went from {vcpu_time:?} to {now:?}"
        );
        vcpu_time = now;
        assert_eq!(backup.vmm.guest_events(), []);
        let (fds, threads) = resources(backup.vmm.pid());
        let first = *after_first.get_or_insert((fds, threads));
        assert!(
            fds <= first.0 && threads <= first.1,
            "{fds}, {threads} after {first:?}"
        );
    }
    times.print();
}

#[test]
fn calls_out_of_order_and_foreign_states_are_errors() {
    let folder = folder();
    let Some(mut host) = host(&folder, "a") else {
        return;
    };
    for error in [
        host.vmm.pause().err(),
        host.vmm.resume().err(),
        host.vmm.capture().err(),
    ] {
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("not booted yet"), "{text}");
    }
    let foreign = ch_integration::state_blob::encode(VmmKind::Qemu, "7", b"x").unwrap();
    let text = host.vmm.load(&foreign).unwrap_err().to_string();
    assert_eq!(
        text,
        "captured state is of qemu, this VMM is cloud-hypervisor"
    );
    let junk = ch_integration::state_blob::encode(VmmKind::CloudHypervisor, "53", b"{}").unwrap();
    let text = host.vmm.load(&junk).unwrap_err().to_string();
    assert!(text.starts_with("vm.restore: "), "{text}");
    let text = host.vmm.boot().unwrap_err().to_string();
    assert!(text.contains("void after a failed load"), "{text}");
    assert_eq!(host.vmm.has_exited(), None);
}

#[test]
fn a_stopped_vmm_is_a_timeout_and_a_killed_one_an_exit() {
    let folder = folder();
    let Some(mut host) = host(&folder, "a") else {
        return;
    };
    host.vmm.boot().unwrap();
    let pid = nix::unistd::Pid::from_raw(host.vmm.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let text = host.vmm.pause().unwrap_err().to_string();
    assert!(text.contains("vm.pause: no answer within 5000 ms") || text.contains("virtio worker"));
    assert_eq!(host.vmm.has_exited(), None);
    host.vmm.kill();
    assert_eq!(
        host.vmm.has_exited(),
        Some(ExitReason::Signal(libc::SIGKILL))
    );
    let text = host.vmm.pause().unwrap_err().to_string();
    assert_eq!(text, "vm.pause: the VMM has exited (signal 9)");
}

/// Asks the VMM behind the driver's back for what a guest's power-off does: the kernel for kvm-pvm
/// has no ACPI and can't power off.
fn shut_down(host: &Host) {
    use std::io::{Read, Write};
    let mut api = std::os::unix::net::UnixStream::connect(host.dir.join("api.sock")).unwrap();
    api.write_all(b"PUT /api/v1/vm.shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    api.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
}

#[test]
fn a_guest_that_is_shut_down_is_seen_and_a_state_brings_it_back() {
    let folder = folder();
    let Some(mut host) = host_with(&folder, "a", "", 2) else {
        return;
    };
    host.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&host.dir) >= 3);
    host.vmm.pause().unwrap();
    let state = host.vmm.capture().unwrap();
    let ram = folder.path().join("kept");
    std::fs::copy(host.dir.join("ram"), &ram).unwrap();
    let before = serial(&host.dir);
    host.vmm.resume().unwrap();
    shut_down(&host);
    wait_for("shutdown", SOON, || {
        host.vmm.guest_events() == [GuestEvent::Shutdown]
    });
    host.vmm.pause().unwrap();
    let text = host.vmm.resume().unwrap_err().to_string();
    assert!(text.contains("powered off"), "{text}");
    assert_eq!(host.vmm.has_exited(), None);
    let spent = host.vmm.vcpu_time().unwrap();
    assert!(spent > Duration::ZERO);
    copy_ram(&ram, &host.dir.join("ram"));
    host.vmm.load(&state).unwrap();
    host.vmm.resume().unwrap();
    wait_for("counting again", SOON, || counts(&host.dir).len() > 1);
    assert_goes_on(&before, &serial(&host.dir));
    assert!(host.vmm.vcpu_time().unwrap() > spent);
    assert_eq!(host.vmm.guest_events(), []);
}

#[test]
fn a_guest_that_resets_is_seen() {
    let folder = folder();
    let Some(mut host) = host_with(&folder, "a", "stop_at=3 stop_how=reboot", 1) else {
        return;
    };
    host.vmm.boot().unwrap();
    wait_for("reset", BOOT, || {
        host.vmm.guest_events() == [GuestEvent::Reset]
    });
    assert_eq!(host.vmm.has_exited(), None);
}
