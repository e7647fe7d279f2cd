//! What is done to a backend: a direction and a size.

use clap::ValueEnum;

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// The guest sends as fast as it can, the host drops.
    GuestToHost,
    /// The host sends as fast as it can, the guest drops.
    HostToGuest,
    /// The guest sends, the host sends back all that it gets; what returns is counted.
    Forward,
}

/// A direction and a frame size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Where packets go.
    pub direction: Direction,
    /// The frames' size, without FCS.
    pub frame_bytes: usize,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GuestToHost, Self::HostToGuest, Self::Forward];

    /// As in the names of figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestToHost => "guest-to-host",
            Self::HostToGuest => "host-to-guest",
            Self::Forward => "forward",
        }
    }
}

impl Scenario {
    /// The end of its figures' names.
    pub fn name(self) -> String {
        format!("{}/{}", self.direction.name(), self.frame_bytes)
    }

    /// testpmd's forwarding mode on the guest's side.
    pub fn frontend_mode(self) -> &'static str {
        match self.direction {
            Direction::GuestToHost => "txonly",
            Direction::HostToGuest => "rxonly",
            Direction::Forward => "flowgen",
        }
    }

    /// The frame size that the frontend is told: flowgen takes the FCS off.
    pub fn frontend_bytes(self) -> usize {
        const FCS_BYTES: usize = 4;
        match self.direction {
            Direction::Forward => self.frame_bytes + FCS_BYTES,
            Direction::GuestToHost | Direction::HostToGuest => self.frame_bytes,
        }
    }

    /// testpmd's forwarding mode on the host's side.
    pub fn vhost_mode(self) -> &'static str {
        match self.direction {
            Direction::GuestToHost => "rxonly",
            Direction::HostToGuest => "txonly",
            Direction::Forward => "io",
        }
    }

    /// The uplink of a backend of ours that does the same: a sink, a source, a loop.
    pub fn uplink(self) -> String {
        match self.direction {
            Direction::GuestToHost => "net_null0,no-rx=1".to_owned(),
            Direction::HostToGuest => format!("net_null0,size={},copy=0", self.frame_bytes),
            Direction::Forward => "net_ring0".to_owned(),
        }
    }
}
