//! Indexes, positions and log entries that every part of Plover agrees on.
//!
//! What lives here: newtypes for everything that is counted or indexed, the entries of the
//! input log and their byte form. What does not: any decision (see `replication`), any IO.

mod burst;
mod entry;
mod index;
pub mod limits;
mod members;
pub mod offload;

pub use burst::{Found, Packet, PacketBurst, PacketBurstBuilder, PacketHeader};
pub use entry::{CopySet, EntryError, LogEntry, Mode, RoleEntry, SyncKind};
pub use index::{
    Certificate, Generation, LogIndex, NodeId, PageDigest, PageIndex, Position, SyncId, Term,
};
pub use members::{Member, MembersEntry, NodeSpec, Standing};
pub use offload::{Offload, OffloadError};
