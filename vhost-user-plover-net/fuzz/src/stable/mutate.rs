//! A small seeded mutator. The same seed and corpus give the same inputs.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of an input, at most.
const INPUT_BYTES_MAX: usize = 4096;
/// Changes to one input, at most.
const CHANGES_MAX: usize = 8;
/// Values at which code tends to change its mind.
const INTERESTING: [u64; 16] = [
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x3ff,
    0x400,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    u32::MAX as u64,
    u64::MAX,
];

/// Makes inputs out of a corpus.
pub struct Mutator {
    random: StdRng,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    /// From `corpus`, which may be empty.
    #[must_use]
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            corpus,
        }
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = match self.corpus.len() {
            0 => self.random_bytes(512),
            // Now and then something that has no parent.
            _ if self.random.random_ratio(1, 64) => self.random_bytes(1024),
            count => self.corpus[self.random.random_range(0..count)].clone(),
        };
        for _ in 0..self.random.random_range(1..=CHANGES_MAX) {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn random_bytes(&mut self, count_max: usize) -> Vec<u8> {
        let count = self.random.random_range(0..=count_max);
        (0..count).map(|_| self.random.random()).collect()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.random_range(0..=input.len());
        let run = self.random.random_range(1..=16).min(input.len() - at);
        match self.random.random_range(0..8) {
            0 if run > 0 => input[at] ^= 1 << self.random.random_range(0..8),
            1 if run > 0 => input[at] = self.random.random(),
            2 if run > 0 => input[at] = input[at].wrapping_add(self.random.random_range(0..35)),
            3 => self.overwrite(input, at),
            4 => drop(input.drain(at..at + run)),
            5 => {
                let more = self.random_bytes(16);
                input.splice(at..at, more);
            }
            6 if run > 0 => {
                let copy = input[at..at + run].to_vec();
                let to = self.random.random_range(0..=input.len());
                input.splice(to..to, copy);
            }
            _ => self.graft(input, at),
        }
    }

    fn overwrite(&mut self, input: &mut [u8], at: usize) {
        let value = INTERESTING[self.random.random_range(0..INTERESTING.len())].to_le_bytes();
        let width = 1 << self.random.random_range(0..4);
        let to = &mut input[at..];
        let count = width.min(to.len());
        to[..count].copy_from_slice(&value[..count]);
    }

    /// Goes on as another input does.
    fn graft(&mut self, input: &mut Vec<u8>, at: usize) {
        if self.corpus.is_empty() {
            return;
        }
        let other = &self.corpus[self.random.random_range(0..self.corpus.len())];
        let from = self.random.random_range(0..=other.len());
        input.truncate(at);
        input.extend_from_slice(&other[from..]);
    }
}
