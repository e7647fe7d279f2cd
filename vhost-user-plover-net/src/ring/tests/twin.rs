//! Our rings and rust-vmm's `virtio-queue` on two copies of one guest, which does the same in
//! both: well-formed chains, and some with a field broken. The same packets come out, and both
//! guests' memories are equal to the byte: used entries, indexes, wishes for kicks. Whether the
//! guest is called is decided in the same way.
//!
//! Where we find a fault, the two part: what was taken before it is compared, no more.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::model::{HEADER, Layouter, POST_BYTES_MIN, SIZE, Shape, frames, shapes};
use crate::limits::FRAME_BYTES_MAX;
use crate::ring::{ReceiveScratch, RingFeatures, SplitRing, TransmitScratch, Unlaid};
use crate::test_driver::{Driver, WRITE, layout, memory, modern, plain, snapshot, take_burst};

/// One guest twice.
struct Twins {
    ours: Driver,
    theirs: Driver,
    ring: SplitRing,
    queue: Queue,
    layouters: [Layouter; 2],
    event_idx: bool,
    /// Nothing was published yet: we call in any case.
    first: bool,
}

impl Twins {
    fn new(number: usize, start: u16, features: RingFeatures) -> Self {
        let [mut ours, mut theirs] = [0, 1].map(|_| Driver::new(&memory(), layout(number, SIZE)));
        ours.begin_at(start);
        theirs.begin_at(start);
        let (ring, _) = ours.ring(features);
        let mut queue = queue_of(&theirs);
        queue.set_event_idx(features.event_idx);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        queue.disable_notification(&*theirs.memory).unwrap();
        Self {
            ours,
            theirs,
            ring,
            queue,
            layouters: Default::default(),
            event_idx: features.event_idx,
            first: true,
        }
    }

    fn both(&mut self, mut act: impl FnMut(&mut Driver)) {
        act(&mut self.ours);
        act(&mut self.theirs);
    }

    /// Lays a chain in both, offers it, and returns its buffers.
    fn lay(&mut self, shape: &Shape, bytes: usize, flags: u16, packet: Option<&[u8]>) {
        for (driver, layouter) in [&mut self.ours, &mut self.theirs]
            .into_iter()
            .zip(&mut self.layouters)
        {
            let (head, buffers) = layouter.lay(driver, shape, bytes, flags);
            let mut rest = packet.unwrap_or_default();
            for (address, bytes) in buffers {
                let (now, later) = rest.split_at(rest.len().min(bytes as usize));
                driver.write(address, now);
                rest = later;
            }
            driver.offer(head);
        }
    }

    /// Both ask for kicks and take that back; both find the same.
    fn compare_wishes(&mut self) {
        self.ring.want_kicks(true);
        let theirs = self
            .queue
            .enable_notification(&*self.theirs.memory)
            .unwrap();
        assert_eq!(self.ring.offered().unwrap() > 0, theirs, "more to do");
        self.compare_memory();
        self.ring.want_kicks(false);
        self.queue
            .disable_notification(&*self.theirs.memory)
            .unwrap();
    }

    /// Publishes; both call the guest, or neither.
    fn compare_calls(&mut self) {
        let before = self.ring.index();
        let ours = self.ring.publish().unwrap();
        if self.ring.index() == before {
            assert!(!ours, "a call for nothing");
            return;
        }
        let flags: u16 = self.theirs.get(self.theirs.layout.available);
        let wanted = self.queue.needs_notification(&*self.theirs.memory).unwrap();
        let theirs = if self.event_idx {
            wanted || std::mem::take(&mut self.first)
        } else {
            // The queue does not know this flag.
            flags & 1 == 0
        };
        self.first = false;
        assert_eq!(ours, theirs, "a call");
    }

    fn compare_memory(&self) {
        let (ours, theirs) = (snapshot(&self.ours.memory), snapshot(&self.theirs.memory));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours == theirs, "guest page {:#x} differs", ours.0);
        }
    }

    /// Lays frames into our ring, as many as there is room for.
    fn deliver(&mut self, scratch: &mut ReceiveScratch, frames: &[Vec<u8>]) -> usize {
        let frames: Vec<_> = frames.iter().map(|bytes| plain(bytes)).collect();
        let laid = self.ring.deliver_burst(scratch, &frames);
        assert!(!matches!(laid.stop, Some(Unlaid::Fault(_))), "{laid:?}");
        assert_eq!(laid.stop.is_none(), laid.frames == frames.len());
        laid.frames
    }

    /// What the queue takes: packets, their chains returned.
    fn take_theirs(&mut self, count: usize) -> Vec<Vec<u8>> {
        let memory = &*self.theirs.memory;
        let mut packets = Vec::new();
        for _ in 0..count {
            let chain = self.queue.pop_descriptor_chain(memory).unwrap();
            let head = chain.head_index();
            let mut packet = Vec::new();
            for descriptor in chain {
                assert!(!descriptor.is_write_only());
                let mut bytes = vec![0; descriptor.len() as usize];
                memory.read_slice(&mut bytes, descriptor.addr()).unwrap();
                packet.extend(bytes);
            }
            self.queue.add_used(memory, head, 0).unwrap();
            packets.push(packet);
        }
        packets
    }

    /// Lays a packet into the queue as a device does. False, and nothing done, if there is no
    /// room for it.
    fn deliver_theirs(&mut self, frame: &[u8], mergeable: bool) -> bool {
        let memory = &*self.theirs.memory;
        let wanted = HEADER + frame.len();
        let before = self.queue.next_avail();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < wanted {
            let Some(chain) = self.queue.pop_descriptor_chain(memory) else {
                self.queue.set_next_avail(before);
                return false;
            };
            let head = chain.head_index();
            let buffers: Vec<_> = chain.map(|d| (d.addr(), d.len() as usize)).collect();
            let bytes: usize = buffers.iter().map(|(_, bytes)| bytes).sum();
            chains.push((head, bytes.min(wanted - room), buffers));
            room += bytes;
            assert!(mergeable || room >= wanted);
        }
        let count = (chains.len() as u16).to_le_bytes();
        let packet = [&[0; HEADER - 2], &count[..], frame].concat();
        let mut rest = &packet[..];
        for (head, bytes, buffers) in chains {
            for (address, room) in buffers {
                let (now, later) = rest.split_at(rest.len().min(room));
                memory.write_slice(now, address).unwrap();
                rest = later;
            }
            self.queue.add_used(memory, head, bytes as u32).unwrap();
        }
        true
    }
}

