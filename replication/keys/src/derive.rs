//! The secret and what is made from it.

use std::fmt;

use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::traits::IsIdentity;
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use crate::{KEY_BYTES, KeyFileError, PublicIdentity, TextError, text};

const PREFIX: &str = "plover-secret-1:";
const SALT: &[u8] = b"plover identity 1";

/// RFC 8410: what stands before an Ed25519 seed in a PKCS #8 document.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node's secret identity. Its memory is cleared when it is dropped; it is never printed.
#[derive(Clone)]
pub struct Identity {
    secret: Zeroizing<[u8; KEY_BYTES]>,
    x25519: Zeroizing<[u8; KEY_BYTES]>,
    ed25519_seed: Zeroizing<[u8; KEY_BYTES]>,
    public: PublicIdentity,
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, KeyFileError> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut secret[..])
            .map_err(|_| KeyFileError::Random)?;
        Ok(Self::from_secret(*secret))
    }

    /// The identity of this secret.
    #[must_use]
    pub fn from_secret(secret: [u8; KEY_BYTES]) -> Self {
        let secret = Zeroizing::new(secret);
        let x25519 = expand(&secret, b"x25519");
        let ed25519_seed = expand(&secret, b"ed25519");
        let mut ed25519 = [0; KEY_BYTES];
        // A seed of this length makes a key: an error would be ring's bug, and leaves a key that
        // nobody can sign with.
        if let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(&ed25519_seed[..]) {
            ed25519.copy_from_slice(pair.public_key().as_ref());
        }
        let public = PublicIdentity {
            x25519: MontgomeryPoint::mul_base_clamped(*x25519).to_bytes(),
            ed25519,
        };
        Self {
            secret,
            x25519,
            ed25519_seed,
            public,
        }
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Says what is wrong with the text, without repeating it.
    pub fn from_text(line: &str) -> Result<Self, TextError> {
        let secret = text::decode::<KEY_BYTES>(PREFIX, line)?;
        Ok(Self::from_secret(*secret))
    }

    /// The text form, for the key file and nothing else.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        text::encode(PREFIX, &self.secret)
    }

    /// What the other nodes are told.
    #[must_use]
    pub fn public(&self) -> &PublicIdentity {
        &self.public
    }

    /// The static key of the replication link's handshake.
    #[must_use]
    pub fn x25519(&self) -> &[u8; KEY_BYTES] {
        &self.x25519
    }

    /// What this node and `peer` share, and nobody else knows: the base of the key that guards
    /// the handshake. None if the peer's key is one that agrees with everybody.
    #[must_use]
    pub fn agree(&self, peer: &PublicIdentity) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let shared = MontgomeryPoint(peer.x25519).mul_clamped(*self.x25519);
        (!shared.is_identity()).then(|| Zeroizing::new(shared.to_bytes()))
    }

    /// The signing key as a PKCS #8 document, as TLS libraries take it.
    #[must_use]
    pub fn ed25519_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + KEY_BYTES));
        out.extend_from_slice(&PKCS8_PREFIX);
        out.extend_from_slice(&self.ed25519_seed[..]);
        out
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(secret of {:?})", self.public)
    }
}

/// Whether a public key makes everybody agree on the same: a point of small order.
pub(crate) fn is_weak(x25519: &[u8; KEY_BYTES]) -> bool {
    MontgomeryPoint(*x25519)
        .mul_clamped([1; KEY_BYTES])
        .is_identity()
}

fn expand(secret: &[u8; KEY_BYTES], label: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    let pseudo_random = Salt::new(HKDF_SHA256, SALT).extract(secret);
    let filled = pseudo_random
        .expand(&[label], HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out[..]));
    assert!(filled.is_ok(), "HKDF-SHA256 gives up to 8160 bytes");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_agree_and_a_third_does_not() {
        let [a, b, c] = [1, 2, 3].map(|byte| Identity::from_secret([byte; KEY_BYTES]));
        assert_eq!(*a.agree(b.public()).unwrap(), *b.agree(a.public()).unwrap());
        assert_ne!(*a.agree(b.public()).unwrap(), *c.agree(a.public()).unwrap());
    }

    #[test]
    fn points_of_small_order_are_known() {
        assert!(is_weak(&[0; KEY_BYTES]));
        let mut one = [0; KEY_BYTES];
        one[0] = 1;
        assert!(is_weak(&one));
        assert!(!is_weak(
            &Identity::from_secret([1; KEY_BYTES]).public().x25519
        ));
    }

    #[test]
    fn the_keys_are_unlike_each_other_and_the_secret() {
        let identity = Identity::from_secret([9; KEY_BYTES]);
        assert_ne!(*identity.x25519, *identity.ed25519_seed);
        assert_ne!(*identity.x25519, *identity.secret);
        assert_ne!(identity.public.x25519, identity.public.ed25519);
    }

    #[test]
    fn text_goes_there_and_back_and_is_not_printed() {
        let identity = Identity::generate().unwrap();
        let text = identity.to_text();
        assert_eq!(
            Identity::from_text(&text).unwrap().public(),
            identity.public()
        );
        let shown = format!("{identity:?}");
        assert!(
            !shown.contains(&text[PREFIX.len()..PREFIX.len() + 8]),
            "{shown}"
        );
        assert_eq!(
            Identity::from_text(&identity.public().to_string()).unwrap_err(),
            TextError::Prefix(PREFIX)
        );
    }

    #[test]
    fn tls_takes_the_signing_key() {
        let identity = Identity::from_secret([5; KEY_BYTES]);
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&identity.ed25519_pkcs8()).unwrap();
        assert_eq!(pair.public_key().as_ref(), identity.public().ed25519);
        assert!(
            identity
                .public()
                .ed25519_spki()
                .ends_with(&identity.public().ed25519)
        );
    }
}
