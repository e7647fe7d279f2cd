//! The server under test, with a poll core behind it that sends every frame back. There is one in
//! the process, for all scripts: what one leaves behind, the next one meets.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost_user_plover_net::{
    CardConfig, Delivery, GuestNic, NicConfig, NicCounters, VhostUserServer, channel,
};

use super::vmm::Vmm;

/// As much as a card can have: more for a VMM to ask for.
const QUEUE_PAIRS: u8 = 4;
/// Fds that a connection may still hold while it ends.
const FDS_IN_FLIGHT: usize = 48;
/// How long anything may take that takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest sleep of the core.
const SLEEP_MS: libc::c_int = 20;

/// The server, its core, and where it listens.
pub struct Station {
    server: VhostUserServer,
    core: JoinHandle<()>,
    socket: PathBuf,
    nic_counters: Arc<NicCounters>,
    fds_at_rest: AtomicUsize,
    _folder: tempfile::TempDir,
}

impl Station {
    /// A new one.
    ///
    /// # Panics
    /// The socket can't be made.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("nic");
        let (control, nic) = channel(NicConfig {
            on_memory: Box::new(|_| {}),
            written_pages: None,
            card: CardConfig {
                mac: Some([2, 0, 0, 0, 0, 9]),
                mtu: 9000,
                queue_pairs: QUEUE_PAIRS,
                offloads: true,
                announce: true,
            },
        })
        .expect("eventfds are left");
        let server = VhostUserServer::start(&socket, control).expect("nobody listens there");
        Self {
            nic_counters: nic.shared_counters(),
            server,
            core: std::thread::spawn(move || echo(nic)),
            socket,
            fds_at_rest: AtomicUsize::new(0),
            _folder: folder,
        }
    }

    /// The one of this process, for one script at a time.
    pub fn of_process() -> MutexGuard<'static, Self> {
        static STATION: OnceLock<Mutex<Station>> = OnceLock::new();
        let station = STATION.get_or_init(|| Mutex::new(Self::start()));
        station.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VMM's connection.
    ///
    /// # Panics
    /// The server does not listen any more.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("the server listens")
    }

    /// The server.
    #[must_use]
    pub const fn server(&self) -> &VhostUserServer {
        &self.server
    }

    /// What the card has counted.
    #[must_use]
    pub fn nic_counters(&self) -> &NicCounters {
        &self.nic_counters
    }

    /// A well-behaved VMM connects, and a frame of its guest comes back.
    ///
    /// # Panics
    /// If it does not.
    pub fn serves(&self) {
        let mut vmm = Vmm::on(self.connect());
        vmm.start().expect("a proper set-up is accepted");
        vmm.post_buffer(0, 0x800);
        vmm.send(0, &[5; 100]);
        wait_until("a frame comes back", || vmm.receive() == [vec![5; 100]]);
    }

    /// Nothing panicked, and nothing was left open.
    ///
    /// # Panics
    /// If it was.
    pub fn check(&self) {
        assert_eq!(self.server.counters().handler_panics.get(), 0);
        assert!(!self.core.is_finished(), "the poll core ended");
        let now = open_fds() + FDS_IN_FLIGHT;
        let first = self
            .fds_at_rest
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        let limit = first.map_or_else(|limit| limit, |_| now);
        wait_until("fds are closed", || open_fds() <= limit);
    }
}

/// Waits until `done`.
///
/// # Panics
/// If that takes too long.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The poll core: what the guest sends comes back to it. Runs until the process ends.
fn echo(mut nic: GuestNic) {
    let mut waiting = VecDeque::new();
    loop {
        nic.take_commands();
        let room = 64_usize.saturating_sub(waiting.len());
        let taken = nic.take(room, &mut |frame| waiting.push_back(frame.to_vec()));
        let mut delivered = 0;
        while let Some(frame) = waiting.front() {
            match nic.deliver(frame) {
                Delivery::NoBuffer => break,
                Delivery::Delivered => delivered += 1,
                // The guest is gone, and what it sent with it.
                Delivery::Stopped => {}
            }
            waiting.pop_front();
        }
        nic.publish();
        if !nic.state().connected {
            waiting.clear();
        }
        if taken + delivered == 0 && nic.prepare_sleep() {
            sleep(&nic);
            nic.after_sleep();
        }
    }
}

fn sleep(nic: &GuestNic) {
    let mut fds: Vec<libc::pollfd> = nic
        .wake_fds()
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the array is ours and as long as said.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, SLEEP_MS) };
}
