//! A guest's driver for tests: builds rings by hand in guest memory and looks at what came back.

use std::mem::MaybeUninit;
use std::sync::Arc;

use plover_types::Offload;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::ring::{
    Frame, FrameSink, GuestFrame, GuestMap, ReceiveScratch, RingFault, RingFeatures, RingLayout,
    SplitRing, TakenBurst, TransmitScratch, Unlaid, VmmMemory, WrittenPages,
};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Two regions with a hole between them, the second split in two that adjoin.
pub const REGIONS: [(u64, usize); 3] =
    [(0, 0x4_0000), (0x10_0000, 0x8_0000), (0x18_0000, 0x8_0000)];
/// Where the second and third region adjoin.
pub const SEAM: u64 = 0x18_0000;
/// First address of no region.
pub const HOLE: u64 = 0x4_0000;

pub fn memory() -> Arc<VmmMemory> {
    let ranges = REGIONS.map(|(start, bytes)| (GuestAddress(start), bytes));
    Arc::new(VmmMemory::from_ranges(&ranges).unwrap())
}

pub fn modern(event_idx: bool, mergeable: bool) -> RingFeatures {
    RingFeatures {
        event_idx,
        mergeable,
        indirect: true,
        in_order: false,
        offloads: false,
        guest_offloads: false,
        header_bytes: 12,
    }
}

