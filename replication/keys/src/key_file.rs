//! The file that holds a node's secret: text, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::{Identity, KeyFileError};

const MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;
const ROOT: u32 = 0;

/// More than a key file has.
const FILE_BYTES_MAX: u64 = 4096;

/// Writes a new key file, which must not exist. When it returns, the file is on disk.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn write_new(path: &Path, identity: &Identity) -> Result<(), KeyFileError> {
    let failed = |what| io_error(what, path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyFileError::Exists {
                path: path.to_owned(),
            },
            _ => failed("create")(source),
        })?;
    let secret = identity.to_text();
    let text = Zeroizing::new(format!(
        "# The secret key of one Plover node. Whoever has it can act as this node.\n\
         # public: {}\n{}\n",
        identity.public(),
        *secret
    ));
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder_of(path))?.sync_all())
        .map_err(failed("write"))
}

/// Reads a key file, if nobody else can.
///
/// # Errors
/// Names what is wrong with the file, and what to do.
pub fn read(path: &Path) -> Result<Identity, KeyFileError> {
    let file = open_checked(path)?;
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io_error("read", path))?;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    Identity::from_text(line.unwrap_or_default()).map_err(|source| KeyFileError::Text {
        path: path.to_owned(),
        source,
    })
}

/// Checks who can read the file, and that it is one.
///
/// # Errors
/// Names what is wrong with the file, and what to do.
pub fn check_file(path: &Path) -> Result<(), KeyFileError> {
    open_checked(path).map(drop)
}

fn open_checked(path: &Path) -> Result<File, KeyFileError> {
    // Not blocking: a pipe in the file's place is refused, not waited for.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path);
    let path = path.to_owned();
    let file = match opened {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            return Err(KeyFileError::Missing { path });
        }
        Err(source) => return Err(io_error("open", &path)(source)),
    };
    // Of the file that is open, not of the path: it cannot change in between.
    let about = file.metadata().map_err(io_error("look at", &path))?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(KeyFileError::NoKeyFile { path });
    }
    let (mode, owner, user) = (
        about.mode() & 0o7777,
        about.uid(),
        nix::unistd::geteuid().as_raw(),
    );
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Mode { path, mode });
    }
    if owner != user && owner != ROOT {
        return Err(KeyFileError::Owner { path, owner, user });
    }
    Ok(file)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> KeyFileError {
    let path = path.to_owned();
    move |source| KeyFileError::Io {
        what,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::TextError;

    fn written() -> (tempfile::TempDir, std::path::PathBuf, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let identity = Identity::generate().unwrap();
        write_new(&path, &identity).unwrap();
        (dir, path, identity)
    }

    #[test]
    fn what_is_written_is_read_and_only_the_owner_can() {
        let (_dir, path, identity) = written();
        assert_eq!(read(&path).unwrap().public(), identity.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
    }

    #[test]
    fn a_file_is_never_overwritten() {
        let (_dir, path, identity) = written();
        let other = Identity::generate().unwrap();
        assert!(matches!(
            write_new(&path, &other),
            Err(KeyFileError::Exists { .. })
        ));
        assert_eq!(read(&path).unwrap().public(), identity.public());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_fix() {
        let (_dir, path, _) = written();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = read(&path).unwrap_err();
            assert!(matches!(refused, KeyFileError::Mode { .. }), "{mode:o}");
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        read(&path).unwrap();
    }

    #[test]
    fn what_is_no_key_file_is_told_apart() {
        let (dir, path, _) = written();
        assert!(matches!(
            read(&dir.path().join("absent")),
            Err(KeyFileError::Missing { .. })
        ));
        assert!(matches!(
            read(dir.path()),
            Err(KeyFileError::NoKeyFile { .. } | KeyFileError::Mode { .. })
        ));
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::NoKeyFile { .. })));
        for text in ["", "# only this\n", "plover-secret-1:\n", "\0\n"] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(read(&path), Err(KeyFileError::Text { .. })),
                "{text:?}"
            );
        }
        fs::write(&path, [0xff; 40]).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn a_public_key_in_its_place_is_refused_and_not_printed() {
        let (_dir, path, identity) = written();
        fs::write(&path, identity.public().to_string()).unwrap();
        let Err(KeyFileError::Text { source, .. }) = read(&path) else {
            panic!("taken");
        };
        assert!(matches!(source, TextError::Prefix(_)));
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::NoKeyFile { .. })));
    }
}
