//! Where a split ring lies and what was negotiated for it, checked before anything is read.

use std::ptr::NonNull;
use std::sync::Arc;

use super::fault::RingFault;
use super::guest_map::{GuestMap, GuestView};
use crate::limits::{NET_HEADER_BYTES, NET_HEADER_LEGACY_BYTES, QUEUE_PAIRS_MAX, QUEUE_SIZE_MAX};

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Offset of `idx` in the available and in the used ring.
pub const INDEX_OFFSET: u64 = 2;
/// Offset of the entries in the available and in the used ring.
pub const ENTRIES_OFFSET: u64 = 4;
/// Bytes of an available ring's entry.
pub const AVAILABLE_ENTRY_BYTES: u64 = 2;
/// Bytes of a used ring's entry.
pub const USED_ENTRY_BYTES: u64 = 8;
/// Bytes of `used_event` and of `avail_event`.
const EVENT_BYTES: u64 = 2;

/// Which way a ring carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Host to guest.
    Receive,
    /// Guest to host.
    Transmit,
}

/// Which of the device's rings: a direction of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    /// The queue pair, from 0.
    pub pair: u8,
    /// Which of its two rings.
    pub direction: Direction,
}

impl RingId {
    /// The receive ring of `pair`.
    #[must_use]
    pub const fn receive(pair: u8) -> Self {
        Self {
            pair,
            direction: Direction::Receive,
        }
    }

    /// The transmit ring of `pair`.
    #[must_use]
    pub const fn transmit(pair: u8) -> Self {
        Self {
            pair,
            direction: Direction::Transmit,
        }
    }

    /// The ring with virtqueue number `index`: even ones receive, odd ones transmit.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index >= 2 * QUEUE_PAIRS_MAX {
            return None;
        }
        let pair = (index / 2) as u8;
        Some(if index.is_multiple_of(2) {
            Self::receive(pair)
        } else {
            Self::transmit(pair)
        })
    }

    /// Virtqueue number.
    #[must_use]
    pub const fn index(self) -> usize {
        2 * self.pair as usize + self.direction as usize
    }
}

impl std::fmt::Display for RingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self.direction {
            Direction::Receive => "receive",
            Direction::Transmit => "transmit",
        };
        match self.pair {
            0 => f.write_str(direction),
            pair => write!(f, "{direction} {pair}"),
        }
    }
}

/// What the driver accepted, as far as the rings care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// Kicks and calls are asked for by index, not by flag.
    pub event_idx: bool,
    /// A packet may be spread over several receive chains.
    pub mergeable: bool,
    /// Descriptors may lie in indirect tables.
    pub indirect: bool,
    /// Chains come back in the order they were offered, so one used entry stands for a burst.
    pub in_order: bool,
    /// The driver's headers say what is left to do with a packet; else they are not read.
    pub offloads: bool,
    /// The driver reads what our headers say of a packet; else they say nothing.
    pub guest_offloads: bool,
    /// Bytes of the header in front of each packet.
    pub header_bytes: usize,
}

impl RingFeatures {
    /// Reads them off the acknowledged virtio features.
    #[must_use]
    pub fn from_bits(acked: u64) -> Self {
        use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
        use virtio_bindings::virtio_net::{
            VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF,
        };
        use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

        let has = |bit: u32| acked & (1 << bit) != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let long_header = mergeable || has(VIRTIO_F_VERSION_1);
        Self {
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
            mergeable,
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            in_order: has(VIRTIO_F_IN_ORDER),
            // Every other offload of its direction requires this one.
            offloads: has(VIRTIO_NET_F_CSUM),
            guest_offloads: has(VIRTIO_NET_F_GUEST_CSUM),
            header_bytes: if long_header {
                NET_HEADER_BYTES
            } else {
                NET_HEADER_LEGACY_BYTES
            },
        }
    }
}

/// Guest physical addresses and size of a ring, as the VMM sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Descriptors, a power of two up to [`QUEUE_SIZE_MAX`].
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (the driver writes it).
    pub available: u64,
    /// Used ring (we write it).
    pub used: u64,
}

/// The parts of a ring in our address space.
#[derive(Clone, Copy)]
pub struct RingPointers {
    /// Descriptor table.
    pub descriptors: NonNull<u8>,
    /// Available ring.
    pub available: NonNull<u8>,
    /// Used ring.
    pub used: NonNull<u8>,
}

impl RingLayout {
    /// Whether `size` is one that a split ring may have here.
    #[must_use]
    pub const fn size_is_valid(size: u16) -> bool {
        size.is_power_of_two() && size <= QUEUE_SIZE_MAX
    }

    /// Guest address of the driver's wish for calls, behind the available entries.
    #[must_use]
    pub const fn used_event(&self) -> u64 {
        self.available + ENTRIES_OFFSET + AVAILABLE_ENTRY_BYTES * self.size as u64
    }

    /// Bytes from the start of the used ring to our wish for kicks, behind the used entries.
    #[must_use]
    pub const fn available_event_offset(&self) -> u64 {
        ENTRIES_OFFSET + USED_ENTRY_BYTES * self.size as u64
    }

    /// Finds the ring in `map`. Each part must lie in one region and be aligned.
    pub fn locate(&self, map: &Arc<GuestMap>) -> Result<RingPointers, RingFault> {
        let size = u64::from(self.size);
        let mut view = GuestView::new(Arc::clone(map));
        let mut find = |part, address: u64, bytes, align: u64| {
            if !address.is_multiple_of(align) {
                return Err(RingFault::RingMisaligned { part, address });
            }
            let host = view
                .whole(address, bytes)
                .ok_or(RingFault::RingOutsideMemory { part, address })?;
            // A region may start at an odd address: what we dereference must be aligned too.
            if !(host.as_ptr() as u64).is_multiple_of(align) {
                return Err(RingFault::RingMisaligned { part, address });
            }
            Ok(host)
        };
        let available_bytes = ENTRIES_OFFSET + AVAILABLE_ENTRY_BYTES * size + EVENT_BYTES;
        let used_bytes = ENTRIES_OFFSET + USED_ENTRY_BYTES * size + EVENT_BYTES;
        Ok(RingPointers {
            descriptors: find(
                "descriptor table",
                self.descriptors,
                DESCRIPTOR_BYTES * size,
                DESCRIPTOR_BYTES,
            )?,
            available: find("available ring", self.available, available_bytes, 2)?,
            used: find("used ring", self.used, used_bytes, 4)?,
        })
    }
}
