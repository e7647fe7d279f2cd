//! The file of results. Whoever wrote it, it is checked before it is believed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::figure::Figure;

/// More than this is no file of ours.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file is not there or can't be read.
    #[error("{} can't be read; `make perf` writes it", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is far too large.
    #[error("{} has {bytes} bytes, more than {FILE_BYTES_MAX}: no file of results", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is no list of rows.
    #[error("{} is no list of results; remove it and run `make perf`", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was not understood.
        source: serde_json::Error,
    },
    /// A row contradicts itself.
    #[error("{}: {name} is there twice", path.display())]
    Duplicate {
        /// Which file.
        path: PathBuf,
        /// Which row.
        name: String,
    },
    /// It can't be written.
    #[error("{} can't be written", path.display())]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Reads all rows.
pub fn read(path: &Path) -> Result<Vec<Figure>, ResultsError> {
    let unreadable = |source| ResultsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ResultsError::TooLarge {
            path: path.to_owned(),
            bytes,
        });
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let rows: Vec<Figure> =
        serde_json::from_slice(&text).map_err(|source| ResultsError::Malformed {
            path: path.to_owned(),
            source,
        })?;
    let mut names = std::collections::BTreeSet::new();
    for row in &rows {
        if !names.insert(row.name.as_str()) {
            return Err(ResultsError::Duplicate {
                path: path.to_owned(),
                name: row.name.clone(),
            });
        }
    }
    Ok(rows)
}

/// Puts rows into the file in place of those of the same names; a file that is not there is made.
pub fn merge(path: &Path, fresh: Vec<Figure>) -> Result<Vec<Figure>, ResultsError> {
    let known = if path.exists() {
        read(path)?
    } else {
        Vec::new()
    };
    let mut rows: BTreeMap<String, Figure> = BTreeMap::new();
    for row in known.into_iter().chain(fresh) {
        rows.insert(row.name.clone(), row);
    }
    let rows: Vec<Figure> = rows.into_values().collect();
    write(path, &rows)?;
    Ok(rows)
}

/// Replaces the file at once, so that nobody reads half of it.
fn write(path: &Path, rows: &[Figure]) -> Result<(), ResultsError> {
    let unwritable = |source| ResultsError::Unwritable {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(unwritable)?;
    }
    let text = serde_json::to_vec_pretty(rows)
        .map_err(|source| unwritable(std::io::Error::other(source)))?;
    let partial = path.with_extension("json.partial");
    std::fs::write(&partial, text).map_err(unwritable)?;
    std::fs::rename(&partial, path).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::measured::Measured;

    fn figure(name: &str, value: f64) -> Figure {
        let measured = Measured::new(name, "ratio", vec![value]);
        Figure::judged(measured, None, &Machine::default())
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn rows_come_back_and_newer_ones_replace_older() {
        let folder = folder();
        let path = folder.path().join("new/results.json");
        merge(&path, vec![figure("a/x", 1.0), figure("a/y", 2.0)]).expect("written");
        merge(&path, vec![figure("a/x", 3.0)]).expect("merged");
        let rows = read(&path).expect("read");
        assert_eq!(rows, [figure("a/x", 3.0), figure("a/y", 2.0)]);
    }

    #[test]
    fn a_missing_file_is_named_with_the_command_that_makes_it() {
        let error = read(&folder().path().join("none.json")).expect_err("there is none");
        assert!(matches!(error, ResultsError::Unreadable { .. }));
        assert!(error.to_string().contains("make perf"), "{error}");
    }

    #[test]
    fn hostile_files_are_refused() {
        let folder = folder();
        let path = folder.path().join("results.json");
        for text in [
            "",
            "{}",
            "[{}]",
            "[1]",
            "null",
            "[{\"name\":1}]",
            "\u{0}\u{1}",
            &"[".repeat(100_000),
        ] {
            std::fs::write(&path, text).expect("written");
            let error = read(&path).expect_err("no results");
            assert!(
                matches!(error, ResultsError::Malformed { .. }),
                "{text:.20}"
            );
        }
        let twice = serde_json::to_string(&[figure("a/x", 1.0), figure("a/x", 2.0)]);
        std::fs::write(&path, twice.expect("text")).expect("written");
        assert!(matches!(read(&path), Err(ResultsError::Duplicate { .. })));
    }

    #[test]
    fn a_merge_does_not_overwrite_what_it_does_not_understand() {
        let folder = folder();
        let path = folder.path().join("results.json");
        std::fs::write(&path, "not ours").expect("written");
        assert!(merge(&path, vec![figure("a/x", 1.0)]).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"not ours");
    }
}
