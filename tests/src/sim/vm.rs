//! The modelled VM: memory is the list of packets it processed, each with the answer it drew.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use plover_types::Certificate;
use rand::Rng;
use rand::rngs::StdRng;

/// A packet's answer: the packet's number and what the copy drew for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Number of the packet.
    pub packet: u64,
    /// Drawn by the copy that processed it.
    pub drawn: u64,
}

/// One copy of the VM.
#[derive(Clone, Debug, Default)]
pub struct Vm {
    /// Packets processed, in order.
    pub memory: Vec<Answer>,
    /// The guest runs (or is paused); false: nothing is there to pause.
    pub is_alive: bool,
    /// The VMM has stopped it for a sync.
    pub is_paused: bool,
}

/// What turns one memory into another: the first place where they differ, and what follows there.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Length of the memory that was compared. What is written behind it afterwards was not, and
    /// applying the difference does not remove it: as with pages.
    compared: usize,
    keep: usize,
    append: Vec<Answer>,
}

impl Vm {
    /// Processes a packet.
    pub fn process(&mut self, packet: u64, random: &mut StdRng) -> Answer {
        // Copies agree on two packets of three, as real ones agree on most pages.
        let drawn = if random.random_ratio(2, 3) {
            packet
        } else {
            random.random()
        };
        let answer = Answer { packet, drawn };
        self.memory.push(answer);
        answer
    }

    /// Whether packets may be given to it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.is_alive && !self.is_paused
    }

    /// What makes this memory equal `target`.
    #[must_use]
    pub fn difference(&self, target: &[Answer]) -> Difference {
        let keep = self
            .memory
            .iter()
            .zip(target)
            .take_while(|(own, other)| own == other)
            .count();
        Difference {
            compared: self.memory.len(),
            keep,
            append: target[keep..].to_vec(),
        }
    }

    /// Applies what [`Self::difference`] found.
    pub fn apply(&mut self, difference: &Difference) {
        let written_since = self
            .memory
            .split_off(difference.compared.min(self.memory.len()));
        self.memory.truncate(difference.keep);
        self.memory.extend_from_slice(&difference.append);
        self.memory.extend(written_since);
    }
}

/// Stands for the certificate over a memory.
#[must_use]
pub fn certificate(memory: &[Answer]) -> Certificate {
    let mut hasher = DefaultHasher::new();
    memory.hash(&mut hasher);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hasher.finish().to_le_bytes());
    Certificate(bytes)
}
