//! A server, a poll core, and a VMM with a guest whose memory is a file.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::{CardConfig, MemoryEvent, NicConfig, VhostUserServer, channel};
use crate::guest_nic::GuestNic;
use crate::ring::VmmMemory;
use crate::test_driver::{Driver, WRITE, layout};

pub const MEMORY_BYTES: u64 = 0x20_0000;
/// Where the pretended VMM has guest memory: never looked at, only translated.
pub const VMM_BASE: u64 = 0x7000_0000_0000;
pub const SIZE: u16 = 64;

/// Waits until `done`, for at most ten seconds.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub server: VhostUserServer,
    pub events: Arc<Mutex<Vec<MemoryEvent>>>,
}

impl Bench {
    pub fn new() -> (Self, GuestNic) {
        let folder = tempfile::tempdir().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let on_memory = Box::new(move |event| seen.lock().unwrap().push(event));
        let (control, nic) = channel(NicConfig {
            on_memory,
            written_pages: None,
            card: CardConfig::default(),
        })
        .unwrap();
        let server = VhostUserServer::start(&folder.path().join("nic"), control).unwrap();
        (
            Self {
                folder,
                server,
                events,
            },
            nic,
        )
    }

    /// As [`Self::new`], with a core that sends every frame back, asleep when idle.
    pub fn echoing() -> (Self, Core) {
        let (bench, nic) = Self::new();
        (bench, Core::start(nic))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nic")
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }
}

/// A poll core on a thread: what the guest sends comes back to it.
pub struct Core {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<GuestNic>>,
}

impl Core {
    pub fn start(nic: GuestNic) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || echo(nic, &stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }

    pub fn join(mut self) -> GuestNic {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn echo(mut nic: GuestNic, stop: &AtomicBool) -> GuestNic {
    let mut waiting = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        nic.take_commands();
        let taken = nic.take(32, &mut |frame| waiting.push_back(frame.to_vec()));
        let mut delivered = 0;
        while let Some(frame) = waiting.front()
            && nic.deliver(frame) == crate::guest_nic::Delivery::Delivered
        {
            waiting.pop_front();
            delivered += 1;
        }
        nic.publish();
        if taken + delivered == 0 && nic.prepare_sleep() {
            sleep(&nic);
            nic.after_sleep();
        }
    }
    nic
}

pub fn sleep(nic: &GuestNic) {
    let mut fds: Vec<libc::pollfd> = nic
        .wake_fds()
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the array is ours and as long as said.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 100) };
}

/// A VMM with one guest.
pub struct Vmm {
    pub frontend: Frontend,
    pub file: File,
    pub memory: Arc<VmmMemory>,
    pub drivers: [Driver; 2],
    pub kicks: [EventFd; 2],
    pub calls: [EventFd; 2],
}

pub fn guest_file() -> File {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(MEMORY_BYTES).unwrap();
    file
}

pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

impl Vmm {
    pub fn on(stream: UnixStream, file: File) -> Self {
        let region = GuestRegionMmap::from_range(
            GuestAddress(0),
            MEMORY_BYTES as usize,
            Some(FileOffset::new(file.try_clone().unwrap(), 0)),
        );
        let memory = Arc::new(VmmMemory::from_regions(vec![region.unwrap()]).unwrap());
        let drivers = [0, 1].map(|queue| Driver::new(&memory, layout(queue, SIZE)));
        let frontend = Frontend::from_stream(stream, 2);
        let fds = || [eventfd(), eventfd()];
        Self {
            frontend,
            file,
            memory,
            drivers,
            kicks: fds(),
            calls: fds(),
        }
    }

    pub fn handshake(&mut self) {
        self.frontend.set_owner().unwrap();
        let features = self.frontend.get_features().unwrap();
        let protocol = self.frontend.get_protocol_features().unwrap();
        assert!(!protocol.contains(VhostUserProtocolFeatures::DEVICE_STATE));
        assert!(!protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
        self.frontend
            .set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
            .unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // Without the log, which a VMM asks for only when it migrates.
        self.frontend.set_features(features & !(1 << 26)).unwrap();
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: VMM_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn addresses(&self, queue: usize) -> VringConfigData {
        let layout = self.drivers[queue].layout;
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: VMM_BASE + layout.descriptors,
            used_ring_addr: VMM_BASE + layout.used,
            avail_ring_addr: VMM_BASE + layout.available,
            log_addr: None,
        }
    }

    /// Starts one ring, as Cloud Hypervisor does after a restore: with a base that is not to be
    /// believed.
    pub fn start_ring(&mut self, queue: usize) {
        let frontend = &mut self.frontend;
        frontend.set_vring_num(queue, SIZE).unwrap();
        frontend.set_vring_base(queue, 4711).unwrap();
        let addresses = self.addresses(queue);
        let frontend = &mut self.frontend;
        frontend.set_vring_addr(queue, &addresses).unwrap();
        frontend.set_vring_call(queue, &self.calls[queue]).unwrap();
        frontend.set_vring_kick(queue, &self.kicks[queue]).unwrap();
        frontend.set_vring_enable(queue, true).unwrap();
    }

    pub fn start(&mut self) {
        self.handshake();
        self.set_up();
    }

    /// Memory and rings, after the handshake.
    pub fn set_up(&mut self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
        (0..2).for_each(|queue| self.start_ring(queue));
    }

    /// Offers a frame for sending, and kicks as a guest does that is asked to.
    pub fn send(&mut self, number: u16, frame: &[u8]) {
        let place = 0x10_0000 + u64::from(number % SIZE) * 0x800;
        let driver = &mut self.drivers[1];
        driver.write(place, &[&[0; 12], frame].concat());
        driver.describe(number % SIZE, (place, 12 + frame.len() as u32), 0, 0);
        driver.offer(number % SIZE);
        self.kicks[1].write(1).unwrap();
    }

    pub fn post_buffer(&mut self, number: u16) {
        let place = 0x18_0000 + u64::from(number % SIZE) * 0x800;
        self.drivers[0].describe(number % SIZE, (place, 0x800), WRITE, 0);
        self.drivers[0].offer(number % SIZE);
        self.kicks[0].write(1).unwrap();
    }

    /// Frames that came.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let driver = &mut self.drivers[0];
        let used = driver.collect();
        let place = |head: u32| 0x18_0000 + u64::from(head) * 0x800;
        let frames = used
            .iter()
            .map(|used| driver.read(place(used.head), used.bytes as usize));
        frames.map(|mut packet| packet.split_off(12)).collect()
    }
}

/// An fd that is no eventfd, dressed as one.
pub fn false_eventfd() -> EventFd {
    let pipe = OwnedFd::from(File::open("/dev/zero").unwrap());
    // SAFETY: the fd is handed over; whoever wrote the type's promise will find out.
    unsafe { EventFd::from_raw_fd(pipe.into_raw_fd()) }
}
