//! What a copy knows, as a name: the packets that it processed in order, with what it drew for
//! each. Copies that processed the same and drew the same have the same name.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Names what a copy knows; 0 is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct LineageId(pub(crate) u64);

/// All lineages of a run, as a tree.
#[derive(Debug, Default)]
pub(crate) struct Lineages {
    parents: HashMap<LineageId, LineageId, BuildHasherDefault<Spread>>,
}

impl Lineages {
    /// The lineage that follows `from` with this packet.
    pub(crate) fn grow(&mut self, from: LineageId, packet: u64, drawn: u64) -> LineageId {
        let mut name = from.0.wrapping_add(0xD1B5_4A32_D192_ED03);
        for word in [packet, drawn] {
            name = (name ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            name ^= name >> 29;
        }
        let name = LineageId(name | 1);
        self.parents.insert(name, from);
        name
    }

    /// The lineage before the last packet of this one.
    pub(crate) fn parent(&self, of: LineageId) -> Option<LineageId> {
        self.parents.get(&of).copied()
    }
}

/// The names are spread already.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