fn queue_of(driver: &Driver) -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    let layout = driver.layout;
    queue
        .try_set_desc_table_address(GuestAddress(layout.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(layout.available))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(layout.used))
        .unwrap();
    queue.set_ready(true);
    queue
}

/// A field of a descriptor, and what it is set to.
fn breakage() -> impl Strategy<Value = Option<(u16, u64, u16)>> {
    prop::option::weighted(0.2, (0..SIZE, 0..8_u64, any::<u16>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_transmit_ring_does_as_virtio_queue_does(
        packets in prop::collection::vec((frames(), shapes()), 1..40),
        burst in 1..9_usize,
        room in 1..12_usize,
        start in any::<u16>(),
        event_idx in any::<bool>(),
        events in prop::collection::vec(any::<(u8, bool)>(), 40),
        breakage in breakage(),
    ) {
        let mut twins = Twins::new(1, start, modern(event_idx, true));
        let mut scratch = TransmitScratch::default();
        for (number, burst) in packets.chunks(burst).enumerate() {
            for (frame, shape) in burst {
                let packet = [&[0; HEADER][..], frame].concat();
                twins.lay(shape, packet.len(), 0, Some(&packet));
            }
            let (behind, no_calls) = events[number];
            let event = twins.ring.index().wrapping_add(u16::from(behind)).wrapping_sub(3);
            twins.both(|driver| {
                driver.want_call_at(event);
                driver.put(driver.layout.available, u16::from(no_calls));
            });
            if let (Some((index, field, value)), 1) = (breakage, number) {
                let at = twins.ours.layout.descriptors + 16 * u64::from(index) + 2 * field;
                twins.both(|driver| driver.put(at, value));
            }
            loop {
                let (taken, ours) = take_burst(&mut twins.ring, &mut scratch, room);
                let theirs = twins.take_theirs(taken.chains());
                let good = theirs.iter().filter_map(|packet| packet.get(HEADER..));
                let good: Vec<_> = good
                    .filter(|frame| (14..=FRAME_BYTES_MAX).contains(&frame.len()))
                    .collect();
                prop_assert_eq!(ours, good);
                twins.compare_calls();
                twins.compare_memory();
                if taken.fault.is_some() {
                    return Ok(());
                }
                if taken.chains() == 0 {
                    break;
                }
            }
            twins.compare_wishes();
        }
    }

    #[test]
    fn a_receive_ring_does_as_virtio_queue_does(
        packets in prop::collection::vec(frames(), 1..30),
        posts in prop::collection::vec((POST_BYTES_MIN..900_usize, shapes()), 1..60),
        burst in 1..5_usize,
        start in any::<u16>(),
        mergeable in any::<bool>(),
        event_idx in any::<bool>(),
        events in prop::collection::vec(any::<u8>(), 30),
    ) {
        let mut twins = Twins::new(0, start, modern(event_idx, mergeable));
        let mut scratch = ReceiveScratch::default();
        let mut posts = posts.iter().cycle();
        for (number, burst) in packets.chunks(burst).enumerate() {
            let event = twins.ring.index().wrapping_add(u16::from(events[number])).wrapping_sub(3);
            twins.both(|driver| driver.want_call_at(event));
            let mut waits = 0;
            let mut left = burst;
            while !left.is_empty() {
                let laid = twins.deliver(&mut scratch, left);
                for (number, frame) in left.iter().enumerate().take(laid + 1) {
                    prop_assert_eq!(twins.deliver_theirs(frame, mergeable), number < laid);
                }
                left = &left[laid..];
                // Chains that come back are described again only when they were shown.
                twins.compare_calls();
                if !left.is_empty() {
                    let (bytes, shape) = posts.next().unwrap();
                    let room = HEADER + bytes + if mergeable { 0 } else { left[0].len() };
                    twins.lay(shape, room, WRITE, None);
                    waits += 1;
                    prop_assert!(waits < 1000, "no progress");
                }
            }
            twins.compare_calls();
            twins.compare_memory();
            twins.compare_wishes();
        }
    }
}
