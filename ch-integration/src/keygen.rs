//! `plover keygen`: a new secret for one node, and the public key that all nodes' configurations
//! list for it.

use std::path::{Path, PathBuf};

use plover_keys::{Identity, KeyFileError, PublicIdentity};
use serde::Serialize;

/// What `plover keygen` prints.
#[derive(Clone, Debug, Serialize)]
pub struct KeygenReport {
    /// The file with the secret.
    pub key_file: PathBuf,
    /// Goes into `[[group.nodes]] public_key` of every node.
    pub public_key: PublicIdentity,
}

/// Makes a new key file, which must not exist.
pub fn create(path: &Path) -> Result<KeygenReport, KeyFileError> {
    let identity = Identity::generate()?;
    plover_keys::write_new(path, &identity)?;
    Ok(report(path, &identity))
}

/// Reads a key file, for its public key.
pub fn show(path: &Path) -> Result<KeygenReport, KeyFileError> {
    Ok(report(path, &plover_keys::read(path)?))
}

fn report(path: &Path, identity: &Identity) -> KeygenReport {
    KeygenReport {
        key_file: path.to_owned(),
        public_key: *identity.public(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_shown_again_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        let made = create(&path).unwrap();
        assert_eq!(show(&path).unwrap().public_key, made.public_key);
        assert!(matches!(create(&path), Err(KeyFileError::Exists { .. })));
        let json = serde_json::to_value(&made).unwrap();
        assert_eq!(json["public_key"], made.public_key.to_string());
    }
}
