//! The driver side of a split virtqueue. Every buffer has a place of its own (a slot), so that what
//! the device returns can be held against what it was given: a slot that comes back twice, or was
//! never given, is an error.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use super::memory::Memory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In the available ring: no calls, please.
const NO_INTERRUPT: u16 = 1;
/// In the used ring: no kicks, please.
const NO_NOTIFY: u16 = 1;

/// Bytes of the virtio-net header.
pub const HEADER_BYTES: u64 = 12;
/// Bytes between two rings: room for one of 1024 descriptors.
const RING_BYTES: u64 = 0x1_0000;
/// Rings lie below, buffers above.
const BUFFERS_START: u64 = 0x20_0000;
/// Bytes of a slot: an indirect table, a header and the longest frame.
const SLOT_BYTES: u64 = 0x4000;
/// Where the header lies in its slot; the table is before it.
const HEADER_OFFSET: u64 = 0x40;

/// How a buffer is described.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// One descriptor over header and frame.
    #[default]
    One,
    /// A chain: the header alone, then the frame.
    Two,
    /// A table of two, behind one descriptor.
    Indirect,
}

impl Pieces {
    fn descriptors(self) -> u16 {
        if self == Self::Two { 2 } else { 1 }
    }
}

/// What a ring is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingShape {
    /// Its number in the device.
    pub(super) queue: u16,
    /// Descriptors.
    pub(super) size: u16,
    /// How buffers are described.
    pub(super) pieces: Pieces,
    /// The device writes into the buffers.
    pub(super) is_receive: bool,
    /// Kicks by index were negotiated.
    pub(super) event_idx: bool,
    /// Buffers come back in the order in which they went out.
    pub(super) in_order: bool,
}

/// Guest memory that `rings` rings of `size` need.
pub(super) fn memory_bytes(rings: u16, size: u16) -> u64 {
    BUFFERS_START + u64::from(rings) * u64::from(size) * SLOT_BYTES
}

/// A buffer that came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) slot: u16,
    pub(super) bytes: u32,
}

/// The driver's end of a ring.
pub struct DriverRing {
    memory: Arc<Memory>,
    shape: RingShape,
    free: VecDeque<u16>,
    /// Slots with the device, in the order in which they were offered.
    out: VecDeque<u16>,
    offered: u16,
    published: u16,
    seen: u16,
    /// Times that each slot came back.
    returns: Vec<u64>,
}

impl DriverRing {
    pub(super) fn new(memory: &Arc<Memory>, shape: RingShape) -> Result<Self> {
        let slots = shape.size / shape.pieces.descriptors();
        let ring = Self {
            memory: Arc::clone(memory),
            shape,
            free: (0..slots).collect(),
            out: VecDeque::new(),
            offered: 0,
            published: 0,
            seen: 0,
            returns: vec![0; usize::from(slots)],
        };
        // The rings are polled.
        ring.put(ring.available(), NO_INTERRUPT)?;
        ring.put(ring.available() + 4 + 2 * u64::from(shape.size), u16::MAX)?;
        Ok(ring)
    }

    pub(super) fn set_features(&mut self, event_idx: bool, in_order: bool) {
        self.shape.event_idx = event_idx;
        self.shape.in_order = in_order;
    }

    pub(super) fn descriptors(&self) -> u64 {
        u64::from(self.shape.queue) * RING_BYTES
    }

    pub(super) fn available(&self) -> u64 {
        self.descriptors() + 0x8000
    }

    pub(super) fn used(&self) -> u64 {
        self.descriptors() + 0xa000
    }

