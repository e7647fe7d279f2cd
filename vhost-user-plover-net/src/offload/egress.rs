//! From what a guest sent to what a port sends: the one place where it is decided who finishes a
//! packet, the port or we. For the cores; nothing here allocates, but mbufs from the pool.
//!
//! How a core uses it, per packet of the guest, after the bytes were copied out:
//!
//! | the packet | then |
//! |---|---|
//! | [`Offload::is_plain`] | It goes out as it is. |
//! | not [`Offload::needs_segmentation`] | Copied into one mbuf, as any; then [`finish_mbuf`]. |
//! | [`Offload::needs_segmentation`] | Copied into one buffer of the core's; [`Egress::new`] over it; if the port and the hold have room for [`Egress::mbufs`], [`Egress::next_frame`] until it ends. Else the core waits, and does not take the packet. |
//!
//! An error means that the guest's header and its packet don't fit together, or that the packet is
//! longer than the port sends: drop it and count it.

use dpdk_config::{L4, Mbuf, PortOffloads, RxChecksum, TooLong, TxRequest};
use plover_types::Offload;
use plover_types::offload::{CHECKSUM_VALID, NEEDS_CHECKSUM};
use thiserror::Error;

use super::FinishError;
use super::checksum::{check_place, finish_checksum};
use super::headers::{ETHERNET_BYTES, Headers, Ip, Transport, VLAN_TAG_BYTES};
use super::segments::Segments;

/// A frame did not come out of [`Egress::next_frame`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EgressError {
    /// Nothing happened; try again when there are mbufs.
    #[error("no mbuf to write a frame to")]
    NoMbuf,
    /// The pool's mbufs are too small for this port's frames.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// One packet of a guest on its way to a port.
pub struct Egress<'a> {
    frame: &'a [u8],
    work: Work<'a>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack of the core"
)]
enum Work<'a> {
    /// It is one frame; its checksum may have to be finished.
    Frame(Finish),
    /// We cut it.
    Segments(Segments<'a>),
    /// The port cuts it.
    ByPort(ByPort),
    Done,
}

#[derive(Clone, Copy)]
enum Finish {
    Nothing,
    Here(Offload),
    ByPort(TxRequest),
}

#[derive(Clone, Copy)]
struct ByPort {
    request: TxRequest,
    /// The pseudo-header's sum without a length, as DPDK wants it, and where.
    pseudo: [u8; 2],
    field: usize,
}

impl<'a> Egress<'a> {
    /// Checks a packet, and decides what becomes of it at a port with these `offloads` and `mtu`.
    ///
    /// # Errors
    /// Names what does not fit together.
    pub fn new(
        frame: &'a [u8],
        offload: &Offload,
        port: PortOffloads,
        mtu: u16,
    ) -> Result<Self, FinishError> {
        let work = if !offload.needs_segmentation() {
            check_mtu(frame, mtu)?;
            Work::Frame(finish(frame, offload, port)?)
        } else if let Some(by_port) = by_port(frame, offload, port, mtu)? {
            Work::ByPort(by_port)
        } else {
            Work::Segments(Segments::new(frame, offload, mtu)?)
        };
        Ok(Self { frame, work })
    }

    /// Mbufs that the rest of the packet takes, of `room` bytes each.
    #[must_use]
    pub fn mbufs(&self, room: usize) -> usize {
        match &self.work {
            Work::Frame(_) => 1,
            Work::Segments(segments) => segments.len(),
            Work::ByPort(_) => self.frame.len().div_ceil(room.max(1)),
            Work::Done => 0,
        }
    }

    /// The next finished frame, or the packet with a request to the port, in mbufs that `take`
    /// gives. `None` at the end.
    pub fn next_frame(
        &mut self,
        take: &mut impl FnMut() -> Option<Mbuf>,
    ) -> Option<Result<Mbuf, EgressError>> {
        let written = match &mut self.work {
            Work::Done => return None,
            Work::Segments(segments) => return write_segment(segments, take),
            Work::Frame(finish) => write_frame(self.frame, *finish, take),
            Work::ByPort(by_port) => write_chain(self.frame, by_port, take),
        };
        if !matches!(written, Err(EgressError::NoMbuf)) {
            self.work = Work::Done;
        }
        Some(written)
    }
}

/// Finishes a packet that is one frame, in the one mbuf that holds it: by the port where it can.
///
/// # Errors
/// Names what does not fit together. The packet is as it was.
#[inline]
pub fn finish_mbuf(
    mbuf: &mut Mbuf,
    offload: &Offload,
    port: PortOffloads,
) -> Result<(), FinishError> {
    if !offload.needs_checksum() {
        return Ok(());
    }
    match finish(mbuf.data(), offload, port)? {
        Finish::Nothing => {}
        Finish::Here(offload) => finish_checksum(mbuf.data_mut(), &offload)?,
        Finish::ByPort(request) => mbuf.request(&request),
    }
    Ok(())
}

/// What is known of a packet that a port received, as the guest is told it. A checksum that was
/// never finished (the packet came from a stack on this machine) is finished here: the log and the
/// guest see only whole packets. One that is wrong is the guest's to find.
#[inline]
pub fn received(mbuf: &mut Mbuf, port: PortOffloads) -> Offload {
    if !port.rx_checksum {
        return Offload::PLAIN;
    }
    let sound = match mbuf.rx_checksum() {
        RxChecksum::Unknown | RxChecksum::Bad => false,
        RxChecksum::Good => true,
        RxChecksum::Unfinished => finish_received(mbuf.data_mut()),
    };
    Offload {
        flags: if sound { CHECKSUM_VALID } else { 0 },
        ..Offload::PLAIN
    }
}

