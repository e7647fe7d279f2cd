//! The QEMU driver against Debian's QEMU under TCG, with a guest that counts.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use ch_integration::launch::launch_machine;
use ch_integration::vmm::{ExitReason, GuestEvent, Vmm, VmmKind};
use common::*;

const BOOT: Duration = Duration::from_secs(60);
/// Longer than the idle time after which QEMU ends an IO thread.
const POOL_SHRINKS: Duration = Duration::from_secs(30);

const ROUNDS: usize = 20;

struct Host {
    dir: PathBuf,
    vmm: Box<dyn Vmm>,
}

fn host(folder: &tempfile::TempDir, name: &str, cmdline: &str) -> Host {
    let dir = folder.path().join(name);
    let config = qemu_config(folder.path(), name, cmdline);
    let vmm = launched(launch_machine(&config, None, &dir).unwrap());
    assert_eq!(vmm.kind(), VmmKind::Qemu);
    Host { dir, vmm }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn a_state_is_loaded_again_and_again_and_the_count_goes_on() {
    let folder = folder();
    let mut primary = host(&folder, "a", "");
    let mut backup = host(&folder, "b", "");
    println!("QEMU {}", primary.vmm.version());
    primary.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&primary.dir) >= 3);
    let mut times = Times::default();
    let mut resources_after_first = None;
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
        assert!(!backup.vmm.ram_mapping_changed());
        let written = serial(&backup.dir).len();
        times
            .take("backup's resume", || backup.vmm.resume())
            .unwrap();
        wait_for("counting on", BOOT, || counts_since(&backup, written) > 2);
        assert_goes_on(&before, &serial(&backup.dir)[written..]);
        if round == 0 {
            println!("state {} bytes, {pages} pages", state.len());
        }
        let now = (resources(primary.vmm.pid()), resources(backup.vmm.pid()));
        let first = *resources_after_first.get_or_insert(now);
        assert_descriptors(now.0, first.0);
        assert_descriptors(now.1, first.1);
    }
    if let Some((primary_first, backup_first)) = resources_after_first {
        wait_for_threads(&primary, primary_first);
        wait_for_threads(&backup, backup_first);
    }
    times.print();
    assert!(backup.vmm.vcpu_time().unwrap() > Duration::ZERO);
    assert!(backup.vmm.guest_events().is_empty());
}

fn counts_since(host: &Host, written: usize) -> usize {
    counts_in(&serial(&host.dir)[written..]).len()
}

fn assert_descriptors((fds, _): (usize, usize), first: (usize, usize)) {
    assert!(fds <= first.0 + 1, "{fds} descriptors after {}", first.0);
}

/// QEMU's pool of IO threads grows with a job, by how much the scheduler decides, and shrinks ten
/// seconds later: what is left then is a leak.
fn wait_for_threads(host: &Host, first: (usize, usize)) {
    wait_for("the IO threads to end", POOL_SHRINKS, || {
        resources(host.vmm.pid()).1 <= first.1 + 1
    });
}

#[test]
fn the_vcpu_s_time_stands_still_only_while_it_is_paused() {
    let folder = folder();
    let mut host = host(&folder, "a", "");
    host.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&host.dir) >= 3);
    host.vmm.pause().unwrap();
    let paused = host.vmm.vcpu_time().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let later = host.vmm.vcpu_time().unwrap();
    assert!(
        later - paused < Duration::from_millis(5),
        "{:?}",
        later - paused
    );
    host.vmm.resume().unwrap();
    wait_for("vCPU time", BOOT, || {
        host.vmm.vcpu_time().unwrap() > later + Duration::from_millis(5)
    });
}