/// The rings of a small device. The used ring crosses a page, so that its index and its entries
/// are not always marked together.
pub fn layout(queue: usize, size: u16) -> RingLayout {
    let base = 0x1000 + 0x8000 * queue as u64;
    RingLayout {
        size,
        descriptors: base,
        available: base + 0x4000,
        used: base + 0x5f00,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u32,
    pub bytes: u32,
}

pub struct Driver {
    pub memory: Arc<VmmMemory>,
    pub layout: RingLayout,
    offered: u16,
    seen: u16,
}

impl Driver {
    pub fn new(memory: &Arc<VmmMemory>, layout: RingLayout) -> Self {
        Self {
            memory: Arc::clone(memory),
            layout,
            offered: 0,
            seen: 0,
        }
    }

    /// A ring on the same memory as this driver, with its own bitmap.
    pub fn ring(&self, features: RingFeatures) -> (SplitRing, Arc<WrittenPages>) {
        let map = Arc::new(GuestMap::new(Arc::clone(&self.memory)).unwrap());
        let pages = Arc::new(WrittenPages::create(map.guest_end()).unwrap());
        let ring = SplitRing::start(&map, &pages, self.layout, features).unwrap();
        (ring, pages)
    }

    pub fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.memory
            .read_slice(&mut read, GuestAddress(address))
            .unwrap();
        read
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn describe_in(&self, table: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.put(at, buffer.0);
        self.put(at + 8, buffer.1);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    pub fn describe(&self, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        self.describe_in(self.layout.descriptors, index, buffer, flags, next);
    }

    /// Offers the chain at `head`.
    pub fn offer(&mut self, head: u16) {
        let slot = self.offered % self.layout.size;
        self.put(self.layout.available + 4 + 2 * u64::from(slot), head);
        self.offered = self.offered.wrapping_add(1);
        self.set_available_index(self.offered);
    }

    pub fn set_available_index(&mut self, index: u16) {
        self.offered = index;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.put(self.layout.available + 2, index);
    }

    /// Starts both sides at another index, as after long use.
    pub fn begin_at(&mut self, index: u16) {
        self.set_available_index(index);
        self.set_used_index(index);
        self.seen = index;
    }

    pub fn set_used_index(&self, index: u16) {
        self.put(self.layout.used + 2, index);
    }

    pub fn used_index(&self) -> u16 {
        self.get(self.layout.used + 2)
    }

    /// Chains that came back since the last call.
    pub fn collect(&mut self) -> Vec<Used> {
        let index = self.used_index();
        let mut collected = Vec::new();
        while self.seen != index {
            let at = self.layout.used + 4 + 8 * u64::from(self.seen % self.layout.size);
            collected.push(Used {
                head: self.get(at),
                bytes: self.get(at + 4),
            });
            self.seen = self.seen.wrapping_add(1);
        }
        collected
    }

    pub fn want_call_at(&self, index: u16) {
        self.put(self.layout.used_event(), index);
    }

    pub fn available_event(&self) -> u16 {
        self.get(self.layout.used + self.layout.available_event_offset())
    }
}

/// All of guest memory, page by page.
pub fn snapshot(memory: &VmmMemory) -> Vec<(u64, Vec<u8>)> {
    memory
        .iter()
        .flat_map(|region| {
            let start = region.start_addr().0;
            (0..region.len() / 4096).map(move |page| start / 4096 + page)
        })
        .map(|page| {
            let mut bytes = vec![0; 4096];
            memory
                .read_slice(&mut bytes, GuestAddress(page * 4096))
                .unwrap();
            (page, bytes)
        })
        .collect()
}

/// Pages that differ from `before` and are not marked.
pub fn unmarked_changes(
    before: &[(u64, Vec<u8>)],
    memory: &VmmMemory,
    pages: &WrittenPages,
) -> Vec<u64> {
    let now = snapshot(memory);
    let changed = before.iter().zip(&now).filter(|(then, now)| then != now);
    changed
        .map(|(_, (page, _))| *page)
        .filter(|page| !pages.is_marked(*page))
        .collect()
}

/// A frame without an offload.
pub fn plain(bytes: &[u8]) -> Frame<'_> {
    Frame {
        offload: Offload::PLAIN,
        bytes,
    }
}

/// Lays one frame in. False if there was no buffer.
pub fn deliver(
    ring: &mut SplitRing,
    scratch: &mut ReceiveScratch,
    frame: &[u8],
) -> Result<bool, RingFault> {
    let laid = ring.deliver_burst(scratch, &[plain(frame)]);
    assert_eq!(laid.frames, usize::from(laid.stop.is_none()));
    match laid.stop {
        None => Ok(true),
        Some(Unlaid::NoBuffer) => Ok(false),
        Some(Unlaid::Fault(fault)) => Err(fault),
    }
}

/// Takes copies of frames, up to a number of them.
pub struct Copies {
    pub room: usize,
    pub frames: Vec<(u8, Offload, Vec<u8>)>,
}

impl FrameSink for Copies {
    fn prepare(&mut self, frames: usize) -> usize {
        frames.min(self.room)
    }

    fn take(&mut self, mut frame: GuestFrame<'_>) {
        let mut bytes = vec![MaybeUninit::uninit(); frame.len()];
        // In two parts, as into chained buffers.
        let (first, second) = bytes.split_at_mut(frame.len() / 3);
        frame.read(first);
        frame.read(second);
        assert!(frame.is_empty());
        // SAFETY: both parts were filled.
        let bytes = bytes.iter().map(|byte| unsafe { byte.assume_init() });
        self.frames
            .push((frame.pair(), frame.offload(), bytes.collect()));
        self.room -= 1;
    }
}

/// Takes up to `room` frames.
pub fn take_burst(
    ring: &mut SplitRing,
    scratch: &mut TransmitScratch,
    room: usize,
) -> (TakenBurst, Vec<Vec<u8>>) {
    let mut copies = Copies {
        room,
        frames: Vec::new(),
    };
    let taken = ring.take_burst(0, scratch, room, &mut copies);
    assert_eq!(taken.frames, copies.frames.len());
    let frames = copies.frames.into_iter().map(|(_, _, bytes)| bytes);
    (taken, frames.collect())
}

/// What was found in a transmit chain.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Frame(Vec<u8>),
    TooLong,
    TooShort,
}

/// Takes one chain, which was offered.
pub fn take(ring: &mut SplitRing, scratch: &mut TransmitScratch) -> Result<Taken, RingFault> {
    let (taken, mut frames) = take_burst(ring, scratch, 1);
    match taken {
        TakenBurst {
            fault: Some(fault), ..
        } => Err(fault),
        TakenBurst { too_long: 1, .. } => Ok(Taken::TooLong),
        TakenBurst { too_short: 1, .. } => Ok(Taken::TooShort),
        TakenBurst { .. } => Ok(Taken::Frame(frames.remove(0))),
    }
}
