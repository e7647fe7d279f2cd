//! What the other nodes are told of a node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{KEY_BYTES, TextError, text};

const PREFIX: &str = "plover-public-1:";

/// RFC 8410: what stands before an Ed25519 key in a SubjectPublicKeyInfo.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The public half of a node's identity: one line of text, in `[[group.nodes]] public_key`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicIdentity {
    /// Key of the replication link's handshake.
    pub x25519: [u8; KEY_BYTES],
    /// Key that the hashers' link is signed with.
    pub ed25519: [u8; KEY_BYTES],
}

impl PublicIdentity {
    /// The signing key as TLS carries it (RFC 7250, RFC 8410).
    #[must_use]
    pub fn ed25519_spki(&self) -> [u8; SPKI_PREFIX.len() + KEY_BYTES] {
        let mut out = [0; SPKI_PREFIX.len() + KEY_BYTES];
        out[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        out[SPKI_PREFIX.len()..].copy_from_slice(&self.ed25519);
        out
    }

    /// The start of the text form, enough to tell a few nodes apart in a log line.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[PREFIX.len()..][..8].to_owned()
    }
}

impl fmt::Display for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 2 * KEY_BYTES];
        bytes[..KEY_BYTES].copy_from_slice(&self.x25519);
        bytes[KEY_BYTES..].copy_from_slice(&self.ed25519);
        f.write_str(&text::encode(PREFIX, &bytes))
    }
}

impl fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicIdentity({})", self.short())
    }
}

impl FromStr for PublicIdentity {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bytes = text::decode::<{ 2 * KEY_BYTES }>(PREFIX, text)?;
        let mut public = Self {
            x25519: [0; KEY_BYTES],
            ed25519: [0; KEY_BYTES],
        };
        public.x25519.copy_from_slice(&bytes[..KEY_BYTES]);
        public.ed25519.copy_from_slice(&bytes[KEY_BYTES..]);
        if crate::derive::is_weak(&public.x25519) {
            return Err(TextError::Weak);
        }
        Ok(public)
    }
}

impl TryFrom<String> for PublicIdentity {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        text.parse()
    }
}

impl From<PublicIdentity> for String {
    fn from(public: PublicIdentity) -> Self {
        public.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Identity;

    fn public() -> PublicIdentity {
        *Identity::from_secret([7; KEY_BYTES]).public()
    }

    #[test]
    fn the_text_form_is_stable() {
        let text = public().to_string();
        assert_eq!(
            text,
            "plover-public-1:EJkya12s6UH5Ke-RC6e0j7hiy5maKnH0NwicmSWb42-o21SVcTcRF1yR24YZeKNiPsHKbLzyjLO94vKyX56k6L8mI-Y"
        );
        assert_eq!(text.parse(), Ok(public()));
    }

    #[test]
    fn a_text_that_was_cut_or_mistyped_is_refused() {
        let text = public().to_string();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<PublicIdentity>().is_err(), "{cut}");
        }
        for at in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed.parse::<PublicIdentity>().is_err(), "{at}");
        }
        let secret = text.replace("public", "secret");
        assert_eq!(
            secret.parse::<PublicIdentity>(),
            Err(TextError::Prefix(PREFIX))
        );
    }

    #[test]
    fn a_key_that_agrees_with_everybody_is_refused() {
        let weak = PublicIdentity {
            x25519: [0; KEY_BYTES],
            ed25519: [1; KEY_BYTES],
        };
        assert_eq!(
            weak.to_string().parse::<PublicIdentity>(),
            Err(TextError::Weak)
        );
    }

    #[test]
    fn it_is_one_word_in_a_configuration() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Section {
            public_key: PublicIdentity,
        }
        let section = Section {
            public_key: public(),
        };
        let text = toml::to_string(&section).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(toml::from_str::<Section>(&text).unwrap(), section);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,120}", tail in "[A-Za-z0-9_-]{0,100}") {
            let _ = text.parse::<PublicIdentity>();
            let _ = format!("{PREFIX}{tail}").parse::<PublicIdentity>();
        }
    }
}
