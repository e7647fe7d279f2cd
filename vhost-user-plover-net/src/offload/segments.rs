//! Cuts a packet into frames: TCP over IPv4 and IPv6, and UDP, each piece with whole headers and
//! checksums of its own.

use plover_types::Offload;
use plover_types::offload::{GSO_ECN, GSO_TCP_IPV4, GSO_TCP_IPV6, GSO_UDP};

use super::headers::{Headers, Ip, Transport};
use super::sum::Sum;
use super::{FinishError, HEADERS_BYTES_MAX, SEGMENTS_MAX};

const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// One frame: its headers, and the part of the packet that follows them.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    headers: [u8; HEADERS_BYTES_MAX],
    headers_bytes: usize,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// From the Ethernet header to the end of the transport header.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.headers[..self.headers_bytes]
    }

    /// What follows.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Bytes of the frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.headers_bytes + self.payload.len()
    }

    /// Writes the frame to the front of `to`; `None`, and nothing written, if it does not fit.
    pub fn write_to(&self, to: &mut [u8]) -> Option<usize> {
        let frame = to.get_mut(..self.frame_bytes())?;
        let (headers, payload) = frame.split_at_mut(self.headers_bytes);
        headers.copy_from_slice(self.headers());
        payload.copy_from_slice(self.payload);
        Some(frame.len())
    }
}

/// The frames of one packet, in order. An iterator over [`Segment`]; holds no memory but the
/// headers, and looks at each byte of the packet once.
#[derive(Clone)]
pub struct Segments<'a> {
    found: Headers,
    headers: [u8; HEADERS_BYTES_MAX],
    /// Addresses and protocol.
    pseudo: Sum,
    payload: &'a [u8],
    segment_bytes: usize,
    /// Bytes of the payload that have left.
    at: usize,
    /// Frames that have left.
    number: u16,
    left: usize,
}

impl<'a> Segments<'a> {
    /// Checks `frame` and `offload`, and how it is to be cut so that no frame's payload is longer
    /// than `mtu`. TCP is cut smaller than the guest asked where that would be; a datagram is not.
    ///
    /// # Errors
    /// Names what does not fit together.
    pub fn new(frame: &'a [u8], offload: &Offload, mtu: u16) -> Result<Self, FinishError> {
        let found = check(frame, offload)?;
        let Headers {
            ip_at, payload_at, ..
        } = found;
        let mut headers = [0; HEADERS_BYTES_MAX];
        headers
            .get_mut(..payload_at)
            .ok_or(FinishError::HeadersTooLong(payload_at))?
            .copy_from_slice(&frame[..payload_at]);
        let payload = &frame[payload_at..];
        let segment_bytes = segment_bytes(&found, offload, payload.len(), mtu)?;
        let left = payload.len().div_ceil(segment_bytes).max(1);
        if left > SEGMENTS_MAX {
            return Err(FinishError::TooManySegments(left));
        }
        let addresses = match found.ip {
            Ip::V4 => ip_at + 12..ip_at + 20,
            Ip::V6 => ip_at + 8..ip_at + 40,
        };
        let pseudo = Sum::default()
            .add(&headers[addresses])
            .add_word(found.transport.protocol().into());
        Ok(Self {
            found,
            headers,
            pseudo,
            payload,
            segment_bytes,
            at: 0,
            number: 0,
            left,
        })
    }

    pub(super) fn found(&self) -> &Headers {
        &self.found
    }

    /// Sum of addresses and protocol.
    pub(super) fn pseudo(&self) -> Sum {
        self.pseudo
    }

    pub(super) fn segment_bytes(&self) -> u16 {
        self.segment_bytes as u16
    }

