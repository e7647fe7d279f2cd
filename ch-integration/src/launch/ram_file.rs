//! The file that guest memory lives in, on a tmpfs, shared by VMM, backend and hasher.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::VmmError;

const TMPFS_MAGIC: u32 = 0x0102_1994;
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// A guest's memory file. Removed when dropped; mappings of it live on.
#[derive(Debug)]
pub struct RamFile {
    path: PathBuf,
    bytes: u64,
}

impl RamFile {
    /// Makes an empty file of `memory_mib` at `path`. One that is there already is replaced, not
    /// truncated: a process that still maps it (a hasher that was not restarted) must not fault.
    pub fn create(path: &Path, memory_mib: u64) -> Result<Self, VmmError> {
        let fail = |action| {
            move |source| VmmError::RamFile {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(fail("creating the folder of"))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("replacing")(error));
            }
            _ => {}
        }
        let stat = file_system(folder).map_err(fail("looking at the file system of"))?;
        warn_unless_memory(path, stat.kind);
        let free_mib = stat.free_bytes >> 20;
        if free_mib < memory_mib {
            return Err(VmmError::RamFileNoRoom {
                path: path.to_owned(),
                free_mib,
                needed_mib: memory_mib,
            });
        }
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail("creating"))?;
        let bytes = memory_mib << 20;
        let ram = Self {
            path: path.to_owned(),
            bytes,
        };
        file.set_len(bytes).map_err(fail("sizing"))?;
        Ok(ram)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for RamFile {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the next launch replaces the file anyway.
        let _ = fs::remove_file(&self.path);
    }
}

struct FileSystem {
    kind: u32,
    free_bytes: u64,
}

fn file_system(folder: &Path) -> io::Result<FileSystem> {
    let name = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: statfs is plain data; all zeros is a value of it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a C string and `stat` is ours to write.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let block_bytes = u64::try_from(stat.f_bsize).unwrap_or(0);
    // The magic is 32 bits in a field whose width differs between C libraries.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let kind = stat.f_type as u32;
    Ok(FileSystem {
        kind,
        free_bytes: stat.f_bavail.saturating_mul(block_bytes),
    })
}

fn warn_unless_memory(path: &Path, kind: u32) {
    if kind != TMPFS_MAGIC && kind != HUGETLBFS_MAGIC {
        tracing::warn!(
            ?path,
            "guest memory is not on a tmpfs: the kernel will write it to disk, and written pages \
             can't be tracked; set vmm.ram_path to a file below /dev/shm"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_at_its_size_and_goes_with_its_owner() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("deeper/ram");
        let ram = RamFile::create(&path, 64).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 20);
        assert_eq!(ram.bytes(), 64 << 20);
        drop(ram);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_there_is_replaced_and_its_reader_keeps_the_old_one() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("ram");
        fs::write(&path, b"old").unwrap();
        let old = File::open(&path).unwrap();
        let _ram = RamFile::create(&path, 64).unwrap();
        assert_eq!(old.metadata().unwrap().len(), 3);
        assert_eq!(
            fs::read(&path)
                .unwrap()
                .iter()
                .filter(|byte| **byte != 0)
                .count(),
            0
        );
    }

    #[test]
    fn memory_that_does_not_fit_is_refused_with_the_room_there_is() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = RamFile::create(&folder.path().join("ram"), 1 << 40).unwrap_err();
        assert!(matches!(error, VmmError::RamFileNoRoom { .. }), "{error}");
    }
}
