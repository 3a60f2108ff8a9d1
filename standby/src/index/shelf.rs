//! The builds of one index on disk.
//!
//! ```text
//! FOLDER/NAME/7          a build: the engine's files, and built.json, written last
//! FOLDER/NAME/8          half a build, without built.json, which is gone on with
//! FOLDER/NAME/current    a link to the build that is searched, switched by rename
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_replication::durable;
use understudy_replication::wall_time::WallTime;

/// The version of [`Record`].
const VERSION: u32 = 1;

/// Why builds cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct ShelfError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What is known of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// When it was finished.
    pub(super) built: WallTime,
    /// How many documents it holds; 0 where a command built it.
    pub(super) documents: u64,
    /// The hash of what it was built from, to tell when the configuration has changed.
    pub(super) source: String,
}

impl Record {
    pub(super) fn now(documents: u64, source: &str) -> Self {
        Self {
            version: VERSION,
            built: WallTime::now(),
            documents,
            source: hash(source),
        }
    }

    /// Returns whether the index was built from `source`.
    pub(super) fn is_of(&self, source: &str) -> bool {
        self.source == hash(source)
    }
}

fn number(name: &Path) -> Option<u64> {
    name.file_name()?.to_str()?.parse().ok()
}

fn hash(source: &str) -> String {
    format!("blake3:{}", blake3::hash(source.as_bytes()).to_hex())
}

/// The folder of one index.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShelfError {
    let path = path.to_owned();
    move |source| ShelfError {
        action,
        path,
        source,
    }
}

impl Shelf {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the build that is searched, with what is known of it.
    pub(super) fn current(&self) -> Result<Option<(PathBuf, Record)>, ShelfError> {
        let link = self.folder.join("current");
        let target = match fs::read_link(&link) {
            Ok(target) => self.folder.join(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &link)(source)),
        };
        let path = target.join("built.json");
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| failed("read", &path)(error.into()))?;
        if record.version != VERSION {
            let error = io::Error::other(format!("it has version {}", record.version));
            return Err(failed("understand", &path)(error));
        }
        Ok(Some((target, record)))
    }

    /// Returns half a build, if there is one: made after the one that is searched, and not whole.
    pub(super) fn half(&self) -> Option<PathBuf> {
        let link = fs::read_link(self.folder.join("current")).ok();
        let current = link.as_deref().and_then(number).unwrap_or(0);
        let path = self.folder.join(current.saturating_add(1).to_string());
        (path.is_dir() && !path.join("built.json").exists()).then_some(path)
    }

    /// Removes every build but the one that is searched, and the half one: what a crash left behind.
    pub(super) fn clean(&self) -> Result<(), ShelfError> {
        self.clean_but(self.half().as_deref())
    }

    fn clean_but(&self, half: Option<&Path>) -> Result<(), ShelfError> {
        let link = self.folder.join("current");
        let current = fs::read_link(&link)
            .ok()
            .map(|target| self.folder.join(target));
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed("read", &self.folder)(source)),
        };
        for entry in entries {
            let path = entry.map_err(failed("read", &self.folder))?.path();
            if path == link || Some(&path) == current.as_ref() || Some(path.as_path()) == half {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            } else {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Makes the folder of a new build, after removing what earlier attempts left behind.
    pub(super) fn begin(&self) -> Result<PathBuf, ShelfError> {
        durable::create_directory(&self.folder, 0o700).map_err(failed("make", &self.folder))?;
        self.clean_but(None)?;
        let current = fs::read_link(self.folder.join("current")).ok();
        let next = current
            .as_deref()
            .and_then(number)
            .unwrap_or(0)
            .saturating_add(1);
        let path = self.folder.join(next.to_string());
        durable::create_directory(&path, 0o700).map_err(failed("make", &path))?;
        Ok(path)
    }

    /// Makes a whole build the one that is searched. Order: its record makes it whole, the rename of
    /// the link makes it current, and only then is the one before it removed.
    pub(super) fn publish(&self, path: &Path, record: &Record) -> Result<(), ShelfError> {
        let built = path.join("built.json");
        let bytes =
            serde_json::to_vec(record).map_err(|error| failed("write", &built)(error.into()))?;
        durable::write(&built, &bytes, 0o600).map_err(failed("write", &built))?;
        let (link, new) = (self.folder.join("current"), self.folder.join("current.new"));
        match fs::remove_file(&new) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("remove", &new)(source)),
        }
        symlink(path.file_name().unwrap_or_default(), &new).map_err(failed("write", &new))?;
        fs::rename(&new, &link).map_err(failed("write", &link))?;
        durable::sync_directory_of(&link).map_err(failed("write", &link))?;
        self.clean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_half_built_folder_stays_until_another_is_begun() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("search"));
        assert_eq!(shelf.current().unwrap(), None);
        let first = shelf.begin().unwrap();
        shelf.publish(&first, &Record::now(3, "SELECT 1")).unwrap();
        assert_eq!(shelf.half(), None);
        let half = shelf.begin().unwrap();
        fs::write(half.join("segment"), "half").unwrap();
        fs::write(shelf.folder.join("current.new"), "torn").unwrap();
        shelf.clean().unwrap();
        assert_eq!(names(&shelf.folder), ["1", "2", "current"]);
        assert_eq!(shelf.half(), Some(half));
        let (path, record) = shelf.current().unwrap().unwrap();
        assert_eq!(
            (path, record.documents, record.is_of("SELECT 1")),
            (first, 3, true)
        );
        let second = shelf.begin().unwrap();
        assert!(!second.join("segment").exists());
        shelf.publish(&second, &Record::now(4, "SELECT 2")).unwrap();
        assert_eq!(names(&shelf.folder), ["2", "current"]);
    }
}
