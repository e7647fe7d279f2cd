//! Written pages told by the kernel, against a byte comparison: nothing that another process
//! wrote may be missed.

mod common;

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use common::*;
use hasher::guest_memory::FileExtent;
use hasher::page_set::PageSet;
use hasher::written_pages::uffd::UffdTracker;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, fork, read, write};
use std::os::unix::fs::MetadataExt;

const PAGES: u64 = 3000;

/// A "VMM" in a process of its own: maps the memory and writes where it is told.
struct Writer {
    pid: Pid,
    socket: OwnedFd,
    uffd: OwnedFd,
}

impl Writer {
    fn start(ram: &Ram) -> Option<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("socketpair");
        // SAFETY: the child only makes system calls and writes memory.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                serve(ram, &theirs);
                // SAFETY: ends the child without running the test's own endings.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(theirs);
                let mut number = [0; 4];
                read(&ours, &mut number).expect("read");
                let number = i32::from_le_bytes(number);
                let uffd = (number >= 0).then(|| descriptor_of(child, number));
                let Some(uffd) = uffd else {
                    eprintln!("skipped: no userfaultfd");
                    return None;
                };
                Some(Self {
                    pid: child,
                    socket: ours,
                    uffd,
                })
            }
        }
    }

    fn write(&self, at: u64, value: u8) {
        let order = [at.to_le_bytes(), u64::from(value).to_le_bytes()].concat();
        write(&self.socket, &order).expect("order");
        read(&self.socket, &mut [0; 4]).expect("done");
    }

    fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.pid, nix::sys::signal::SIGKILL).expect("kill");
        nix::sys::wait::waitpid(self.pid, None).expect("wait");
    }
}

fn serve(ram: &Ram, socket: &OwnedFd) {
    let uffd = userfaultfd();
    let number = uffd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let _ = write(socket, &number.to_le_bytes());
    let mut order = [0; 16];
    while let Ok(16) = read(socket, &mut order) {
        let word = |at: usize| u64::from_le_bytes(order[at..at + 8].try_into().expect("8 bytes"));
        ram.write(word(0), &[word(8) as u8]);
        let _ = write(socket, &[0; 4]);
    }
}

/// Takes a descriptor out of another process, as the launcher does at the VMM's exec stop.
fn descriptor_of(pid: Pid, number: i32) -> OwnedFd {
    let pidfd = pidfd_of(pid.as_raw() as u32);
    // SAFETY: a plain system call; the descriptor it returns is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
        assert!(fd >= 0, "pidfd_getfd");
        OwnedFd::from_raw_fd(fd as i32)
    }
}

fn extents(ram: &Ram) -> Vec<FileExtent> {
    let file = std::fs::File::from(ram.file.try_clone().expect("dup"));
    let metadata = file.metadata().expect("metadata");
    let extent = |region: &hasher::guest_memory::RegionSpec| FileExtent {
        device: metadata.dev(),
        inode: metadata.ino(),
        offset: region.mmap_offset,
        first_page: region.guest_phys_addr / PAGE as u64,
        pages: region.size / PAGE as u64,
    };
    ram.regions().iter().map(extent).collect()
}

fn track(writer: &Writer, ram: &Ram) -> Option<UffdTracker> {
    let uffd = writer.uffd.try_clone().expect("dup");
    match UffdTracker::start(uffd, pidfd_of(writer.pid()), writer.pid(), extents(ram)) {
        Ok(tracker) => Some(tracker),
        Err(error) => {
            eprintln!("skipped: {}", hasher::error::chain(&error));
            None
        }
    }
}

fn changed(ram: &Ram, before: &[u8], after: &[u8]) -> PageSet {
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    pages
        .filter(|(_, (one, two))| one != two)
        .map(|(n, _)| ram.page(n as u64))
        .collect()
}

