//! Why a packet can't be what its offload says. On the data path these are counted, not logged.

use thiserror::Error;

/// A packet and its offload don't fit together.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FinishError {
    /// A kind of segmentation that was not offered.
    #[error("gso type {0:#04x} is not offered")]
    GsoType(u8),
    /// To be cut, but without a checksum to finish: the frames would have none.
    #[error("a packet to be cut does not ask for checksums")]
    GsoWithoutChecksum,
    /// To be cut into pieces of nothing.
    #[error("a packet to be cut into segments of 0 bytes")]
    GsoBytes,
    /// One packet would become a flood.
    #[error("a packet to be cut into {0} segments")]
    TooManySegments(usize),
    /// More headers than there are bytes.
    #[error("headers of {header_bytes} bytes in a frame of {frame_bytes}")]
    HeaderBytes {
        /// What the offload says.
        header_bytes: u16,
        /// Bytes in the frame.
        frame_bytes: usize,
    },
    /// The checksum's field, or what it covers, is not in the frame's payload.
    #[error("a checksum over byte {start} and up, written at {field}, of a frame of {frame_bytes}")]
    ChecksumPlace {
        /// Where the sum starts.
        start: usize,
        /// Where it is written.
        field: usize,
        /// Bytes in the frame.
        frame_bytes: usize,
    },
    /// The checksum to be finished is not the one of the packet's transport header.
    #[error("a checksum over byte {start} and up, written at {field}, for a header at {header}")]
    ChecksumElsewhere {
        /// Where the sum starts.
        start: usize,
        /// Where it is written.
        field: usize,
        /// Where the transport header is.
        header: usize,
    },
    /// The frame ends inside a header.
    #[error("the {layer} header ends at byte {end} of a frame of {frame_bytes}")]
    Short {
        /// Which.
        layer: &'static str,
        /// Where it ends.
        end: usize,
        /// Bytes in the frame.
        frame_bytes: usize,
    },
    /// The frame carries another protocol than its gso type says.
    #[error("ether type {0:#06x} in a packet to be cut")]
    EtherType(u16),
    /// The IP header's version is not that of the ether type.
    #[error("IP version {0} in a packet to be cut")]
    IpVersion(u8),
    /// A header that says it is shorter than it can be.
    #[error("a {layer} header of {bytes} bytes")]
    HeaderLength {
        /// Which.
        layer: &'static str,
        /// Bytes that it says it has.
        bytes: usize,
    },
    /// The IP header's length is not the frame's.
    #[error("an IP header says {says} bytes where {are} are")]
    IpLength {
        /// What the header says.
        says: usize,
        /// Bytes in the frame.
        are: usize,
    },
    /// A fragment has no transport header to cut by.
    #[error("a fragment is to be cut")]
    Fragment,
    /// Neither the transport protocol of the gso type, nor a header that can precede it.
    #[error("IP protocol {0} in a packet to be cut")]
    Protocol(u8),
    /// More headers than real packets have.
    #[error("{0} bytes of headers in a packet to be cut")]
    HeadersTooLong(usize),
    /// A frame, or a datagram that may not be cut smaller, is longer than the port sends.
    #[error("a packet of {bytes} bytes for an mtu of {mtu}")]
    TooLong {
        /// Bytes after the Ethernet header.
        bytes: usize,
        /// What the port sends at most.
        mtu: u16,
    },
}
