//! Two hosts in one test: real hasher processes over loopback, memfds as guest memory, the test
//! as both nodes and both guests.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hasher::client::{AttachFds, Client, Delivered, TrackerFds};
use hasher::control::{AttachReport, Event, Side};
use hasher::guest_memory::RegionSpec;
use hasher::stats::{RoundStats, Step};
use hasher::written_pages::backend_log::BackendLog;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use plover_keys::Identity;
use plover_types::{Certificate, LogIndex, PageIndex, Position, SyncId, SyncKind};

pub const PAGE: usize = 4096;
pub const WAIT: Duration = Duration::from_secs(20);

pub fn sync(index: u64) -> SyncId {
    SyncId(LogIndex(index))
}

pub fn memfd(bytes: u64) -> OwnedFd {
    let file = memfd_create("test", MFdFlags::MFD_CLOEXEC).expect("memfd");
    nix::unistd::ftruncate(&file, bytes as i64).expect("truncate");
    file
}

pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address")
}

/// A guest's memory as the "VMM" (this process) maps it, with a hole after the first half.
pub struct Ram {
    pub file: OwnedFd,
    pub pages: u64,
    start: std::ptr::NonNull<u8>,
}

impl Ram {
    pub const HOLE_PAGES: u64 = 16;

    pub fn new(pages: u64) -> Self {
        let file = memfd(pages * PAGE as u64);
        let start = Self::map(&file, pages);
        Self { file, pages, start }
    }

    fn map(file: &OwnedFd, pages: u64) -> std::ptr::NonNull<u8> {
        let length = std::num::NonZeroUsize::new(pages as usize * PAGE).expect("pages");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }
            .expect("map")
            .cast()
    }

    /// Maps it anew, as a VMM does that restores a state.
    pub fn remap(&mut self) {
        // SAFETY: nobody else uses this mapping.
        unsafe { munmap(self.start.cast(), self.pages as usize * PAGE) }.expect("unmap");
        self.start = Self::map(&self.file, self.pages);
    }

    /// Guest page number of the nth page of the file.
    pub fn page(&self, nth: u64) -> PageIndex {
        PageIndex(if nth < self.pages / 2 {
            nth
        } else {
            nth + Self::HOLE_PAGES
        })
    }

    pub fn regions(&self) -> [RegionSpec; 2] {
        let half = self.pages / 2;
        let page = PAGE as u64;
        [
            RegionSpec {
                guest_phys_addr: 0,
                size: half * page,
                mmap_offset: 0,
            },
            RegionSpec {
                guest_phys_addr: (half + Self::HOLE_PAGES) * page,
                size: (self.pages - half) * page,
                mmap_offset: half * page,
            },
        ]
    }

    /// A write by a vCPU: through the VMM's mapping.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.pages as usize * PAGE);
        // SAFETY: just checked to lie inside the mapping.
        unsafe {
            let to = self.start.as_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// A write that the kernel's tracking does not see: by another process.
    pub fn write_unseen(&self, at: u64, bytes: &[u8]) {
        let file = std::fs::File::from(self.file.try_clone().expect("dup"));
        file.write_all_at(bytes, at).expect("write");
    }

    pub fn bytes(&self) -> Vec<u8> {
        let file = std::fs::File::from(self.file.try_clone().expect("dup"));
        let mut bytes = vec![0; self.pages as usize * PAGE];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    pub fn start_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: nobody else uses this mapping.
        unsafe { munmap(self.start.cast(), self.pages as usize * PAGE) }.expect("unmap");
    }
}

// SAFETY: a pointer to shared memory that outlives the thread; tests hand whole hosts over.
unsafe impl Send for Ram {}

/// A userfaultfd of this process, or none where the kernel refuses.
pub fn userfaultfd() -> Option<OwnedFd> {
    // SAFETY: a plain system call; the descriptor it returns is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    }
}