#[test]
fn no_page_that_another_process_wrote_is_missed() {
    let ram = Ram::new(PAGES);
    let Some(writer) = Writer::start(&ram) else {
        return;
    };
    // Some memory exists before tracking starts, some not.
    for page in (0..PAGES).step_by(5) {
        writer.write(page * 4096, 1);
    }
    let Some(mut tracker) = track(&writer, &ram) else {
        return;
    };
    let mut random = Random(4242);
    let (mut told, mut real) = (0, 0);
    for round in 0..60 {
        let before = ram.bytes();
        for _ in 0..random.below(80) {
            writer.write(random.below(PAGES * 4096), random.next() as u8);
        }
        if round % 7 == 0 {
            let start = random.below(PAGES - 300);
            (start..start + 300).for_each(|page| writer.write(page * 4096 + 9, round as u8 | 1));
        }
        let after = ram.bytes();
        let mut pages = PageSet::new();
        tracker.take_into(&mut pages).expect("tracked");
        let changed = changed(&ram, &before, &after);
        assert_eq!(changed.first_outside(&pages), None, "round {round}: missed");
        (told, real) = (told + pages.len(), real + changed.len());
    }
    eprintln!("{told} pages told, {real} changed");
    assert!(told < real * 2, "far more told than written");
}

#[test]
fn a_new_process_can_go_on_with_a_descriptor_that_was_used_before() {
    let ram = Ram::new(200);
    let Some(writer) = Writer::start(&ram) else {
        return;
    };
    let Some(first) = track(&writer, &ram) else {
        return;
    };
    drop(first);
    let mut second = track(&writer, &ram).expect("again");
    writer.write(5 * 4096, 7);
    let mut pages = PageSet::new();
    second.take_into(&mut pages).expect("tracked");
    assert_eq!(pages.iter().map(|page| page.0).collect::<Vec<_>>(), [5]);
}

#[test]
fn what_was_written_to_a_new_mapping_before_the_tracking_is_told() {
    let ram = Ram::new(200);
    let Some(writer) = Writer::start(&ram) else {
        return;
    };
    writer.write(7 * 4096, 1);
    let Some(mut tracker) = track(&writer, &ram) else {
        return;
    };
    writer.write(9 * 4096, 1);
    let mut pages = PageSet::new();
    tracker.take_into(&mut pages).expect("tracked");
    assert_eq!(pages.iter().map(|page| page.0).collect::<Vec<_>>(), [7, 9]);
    let mut pages = PageSet::new();
    tracker.take_into(&mut pages).expect("tracked");
    assert!(pages.is_empty(), "told once");
}

#[test]
fn a_process_that_ended_is_told() {
    let ram = Ram::new(200);
    let Some(writer) = Writer::start(&ram) else {
        return;
    };
    let Some(mut tracker) = track(&writer, &ram) else {
        return;
    };
    drop(writer);
    let error = tracker.take_into(&mut PageSet::new()).expect_err("gone");
    assert!(error.to_string().contains("ended"), "{error}");
}

#[test]
fn what_cannot_be_tracked_says_why() {
    let ram = Ram::new(200);
    let Some(writer) = Writer::start(&ram) else {
        return;
    };
    let other = Ram::new(200);
    let uffd = writer.uffd.try_clone().expect("dup");
    let unmapped = UffdTracker::start(uffd, pidfd_of(writer.pid()), writer.pid(), extents(&other));
    // Either the kernel lacks the tracking, or it is this: the file is not mapped there.
    let error = hasher::error::chain(&unmapped.expect_err("not mapped"));
    assert!(
        error.contains("maps 0 of") || error.contains("kernel refuses"),
        "{error}"
    );
    let no_uffd = memfd(4096);
    let wrong = UffdTracker::start(
        no_uffd,
        pidfd_of(std::process::id()),
        std::process::id(),
        extents(&ram),
    );
    let error = hasher::error::chain(&wrong.expect_err("no userfaultfd"));
    assert!(error.contains("UFFDIO_API"), "{error}");
    let _ = other.file.as_fd();
}