/// False if the packet has no checksum that we know of.
fn finish_received(frame: &mut [u8]) -> bool {
    let Ok(found) = Headers::find_any(frame) else {
        return false;
    };
    let offload = Offload {
        flags: NEEDS_CHECKSUM,
        checksum_start: found.transport_at as u16,
        checksum_offset: found.transport.checksum_offset() as u16,
        ..Offload::PLAIN
    };
    finish_checksum(frame, &offload).is_ok()
}

fn check_mtu(frame: &[u8], mtu: u16) -> Result<(), FinishError> {
    let bytes = frame.len().saturating_sub(ETHERNET_BYTES);
    if bytes > usize::from(mtu) + VLAN_TAG_BYTES {
        return Err(FinishError::TooLong { bytes, mtu });
    }
    Ok(())
}

fn finish(frame: &[u8], offload: &Offload, port: PortOffloads) -> Result<Finish, FinishError> {
    if !offload.needs_checksum() {
        return Ok(Finish::Nothing);
    }
    let field = check_place(frame.len(), offload)?;
    // A port knows TCP and UDP; we sum whatever it is.
    let found = port
        .tx_checksum
        .then(|| Headers::find_any(frame).ok())
        .flatten()
        .filter(|found| found.checksum_field() == field)
        .filter(|found| found.transport_at == usize::from(offload.checksum_start));
    Ok(match found {
        Some(found) => Finish::ByPort(request(&found, None)),
        None => Finish::Here(*offload),
    })
}

/// How the port cuts the packet, if it can and this is what it can.
fn by_port(
    frame: &[u8],
    offload: &Offload,
    port: PortOffloads,
    mtu: u16,
) -> Result<Option<ByPort>, FinishError> {
    if !port.tx_tcp_segments {
        return Ok(None);
    }
    // All that our own cutting checks is checked here, too: the device is told nothing wrong.
    let segments = Segments::new(frame, offload, mtu)?;
    let found = segments.found();
    if found.transport == Transport::Udp {
        return Ok(None);
    }
    let [a, b] = segments.pseudo().checksum();
    Ok(Some(ByPort {
        request: request(found, Some(segments.segment_bytes())),
        pseudo: [!a, !b],
        field: found.checksum_field(),
    }))
}

fn request(found: &Headers, segment_bytes: Option<u16>) -> TxRequest {
    TxRequest {
        l2_bytes: found.ip_at as u16,
        l3_bytes: (found.transport_at - found.ip_at) as u16,
        l4_bytes: (found.payload_at - found.transport_at) as u16,
        ipv6: found.ip == Ip::V6,
        l4: match found.transport {
            Transport::Tcp => L4::Tcp,
            Transport::Udp => L4::Udp,
        },
        segment_bytes,
    }
}

fn write_frame(
    frame: &[u8],
    finish: Finish,
    take: &mut impl FnMut() -> Option<Mbuf>,
) -> Result<Mbuf, EgressError> {
    let mut mbuf = take().ok_or(EgressError::NoMbuf)?;
    mbuf.write(&[frame])?;
    match finish {
        Finish::Nothing => {}
        // Its place was checked against this very frame.
        Finish::Here(offload) => drop(finish_checksum(mbuf.data_mut(), &offload)),
        Finish::ByPort(request) => mbuf.request(&request),
    }
    Ok(mbuf)
}

fn write_segment(
    segments: &mut Segments<'_>,
    take: &mut impl FnMut() -> Option<Mbuf>,
) -> Option<Result<Mbuf, EgressError>> {
    if segments.len() == 0 {
        return None;
    }
    let Some(mut mbuf) = take() else {
        return Some(Err(EgressError::NoMbuf));
    };
    let segment = segments.next()?;
    let written = mbuf.write(&[segment.headers(), segment.payload()]);
    Some(written.map(|()| mbuf).map_err(EgressError::from))
}

fn write_chain(
    frame: &[u8],
    by_port: &ByPort,
    take: &mut impl FnMut() -> Option<Mbuf>,
) -> Result<Mbuf, EgressError> {
    let mut first = take().ok_or(EgressError::NoMbuf)?;
    let (now, mut rest) = frame.split_at(frame.len().min(first.room()));
    first.write(&[now])?;
    // The headers are in the first mbuf; a pool of smaller ones is no pool for packets.
    let field = by_port.field..by_port.field + 2;
    let bytes = frame.len();
    let pseudo = first.data_mut().get_mut(field);
    let room = now.len();
    pseudo
        .ok_or(TooLong { bytes, room })?
        .copy_from_slice(&by_port.pseudo);
    first.request(&by_port.request);
    while !rest.is_empty() {
        let mut mbuf = take().ok_or(EgressError::NoMbuf)?;
        let (now, later) = rest.split_at(rest.len().min(mbuf.room()));
        mbuf.write(&[now])?;
        first.chain(mbuf).map_err(|_| TooLong { bytes, room })?;
        rest = later;
    }
    Ok(first)
}