#[test]
fn a_guest_that_powers_off_is_seen_and_a_state_brings_it_back() {
    let folder = folder();
    let mut primary = host(&folder, "a", "stop_at=20 stop_how=poweroff");
    primary.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&primary.dir) >= 3);
    primary.vmm.pause().unwrap();
    let state = primary.vmm.capture().unwrap();
    let ram = std::fs::read(primary.dir.join("ram")).unwrap();
    primary.vmm.resume().unwrap();
    wait_for("power-off", BOOT, || {
        primary.vmm.guest_events().contains(&GuestEvent::Shutdown)
    });
    assert_eq!(primary.vmm.has_exited(), None);
    let seen = counts(&primary.dir).len();
    primary.vmm.pause().unwrap();
    std::fs::write(folder.path().join("kept"), ram).unwrap();
    copy_ram(&folder.path().join("kept"), &primary.dir.join("ram"));
    primary.vmm.load(&state).unwrap();
    primary.vmm.resume().unwrap();
    wait_for("counting again", BOOT, || {
        counts(&primary.dir).len() > seen + 1
    });
    assert!(counts(&primary.dir)[seen] < 20);
}

#[test]
fn a_guest_that_resets_is_seen_and_stays_stopped() {
    let folder = folder();
    let mut host = host(&folder, "a", "stop_at=2 stop_how=reboot");
    host.vmm.boot().unwrap();
    wait_for("reset", BOOT, || {
        host.vmm.guest_events().contains(&GuestEvent::Reset)
    });
    let before = host.vmm.vcpu_time().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(host.vmm.vcpu_time().unwrap() - before < Duration::from_millis(20));
    assert_eq!(host.vmm.has_exited(), None);
    assert!(host.vmm.resume().is_err());
}

#[test]
fn calls_out_of_order_and_foreign_states_are_errors() {
    let folder = folder();
    let mut host = host(&folder, "a", "");
    for error in [
        host.vmm.pause().err(),
        host.vmm.resume().err(),
        host.vmm.capture().err(),
    ] {
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("not booted yet"), "{text}");
    }
    assert!(host.vmm.load(b"junk").is_err());
    let foreign =
        ch_integration::state_blob::encode(VmmKind::CloudHypervisor, "53", b"{}").unwrap();
    let text = host.vmm.load(&foreign).unwrap_err().to_string();
    assert_eq!(
        text,
        "captured state is of cloud-hypervisor, this VMM is qemu"
    );
    let junk = ch_integration::state_blob::encode(VmmKind::Qemu, "7", &[7; 5000]).unwrap();
    let text = host.vmm.load(&junk).unwrap_err().to_string();
    assert!(text.starts_with("blockdev-add: "), "{text}");
    host.vmm.boot().unwrap();
    wait_for("counting", BOOT, || last_count(&host.dir) >= 1);
}

#[test]
fn a_killed_or_stopped_vmm_is_told_from_each_other() {
    let folder = folder();
    let mut host = host(&folder, "a", "");
    host.vmm.boot().unwrap();
    let pid = nix::unistd::Pid::from_raw(host.vmm.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let text = host.vmm.pause().unwrap_err().to_string();
    assert_eq!(text, "stop: no answer within 5000 ms");
    assert_eq!(host.vmm.has_exited(), None);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("exit", Duration::from_secs(5), || {
        host.vmm.has_exited().is_some()
    });
    assert_eq!(
        host.vmm.has_exited(),
        Some(ExitReason::Signal(libc::SIGKILL))
    );
    let text = host.vmm.pause().unwrap_err().to_string();
    assert_eq!(text, "stop: the VMM has exited (signal 9)");
}

#[test]
fn a_qemu_that_does_not_start_says_why() {
    let folder = folder();
    let mut config = qemu_config(folder.path(), "a", "");
    config.extra_args = vec!["-cpu".to_owned(), "no-such-cpu".to_owned()];
    let error = launch_machine(&config, None, &folder.path().join("a"))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("unable to find CPU model 'no-such-cpu'"),
        "{text}"
    );
}

#[test]
fn what_can_t_be_protected_never_starts() {
    let folder = folder();
    let mut config = qemu_config(folder.path(), "a", "");
    config.extra_args = vec!["-hda".to_owned(), "disk.raw".to_owned()];
    let error = launch_machine(&config, None, &folder.path().join("a"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("writable disk"), "{error}");
    assert!(!folder.path().join("a/ram").exists());
}
