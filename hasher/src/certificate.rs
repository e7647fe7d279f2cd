//! The certificate: a keyed, almost-universal hash of (page number, content) over the union.
//!
//! Two levels of POLYVAL (RFC 8452) under independent keys: a tag per page, so that a page that
//! was staged replaces its own tag only, and one hash over all (page number, tag) pairs in page
//! order. Bound and caveats: docs/decisions/0003-certificate.md. Finding what differs is not
//! done here, see `digest`.

use plover_types::limits::PAGE_BYTES;
use plover_types::{Certificate, PageIndex, SyncId};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;

use crate::page_hash::PageHash;

/// Bytes of the three keys together.
pub const KEY_BYTES: usize = 48;

/// The secret of one connection, chosen by the primary's hasher, never seen by a guest.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateKey(pub [u8; KEY_BYTES]);

impl std::fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateKey(secret)")
    }
}

/// The hash of one page's content under the page key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageTag(pub [u8; 16]);

/// The hash of device state, position and sync under the state key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateTag(pub [u8; 16]);

/// The three hashes, keyed and ready to be copied.
#[derive(Clone, Debug)]
pub struct Certifier {
    page: PageHash,
    union: Polyval,
    state: Polyval,
}

impl CertificateKey {
    /// A fresh key from the system's generator.
    #[must_use]
    pub fn generate() -> Self {
        Self(rand::random())
    }
}

impl Certifier {
    /// Expands the key.
    #[must_use]
    pub fn new(key: &CertificateKey) -> Self {
        let part = |at: usize| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&key.0[at..at + 16]);
            bytes
        };
        Self {
            page: PageHash::new(part(0)),
            union: Polyval::new(&part(16).into()),
            state: Polyval::new(&part(32).into()),
        }
    }

    /// The tag of a page's content. A page of zeros has the tag zero under every key.
    #[must_use]
    pub fn page_tag(&self, page: &[u8; PAGE_BYTES]) -> PageTag {
        PageTag(self.page.hash(page))
    }

    /// The certificate of a union: `pages` ascending, `tags[n]` the tag of `pages[n]`.
    ///
    /// # Panics
    /// If the two lists are not equally long.
    #[must_use]
    pub fn certify(&self, sync: SyncId, pages: &[PageIndex], tags: &[PageTag]) -> Certificate {
        assert_eq!(pages.len(), tags.len());
        let mut hash = self.union.clone();
        hash.update(&[pair(sync.0.0, pages.len() as u64).into()]);
        for (page, tag) in pages.iter().zip(tags) {
            hash.update(&[pair(page.0, 0).into(), tag.0.into()]);
        }
        Certificate(hash.finalize().into())
    }

    /// The tag of what is not memory: the device state, for this sync and position.
    #[must_use]
    pub fn state_tag(
        &self,
        sync: SyncId,
        position: plover_types::Position,
        state: &[u8],
    ) -> StateTag {
        let mut hash = self.state.clone();
        hash.update(&[
            pair(sync.0.0, state.len() as u64).into(),
            pair(position.index.0, position.packet.into()).into(),
        ]);
        hash.update_padded(state);
        StateTag(hash.finalize().into())
    }
}

fn pair(low: u64, high: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use plover_types::{LogIndex, Position};
    use proptest::prelude::*;

    use super::*;

    const SYNC: SyncId = SyncId(LogIndex(7));

    /// RFC 8452, appendix A: POLYVAL(H, X_1, X_2).
    #[test]
    fn the_hash_is_polyval() {
        let hex = |text: &str| u128::from_str_radix(text, 16).expect("hex").to_be_bytes();
        let mut hash = Polyval::new(&hex("25629347589242761d31f826ba4b757b").into());
        hash.update(&[
            hex("4f4f95668c83dfb6401762bb2d01a262").into(),
            hex("d1a24ddd2721d006bbe45f20d3c9f362").into(),
        ]);
        let result: [u8; 16] = hash.finalize().into();
        assert_eq!(result, hex("f7a3b47b846119fae5b7866cf5e5b77e"));
    }

    fn certificate(key: &CertificateKey, pages: &[(u64, [u8; PAGE_BYTES])]) -> Certificate {
        let certifier = Certifier::new(key);
        let indexes: Vec<_> = pages.iter().map(|page| PageIndex(page.0)).collect();
        let tags: Vec<_> = pages
            .iter()
            .map(|page| certifier.page_tag(&page.1))
            .collect();
        certifier.certify(SYNC, &indexes, &tags)
    }

    proptest! {
        #[test]
        fn any_changed_byte_changes_the_certificate(
            key in any::<[u8; KEY_BYTES / 2]>(),
            fill in any::<u8>(),
            at in 0usize..2 * PAGE_BYTES,
            change in 1u8..=255,
        ) {
            let mut whole = [1; KEY_BYTES];
            whole[..24].copy_from_slice(&key);
            whole[24..].copy_from_slice(&key);
            whole[0] |= 1;
            whole[16] |= 1;
            let key = CertificateKey(whole);
            let mut pages = [(3, [fill; PAGE_BYTES]), (9, [fill ^ 1; PAGE_BYTES])];
            let before = certificate(&key, &pages);
            pages[at / PAGE_BYTES].1[at % PAGE_BYTES] ^= change;
            prop_assert_ne!(before, certificate(&key, &pages));
        }
    }

    #[test]
    fn page_numbers_order_and_count_are_part_of_it() {
        let key = CertificateKey::generate();
        let (a, b) = ([1; PAGE_BYTES], [2; PAGE_BYTES]);
        let base = certificate(&key, &[(1, a), (2, b)]);
        assert_ne!(base, certificate(&key, &[(1, b), (2, a)]));
        assert_ne!(base, certificate(&key, &[(1, a), (3, b)]));
        assert_ne!(base, certificate(&key, &[(1, a)]));
        let zero = [0; PAGE_BYTES];
        assert_ne!(base, certificate(&key, &[(0, zero), (1, a), (2, b)]));
    }

    #[test]
    fn the_state_tag_covers_state_position_and_sync() {
        let certifier = Certifier::new(&CertificateKey::generate());
        let position = Position::start_of(LogIndex(5));
        let base = certifier.state_tag(SYNC, position, b"state");
        assert_ne!(base, certifier.state_tag(SYNC, position, b"statf"));
        assert_ne!(base, certifier.state_tag(SYNC, position, b"state\0"));
        assert_ne!(
            base,
            certifier.state_tag(
                SYNC,
                Position {
                    packet: 1,
                    ..position
                },
                b"state"
            )
        );
        assert_ne!(
            base,
            certifier.state_tag(SyncId(LogIndex(8)), position, b"state")
        );
    }
}
