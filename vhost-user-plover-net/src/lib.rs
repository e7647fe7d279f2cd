//! The vhost-user-net backend: a packet's path between uplink, log and guest.
//!
//! The guest side: [`channel`] makes a [`GuestNic`] for the poll core and the [`ControlSide`] for
//! the [`VhostUserServer`], which sets the card up as the VMM asks.

mod control;
mod error;
mod event_fd;
mod guest_nic;
pub mod limits;
pub mod mbuf_sink;
mod metrics;
pub mod offload;
pub mod passthrough;
pub mod path;
pub mod poll;
pub mod record;
pub mod ring;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;
mod wait;

#[cfg(test)]
mod test_driver;

pub use control::mailbox::MailboxError;
pub use control::{
    CardConfig, ControlSide, MemoryEvent, MemoryListener, MemoryMap, NicConfig, Region,
    VhostUserServer, channel,
};
pub use error::{Refusal, ServerError};
pub use event_fd::{EventFd, EventFdError};
pub use guest_nic::{
    Delivered, Delivery, FaultReport, GuestNic, NicState, PairCounts, Undelivered,
};
pub use metrics::{ControlCounters, Counter, NicCounters};
pub use ring::{Direction, Frame, FrameSink, GuestFrame, RingId, WrittenPages};
