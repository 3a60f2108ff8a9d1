//! The mark of half a copy.
//!
//! Invariant: the file `seeding` in the store's state names the data directory, by path and inode, from
//! before the first byte is written into it until the last one is durable. A data directory that is
//! named there is half a copy of ours, and may be removed or completed; any other belongs to somebody, and
//! is never touched. It also names the directories beside the data directory that the copy writes into, and
//! the cluster that it is a copy of.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use understudy_replication::durable;
use understudy_replication::postgres::SeedInfo;

use super::receiver::PostgresReceiver;
use super::seed::SeedError;

/// What the mark says of half a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Half {
    /// The cluster that it is a copy of, and its version, where the mark says.
    pub(super) of: Option<(u64, u32)>,
    /// Directories beside the data directory that belong to the copy.
    pub(super) beside: Vec<PathBuf>,
}

impl Half {
    /// Returns whether it is half a copy of this cluster.
    pub(super) fn is_of(&self, info: &SeedInfo) -> bool {
        self.of == Some((info.system_identifier, info.version))
    }

    fn to_text(&self, identity: &str) -> String {
        let mut text = identity.to_owned();
        if let Some((system, version)) = self.of {
            text += &format!("cluster {system} {version}\n");
        }
        for path in &self.beside {
            text += &format!("beside {}\n", path.display());
        }
        text
    }

    /// Reads a mark; `None` if it is of something else.
    fn parse(text: &str, identity: &str) -> Option<Self> {
        let mut half = Self::default();
        for line in text.strip_prefix(identity)?.lines() {
            if let Some(path) = line.strip_prefix("beside ") {
                half.beside.push(PathBuf::from(path));
            } else if let Some((system, version)) = line
                .strip_prefix("cluster ")
                .and_then(|it| it.split_once(' '))
            {
                half.of = system.parse().ok().zip(version.parse().ok());
            }
        }
        Some(half)
    }
}

impl PostgresReceiver {
    fn seeding_mark(&self) -> PathBuf {
        self.cluster.state.join("seeding")
    }

    /// Returns whether the data directory is half a copy.
    pub(super) fn is_seeding(&self) -> bool {
        self.half().is_some()
    }

    /// Returns what is known of the half copy that the data directory is, if it is one.
    pub(super) fn half(&self) -> Option<Half> {
        let text = fs::read_to_string(self.seeding_mark()).ok()?;
        Half::parse(&text, &self.identity().ok()?)
    }

    /// Returns what tells the data directory from any other that may come into its place.
    fn identity(&self) -> io::Result<String> {
        let path = self.cluster.data_dir.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        Ok(format!(
            "{}\n{}:{}\n",
            path.display(),
            metadata.dev(),
            metadata.ino()
        ))
    }

    /// Says that the data directory, and these directories beside it, are half a copy, before they are.
    pub(super) fn mark_half(&self, info: &SeedInfo, beside: &[PathBuf]) -> Result<(), SeedError> {
        let data_dir = self.cluster.data_dir.clone();
        let identity = self.identity().map_err(self.file("look at", data_dir))?;
        // What an earlier attempt has begun beside it is ours for as long as the copy is not whole.
        let mut half = self.half().unwrap_or_default();
        half.of = Some((info.system_identifier, info.version));
        for path in beside {
            if !half.beside.contains(path) {
                half.beside.push(path.clone());
            }
        }
        let mark = self.seeding_mark();
        let text = half.to_text(&identity);
        durable::write(&mark, text.as_bytes(), 0o644).map_err(self.file("write", mark))
    }

    /// Says that the copy is whole, after it is durable.
    pub(super) fn unmark_half(&self) -> Result<(), SeedError> {
        let mark = self.seeding_mark();
        match fs::remove_file(&mark) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.file("remove", mark)(error)),
        }
        durable::sync_directory_of(&mark).map_err(self.file("sync", mark))
    }
}

/// Removes what is in a directory. The directory itself is kept: it may be a mount point.
pub(super) fn empty(directory: &Path) -> Result<(), SeedError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| SeedError::File {
            action,
            path,
            source,
        }
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed("read", directory))?;
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(failed("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_of_what_it_is_half_a_copy() {
        let half = Half {
            of: Some((7_316_584_213, 15)),
            beside: vec!["/srv/wal".into(), "/srv/a space".into()],
        };
        let text = half.to_text("/data/pg\n1:2\n");
        assert_eq!(Half::parse(&text, "/data/pg\n1:2\n"), Some(half));
        assert_eq!(
            Half::parse(&text, "/data/pg\n1:3\n"),
            None,
            "another directory"
        );
        let old = Half::parse("/data/pg\n1:2\n", "/data/pg\n1:2\n");
        assert_eq!(old, Some(Half::default()), "one that says no more");
    }
}
