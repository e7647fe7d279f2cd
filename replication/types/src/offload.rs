//! What the receiver of a packet still has to do, or need not do: a checksum to finish, a large
//! packet to cut. The values are those of `virtio_net_hdr` (virtio 1.2, §5.1.6), so that a guest's
//! header and a log entry's say the same.

/// Bytes of an [`Offload`]: a `virtio_net_hdr` without `num_buffers`.
pub const OFFLOAD_BYTES: usize = 10;

/// Flag: the checksum at `checksum_start + checksum_offset` is to be finished.
pub const NEEDS_CHECKSUM: u8 = 1;

/// Flag: the packet's checksum was verified.
pub const CHECKSUM_VALID: u8 = 2;

/// The packet is not to be cut.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCP_IPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCP_IPV6: u8 = 4;
/// UDP, each piece a datagram of its own.
pub const GSO_UDP: u8 = 5;
/// Bit beside either TCP type: the packet carries ECN's "congestion window reduced".
pub const GSO_ECN: u8 = 0x80;

/// A checksum's own bytes.
const CHECKSUM_BYTES: usize = 2;

/// Why an [`Offload`] does not fit its packet.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum OffloadError {
    /// A flag that this version does not know.
    #[error("offload flags {0:#04x}")]
    Flags(u8),
    /// A kind of segmentation that this version does not know.
    #[error("offload of segmentation type {0:#04x}")]
    GsoType(u8),
    /// The checksum lies outside the packet.
    #[error("checksum at {start} + {offset} of a packet of {packet_bytes} bytes")]
    Checksum {
        /// Where the checksummed bytes start.
        start: u16,
        /// Where the checksum is, from there.
        offset: u16,
        /// Bytes in the packet.
        packet_bytes: usize,
    },
    /// The headers are longer than the packet.
    #[error("{header_bytes} bytes of headers in a packet of {packet_bytes}")]
    Header {
        /// Bytes of headers.
        header_bytes: u16,
        /// Bytes in the packet.
        packet_bytes: usize,
    },
    /// Pieces of no bytes.
    #[error("a packet to be cut into pieces of 0 bytes")]
    Pieces,
    /// Pieces need a checksum each, and nothing says where it is.
    #[error("a packet to be cut whose checksum is complete")]
    CutWithoutChecksum,
    /// A field holds a value though nothing uses it.
    #[error("offload field {field} holds {value}, and nothing uses it")]
    Unused {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: u16,
    },
}

/// The offload header of a packet. The default says that the packet is plain: nothing is left to
/// do, and nobody verified its checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// [`NEEDS_CHECKSUM`], [`CHECKSUM_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], or how the packet is to be cut.
    pub gso_type: u8,
    /// Bytes of headers before the payload that is cut.
    pub header_bytes: u16,
    /// Payload bytes in each piece.
    pub gso_bytes: u16,
    /// Where the checksummed bytes start.
    pub checksum_start: u16,
    /// Where the checksum is, counted from `checksum_start`.
    pub checksum_offset: u16,
}

impl Offload {
    /// A plain packet.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        header_bytes: 0,
        gso_bytes: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Whether nothing is left to do for the packet, and nothing is known of it.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }

    /// Whether a checksum is to be finished.
    #[inline]
    #[must_use]
    pub const fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CHECKSUM != 0
    }

    /// Whether the packet is to be cut.
    #[inline]
    #[must_use]
    pub const fn needs_segmentation(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// The byte form: `virtio_net_hdr`, little endian, without `num_buffers`.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; OFFLOAD_BYTES] {
        let [h0, h1] = self.header_bytes.to_le_bytes();
        let [g0, g1] = self.gso_bytes.to_le_bytes();
        let [s0, s1] = self.checksum_start.to_le_bytes();
        let [o0, o1] = self.checksum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Reads the byte form. Whoever sent it may have put anything there: see [`Self::check`].
    #[inline]
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; OFFLOAD_BYTES]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags,
            gso_type,
            header_bytes: u16::from_le_bytes([h0, h1]),
            gso_bytes: u16::from_le_bytes([g0, g1]),
            checksum_start: u16::from_le_bytes([s0, s1]),
            checksum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// Checks every field against a packet of this many bytes. What no other field makes use of
    /// must be 0, so that there is one way to say a thing.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self, packet_bytes: usize) -> Result<(), OffloadError> {
        if self.flags & !(NEEDS_CHECKSUM | CHECKSUM_VALID) != 0 {
            return Err(OffloadError::Flags(self.flags));
        }
        self.check_checksum(packet_bytes)?;
        self.check_segmentation(packet_bytes)
    }

    fn check_checksum(&self, packet_bytes: usize) -> Result<(), OffloadError> {
        let (start, offset) = (self.checksum_start, self.checksum_offset);
        if !self.needs_checksum() {
            unused("checksum_start", start)?;
            return unused("checksum_offset", offset);
        }
        if usize::from(start) + usize::from(offset) + CHECKSUM_BYTES > packet_bytes {
            return Err(OffloadError::Checksum {
                start,
                offset,
                packet_bytes,
            });
        }
        Ok(())
    }

    fn check_segmentation(&self, packet_bytes: usize) -> Result<(), OffloadError> {
        match self.gso_type {
            GSO_NONE => {
                unused("header_bytes", self.header_bytes)?;
                return unused("gso_bytes", self.gso_bytes);
            }
            GSO_UDP => {}
            other if matches!(other & !GSO_ECN, GSO_TCP_IPV4 | GSO_TCP_IPV6) => {}
            other => return Err(OffloadError::GsoType(other)),
        }
        if !self.needs_checksum() {
            return Err(OffloadError::CutWithoutChecksum);
        }
        if self.gso_bytes == 0 {
            return Err(OffloadError::Pieces);
        }
        if usize::from(self.header_bytes) > packet_bytes {
            return Err(OffloadError::Header {
                header_bytes: self.header_bytes,
                packet_bytes,
            });
        }
        Ok(())
    }
}

