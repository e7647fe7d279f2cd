//! Two rings of a card whose guest never stops rewriting them, for a test with two threads.

use std::sync::Arc;

use vhost_user_plover_net::ring::{
    Frame, FrameSink, GuestFrame, GuestMap, RingFeatures, RingId, RingLayout, WrittenPages,
};
use vhost_user_plover_net::testing::{Command, Hand, Memory, RingSetup, card};
use vhost_user_plover_net::{EventFd, GuestNic};

use plover_types::Offload;

use crate::guest::Guest;

const SIZE: u16 = 8;
const REGION_BYTES: usize = 0x1_0000;
const FRAMES: usize = 4;
/// VERSION_1, MRG_RXBUF, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 28;

/// The memory that both share: two rings, and buffers behind them.
pub struct Arena {
    guest: Guest,
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            guest: Guest::of_one_region(REGION_BYTES),
        }
    }

    /// The guest changes one thing, most often to what a driver might write.
    pub fn rewrite(&self, seed: &mut u64) {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let dice = *seed >> 16;
        let layout = layout((dice & 1) as usize);
        let slot = dice >> 1 & u64::from(SIZE - 1);
        let odd = dice >> 8 & 0x3f == 0;
        let value = dice >> 20;
        let descriptor = layout.descriptors + 16 * slot;
        match dice >> 4 & 7 {
            0 if odd => self.guest.write_racing::<8>(descriptor, value << 8),
            0 => self
                .guest
                .write_racing::<8>(descriptor, 0x4000 + (value & 0x7fff)),
            1 if odd => self.guest.write_racing::<4>(descriptor + 8, value),
            1 => self.guest.write_racing::<4>(descriptor + 8, value & 0xfff),
            // NEXT, WRITE, INDIRECT; mostly what fits the ring.
            2 if odd => self.guest.write_racing::<2>(descriptor + 12, value & 7),
            2 => self
                .guest
                .write_racing::<2>(descriptor + 12, (dice & 1 ^ 1) << 1 | value & 1),
            3 => self
                .guest
                .write_racing::<2>(descriptor + 14, value & if odd { 15 } else { 7 }),
            4 => self.guest.write_racing::<2>(
                layout.available + 4 + 2 * slot,
                value & if odd { 15 } else { 7 },
            ),
            _ => {
                // As many chains as there may be, seen from where the device is.
                let used = self.guest.read_u16(layout.used + 2).unwrap_or(0);
                let ahead = if odd { value & 0xff } else { value & 7 };
                let index = u64::from(used).wrapping_add(ahead);
                self.guest.write_racing::<2>(layout.available + 2, index);
            }
        }
    }
}

fn layout(ring: usize) -> RingLayout {
    let base = 0x1000 * ring as u64;
    RingLayout {
        size: SIZE,
        descriptors: base,
        available: base + 0x400,
        used: base + 0x800,
    }
}

/// The card on an arena.
pub struct Device {
    hand: Hand,
    nic: GuestNic,
}

impl Device {
    /// Starts both rings.
    ///
    /// # Panics
    /// No eventfd is left.
    #[must_use]
    pub fn on(arena: &Arena) -> Self {
        let (mut hand, nic) = card().expect("eventfds are left");
        let map = GuestMap::new(arena.guest.table(u8::MAX)).expect("one region");
        let written = WrittenPages::create(map.guest_end()).expect("a bitmap");
        let memory = Memory {
            map: Arc::new(map),
            written: Arc::new(written),
        };
        let mut commands = vec![Command::Connect, Command::SetMemory(memory)];
        for (number, ring) in [RingId::receive(0), RingId::transmit(0)]
            .into_iter()
            .enumerate()
        {
            let setup = RingSetup {
                layout: layout(number),
                features: RingFeatures::from_bits(FEATURES),
                enabled: true,
                kick: EventFd::new().expect("an eventfd is left"),
                call: None,
            };
            commands.push(Command::StartRing(ring, setup));
        }
        for command in commands {
            hand.post(command).expect("there is room for four");
        }
        Self { hand, nic }
    }

    /// A burst each way. Rings that stopped are run again, where the guest has them now.
    pub fn turn(&mut self) {
        self.nic.take_commands();
        self.hand.answers().for_each(drop);
        self.nic.take_burst(32, &mut Reader(0));
        let frame = Frame {
            offload: Offload::PLAIN,
            bytes: &[7; 300],
        };
        self.nic.deliver_burst(0, &[frame; FRAMES]);
        self.nic.publish();
        if self.hand.faults().count() > 0 {
            self.nic.resync();
        }
    }

    /// Packets that passed, and faults.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let counters = self.nic.counters();
        let packets = counters.transmitted_packets.get() + counters.received_packets.get();
        (packets, counters.ring_faults.get())
    }
}

/// Reads all of each frame.
struct Reader(u64);

impl FrameSink for Reader {
    fn prepare(&mut self, frames: usize) -> usize {
        frames
    }

    fn take(&mut self, mut frame: GuestFrame<'_>) {
        let mut bytes = vec![std::mem::MaybeUninit::new(0); frame.len()];
        frame.read(&mut bytes);
        self.0 += 1;
    }
}
