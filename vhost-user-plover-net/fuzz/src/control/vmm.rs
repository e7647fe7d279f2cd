//! A VMM that follows the rules, with a guest whose driver does what it is told.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::message::{MEMORY_BYTES, RING_SIZE, VMM_BASE, ring_base};
use super::script::memfd;

const LOG_ALL: u64 = 1 << 26;
/// Where the driver's buffers are: those of the receive ring, then those of the transmit ring.
const BUFFERS: [u64; 2] = [0x10_0000, 0x18_0000];
const BUFFER_BYTES: u64 = 0x800;
/// Bytes of the virtio-net header.
const HEADER_BYTES: usize = 12;

/// The VMM.
pub struct Vmm {
    frontend: Frontend,
    memory: File,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    offered: [u16; 2],
    seen: u16,
}

impl Vmm {
    /// On a connection to the server.
    ///
    /// # Panics
    /// No fd is left.
    #[must_use]
    pub fn on(stream: UnixStream) -> Self {
        let fds = || [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).expect("an eventfd is left"));
        Self {
            frontend: Frontend::from_stream(stream, 2),
            memory: memfd(c"vmm", MEMORY_BYTES),
            kicks: fds(),
            calls: fds(),
            offered: [0; 2],
            seen: 0,
        }
    }

    /// Negotiates, shares memory and starts both rings.
    ///
    /// # Errors
    /// The server refuses something.
    pub fn start(&mut self) -> vhost::Result<()> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let features = frontend.get_features()?;
        frontend.get_protocol_features()?;
        frontend.set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(
            features & (1 << 32 | 1 << 15 | 1 << 29 | 1 << 28 | 1 << 30) & !LOG_ALL,
        )?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: VMM_BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        }])?;
        (0..2).try_for_each(|ring| self.start_ring(ring))
    }

    /// Sets a ring up and enables it.
    ///
    /// # Errors
    /// The server refuses something.
    pub fn start_ring(&mut self, ring: usize) -> vhost::Result<()> {
        let base = VMM_BASE + ring_base(ring as u32);
        let frontend = &mut self.frontend;
        frontend.set_vring_num(ring, RING_SIZE)?;
        frontend.set_vring_base(ring, 0)?;
        frontend.set_vring_addr(
            ring,
            &VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: base,
                avail_ring_addr: base + 0x1000,
                used_ring_addr: base + 0x2000,
                log_addr: None,
            },
        )?;
        frontend.set_vring_call(ring, &self.calls[ring])?;
        frontend.set_vring_kick(ring, &self.kicks[ring])?;
        frontend.set_vring_enable(ring, true)
    }

    /// Stops a ring.
    ///
    /// # Errors
    /// The server refuses.
    pub fn stop_ring(&mut self, ring: usize) -> vhost::Result<u32> {
        self.frontend.get_vring_base(ring)
    }

    /// Whether the server still answers.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.frontend.get_features().is_ok()
    }

    /// Offers a frame for sending.
    pub fn send(&mut self, number: u16, frame: &[u8]) {
        let place = BUFFERS[1] + u64::from(number % RING_SIZE) * BUFFER_BYTES;
        self.write(place, &[&[0; HEADER_BYTES], frame].concat());
        self.describe(1, number, (place, (HEADER_BYTES + frame.len()) as u32), 0);
        self.offer(1, number);
    }

    /// Posts a buffer for a frame.
    pub fn post_buffer(&mut self, number: u16, bytes: u32) {
        let place = BUFFERS[0] + u64::from(number % RING_SIZE) * BUFFER_BYTES;
        self.describe(0, number, (place, bytes), 2);
        self.offer(0, number);
    }

    /// Frames that came since the last call.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let used = ring_base(0) + 0x2000;
        let index = u16::from_le_bytes(self.read(used + 2));
        let mut frames = Vec::new();
        while self.seen != index {
            let entry = used + 4 + 8 * u64::from(self.seen % RING_SIZE);
            let head = u32::from_le_bytes(self.read(entry));
            let bytes = u32::from_le_bytes(self.read(entry + 4)) as usize;
            let mut packet = vec![0; bytes];
            let place = BUFFERS[0] + u64::from(head) * BUFFER_BYTES;
            let _ = self.memory.read_exact_at(&mut packet, place);
            frames.push(packet.split_off(HEADER_BYTES.min(bytes)));
            self.seen = self.seen.wrapping_add(1);
        }
        frames
    }

    /// Writes a descriptor.
    pub fn describe(&self, ring: u32, number: u16, buffer: (u64, u32), flags: u16) {
        let at = ring_base(ring) + 16 * u64::from(number % RING_SIZE);
        let (address, bytes) = (buffer.0.to_le_bytes(), buffer.1.to_le_bytes());
        let descriptor = [&address[..], &bytes, &flags.to_le_bytes(), &[0; 2]];
        self.write(at, &descriptor.concat());
    }

    /// Offers the chain at `head` and kicks.
    pub fn offer(&mut self, ring: u32, head: u16) {
        let offered = &mut self.offered[ring as usize];
        let slot = u64::from(*offered % RING_SIZE);
        *offered = offered.wrapping_add(1);
        let index = *offered;
        let available = ring_base(ring) + 0x1000;
        self.write(available + 4 + 2 * slot, &(head % RING_SIZE).to_le_bytes());
        self.set_available_index(ring, index);
    }

    /// Sets the driver's index, to anything, and kicks.
    pub fn set_available_index(&self, ring: u32, index: u16) {
        self.write(ring_base(ring) + 0x1002, &index.to_le_bytes());
        let _ = self.kicks[ring as usize].write(1);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_all_at(bytes, at)
            .expect("inside of memory");
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_exact_at(&mut bytes, at)
            .expect("inside of memory");
        bytes
    }
}