pub fn pidfd_of(pid: u32) -> OwnedFd {
    // SAFETY: a plain system call; the descriptor it returns is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "pidfd_open");
        OwnedFd::from_raw_fd(fd as i32)
    }
}

/// One host: hasher process, node's connection, guest memory.
pub struct Host {
    pub ram: Ram,
    pub log: BackendLog,
    log_file: OwnedFd,
    pub staging: OwnedFd,
    uffd: Option<OwnedFd>,
    child: Option<Child>,
    client: Option<Client>,
    dir: tempfile::TempDir,
    listen: SocketAddr,
    peer: SocketAddr,
    node_id: u64,
    pub security: Security,
    pub events: Vec<Event>,
}

/// How a host's link to its peer is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Off,
    /// Under its key; the peer must have the key of this node.
    On {
        peer: u64,
    },
}

/// The key of a node in these tests.
pub fn identity(node_id: u64) -> Identity {
    Identity::from_secret([node_id as u8; 32])
}

impl Host {
    pub fn new(pages: u64, listen: SocketAddr, peer: SocketAddr, node_id: u64) -> Self {
        let end = pages + Ram::HOLE_PAGES;
        let log_file = memfd(end);
        let log = BackendLog::map(log_file.try_clone().expect("dup"), end).expect("map");
        Self {
            ram: Ram::new(pages),
            log,
            log_file,
            staging: memfd(0),
            uffd: None,
            child: None,
            client: None,
            dir: tempfile::tempdir().expect("folder"),
            listen,
            peer,
            node_id,
            security: Security::On { peer: 3 - node_id },
            events: Vec::new(),
        }
    }

    /// The same without keys.
    pub fn insecure(mut self) -> Self {
        self.security = Security::Off;
        self
    }

    fn key_arguments(&self) -> Vec<OsString> {
        let Security::On { peer } = self.security else {
            return vec!["--insecure".into()];
        };
        let file = self.dir.path().join("key");
        if !file.exists() {
            plover_keys::write_new(&file, &identity(self.node_id)).expect("key file");
        }
        let peer = identity(peer).public().to_string();
        vec![
            "--key-file".into(),
            file.into(),
            "--peer-key".into(),
            peer.into(),
        ]
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("hasher.sock")
    }