fn unused(field: &'static str, value: u16) -> Result<(), OffloadError> {
    match value {
        0 => Ok(()),
        _ => Err(OffloadError::Unused { field, value }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: Offload = Offload {
        flags: NEEDS_CHECKSUM,
        gso_type: GSO_TCP_IPV4,
        header_bytes: 54,
        gso_bytes: 1460,
        checksum_start: 34,
        checksum_offset: 16,
    };

    #[test]
    fn the_byte_form_is_virtios() {
        assert_eq!(
            TCP.to_bytes(),
            [1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0],
            "flags, type, hdr_len, gso_size, csum_start, csum_offset"
        );
        assert!(Offload::from_bytes(&[0; OFFLOAD_BYTES]).is_plain());
    }

    #[test]
    fn what_fits_passes() {
        let checksum_only = Offload {
            gso_type: GSO_NONE,
            header_bytes: 0,
            gso_bytes: 0,
            ..TCP
        };
        let valid = Offload {
            flags: CHECKSUM_VALID,
            ..Offload::PLAIN
        };
        let ecn = Offload {
            gso_type: GSO_TCP_IPV6 | GSO_ECN,
            ..TCP
        };
        for offload in [Offload::PLAIN, TCP, checksum_only, valid, ecn] {
            assert_eq!(offload.check(9000), Ok(()), "{offload:?}");
        }
        assert_eq!(checksum_only.check(34 + 16 + 2), Ok(()));
    }

    #[test]
    fn every_field_is_checked_by_name() {
        let with = |change: fn(&mut Offload)| {
            let mut offload = TCP;
            change(&mut offload);
            offload.check(60).expect_err("does not fit")
        };
        assert_eq!(with(|it| it.flags |= 4), OffloadError::Flags(5));
        assert_eq!(with(|it| it.gso_type = 3), OffloadError::GsoType(3));
        assert_eq!(
            with(|it| it.gso_type = GSO_UDP | GSO_ECN),
            OffloadError::GsoType(0x85)
        );
        assert_eq!(with(|it| it.gso_bytes = 0), OffloadError::Pieces);
        assert!(matches!(
            with(|it| it.header_bytes = 61),
            OffloadError::Header {
                header_bytes: 61,
                packet_bytes: 60
            }
        ));
        assert!(matches!(
            with(|it| it.checksum_start = 43),
            OffloadError::Checksum { start: 43, .. }
        ));
        assert!(matches!(
            with(|it| it.checksum_offset = u16::MAX),
            OffloadError::Checksum { offset, .. } if offset == u16::MAX
        ));
        let bare = |it: &mut Offload| {
            it.flags = 0;
            it.checksum_start = 0;
            it.checksum_offset = 0;
        };
        assert_eq!(with(bare), OffloadError::CutWithoutChecksum);
        let unused = |it: &mut Offload| it.gso_type = GSO_NONE;
        assert_eq!(
            with(unused),
            OffloadError::Unused {
                field: "header_bytes",
                value: 54
            }
        );
    }

    proptest! {
        #[test]
        fn bytes_and_fields_say_the_same(bytes in any::<[u8; OFFLOAD_BYTES]>()) {
            prop_assert_eq!(Offload::from_bytes(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn what_passes_lies_inside_the_packet(
            bytes in any::<[u8; OFFLOAD_BYTES]>(),
            packet_bytes in 14..70_000_usize,
        ) {
            let offload = Offload::from_bytes(&bytes);
            if offload.check(packet_bytes).is_ok() {
                let end = usize::from(offload.checksum_start)
                    + usize::from(offload.checksum_offset) + 2;
                prop_assert!(!offload.needs_checksum() || end <= packet_bytes);
                prop_assert!(usize::from(offload.header_bytes) <= packet_bytes);
            }
        }
    }
}
