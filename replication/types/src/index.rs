//! Newtypes for what is counted, indexed or named. Mixing two of them is a compile error.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The one that follows.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

counted! {
    /// Index of an entry in the Raft log, from 1; 0 stands before the first.
    LogIndex
}
counted! {
    /// A Raft term.
    Term
}
counted! {
    /// Counts the committed role entries of a group, from 1; 0 is a group without a role.
    Generation
}
counted! {
    /// A Raft node id, from 1.
    NodeId
}
counted! {
    /// Number of a 4 KiB page of guest memory: guest physical address / 4096.
    PageIndex
}

/// Names a sync: the log index of its `SyncBegin` entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SyncId(pub LogIndex);

impl fmt::Display for SyncId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// CRC32C (Castagnoli) of one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageDigest(pub u32);

/// The 128-bit accumulator over (page number, content) of a sync's union, under the connection's
/// secret key: equal certificates mean equal memory, to the bound of the hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Certificate(pub [u8; 16]);

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The next packet to deliver: everything before packet number `packet` of entry `index` has been
/// given to the guest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The log entry.
    pub index: LogIndex,
    /// Packet number in that entry, from 0.
    pub packet: u32,
}

impl Position {
    /// The first packet of entry `index`.
    #[must_use]
    pub const fn start_of(index: LogIndex) -> Self {
        Self { index, packet: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.packet)
    }
}
