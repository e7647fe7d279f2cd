//! What the passthrough core is made of, what other threads ask of it, and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use dpdk_config::{Eal, Mempool, Port, PortStats};
use serde::Serialize;

use crate::event_fd::EventFd;
use crate::guest_nic::{GuestNic, PairCounts};
use crate::path::admit::Station;

/// How the core behaves.
#[derive(Clone, Debug)]
pub struct PassthroughConfig {
    /// Never sleep.
    pub is_busy: bool,
    /// Longest sleep when there is nothing to do and the port has no interrupt.
    pub idle_sleep: Duration,
    /// Who the guest is: frames for other stations are dropped. None: all go to the guest, as over
    /// a wire.
    pub station: Option<Station>,
    /// Bytes of the longest frame that the guest is given: its MTU with headers, no FCS.
    pub frame_bytes_max: usize,
}

/// What other threads ask of the core.
#[derive(Debug)]
pub enum PassthroughCommand {
    /// Send the status here.
    Status(Sender<Box<PassthroughStatus>>),
}

/// What a core is made of.
pub struct PassthroughSetup {
    /// The core's thread takes a cache of packet buffers from it.
    pub eal: Eal,
    /// The port to the clients.
    pub uplink: Port,
    /// Where the guest's packets are copied to. With a data room of a whole frame none of them is
    /// cut in pieces.
    pub pool: Mempool,
    /// The guest's card.
    pub nic: GuestNic,
    /// How to behave.
    pub config: PassthroughConfig,
    /// From other threads.
    pub commands: Receiver<PassthroughCommand>,
    /// Rung for each command.
    pub wake: Arc<EventFd>,
}

/// Packets on their ways, and where they were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PassthroughCounters {
    /// From the uplink.
    pub received: u64,
    /// Shorter or longer than a frame may be.
    pub dropped_length: u64,
    /// For another station.
    pub dropped_foreign: u64,
    /// The guest's driver is not up.
    pub dropped_guest_down: u64,
    /// Their queue pair had as many waiting as may wait.
    pub dropped_no_buffer: u64,
    /// Given to the guest.
    pub delivered: u64,
    /// Taken from the guest.
    pub taken: u64,
    /// Of these, those with a header that does not fit them, longer than the uplink sends, or
    /// without memory for all of their pieces.
    pub transmit_dropped: u64,
    /// Left by the uplink.
    pub sent: u64,
}

/// Where the card stands, and what it moved.
#[derive(Clone, Debug, Serialize)]
pub struct PassthroughStatus {
    /// A VMM is connected.
    pub connected: bool,
    /// The guest's first receive ring runs.
    pub receive_runs: bool,
    /// The guest's first transmit ring runs.
    pub transmit_runs: bool,
    /// Queue pairs that run.
    pub pairs_running: u8,
    /// Why a ring was stopped, if by what guest memory held.
    pub ring_fault: Option<String>,
    /// The uplink has a link.
    pub uplink_up: bool,
    /// Packets of each queue pair.
    pub pairs: Vec<PairCounts>,
    /// The path.
    pub path: PassthroughCounters,
    /// The uplink.
    pub uplink: PortStats,
}

impl PassthroughStatus {
    pub(super) fn of(nic: &GuestNic, uplink: &Port, path: PassthroughCounters) -> Self {
        let pairs = nic.pair_counts().to_vec();
        let nic = nic.state();
        let fault = nic.receive_fault.or(nic.transmit_fault);
        Self {
            connected: nic.connected,
            receive_runs: nic.receive_runs,
            transmit_runs: nic.transmit_runs,
            pairs_running: nic.pairs_running,
            ring_fault: fault.map(|fault| fault.to_string()),
            uplink_up: uplink.link_up(),
            pairs,
            path,
            uplink: uplink.stats(),
        }
    }
}
