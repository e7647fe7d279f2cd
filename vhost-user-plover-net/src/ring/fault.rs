//! Why a ring was stopped: what the guest (or its VMM) wrote that no driver may write.

use thiserror::Error;

/// What a ring's memory held that stops the ring. The process and the connection live on; the
/// VMM may set the ring up again.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingFault {
    /// A part of the ring is not in guest memory.
    #[error("the {part} of the ring at guest address {address:#x} is not in guest memory")]
    RingOutsideMemory {
        /// Which part.
        part: &'static str,
        /// Guest physical address of its first byte.
        address: u64,
    },
    /// A part of the ring is not aligned as virtio wants it.
    #[error("the {part} of the ring at guest address {address:#x} is misaligned")]
    RingMisaligned {
        /// Which part.
        part: &'static str,
        /// Guest physical address of its first byte.
        address: u64,
    },
    /// No memory table was sent before the ring was started.
    #[error("the ring was started without a memory table")]
    NoMemory,
    /// More chains offered than the ring has descriptors.
    #[error("the driver's index jumped to {available}, our index is {next}, the ring holds {size}")]
    IndexJump {
        /// The driver's index.
        available: u16,
        /// Our index.
        next: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// The used index is not the one that we published.
    #[error("the used index in guest memory is {found}, we published {published}")]
    UsedIndexChanged {
        /// What guest memory holds.
        found: u16,
        /// What we wrote last.
        published: u16,
    },
    /// A head or next field names a descriptor that does not exist.
    #[error("descriptor {index} is named, the table holds {count}")]
    DescriptorOutOfRange {
        /// The descriptor named.
        index: u16,
        /// Descriptors in the table.
        count: u16,
    },
    /// A chain with more descriptors than its table.
    #[error("the chain loops")]
    DescriptorLoop,
    /// A buffer that is not, or not wholly, in guest memory.
    #[error("a buffer at guest address {address:#x} of {bytes} bytes is not in guest memory")]
    BufferOutsideMemory {
        /// Guest physical address of its first byte.
        address: u64,
        /// Its length.
        bytes: u32,
    },
    /// An indirect table with a length that is zero, no multiple of 16, or beyond the limit.
    #[error("an indirect table of {bytes} bytes")]
    IndirectLength {
        /// Its length.
        bytes: u32,
    },
    /// An indirect descriptor inside an indirect table.
    #[error("an indirect table inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor that also has a next one.
    #[error("an indirect descriptor with a next descriptor")]
    IndirectWithNext,
    /// An indirect descriptor though the driver did not accept the feature.
    #[error("an indirect descriptor without the feature")]
    IndirectNotNegotiated,
    /// A buffer that we may only read, in the receive ring.
    #[error("a read-only buffer in the receive ring")]
    ReadOnlyBuffer,
    /// A buffer that we may only write, in the transmit ring.
    #[error("a write-only buffer in the transmit ring")]
    WriteOnlyBuffer,
    /// A chain without a byte.
    #[error("a chain without a byte")]
    EmptyChain,
    /// A chain too short for the virtio-net header.
    #[error("a chain of {bytes} bytes, too short for the header")]
    HeaderDoesNotFit {
        /// Bytes in the chain.
        bytes: usize,
    },
    /// A receive buffer (or all of them together) that cannot hold a frame.
    #[error("receive buffers of {bytes} bytes for a packet of {wanted}")]
    BuffersTooSmall {
        /// Bytes offered.
        bytes: usize,
        /// Bytes of header and frame.
        wanted: usize,
    },
}
