//! The device state on the wire. Most of it is as it was in the last round, so what is sent is the
//! difference to that one (XOR), compressed. The base is only a dictionary: both ends of a
//! connection keep the state of the last round that was done on it, and the state's tag tells if
//! anything went wrong.

use bytes::Bytes;

use crate::error::ProtocolError;
use crate::limits::DEVICE_STATE_BYTES_MAX;

/// What goes over the wire for `state`, given what the last round brought.
pub fn pack(state: &[u8], base: &[u8]) -> Bytes {
    Bytes::from(lz4_flex::block::compress(&difference(state, base)))
}

/// The state of `length` bytes that `packed` stands for.
///
/// # Errors
/// The length is over what a state may have, or the bytes do not unpack to it.
pub fn unpack(packed: &[u8], length: u64, base: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let bad = |value| ProtocolError::Field {
        what: "seal",
        field: "state bytes",
        value,
    };
    let wanted = usize::try_from(length)
        .ok()
        .filter(|length| *length <= DEVICE_STATE_BYTES_MAX);
    let wanted = wanted.ok_or_else(|| bad(length))?;
    if packed.is_empty() && wanted == 0 {
        return Ok(Vec::new());
    }
    let unpacked =
        lz4_flex::block::decompress(packed, wanted).map_err(|_| bad(packed.len() as u64))?;
    if unpacked.len() != wanted {
        return Err(bad(unpacked.len() as u64));
    }
    Ok(difference(&unpacked, base))
}

/// XOR with the base; its own inverse. Where the base ends, zeros.
fn difference(state: &[u8], base: &[u8]) -> Vec<u8> {
    let mut out = state.to_vec();
    for (byte, base) in out.iter_mut().zip(base) {
        *byte ^= base;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_state_like_the_last_one_takes_little() {
        let base: Vec<u8> = (0..900_000u32).map(|at| (at * 7 % 251) as u8).collect();
        let mut state = base.clone();
        state[1234] ^= 1;
        state[800_000] ^= 0x80;
        let packed = pack(&state, &base);
        assert!(packed.len() < 8_000, "{} bytes", packed.len());
        assert_eq!(
            unpack(&packed, state.len() as u64, &base).expect("unpacks"),
            state
        );
        assert_ne!(
            unpack(&packed, state.len() as u64, &[]).expect("unpacks"),
            state
        );
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_memory_is_taken() {
        let packed = pack(&[1; 100], &[]);
        assert!(unpack(&packed, u64::MAX, &[]).is_err());
        assert!(unpack(&packed, DEVICE_STATE_BYTES_MAX as u64 + 1, &[]).is_err());
        assert!(unpack(&packed, 99, &[]).is_err());
        assert!(unpack(&packed, 101, &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_state_comes_back(
            state in proptest::collection::vec(any::<u8>(), 0..3000),
            base in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let packed = pack(&state, &base);
            let back = unpack(&packed, state.len() as u64, &base);
            prop_assert_eq!(back.ok(), Some(state));
        }

        #[test]
        fn no_bytes_make_unpack_panic(
            packed in proptest::collection::vec(any::<u8>(), 0..300),
            length in 0u64..100_000,
        ) {
            let _ = unpack(&packed, length, &[]);
        }
    }
}