    pub fn start(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_plover-hasher"))
            .arg("--socket")
            .arg(self.socket())
            .args([
                "--listen",
                &self.listen.to_string(),
                "--peer",
                &self.peer.to_string(),
            ])
            .args(["--node-id", &self.node_id.to_string(), "--threads", "2"])
            .args(self.key_arguments())
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()),
            )
            .stdin(Stdio::null())
            .spawn()
            .expect("start the hasher");
        self.child = Some(child);
        self.connect();
    }

    pub fn connect(&mut self) {
        self.client = None;
        self.client = Some(Client::connect(&self.socket(), WAIT).expect("connect"));
    }

    pub fn disconnect(&mut self) {
        self.client = None;
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        self.client = None;
    }

    pub fn is_alive(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().expect("wait").is_none())
    }

    pub fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("connected")
    }

    pub fn attach(&mut self, tracked: bool, continues: bool) -> AttachReport {
        if tracked && self.uffd.is_none() {
            self.uffd = userfaultfd();
        }
        let pidfd = pidfd_of(std::process::id());
        let tracker = self
            .uffd
            .as_ref()
            .filter(|_| tracked)
            .map(|uffd| TrackerFds {
                uffd: uffd.as_fd(),
                pidfd: pidfd.as_fd(),
                pid: std::process::id(),
            });
        let regions = self.ram.regions().map(|spec| (spec, self.ram.file.as_fd()));
        let fds = AttachFds {
            regions: regions.to_vec(),
            backend_log: self.log_file.as_fd(),
            staging: self.staging.as_fd(),
            tracker,
        };
        let client = self.client.as_mut().expect("connected");
        client.attach("g0", &fds, continues, WAIT).expect("attach")
    }

    pub fn attach_as(&mut self, group: &str) -> AttachReport {
        let regions = self.ram.regions().map(|spec| (spec, self.ram.file.as_fd()));
        let fds = AttachFds {
            regions: regions.to_vec(),
            backend_log: self.log_file.as_fd(),
            staging: self.staging.as_fd(),
            tracker: None,
        };
        let client = self.client.as_mut().expect("connected");
        client.attach(group, &fds, false, WAIT).expect("attach")
    }

    pub fn begin(&mut self, id: SyncId, side: Side, kind: SyncKind) {
        let position = Position {
            index: LogIndex(id.0.0 - 1),
            packet: self.node_id as u32,
        };
        self.client()
            .begin_round(id, side, kind, position)
            .expect("begin");
    }

    pub fn give_state(&mut self, id: SyncId, state: &[u8]) {
        let file = memfd(0);
        let handle = std::fs::File::from(file.try_clone().expect("dup"));
        handle.write_all_at(state, 0).expect("write");
        self.client().device_state(id, file.as_fd()).expect("send");
    }

    pub fn try_next(&mut self, wait: Duration) -> Option<Delivered> {
        let delivered = self.client().next_event(wait).expect("event");
        if let Some(delivered) = &delivered {
            self.events.push(delivered.event.clone());
        }
        delivered
    }

    /// The next event for which `pick` has a value; panics with what came instead in time.
    pub fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&Delivered) -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.try_next(left) else {
                panic!(
                    "no {what} at node {}; events: {:?}",
                    self.node_id, self.events
                );
            };
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    }

    pub fn wait_step(&mut self, id: SyncId, step: Step) {
        self.wait_for(&format!("{step:?}"), |event| match event.event {
            Event::Step { sync, name } if sync == id && name == step => Some(()),
            _ => None,
        });
    }

    pub fn wait_failed(&mut self, id: SyncId) -> String {
        self.wait_for("failure", |event| match &event.event {
            Event::Failed { sync, reason } if *sync == id => Some(reason.clone()),
            _ => None,
        })
    }

    pub fn wait_copied_out(&mut self, id: SyncId) -> (Certificate, RoundStats) {
        self.wait_for("copied out", |event| match &event.event {
            Event::CopiedOut {
                sync,
                certificate,
                stats,
            } if *sync == id => Some((*certificate, stats.clone())),
            Event::Failed { sync, reason } if *sync == id => panic!("failed: {reason}"),
            _ => None,
        })
    }

    pub fn wait_sent(&mut self, id: SyncId) -> RoundStats {
        self.wait_for("sent", |event| match &event.event {
            Event::Sent { sync, stats } if *sync == id => Some(stats.clone()),
            Event::Failed { sync, reason } if *sync == id => panic!("failed: {reason}"),
            _ => None,
        })
    }

    pub fn wait_staged(&mut self, id: SyncId) -> (Certificate, Position, Vec<u8>, RoundStats) {
        self.wait_for("staged", |delivered| match &delivered.event {
            Event::Staged {
                sync,
                certificate,
                position,
                stats,
            } if *sync == id => {
                let state = delivered.device_state.as_ref().expect("device state");
                let state = std::fs::File::from(state.try_clone().expect("dup"));
                let mut bytes = vec![0; state.metadata().expect("metadata").len() as usize];
                state.read_exact_at(&mut bytes, 0).expect("read");
                Some((*certificate, *position, bytes, stats.clone()))
            }
            Event::Failed { sync, reason } if *sync == id => panic!("failed: {reason}"),
            _ => None,
        })
    }

    pub fn apply(&mut self, id: SyncId) -> u64 {
        self.client().apply(id).expect("apply");
        self.wait_for("applied", |event| match &event.event {
            Event::Applied { sync, apply_us } if *sync == id => Some(*apply_us),
            Event::Failed { sync, reason } if *sync == id => panic!("failed: {reason}"),
            _ => None,
        })
    }

    pub fn finish(&mut self, id: SyncId) {
        self.client().finish(id).expect("finish");
    }

    pub fn abort(&mut self, id: SyncId) {
        self.client().abort(id).expect("abort");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Node 1 and node 2, attached.
pub fn pair(pages: u64, tracked: bool) -> (Host, Host) {
    pair_through(pages, tracked, free_address(), free_address(), None)
}

/// As [`pair`], with node 1 reaching node 2 at another address.
pub fn pair_through(
    pages: u64,
    tracked: bool,
    one: SocketAddr,
    two: SocketAddr,
    through: Option<SocketAddr>,
) -> (Host, Host) {
    let first = Host::new(pages, one, through.unwrap_or(two), 1);
    let second = Host::new(pages, two, one, 2);
    started([first, second], tracked)
}

/// Starts and attaches both.
pub fn started([mut first, mut second]: [Host; 2], tracked: bool) -> (Host, Host) {
    for host in [&mut first, &mut second] {
        host.start();
        host.attach(tracked, false);
    }
    (first, second)
}

/// What a completed round reported.
pub struct Outcome {
    pub primary: RoundStats,
    pub backup: RoundStats,
    pub apply_us: u64,
}

/// A whole round up to `Staged`; the primary's guest runs on after copying out.
pub fn stage(
    primary: &mut Host,
    backup: &mut Host,
    index: u64,
    kind: SyncKind,
    run_on: impl FnOnce(&Ram),
) -> (RoundStats, RoundStats) {
    let id = sync(index);
    let state = index.to_le_bytes().repeat(5000);
    primary.begin(id, Side::Primary, kind);
    backup.begin(id, Side::Backup, kind);
    primary.give_state(id, &state);
    let (certificate, _) = primary.wait_copied_out(id);
    run_on(&primary.ram);
    let (staged, position, staged_state, backup_stats) = backup.wait_staged(id);
    assert_eq!(certificate, staged);
    assert_eq!(position.index, LogIndex(index - 1));
    assert_eq!(
        u64::from(position.packet),
        primary.node_id,
        "the primary's position counts"
    );
    assert!(staged_state == state, "device state");
    (primary.wait_sent(id), backup_stats)
}

/// A whole round, committed.
pub fn round(primary: &mut Host, backup: &mut Host, index: u64, kind: SyncKind) -> Outcome {
    let (primary_stats, backup_stats) = stage(primary, backup, index, kind, |_| {});
    primary.finish(sync(index));
    let apply_us = backup.apply(sync(index));
    Outcome {
        primary: primary_stats,
        backup: backup_stats,
        apply_us,
    }
}

/// The first byte at which two memories differ.
pub fn first_difference(one: &[u8], two: &[u8]) -> Option<usize> {
    if one == two {
        None
    } else {
        one.iter().zip(two).position(|(one, two)| one != two)
    }
}

pub fn assert_equal(one: &[u8], two: &[u8]) {
    if let Some(at) = first_difference(one, two) {
        panic!(
            "memories differ from byte {at} on (page {}, byte {})",
            at / PAGE,
            at % PAGE
        );
    }
}

/// A small generator, so that a failing test can be repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Writes of a guest and of its backend: a few bytes here, a page there, some zeroed pages.
pub fn scribble(host: &Host, random: &mut Random, writes: u64) {
    for _ in 0..writes {
        let page = random.below(host.ram.pages);
        let (offset, bytes) = match random.below(10) {
            0 => (0, random.bytes(PAGE)),
            1 => (0, vec![0; PAGE]),
            _ => {
                let count = 1 + random.below(70) as usize;
                (random.below((PAGE - count) as u64), random.bytes(count))
            }
        };
        let at = page * PAGE as u64 + offset;
        if random.below(4) == 0 {
            host.ram.write_unseen(at, &bytes);
            host.log.mark(host.ram.page(page));
        } else {
            host.ram.write(at, &bytes);
        }
    }
}

/// Raw descriptor number, for messages.
pub fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}
