//! Hugepages for the processes that are measured: reserved if they are missing and we may, given
//! back at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGE_MIB: usize = 2;

/// Pages that were added to what was reserved; dropped, they are taken away again.
pub struct Hugepages {
    folder: PathBuf,
    added: usize,
}

impl Hugepages {
    /// Makes sure that so much is free.
    pub fn reserve(mib: usize) -> Result<Self> {
        Self::reserve_in(Path::new(FOLDER), mib.div_ceil(PAGE_MIB))
    }

    fn reserve_in(folder: &Path, wanted: usize) -> Result<Self> {
        let total = read(folder, "nr_hugepages")?;
        let free = read(folder, "free_hugepages")?;
        let missing = wanted.saturating_sub(free);
        let mut guard = Self {
            folder: folder.to_owned(),
            added: 0,
        };
        if missing == 0 {
            return Ok(guard);
        }
        let file = folder.join("nr_hugepages");
        let fix = format!("echo {} > {}", total + missing, file.display());
        if let Err(error) = std::fs::write(&file, (total + missing).to_string()) {
            bail!("{missing} hugepages are missing: {error}; as root: {fix}");
        }
        // The kernel gives what it finds; less is no error to it.
        let given = read(folder, "nr_hugepages")?;
        guard.added = given.saturating_sub(total);
        if guard.added < missing {
            bail!(
                "the kernel found only {} of {missing} hugepages; free memory \
                 (echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory), \
                 then: {fix}",
                guard.added
            );
        }
        Ok(guard)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added == 0 {
            return;
        }
        // Others may have reserved more meanwhile: only what we added goes.
        if let Ok(total) = read(&self.folder, "nr_hugepages") {
            let left = total.saturating_sub(self.added);
            if let Err(error) = std::fs::write(self.folder.join("nr_hugepages"), left.to_string()) {
                eprintln!("{} hugepages stay reserved: {error}", self.added);
            }
        }
    }
}

fn read(folder: &Path, name: &str) -> Result<usize> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}: has this kernel 2 MiB hugepages?", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} is no number", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(total: usize, free: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in [("nr_hugepages", total), ("free_hugepages", free)] {
            std::fs::write(folder.path().join(name), format!("{value}\n")).expect("written");
        }
        folder
    }

    #[test]
    fn what_is_missing_is_added_and_goes_again() {
        let folder = folder(10, 4);
        let guard = Hugepages::reserve_in(folder.path(), 6).expect("reserved");
        assert_eq!(read(folder.path(), "nr_hugepages").ok(), Some(12));
        drop(guard);
        assert_eq!(read(folder.path(), "nr_hugepages").ok(), Some(10));
    }

    #[test]
    fn enough_is_left_alone() {
        let folder = folder(10, 8);
        drop(Hugepages::reserve_in(folder.path(), 8).expect("there"));
        assert_eq!(read(folder.path(), "nr_hugepages").ok(), Some(10));
    }

    #[test]
    fn no_hugepages_at_all_is_an_error_with_its_file() {
        let empty = tempfile::tempdir().expect("a folder");
        let error = Hugepages::reserve_in(empty.path(), 1)
            .err()
            .expect("no such files");
        assert!(error.to_string().contains("hugepages"), "{error}");
    }
}
