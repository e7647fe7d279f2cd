//! `admit`: the one place where input from the uplink is dropped. What passes is proposed,
//! committed and delivered; it is never dropped later.

use replication::core::Core;

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};

const ETHERNET_BYTES: usize = FRAME_BYTES_MIN;
const VLAN_TAG_BYTES: usize = 4;

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Shorter than an Ethernet header or longer than the guest's MTU allows.
    Length,
    /// To another station: the switch flooded it, or the port is promiscuous.
    NotForGuest,
    /// From the guest's own address: it came round a loop.
    FromGuest,
    /// The log holds as much as it may.
    LogFull,
    /// This node does not sequence input.
    NotPrimary,
    /// Too much input waits for the guest, or its driver is not up yet.
    NoRoom,
}

/// The guest as a station on the uplink's network.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    mac: [u8; 6],
    frame_bytes_max: usize,
}

impl Station {
    /// A guest with this address that takes frames of this MTU, with a VLAN tag or without.
    #[must_use]
    pub fn new(mac: [u8; 6], mtu: u16) -> Self {
        let frame_bytes_max = ETHERNET_BYTES + VLAN_TAG_BYTES + usize::from(mtu);
        Self {
            mac,
            frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX),
        }
    }

    /// Checks a frame from the uplink.
    ///
    /// # Errors
    /// Why it is none for the guest.
    #[inline]
    pub fn check(&self, frame: &[u8]) -> Result<(), Refused> {
        let addresses = match frame.first_chunk::<ETHERNET_BYTES>() {
            Some(header) if frame.len() <= self.frame_bytes_max => header,
            _ => return Err(Refused::Length),
        };
        let is_group_address = addresses[0] & 1 == 1;
        if !is_group_address && addresses[..6] != self.mac {
            return Err(Refused::NotForGuest);
        }
        if addresses[6..12] == self.mac {
            return Err(Refused::FromGuest);
        }
        Ok(())
    }
}

/// Whether this node takes input at all, for the packets of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Gate(Option<Refused>);

impl Gate {
    /// As the group's core stands; `has_room`: the guest keeps up.
    #[must_use]
    pub fn of(core: &Core, has_room: bool) -> Self {
        Self(if !core.log_has_room() {
            Some(Refused::LogFull)
        } else if !core.may_propose() {
            Some(Refused::NotPrimary)
        } else if !has_room {
            Some(Refused::NoRoom)
        } else {
            None
        })
    }

    /// Whether packets are taken.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.0.is_none()
    }

    /// # Errors
    /// Why no packet is taken.
    #[inline]
    pub fn check(self) -> Result<(), Refused> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn frame(to: [u8; 6], from: [u8; 6], length: usize) -> Vec<u8> {
        let mut frame = [&to[..], &from[..]].concat();
        frame.resize(length, 0);
        frame
    }

    fn check(frame: &[u8]) -> Result<(), Refused> {
        Station::new(GUEST, 1500).check(frame)
    }

    #[test]
    fn frames_to_the_guest_and_to_groups_pass() {
        assert_eq!(check(&frame(GUEST, OTHER, 60)), Ok(()));
        assert_eq!(check(&frame([0xff; 6], OTHER, 60)), Ok(()));
        assert_eq!(check(&frame([1, 0, 0x5e, 0, 0, 1], OTHER, 1518)), Ok(()));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        assert_eq!(check(&frame(OTHER, GUEST, 60)), Err(Refused::NotForGuest));
        assert_eq!(check(&frame([0xff; 6], GUEST, 60)), Err(Refused::FromGuest));
        assert_eq!(
            check(&frame(GUEST, OTHER, FRAME_BYTES_MIN)[..13]),
            Err(Refused::Length)
        );
        assert_eq!(check(&frame(GUEST, OTHER, 1519)), Err(Refused::Length));
        assert_eq!(check(&[]), Err(Refused::Length));
    }

    #[test]
    fn the_guests_mtu_bounds_what_is_admitted() {
        let jumbo = Station::new(GUEST, 9000);
        assert_eq!(jumbo.check(&frame(GUEST, OTHER, 9018)), Ok(()));
        assert_eq!(
            jumbo.check(&frame(GUEST, OTHER, 9019)),
            Err(Refused::Length)
        );
        let largest = Station::new(GUEST, u16::MAX);
        let too_long = frame(GUEST, OTHER, FRAME_BYTES_MAX + 1);
        assert_eq!(largest.check(&too_long), Err(Refused::Length));
    }
}
