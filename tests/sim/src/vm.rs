//! The modelled VM: a few pages of bytes that a guest really changes, with the written pages noted
//! as the tracker would.
//!
//! The guest keeps in its first page how many packets it processed and the [`LineageId`] of them
//! all, so that what a copy *knows* is read from its bytes and from nothing else.

use plover_types::{Certificate, SyncId};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::lineage::{LineageId, Lineages};

/// Pages of a VM.
pub(crate) const PAGES: usize = 24;

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 64;

const WORDS_PER_PAGE: usize = PAGE_BYTES / 8;

/// A set of pages, a bit each.
pub(crate) type PageBits = u32;

/// Every page.
pub(crate) const ALL_PAGES: PageBits = (1 << PAGES) - 1;

/// What a packet is answered with, as it waits in the queue of held output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Number of the packet.
    pub(crate) packet: u64,
    /// Packets processed, this one included.
    pub(crate) count: u64,
    /// What the copy had processed and drawn by then.
    pub(crate) lineage: LineageId,
}

/// Memory and the state of the virtual processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    /// Stands for registers and devices: changes with each packet, is captured and loaded.
    pub(crate) cpu: u64,
}

/// One copy of the VM.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) image: Image,
    /// Pages written since they were last collected.
    pub(crate) written: PageBits,
    /// A guest is there, running or paused.
    pub(crate) is_alive: bool,
    /// Stopped by the VMM, its rings frozen.
    pub(crate) is_paused: bool,
}

impl Image {
    fn zeroed() -> Self {
        Self {
            bytes: vec![0; PAGES * PAGE_BYTES],
            cpu: 0,
        }
    }

    fn word(&self, at: usize) -> u64 {
        let bytes = &self.bytes[at * 8..at * 8 + 8];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Packets that this memory has processed.
    pub(crate) fn count(&self) -> u64 {
        self.word(0)
    }

    /// What it knows.
    pub(crate) fn lineage(&self) -> LineageId {
        LineageId(self.word(1))
    }

    /// The bytes of a page.
    pub(crate) fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES]
    }

    /// Writes a page.
    pub(crate) fn set_page(&mut self, page: usize, bytes: &[u8]) {
        self.bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].copy_from_slice(bytes);
    }
}

impl Vm {
    /// A VM whose guest has not been started; its memory holds whatever was there.
    pub(crate) fn absent() -> Self {
        Self {
            image: Image::zeroed(),
            written: ALL_PAGES,
            is_alive: false,
            is_paused: false,
        }
    }

    /// The guest starts from its kernel.
    pub(crate) fn boot(&mut self) {
        *self = Self {
            is_alive: true,
            ..Self::absent()
        };
    }

    /// Whether packets may be given to it.
    pub(crate) fn is_running(&self) -> bool {
        self.is_alive && !self.is_paused
    }

    fn write(&mut self, at: usize, word: u64) {
        self.image.bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        self.written |= 1 << (at / WORDS_PER_PAGE);
    }

    /// Processes a packet: most of what it writes is the same on both copies, some is not.
    pub(crate) fn process(
        &mut self,
        packet: u64,
        lineages: &mut Lineages,
        random: &mut SmallRng,
    ) -> Answer {
        // Copies agree on two packets of three, as real ones agree on most pages.
        let drawn = if random.random_ratio(2, 3) {
            0
        } else {
            random.random()
        };
        let count = self.image.count() + 1;
        let lineage = lineages.grow(self.image.lineage(), packet, drawn);
        self.write(0, count);
        self.write(1, lineage.0);
        let place = WORDS_PER_PAGE + packet as usize % ((PAGES - 1) * WORDS_PER_PAGE);
        self.write(place, lineage.0 ^ packet);
        self.image.cpu = lineage.0.rotate_left(17);
        Answer {
            packet,
            count,
            lineage,
        }
    }

    /// What a guest does by itself, on each copy something else: a timer fires, a task runs.
    pub(crate) fn wander(&mut self, random: &mut SmallRng) {
        let place = random.random_range(WORDS_PER_PAGE..PAGES * WORDS_PER_PAGE);
        self.write(place, random.random());
        self.image.cpu = self.image.cpu.wrapping_add(1);
    }
}

/// The pages of a set.
pub(crate) fn pages(set: PageBits) -> impl Iterator<Item = usize> {
    (0..PAGES).filter(move |page| set & (1 << page) != 0)
}

/// Stands for the certificate over these pages.
pub(crate) fn certify<'a>(
    sync: SyncId,
    pages: impl Iterator<Item = (usize, &'a [u8])>,
) -> Certificate {
    const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = [sync.0.0 ^ PRIME, !sync.0.0];
    for (page, bytes) in pages {
        state[0] = (state[0] ^ page as u64).wrapping_mul(PRIME);
        for word in bytes.as_chunks::<8>().0 {
            state[0] = (state[0] ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
            state[1] = (state[1].rotate_left(23) ^ state[0]).wrapping_mul(PRIME | 2);
        }
    }
    let mut certificate = [0; 16];
    certificate[..8].copy_from_slice(&state[0].to_le_bytes());
    certificate[8..].copy_from_slice(&state[1].to_le_bytes());
    Certificate(certificate)
}