    fn cut(&self, payload: &'a [u8]) -> Segment<'a> {
        let mut segment = Segment {
            headers: self.headers,
            headers_bytes: self.found.payload_at,
            payload,
        };
        let ip_bytes = segment.frame_bytes() - self.found.ip_at;
        let transport_bytes = segment.frame_bytes() - self.found.transport_at;
        self.set_ip(&mut segment.headers, ip_bytes);
        let (_, transport) = segment.headers.split_at_mut(self.found.transport_at);
        match self.found.transport {
            Transport::Tcp => self.set_tcp(transport),
            Transport::Udp => put(transport, 4, transport_bytes as u16),
        }
        self.set_checksum(&mut segment, transport_bytes);
        segment
    }

    fn set_ip(&self, headers: &mut [u8], ip_bytes: usize) {
        let ip = &mut headers[self.found.ip_at..self.found.transport_at];
        match self.found.ip {
            Ip::V4 => {
                put(ip, 2, ip_bytes as u16);
                put(ip, 4, get(ip, 4).wrapping_add(self.number));
                put(ip, 10, 0);
                let checksum = Sum::default().add(ip).checksum();
                ip[10..12].copy_from_slice(&checksum);
            }
            Ip::V6 => put(ip, 4, (ip_bytes - 40) as u16),
        }
    }

    fn set_tcp(&self, tcp: &mut [u8]) {
        let mut sequence = [0; 4];
        sequence.copy_from_slice(&tcp[TCP_SEQUENCE..TCP_SEQUENCE + 4]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add(self.at as u32);
        tcp[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if self.number > 0 {
            tcp[TCP_FLAGS] &= !TCP_CWR;
        }
        if self.left > 1 {
            tcp[TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
        }
    }

    fn set_checksum(&self, segment: &mut Segment<'_>, transport_bytes: usize) {
        let Headers {
            transport,
            transport_at,
            payload_at,
            ..
        } = self.found;
        let field = self.found.checksum_field();
        put(&mut segment.headers, field, 0);
        let mut checksum = self
            .pseudo
            .add_word(transport_bytes as u16)
            .add(&segment.headers[transport_at..payload_at])
            .add(segment.payload)
            .checksum();
        if checksum == [0, 0] && transport == Transport::Udp {
            checksum = [0xff, 0xff];
        }
        segment.headers[field..field + 2].copy_from_slice(&checksum);
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    #[inline]
    fn next(&mut self) -> Option<Segment<'a>> {
        if self.left == 0 {
            return None;
        }
        let end = self.payload.len().min(self.at + self.segment_bytes);
        let segment = self.cut(&self.payload[self.at..end]);
        self.at = end;
        self.number += 1;
        self.left -= 1;
        Some(segment)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Segments<'_> {}

/// The headers of `frame`, if they are what `offload` says.
fn check(frame: &[u8], offload: &Offload) -> Result<Headers, FinishError> {
    let transport = match offload.gso_type & !GSO_ECN {
        GSO_TCP_IPV4 | GSO_TCP_IPV6 => Transport::Tcp,
        GSO_UDP if offload.gso_type & GSO_ECN == 0 => Transport::Udp,
        _ => return Err(FinishError::GsoType(offload.gso_type)),
    };
    if !offload.needs_checksum() {
        return Err(FinishError::GsoWithoutChecksum);
    }
    if usize::from(offload.header_bytes) > frame.len() {
        return Err(FinishError::HeaderBytes {
            header_bytes: offload.header_bytes,
            frame_bytes: frame.len(),
        });
    }
    let found = Headers::find(frame, transport)?;
    found.check_length(frame)?;
    match (offload.gso_type & !GSO_ECN, found.ip) {
        (GSO_TCP_IPV4, Ip::V6) => return Err(FinishError::IpVersion(6)),
        (GSO_TCP_IPV6, Ip::V4) => return Err(FinishError::IpVersion(4)),
        _ => {}
    }
    let start = usize::from(offload.checksum_start);
    let field = start + usize::from(offload.checksum_offset);
    if (start, field) != (found.transport_at, found.checksum_field()) {
        return Err(FinishError::ChecksumElsewhere {
            start,
            field,
            header: found.transport_at,
        });
    }
    Ok(found)
}

/// Bytes of the packet in each frame but the last.
fn segment_bytes(
    found: &Headers,
    offload: &Offload,
    payload_bytes: usize,
    mtu: u16,
) -> Result<usize, FinishError> {
    let wanted = usize::from(offload.gso_bytes);
    if wanted == 0 {
        return Err(FinishError::GsoBytes);
    }
    let around = found.payload_at - found.ip_at;
    let room = usize::from(mtu).saturating_sub(around);
    let longest = wanted.min(payload_bytes);
    match found.transport {
        // Headers alone can be too long, too.
        Transport::Udp if around + longest > usize::from(mtu) => Err(FinishError::TooLong {
            bytes: around + longest,
            mtu,
        }),
        Transport::Tcp if room == 0 => Err(FinishError::TooLong {
            bytes: around + 1,
            mtu,
        }),
        _ => Ok(wanted.min(room.max(1))),
    }
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
