//! A process started as a VMM is: its userfaultfd is taken at the exec stop, and it runs on as if
//! nothing had been.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ch_integration::launch::{Spawned, spawn};
use ch_integration::vmm::ExitReason;

fn wait_for_exit(spawned: &mut Spawned) -> ExitReason {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(reason) = spawned.process.exit_reason() {
            return reason;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process's open files as (number, target).
fn descriptors(pid: u32) -> Vec<(i32, String)> {
    let folder = format!("/proc/{pid}/fd");
    let mut found: Vec<(i32, String)> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            // One may have been closed since the folder was read.
            let target = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().into_string().unwrap().parse().unwrap();
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// Asserts that the process holds these descriptors once its loader has closed its libraries.
fn assert_descriptors(pid: u32, expected: &[i32]) {
    let numbers = || -> Vec<i32> { descriptors(pid).iter().map(|(number, _)| *number).collect() };
    let deadline = Instant::now() + Duration::from_secs(5);
    while numbers() != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    // For longer than a loader has a library open.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(numbers(), expected);
}

#[test]
fn a_userfaultfd_and_a_pidfd_are_taken_and_nothing_is_left_behind() {
    let mut command = Command::new("/bin/sleep");
    command
        .arg("30")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let spawned = spawn(&mut command, &[]).unwrap();
    println!("spawned with a userfaultfd in {:?}", start.elapsed());
    let tracker = spawned.tracker.as_ref().unwrap();
    let link = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(
        link(tracker.uffd.as_raw_fd()),
        Path::new("anon_inode:[userfaultfd]")
    );
    let pidfd_info =
        fs::read_to_string(format!("/proc/self/fdinfo/{}", tracker.pidfd.as_raw_fd())).unwrap();
    let pid = spawned.process.pid();
    assert!(
        pidfd_info.contains(&format!("Pid:\t{pid}\n")),
        "{pidfd_info}"
    );
    assert_descriptors(pid, &[0, 1, 2]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "it is traced still");
}

#[test]
fn the_userfaultfd_is_of_the_program_s_own_address_space() {
    // UFFDIO_API succeeds once; then a registration of an address that only the child has
    // succeeds only if the descriptor is bound to the child's memory.
    #[repr(C)]
    struct UffdioApi {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    #[repr(C)]
    struct UffdioRegister {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }
    nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, UffdioApi);
    nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, UffdioRegister);
    let mut command = Command::new("/bin/sleep");
    command.arg("30");
    let spawned = spawn(&mut command, &[]).unwrap();
    let uffd = spawned.tracker.as_ref().unwrap().uffd.as_raw_fd();
    let mut api = UffdioApi {
        api: 0xaa,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: `uffd` is a userfaultfd and `api` is laid out as the kernel's uffdio_api.
    unsafe { uffdio_api(uffd, &raw mut api) }.unwrap();
    let maps = || fs::read_to_string(format!("/proc/{}/maps", spawned.process.pid())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !maps().contains("[heap]") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    let maps = maps();
    let heap = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
    let (start, rest) = heap.split_once('-').unwrap();
    let end = rest.split_once(' ').unwrap().0;
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (start, len) = (number(start), number(end) - number(start));
    let mut register = UffdioRegister {
        start,
        len,
        mode: 1,
        ioctls: 0,
    };
    // SAFETY: `register` is laid out as the kernel's uffdio_register; it names no memory of ours.
    unsafe { uffdio_register(uffd, &raw mut register) }.unwrap();
}

#[test]
fn the_program_runs_as_if_nothing_had_been() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "echo ran $0 $1; exit 7", "with", "arguments"])
        .stdout(writer);
    let mut spawned = spawn(&mut command, &[]).unwrap();
    drop(command);
    assert!(spawned.tracker.is_ok());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ran with arguments\n");
    assert_eq!(wait_for_exit(&mut spawned), ExitReason::Code(7));
}

#[test]
fn only_descriptors_that_are_passed_reach_the_program() {
    let (passed, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    // As a C library may open one: without close-on-exec.
    // SAFETY: the path is a C string; the descriptor is ours alone.
    let leaky = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
    assert!(leaky >= 0);
    let mut command = Command::new("/bin/sleep");
    command
        .arg("30")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let spawned = spawn(&mut command, &[passed.as_fd()]).unwrap();
    assert_descriptors(spawned.process.pid(), &[0, 1, 2, passed.as_raw_fd()]);
    // SAFETY: `leaky` was opened above and nobody else closes it.
    unsafe { libc::close(leaky) };
}

#[test]
fn a_wrapper_script_runs_without_a_tracker_and_says_why() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("vmm");
    fs::write(&script, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spawned = spawn(&mut Command::new(&script), &[]).unwrap();
    let reason = spawned.tracker.as_ref().unwrap_err();
    assert!(
        reason.contains("is no ELF executable but a script"),
        "{reason}"
    );
    assert_eq!(wait_for_exit(&mut spawned), ExitReason::Code(3));
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = spawn(&mut Command::new("/no/such/vmm"), &[]).unwrap_err();
    assert_eq!(error.to_string(), "starting \"/no/such/vmm\"");
}

#[test]
fn the_process_dies_with_the_thread_that_launched_it() {
    let launcher = std::thread::spawn(|| {
        let mut command = Command::new("/bin/sleep");
        command.arg("30");
        let spawned = spawn(&mut command, &[]).unwrap();
        assert!(Path::new(&format!("/proc/{}", spawned.process.pid())).exists());
        spawned
    });
    let mut spawned = launcher.join().unwrap();
    assert_eq!(
        wait_for_exit(&mut spawned),
        ExitReason::Signal(libc::SIGKILL)
    );
}

#[test]
fn a_dropped_process_is_killed_and_reaped() {
    let mut command = Command::new("/bin/sleep");
    command.arg("30");
    let spawned = spawn(&mut command, &[]).unwrap();
    let pid = spawned.process.pid();
    drop(spawned);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn many_launches_leave_no_descriptor_and_no_child_behind() {
    let launch = || {
        let spawned = spawn(&mut Command::new("/bin/true"), &[]).unwrap();
        assert!(spawned.tracker.is_ok());
    };
    launch();
    // Other tests open files in this process at the same time, so only userfaultfds count.
    for _ in 0..50 {
        launch();
    }
    let uffds = descriptors(std::process::id())
        .iter()
        .filter(|(_, target)| target.contains("userfaultfd"))
        .count();
    assert!(uffds <= 10, "{uffds} userfaultfds are open");
}