    /// Slots that could be offered now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots with the device.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out.len()
    }

    /// All slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.returns.len()
    }

    /// How often the slot that came back least often did.
    #[must_use]
    pub fn fewest_returns(&self) -> u64 {
        self.returns.iter().copied().min().unwrap_or_default()
    }

    /// How often slots came back, all together.
    #[must_use]
    pub fn returns(&self) -> u64 {
        self.returns.iter().sum()
    }

    /// The used index as the device left it: where a backend that starts anew begins.
    pub(super) fn used_index(&self) -> Result<u16> {
        let address = GuestAddress(self.used() + 2);
        let index: u16 = self.memory.map.load(address, Ordering::Acquire)?;
        Ok(index)
    }

    /// Buffers that the device gave back and nobody has looked at.
    pub(super) fn unseen(&self) -> Result<usize> {
        Ok(usize::from(self.used_index()?.wrapping_sub(self.seen)))
    }

    fn frame_at(&self, slot: u16) -> u64 {
        let ring = u64::from(self.shape.queue) * u64::from(self.shape.size);
        BUFFERS_START + (ring + u64::from(slot)) * SLOT_BYTES + HEADER_OFFSET
    }

    /// Lays a frame into a free slot and offers it; the device sees it after [`Self::publish`].
    /// False: none is free.
    pub(super) fn send(&mut self, frame: &[u8]) -> Result<bool> {
        let Some(slot) = self.free.pop_front() else {
            return Ok(false);
        };
        let at = self.frame_at(slot);
        let map = &self.memory.map;
        map.write_slice(&[0; HEADER_BYTES as usize], GuestAddress(at))?;
        map.write_slice(frame, GuestAddress(at + HEADER_BYTES))?;
        self.offer(slot, frame.len() as u64)?;
        Ok(true)
    }

    /// Offers all free slots as buffers for frames of up to `frame_bytes`.
    pub(super) fn post(&mut self, frame_bytes: u64) -> Result<()> {
        while let Some(slot) = self.free.pop_front() {
            self.offer(slot, frame_bytes)?;
        }
        Ok(())
    }

    fn offer(&mut self, slot: u16, frame_bytes: u64) -> Result<()> {
        let pieces = self.shape.pieces;
        let head = slot * pieces.descriptors();
        let at = self.frame_at(slot);
        let write = if self.shape.is_receive { WRITE } else { 0 };
        let table = self.descriptors();
        match pieces {
            Pieces::One => {
                self.describe(table, head, (at, HEADER_BYTES + frame_bytes), write, 0)?;
            }
            Pieces::Two => {
                self.describe(table, head, (at, HEADER_BYTES), write | NEXT, head + 1)?;
                self.describe(table, head + 1, (at + HEADER_BYTES, frame_bytes), write, 0)?;
            }
            Pieces::Indirect => {
                let inner = at - HEADER_OFFSET;
                self.describe(inner, 0, (at, HEADER_BYTES), write | NEXT, 1)?;
                self.describe(inner, 1, (at + HEADER_BYTES, frame_bytes), write, 0)?;
                self.describe(table, head, (inner, 32), INDIRECT, 0)?;
            }
        }
        let place = u64::from(self.offered % self.shape.size);
        self.put(self.available() + 4 + 2 * place, head)?;
        self.offered = self.offered.wrapping_add(1);
        self.out.push_back(slot);
        Ok(())
    }

    fn describe(
        &self,
        table: u64,
        index: u16,
        (address, bytes): (u64, u64),
        flags: u16,
        next: u16,
    ) -> Result<()> {
        let at = table + 16 * u64::from(index);
        self.put(at, address)?;
        self.put(at + 8, u32::try_from(bytes)?)?;
        self.put(at + 12, flags)?;
        self.put(at + 14, next)
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) -> Result<()> {
        let map = &self.memory.map;
        map.write_obj(value, GuestAddress(address))
            .context("write a ring")
    }

    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> Result<T> {
        let map = &self.memory.map;
        map.read_obj(GuestAddress(address)).context("read a ring")
    }

    /// Shows the device what was offered. True: it wants a kick.
    pub(super) fn publish(&mut self) -> Result<bool> {
        let former = std::mem::replace(&mut self.published, self.offered);
        if former == self.offered {
            return Ok(false);
        }
        let index = GuestAddress(self.available() + 2);
        self.memory
            .map
            .store(self.offered, index, Ordering::Release)?;
        // The index must be there before the device's wish is read, or a kick gets lost.
        fence(Ordering::SeqCst);
        if self.shape.event_idx {
            let at = self.used() + 4 + 8 * u64::from(self.shape.size);
            let event: u16 = self.get(at)?;
            let past = self.offered.wrapping_sub(event).wrapping_sub(1);
            Ok(past < self.offered.wrapping_sub(former))
        } else {
            Ok(self.get::<u16>(self.used())? & NO_NOTIFY == 0)
        }
    }

    /// The next buffer that came back.
    pub(super) fn next_used(&mut self) -> Result<Option<Used>> {
        let index = self.used_index()?;
        if index == self.seen {
            return Ok(None);
        }
        let returned = usize::from(index.wrapping_sub(self.seen));
        ensure!(
            returned <= self.out.len(),
            "queue {}: the used index says {returned}, but only {} buffers were out",
            self.shape.queue,
            self.out.len()
        );
        let at = self.used() + 4 + 8 * u64::from(self.seen % self.shape.size);
        let (head, bytes): (u32, u32) = (self.get(at)?, self.get(at + 4)?);
        self.seen = self.seen.wrapping_add(1);
        // No calls either where they go by index: the wish is for one that has passed.
        let wish = self.available() + 4 + 2 * u64::from(self.shape.size);
        self.put(wish, self.seen.wrapping_sub(1))?;
        let slot = self.take_back(head)?;
        self.returns[usize::from(slot)] += 1;
        Ok(Some(Used { slot, bytes }))
    }

    fn take_back(&mut self, head: u32) -> Result<u16> {
        // With buffers in order the device may name only the last one of a batch it sent.
        if self.shape.in_order && !self.shape.is_receive {
            return self.out.pop_front().context("nothing was out");
        }
        let per_slot = u32::from(self.shape.pieces.descriptors());
        ensure!(
            head.is_multiple_of(per_slot),
            "queue {}: descriptor {head} heads no chain",
            self.shape.queue
        );
        let slot = u16::try_from(head / per_slot)?;
        let place = self.out.iter().position(|out| *out == slot);
        let place = place.with_context(|| {
            format!(
                "queue {}: slot {slot} came back and was not out",
                self.shape.queue
            )
        })?;
        ensure!(
            !self.shape.in_order || place == 0,
            "queue {}: slot {slot} came back before {place} others, and order was agreed",
            self.shape.queue
        );
        self.out.remove(place);
        Ok(slot)
    }

    /// The slot may be offered again.
    pub(super) fn release(&mut self, slot: u16) {
        self.free.push_back(slot);
    }

    /// The number of buffers that a packet at this slot takes.
    pub(super) fn buffers_of(&self, slot: u16) -> Result<u16> {
        self.get(self.frame_at(slot) + 10)
    }

    /// Appends bytes of a slot: of its frame, or also of its header where the frame goes on from
    /// another slot.
    pub(super) fn append(
        &self,
        slot: u16,
        from: u64,
        bytes: usize,
        frame: &mut Vec<u8>,
    ) -> Result<()> {
        let start = frame.len();
        frame.resize(start + bytes, 0);
        let map = &self.memory.map;
        map.read_slice(
            &mut frame[start..],
            GuestAddress(self.frame_at(slot) + from),
        )
        .context("read a received frame")
    }
}
