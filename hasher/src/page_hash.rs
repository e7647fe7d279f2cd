//! POLYVAL of a whole page, several blocks to a reduction: the crate `polyval` reduces after
//! every fourth block, which makes it the slowest part of digesting. Same value, chosen at run
//! time by what the processor has; the crate is the fallback and the oracle of the tests.
//!
//! With h_n the nth power of the key (in POLYVAL's own product), blocks X_1 … X_8 and accumulator
//! A: A' = (A + X_1)·h_8 + X_2·h_7 + … + X_8·h_1, and the eight products are added before the
//! one reduction.

use plover_types::limits::PAGE_BYTES;
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;

const BLOCK_BYTES: usize = 16;

/// Blocks to a reduction.
const GROUP: usize = 16;

/// The key's powers, highest first.
type Powers = [[u8; BLOCK_BYTES]; GROUP];

/// A key, ready for pages.
#[derive(Clone, Debug)]
pub struct PageHash {
    fallback: Polyval,
    /// Only where the processor can use them.
    powers: Option<Powers>,
}

impl PageHash {
    /// Expands the key.
    #[must_use]
    pub fn new(key: [u8; BLOCK_BYTES]) -> Self {
        let fallback = Polyval::new(&key.into());
        let powers = imp::supported().then(|| powers(&fallback, key));
        Self { fallback, powers }
    }

    /// The hash of a page.
    #[must_use]
    pub fn hash(&self, page: &[u8; PAGE_BYTES]) -> [u8; BLOCK_BYTES] {
        match &self.powers {
            Some(powers) => imp::hash(page, powers),
            None => self.hash_portably(page),
        }
    }

    fn hash_portably(&self, page: &[u8; PAGE_BYTES]) -> [u8; BLOCK_BYTES] {
        let mut hash = self.fallback.clone();
        hash.update_padded(page);
        hash.finalize().into()
    }
}

