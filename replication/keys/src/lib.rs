//! Who a node is: one secret, the keys made from it, and the file that holds it.
//!
//! What lives here: [`Identity`] (secret) and [`PublicIdentity`] (what the other nodes are told),
//! their text forms, the key file. What does not: any protocol that uses the keys (see
//! `replication::secure` and `hasher::secure`).
//!
//! ```text
//!                     HKDF-SHA256 (salt "plover identity 1")
//!  secret, 32 bytes ─┬─ "x25519"  ──▶ static key of the replication link's handshake
//!                    └─ "ed25519" ──▶ key that the hashers' TLS link is signed with
//! ```

mod derive;
mod error;
mod key_file;
mod public;
mod text;

pub use derive::Identity;
pub use error::{KeyFileError, TextError};
pub use key_file::{check_file, read, write_new};
pub use public::PublicIdentity;

/// Bytes of a secret and of each key made from it.
pub const KEY_BYTES: usize = 32;
