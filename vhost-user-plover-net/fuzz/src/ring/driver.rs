//! The guest's driver of one ring. It can lay a proper packet, and anything else.

use vhost_user_plover_net::EventFd;
use vhost_user_plover_net::ring::{RingFeatures, RingLayout};
use vhost_user_plover_net::testing::RingSetup;

use crate::guest::Guest;
use crate::input::Input;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: u64 = 16;
/// Buffers of a chain that is laid in one step.
const BUFFERS_MAX: usize = 9;
/// Lengths at which something changes.
const LENGTHS: [u32; 16] = [
    0,
    1,
    9,
    10,
    11,
    12,
    13,
    14,
    26,
    72,
    1514,
    1526,
    4096,
    65_562,
    0x1_0000,
    u32::MAX,
];

/// The driver of one ring.
pub struct Driver {
    layout: RingLayout,
    /// The receive ring's buffers are for writing.
    writable: bool,
    offered: u16,
    next_descriptor: u16,
}

impl Driver {
    /// For ring `number`; most often where it has room.
    pub fn new(number: usize, guest: &Guest, input: &mut Input<'_>) -> Self {
        let region = &guest.regions()[input.below(guest.regions().len())];
        let size = 1_u16 << input.below(11);
        let table = DESCRIPTOR_BYTES * u64::from(size);
        let base = (region.start() + number as u64 * 0x1000).next_multiple_of(DESCRIPTOR_BYTES);
        let available = base + table;
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let mut layout = RingLayout {
            size,
            descriptors: base,
            available,
            used,
        };
        match input.u8() {
            1 => layout.descriptors = address(guest, &layout, input),
            2 => layout.available = address(guest, &layout, input),
            3 => layout.used = address(guest, &layout, input),
            4 => layout.used = layout.available,
            5 => layout.descriptors = layout.available,
            6 => layout.used = region.end().wrapping_sub(6 + 8 * u64::from(size)),
            7 => layout.available = region.end().wrapping_sub(6 + 2 * u64::from(size)),
            _ => {}
        }
        Self {
            layout,
            writable: number.is_multiple_of(2),
            offered: 0,
            next_descriptor: 0,
        }
    }

    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// What the VMM starts the ring with.
    pub fn setup(
        &self,
        features: u64,
        enabled: bool,
        kick: EventFd,
        call: Option<EventFd>,
    ) -> RingSetup {
        RingSetup {
            layout: self.layout,
            features: RingFeatures::from_bits(features),
            enabled,
            kick,
            call,
        }
    }

    /// Where the device's used index is.
    pub fn used_index(&self, guest: &Guest) -> Option<u16> {
        guest.read_u16(self.layout.used.wrapping_add(2))
    }

    pub fn set_used_index(&self, guest: &mut Guest, index: u16) {
        guest.write(self.layout.used.wrapping_add(2), &index.to_le_bytes());
    }

    pub fn set_available_index(&mut self, guest: &mut Guest, index: u16) {
        self.offered = index;
        guest.write(self.layout.available.wrapping_add(2), &index.to_le_bytes());
    }

    /// From where on the guest wants calls; its flags with it.
    pub fn want_calls(&self, guest: &mut Guest, input: &mut Input<'_>) {
        let event = self
            .layout
            .available
            .wrapping_add(4 + 2 * u64::from(self.layout.size));
        guest.write(event, &input.u16().to_le_bytes());
        guest.write(self.layout.available, &input.u16().to_le_bytes());
    }

    pub fn offer(&mut self, guest: &mut Guest, head: u16) {
        let slot = u64::from(self.offered & (self.layout.size - 1));
        let entry = self.layout.available.wrapping_add(4 + 2 * slot);
        guest.write(entry, &head.to_le_bytes());
        self.set_available_index(guest, self.offered.wrapping_add(1));
    }

    /// Any descriptor.
    pub fn describe(&self, guest: &mut Guest, input: &mut Input<'_>) {
        let index = input.u16() % self.layout.size.saturating_mul(2).max(1);
        let buffer = (address(guest, &self.layout, input), length(input));
        let (flags, next) = (input.u16() & 15, input.u16());
        put(
            guest,
            self.layout.descriptors,
            index,
            buffer,
            flags,
            next % (self.layout.size + 1),
        );
    }

    /// A chain as drivers lay them, most often, and offers it.
    pub fn lay(&mut self, guest: &mut Guest, input: &mut Input<'_>) {
        let count = 1 + input.below(BUFFERS_MAX);
        let shape = input.u8();
        let flags = if self.writable != (shape & 0x3f == 0x3f) {
            WRITE
        } else {
            0
        };
        if shape & 0xc0 == 0xc0 {
            return self.lay_indirect(guest, input, count, flags);
        }
        let head = self.next_descriptor;
        for number in 0..count {
            let index = self.take_descriptor();
            let buffer = (address(guest, &self.layout, input), length(input));
            let more = if number + 1 < count { NEXT } else { 0 };
            let next = self.next_descriptor;
            put(
                guest,
                self.layout.descriptors,
                index,
                buffer,
                flags | more,
                next,
            );
        }
        self.offer(guest, head);
    }

    fn lay_indirect(&mut self, guest: &mut Guest, input: &mut Input<'_>, count: usize, flags: u16) {
        let table = address(guest, &self.layout, input);
        let head = self.take_descriptor();
        let bytes = count as u32 * DESCRIPTOR_BYTES as u32;
        put(
            guest,
            self.layout.descriptors,
            head,
            (table, bytes),
            INDIRECT,
            0,
        );
        for number in 0..count as u16 {
            let buffer = (address(guest, &self.layout, input), length(input));
            let more = if usize::from(number) + 1 < count {
                NEXT
            } else {
                0
            };
            put(guest, table, number, buffer, flags | more, number + 1);
        }
        self.offer(guest, head);
    }

    fn take_descriptor(&mut self) -> u16 {
        let taken = self.next_descriptor;
        self.next_descriptor = (taken + 1) & (self.layout.size - 1);
        taken
    }
}

fn put(guest: &mut Guest, table: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
    let at = table.wrapping_add(DESCRIPTOR_BYTES * u64::from(index));
    let (address, bytes) = buffer;
    let mut descriptor = [0; DESCRIPTOR_BYTES as usize];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    guest.write(at, &descriptor);
}

/// An address worth a try: inside of memory, at its ends, in the ring itself, or any.
pub fn address(guest: &Guest, layout: &RingLayout, input: &mut Input<'_>) -> u64 {
    let kind = input.u8();
    let region = &guest.regions()[usize::from(kind >> 4) % guest.regions().len()];
    match kind & 15 {
        0 => region.end().wrapping_sub(u64::from(input.u8())),
        1 => region.start().wrapping_sub(u64::from(input.u8())),
        2 => input.u64(),
        3 => u64::MAX - u64::from(input.u8()),
        4 => layout.used.wrapping_add(u64::from(input.u8())),
        5 => layout.available.wrapping_add(u64::from(input.u8())),
        6 => layout.descriptors.wrapping_add(u64::from(input.u8())),
        _ => {
            let span = region.end() - region.start();
            region.start() + (u64::from(input.u16()) * 8) % span
        }
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        choice @ 0..=15 => LENGTHS[usize::from(choice)],
        16..=19 => input.u32(),
        20..=127 => u32::from(input.u16()),
        choice => u32::from(choice) * 12,
    }
}
