//! Keys as text: a prefix that says what it is, then base64 of the bytes and of a checksum, so
//! that one which was cut or mistyped is not taken for another node's.

use base64ct::{Base64UrlUnpadded, Encoding};
use ring::digest::{SHA256, digest};
use zeroize::{Zeroize, Zeroizing};

use crate::TextError;

const CHECKSUM_BYTES: usize = 4;

/// The longest content, a public identity, with its checksum.
const BYTES_MAX: usize = 64 + CHECKSUM_BYTES;
const TEXT_BYTES_MAX: usize = BYTES_MAX.div_ceil(3) * 4;

fn checksum(prefix: &str, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut bytes = Zeroizing::new([0; 32 + BYTES_MAX]);
    let (name, rest) = bytes.split_at_mut(prefix.len());
    name.copy_from_slice(prefix.as_bytes());
    rest[..content.len()].copy_from_slice(content);
    let hash = digest(&SHA256, &bytes[..prefix.len() + content.len()]);
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&hash.as_ref()[..CHECKSUM_BYTES]);
    out
}

/// The text of `content`.
pub(crate) fn encode<const N: usize>(prefix: &'static str, content: &[u8; N]) -> Zeroizing<String> {
    const { assert!(N + CHECKSUM_BYTES <= BYTES_MAX) };
    let mut bytes = Zeroizing::new([0; BYTES_MAX]);
    bytes[..N].copy_from_slice(content);
    bytes[N..N + CHECKSUM_BYTES].copy_from_slice(&checksum(prefix, content));
    let mut text = Zeroizing::new([0; TEXT_BYTES_MAX]);
    // The room is computed above: an error would be our own bug, and leaves the text empty.
    let encoded = Base64UrlUnpadded::encode(&bytes[..N + CHECKSUM_BYTES], &mut text[..]);
    Zeroizing::new([prefix, encoded.unwrap_or_default()].concat())
}

/// Reads what [`encode`] wrote; nothing else is accepted.
pub(crate) fn decode<const N: usize>(
    prefix: &'static str,
    text: &str,
) -> Result<Zeroizing<[u8; N]>, TextError> {
    let encoded = text.strip_prefix(prefix).ok_or(TextError::Prefix(prefix))?;
    let mut bytes = Zeroizing::new([0; BYTES_MAX]);
    let decoded =
        Base64UrlUnpadded::decode(encoded, &mut bytes[..]).map_err(|_| TextError::Form)?;
    let Some((content, sum)) = decoded.split_first_chunk::<N>() else {
        return Err(TextError::Form);
    };
    if sum.len() != CHECKSUM_BYTES {
        return Err(TextError::Form);
    }
    if sum != checksum(prefix, content) {
        return Err(TextError::Checksum);
    }
    let mut out = Zeroizing::new([0; N]);
    out.copy_from_slice(content);
    bytes.zeroize();
    Ok(out)
}
