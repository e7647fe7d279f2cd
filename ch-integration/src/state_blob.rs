//! The frame around a captured state: which VMM made it, its version, and its bytes.
//!
//! ```text
//! 8 bytes "PLVSTAT1" | u8 kind (1 qemu, 2 cloud-hypervisor) | u8 v | v bytes version
//! | u32 LE n | n bytes payload
//! ```
//! The payload is the VMM's own format and opaque here.

use crate::limits::STATE_BYTES_MAX;
use crate::vmm::VmmKind;

const MAGIC: &[u8; 8] = b"PLVSTAT1";

/// Why bytes are not a captured state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateBlobError {
    /// It ends before its frame does.
    #[error("cut short")]
    Short,
    /// It does not begin as a state does.
    #[error("not a captured state")]
    Magic,
    /// The kind byte is not known.
    #[error("unknown VMM kind {0}")]
    Kind(u8),
    /// Its length field disagrees with its length.
    #[error("names {named} payload bytes and holds {held}")]
    Length {
        /// Bytes named.
        named: usize,
        /// Bytes there.
        held: usize,
    },
    /// More bytes than a state may have.
    #[error("{0} bytes are more than a state may have")]
    TooLong(usize),
    /// The version is not text.
    #[error("VMM version is not text")]
    Version,
}

/// A captured state taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct StateBlob<'a> {
    /// The VMM that made it.
    pub kind: VmmKind,
    /// That VMM's version.
    pub version: &'a str,
    /// The VMM's own bytes.
    pub payload: &'a [u8],
}

/// Frames `payload`. A version longer than 255 bytes is cut.
pub fn encode(kind: VmmKind, version: &str, payload: &[u8]) -> Result<Vec<u8>, StateBlobError> {
    if payload.len() > STATE_BYTES_MAX {
        return Err(StateBlobError::TooLong(payload.len()));
    }
    let version = &version.as_bytes()[..version.floor_char_boundary(255)];
    let mut bytes = Vec::with_capacity(MAGIC.len() + 6 + version.len() + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(kind_byte(kind));
    bytes.push(u8::try_from(version.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(version);
    bytes.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Takes a frame apart; all of `bytes` must be the frame.
pub fn decode(bytes: &[u8]) -> Result<StateBlob<'_>, StateBlobError> {
    if bytes.len() > STATE_BYTES_MAX + MAGIC.len() + 6 + 255 {
        return Err(StateBlobError::TooLong(bytes.len()));
    }
    let (magic, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or(StateBlobError::Short)?;
    if magic != MAGIC {
        return Err(StateBlobError::Magic);
    }
    let ([kind, version_len], rest) = rest.split_first_chunk::<2>().ok_or(StateBlobError::Short)?;
    let kind = match kind {
        1 => VmmKind::Qemu,
        2 => VmmKind::CloudHypervisor,
        other => return Err(StateBlobError::Kind(*other)),
    };
    let (version, rest) = rest
        .split_at_checked(usize::from(*version_len))
        .ok_or(StateBlobError::Short)?;
    let version = std::str::from_utf8(version).map_err(|_| StateBlobError::Version)?;
    let (named, payload) = rest.split_first_chunk::<4>().ok_or(StateBlobError::Short)?;
    let named = u32::from_le_bytes(*named) as usize;
    if named != payload.len() {
        return Err(StateBlobError::Length {
            named,
            held: payload.len(),
        });
    }
    Ok(StateBlob {
        kind,
        version,
        payload,
    })
}

fn kind_byte(kind: VmmKind) -> u8 {
    match kind {
        VmmKind::Qemu => 1,
        VmmKind::CloudHypervisor => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_state_comes_back_as_it_was() {
        let bytes = encode(VmmKind::CloudHypervisor, "v53.0", b"{}").unwrap();
        let blob = decode(&bytes).unwrap();
        assert_eq!(blob.kind, VmmKind::CloudHypervisor);
        assert_eq!(blob.version, "v53.0");
        assert_eq!(blob.payload, b"{}");
    }

    #[test]
    fn every_prefix_of_a_state_is_refused() {
        let bytes = encode(VmmKind::Qemu, "7.2.22", b"payload").unwrap();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{end} bytes were taken");
        }
    }

    #[test]
    fn a_wrong_kind_magic_or_length_is_named() {
        let good = encode(VmmKind::Qemu, "7", b"x").unwrap();
        let mut bytes = good.clone();
        bytes[8] = 9;
        assert_eq!(decode(&bytes), Err(StateBlobError::Kind(9)));
        let mut bytes = good.clone();
        bytes[0] = b'?';
        assert_eq!(decode(&bytes), Err(StateBlobError::Magic));
        let mut bytes = good;
        bytes.push(0);
        assert_eq!(
            decode(&bytes),
            Err(StateBlobError::Length { named: 1, held: 2 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            with_magic in any::<bool>(),
        ) {
            if with_magic {
                let n = bytes.len().min(8);
                bytes[..n].copy_from_slice(&MAGIC[..n]);
            }
            let _ = decode(&bytes);
        }
    }
}
