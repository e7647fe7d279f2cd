//! Why a text is no key, and why a key file is not used.

use std::io;
use std::path::PathBuf;

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It does not begin as such a key does.
    #[error("does not begin with \"{0}\"")]
    Prefix(&'static str),
    /// It is cut, too long, or has characters that no key has.
    #[error("is cut or has characters that no key has; copy the whole line")]
    Form,
    /// Its checksum does not match.
    #[error("was mistyped: its checksum does not match; copy the whole line")]
    Checksum,
    /// The point that it names is no public key of anybody.
    #[error("names no usable public key; make one with `plover keygen`")]
    Weak,
}

/// Why a key file is not read or not made.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is a file already.
    #[error(
        "{path} exists already and is not overwritten: whoever replaces a node's key must tell all \
         nodes its new public key; remove the file first, or name another"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no key file {path}; make it with `plover keygen {path}`")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error(
        "key file {path} can be read or changed by others (mode {mode:04o}): `chmod 600 {path}`, and \
         if others may have read it, make a new key"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("key file {path} belongs to user {owner}: `chown {user} {path}`")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// It is a folder, a pipe, or longer than a key.
    #[error("{path} is no key file; make one with `plover keygen`")]
    NoKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// What is in it is no secret key.
    #[error("the key in {path} cannot be used: the line that should hold it")]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TextError,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes for a new key")]
    Random,
    /// A file operation failed.
    #[error("cannot {what} the key file {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
