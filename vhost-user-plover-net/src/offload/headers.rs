//! Where the headers of a packet are that is to be cut. Only what is needed for that is read, and
//! only what can be cut rightly is accepted.

use super::FinishError;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_VLAN_OUTER: u16 = 0x88a8;
const VLAN_TAGS_MAX: usize = 2;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of a VLAN tag in it.
pub(super) const VLAN_TAG_BYTES: usize = 4;

/// All of the fragment word but "do not fragment": the reserved bit is 0 in any real packet.
const IPV4_FRAGMENT: u16 = 0xbfff;
const IPV6_BYTES: usize = 40;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers in a row that are walked; RFC 8200 lets each of the two occur once or twice.
const EXTENSIONS_MAX: usize = 3;

/// IP's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// What is above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where the checksum is in its header.
    pub(super) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Where the headers of a packet start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) ip: Ip,
    pub(super) transport: Transport,
    /// First byte of the IP header.
    pub(super) ip_at: usize,
    /// First byte of the transport header.
    pub(super) transport_at: usize,
    /// First byte behind the transport header.
    pub(super) payload_at: usize,
}

impl Headers {
    /// Finds the headers of `frame`, which carries TCP or UDP.
    pub(super) fn find_any(frame: &[u8]) -> Result<Self, FinishError> {
        Self::find(frame, Transport::Tcp).or_else(|_| Self::find(frame, Transport::Udp))
    }

    /// Finds the headers of `frame`, which has to carry `transport`. What IP says of the packet's
    /// length is not looked at.
    pub(super) fn find(frame: &[u8], transport: Transport) -> Result<Self, FinishError> {
        let (ether_type, ip_at) = ethernet(frame)?;
        let (ip, transport_at) = match ether_type {
            ETHERTYPE_IPV4 => (Ip::V4, ipv4(frame, ip_at, transport)?),
            ETHERTYPE_IPV6 => (Ip::V6, ipv6(frame, ip_at, transport)?),
            other => return Err(FinishError::EtherType(other)),
        };
        let payload_at = transport_at + transport_bytes(frame, transport_at, transport)?;
        upto(frame, "transport", payload_at)?;
        Ok(Self {
            ip,
            transport,
            ip_at,
            transport_at,
            payload_at,
        })
    }

    /// Whether the packet is as long as IP says. 0 stands for a length that the field can't hold.
    pub(super) fn check_length(&self, frame: &[u8]) -> Result<(), FinishError> {
        let (at, counted_from) = match self.ip {
            Ip::V4 => (self.ip_at + 2, self.ip_at),
            Ip::V6 => (self.ip_at + 4, self.ip_at + IPV6_BYTES),
        };
        let (says, are) = (usize::from(word(frame, at)), frame.len() - counted_from);
        if says == are || says == 0 {
            Ok(())
        } else {
            Err(FinishError::IpLength { says, are })
        }
    }

    /// First byte of the transport header's checksum.
    pub(super) fn checksum_field(&self) -> usize {
        self.transport_at + self.transport.checksum_offset()
    }
}

/// The frame up to `end`, which is where the header of `layer` ends.
fn upto<'a>(frame: &'a [u8], layer: &'static str, end: usize) -> Result<&'a [u8], FinishError> {
    frame.get(..end).ok_or(FinishError::Short {
        layer,
        end,
        frame_bytes: frame.len(),
    })
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The ether type behind the VLAN tags, and where its payload starts.
fn ethernet(frame: &[u8]) -> Result<(u16, usize), FinishError> {
    let mut type_at = 12;
    for _ in 0..=VLAN_TAGS_MAX {
        let ether_type = word(upto(frame, "Ethernet", type_at + 2)?, type_at);
        if ether_type != ETHERTYPE_VLAN && ether_type != ETHERTYPE_VLAN_OUTER {
            return Ok((ether_type, type_at + 2));
        }
        type_at += 4;
    }
    Err(FinishError::EtherType(ETHERTYPE_VLAN))
}

fn ipv4(frame: &[u8], at: usize, transport: Transport) -> Result<usize, FinishError> {
    let header = &upto(frame, "IPv4", at + 20)?[at..];
    check_version(header[0], 4)?;
    let bytes = usize::from(header[0] & 0xf) * 4;
    if bytes < 20 {
        return Err(FinishError::HeaderLength {
            layer: "IPv4",
            bytes,
        });
    }
    if word(header, 6) & IPV4_FRAGMENT != 0 {
        return Err(FinishError::Fragment);
    }
    if header[9] != transport.protocol() {
        return Err(FinishError::Protocol(header[9]));
    }
    upto(frame, "IPv4", at + bytes)?;
    Ok(at + bytes)
}

fn ipv6(frame: &[u8], at: usize, transport: Transport) -> Result<usize, FinishError> {
    let mut end = at + IPV6_BYTES;
    let header = &upto(frame, "IPv6", end)?[at..];
    check_version(header[0], 6)?;
    let mut next = header[6];
    // A routing header would put another address into the checksum: it is refused here.
    for _ in 0..EXTENSIONS_MAX {
        if next != HOP_BY_HOP && next != DESTINATION_OPTIONS {
            break;
        }
        let extension = &upto(frame, "IPv6 extension", end + 8)?[end..];
        next = extension[0];
        end += (usize::from(extension[1]) + 1) * 8;
        upto(frame, "IPv6 extension", end)?;
    }
    if next != transport.protocol() {
        return Err(FinishError::Protocol(next));
    }
    Ok(end)
}

fn check_version(first: u8, version: u8) -> Result<(), FinishError> {
    if first >> 4 == version {
        Ok(())
    } else {
        Err(FinishError::IpVersion(first >> 4))
    }
}

fn transport_bytes(frame: &[u8], at: usize, transport: Transport) -> Result<usize, FinishError> {
    match transport {
        Transport::Udp => Ok(8),
        Transport::Tcp => {
            let bytes = usize::from(upto(frame, "TCP", at + 20)?[at + 12] >> 4) * 4;
            if bytes < 20 {
                let layer = "TCP";
                return Err(FinishError::HeaderLength { layer, bytes });
            }
            Ok(bytes)
        }
    }
}