/// The hash of one block is its product with the key; so the powers come from the crate.
fn powers(key: &Polyval, first: [u8; BLOCK_BYTES]) -> Powers {
    let mut powers = [first; GROUP];
    for n in (0..GROUP - 1).rev() {
        let mut hash = key.clone();
        hash.update(&[powers[n + 1].into()]);
        powers[n] = hash.finalize().into();
    }
    powers
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{
        __m128i, __m512i, _mm_clmulepi64_si128, _mm_loadu_si128, _mm_set_epi64x, _mm_setzero_si128,
        _mm_shuffle_epi32, _mm_slli_si128, _mm_srli_si128, _mm_storeu_si128, _mm_xor_si128,
        _mm512_clmulepi64_epi128, _mm512_extracti64x2_epi64, _mm512_loadu_si512,
        _mm512_setzero_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
    };

    use super::{BLOCK_BYTES, GROUP, PAGE_BYTES, Powers};

    /// Blocks in a wide register.
    const WIDE: usize = 4;

    pub(super) fn supported() -> bool {
        is_x86_feature_detected!("pclmulqdq") && is_x86_feature_detected!("sse4.1")
    }

    fn wide() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("vpclmulqdq")
    }

    pub(super) fn hash(page: &[u8; PAGE_BYTES], powers: &Powers) -> [u8; BLOCK_BYTES] {
        if wide() {
            // SAFETY: the features were just detected.
            return unsafe { hash_wide(page, powers) };
        }
        // SAFETY: powers are only there where the features were detected.
        unsafe { hash_narrow(page, powers) }
    }

    /// An unreduced sum of products: 256 bits, the middle kept apart.
    #[derive(Clone, Copy)]
    struct Sum {
        low: __m128i,
        middle: __m128i,
        high: __m128i,
    }

    #[target_feature(enable = "pclmulqdq,sse4.1")]
    pub(super) fn hash_narrow(page: &[u8; PAGE_BYTES], powers: &Powers) -> [u8; BLOCK_BYTES] {
        let (blocks, _) = page.as_chunks::<BLOCK_BYTES>();
        let (groups, _) = blocks.as_chunks::<GROUP>();
        let mut accumulator = _mm_setzero_si128();
        for group in groups {
            let first = _mm_xor_si128(accumulator, load(&group[0]));
            let mut sum = product(first, load(&powers[0]));
            for (block, power) in group.iter().zip(powers).skip(1) {
                let next = product(load(block), load(power));
                sum.low = _mm_xor_si128(sum.low, next.low);
                sum.middle = _mm_xor_si128(sum.middle, next.middle);
                sum.high = _mm_xor_si128(sum.high, next.high);
            }
            accumulator = reduce(sum);
        }
        store(accumulator)
    }

    #[target_feature(enable = "avx512f,avx512dq,vpclmulqdq,pclmulqdq,sse4.1")]
    pub(super) fn hash_wide(page: &[u8; PAGE_BYTES], powers: &Powers) -> [u8; BLOCK_BYTES] {
        let (blocks, _) = page.as_chunks::<BLOCK_BYTES>();
        let (groups, _) = blocks.as_chunks::<GROUP>();
        let (powers, _) = powers.as_chunks::<WIDE>();
        let mut accumulator = _mm_setzero_si128();
        for group in groups {
            let (quads, _) = group.as_chunks::<WIDE>();
            let mut low = _mm512_setzero_si512();
            let (mut middle, mut high) = (low, low);
            let mut carry = _mm512_zextsi128_si512(accumulator);
            for (quad, power) in quads.iter().zip(powers) {
                let block = _mm512_xor_si512(load_wide(quad), carry);
                carry = _mm512_setzero_si512();
                let power = load_wide(power);
                low = _mm512_xor_si512(low, _mm512_clmulepi64_epi128::<0x00>(block, power));
                high = _mm512_xor_si512(high, _mm512_clmulepi64_epi128::<0x11>(block, power));
                // Three-way exclusive or.
                middle = _mm512_ternarylogic_epi64::<0x96>(
                    middle,
                    _mm512_clmulepi64_epi128::<0x01>(block, power),
                    _mm512_clmulepi64_epi128::<0x10>(block, power),
                );
            }
            let sum = Sum {
                low: fold(low),
                middle: fold(middle),
                high: fold(high),
            };
            accumulator = reduce(sum);
        }
        store(accumulator)
    }

    /// The sum of the four blocks of a wide register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn fold(wide: __m512i) -> __m128i {
        let one = _mm_xor_si128(
            _mm512_extracti64x2_epi64::<0>(wide),
            _mm512_extracti64x2_epi64::<1>(wide),
        );
        let two = _mm_xor_si128(
            _mm512_extracti64x2_epi64::<2>(wide),
            _mm512_extracti64x2_epi64::<3>(wide),
        );
        _mm_xor_si128(one, two)
    }

    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    fn product(one: __m128i, two: __m128i) -> Sum {
        Sum {
            low: _mm_clmulepi64_si128::<0x00>(one, two),
            middle: _mm_xor_si128(
                _mm_clmulepi64_si128::<0x01>(one, two),
                _mm_clmulepi64_si128::<0x10>(one, two),
            ),
            high: _mm_clmulepi64_si128::<0x11>(one, two),
        }
    }

    /// Montgomery reduction by x^128 + x^127 + x^126 + x^121 + 1: POLYVAL's product has the
    /// factor x^-128.
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    fn reduce(sum: Sum) -> __m128i {
        let polynomial = _mm_set_epi64x(0, 0xc200_0000_0000_0000_u64 as i64);
        let low = _mm_xor_si128(sum.low, _mm_slli_si128::<8>(sum.middle));
        let high = _mm_xor_si128(sum.high, _mm_srli_si128::<8>(sum.middle));
        let once = _mm_xor_si128(
            _mm_shuffle_epi32::<0x4e>(low),
            _mm_clmulepi64_si128::<0x00>(low, polynomial),
        );
        let twice = _mm_xor_si128(
            _mm_shuffle_epi32::<0x4e>(once),
            _mm_clmulepi64_si128::<0x00>(once, polynomial),
        );
        _mm_xor_si128(high, twice)
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(block: &[u8; BLOCK_BYTES]) -> __m128i {
        // SAFETY: 16 bytes that are ours; the load needs no alignment.
        unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_wide(blocks: &[[u8; BLOCK_BYTES]; WIDE]) -> __m512i {
        // SAFETY: 64 bytes that are ours; the load needs no alignment.
        unsafe { _mm512_loadu_si512(blocks.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn store(value: __m128i) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        // SAFETY: 16 bytes of our own; the store needs no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) };
        bytes
    }

    #[cfg(test)]
    pub(super) fn every_way(page: &[u8; PAGE_BYTES], powers: &Powers) -> Vec<[u8; BLOCK_BYTES]> {
        // SAFETY: powers are only there where the features were detected.
        let mut all = vec![unsafe { hash_narrow(page, powers) }];
        if wide() {
            // SAFETY: just detected.
            all.push(unsafe { hash_wide(page, powers) });
        }
        all
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use super::{BLOCK_BYTES, PAGE_BYTES, Powers};

    pub(super) fn supported() -> bool {
        false
    }

    pub(super) fn hash(_: &[u8; PAGE_BYTES], _: &Powers) -> [u8; BLOCK_BYTES] {
        unreachable!("no powers are made where this is not supported")
    }

    #[cfg(test)]
    pub(super) fn every_way(_: &[u8; PAGE_BYTES], _: &Powers) -> Vec<[u8; BLOCK_BYTES]> {
        Vec::new()
    }
}

const _: () = assert!(PAGE_BYTES.is_multiple_of(BLOCK_BYTES * GROUP));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_way_gives_the_crates_value(key in any::<[u8; 16]>(), seed in any::<u64>()) {
            let hash = PageHash::new(key);
            let mut page = [0; PAGE_BYTES];
            let mut state = seed | 1;
            for byte in &mut page {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
            let expected = hash.hash_portably(&page);
            prop_assert_eq!(hash.hash(&page), expected);
            if let Some(powers) = &hash.powers {
                for way in imp::every_way(&page, powers) {
                    prop_assert_eq!(way, expected);
                }
            }
        }
    }
}
