//! The mark of half a copy.
//!
//! Invariant: the file `seeding` in the store's state names the data directory from before the first byte is
//! written into it until the last one is durable. It also names the directories beside the data directory that
//! the copy writes into, and the cluster that it is a copy of.
//!
//! It is asked two things, and both fail to the safe side. Whether a server may be started or promoted: not
//! while the path is named there, nor while the mark cannot be read. Whether what is there may be removed or
//! completed: only if it is the very directory that was marked, which its inode and its birth tell. (Its device
//! does not: that number may change with every boot.) Any other belongs to somebody, and is never touched.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use understudy_replication::durable;
use understudy_replication::postgres::SeedInfo;

use super::beside::link_target;
use super::receiver::PostgresReceiver;
use super::seed::SeedError;

/// What the mark says of the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing: it is no half copy of ours.
    Absent,
    /// It is half a copy of ours.
    Half(Half),
    /// It names this path, but another directory was there then.
    OfAnother,
}

/// What the mark says of half a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Half {
    /// The cluster that it is a copy of, and its version, where the mark says.
    pub(super) of: Option<(u64, u32)>,
    /// Directories beside the data directory that belong to the copy.
    pub(super) beside: Vec<PathBuf>,
    /// Where the link `pg_wal` led to, if it was one: its content is removed later than the link.
    pub(super) wal: Option<PathBuf>,
}

impl Half {
    /// Returns whether it is half a copy of this cluster.
    pub(super) fn is_of(&self, info: &SeedInfo) -> bool {
        self.of == Some((info.system_identifier, info.version))
    }
}

/// What tells a directory from any other that may come into its place, across a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    inode: u64,
    /// When it was made, in nanoseconds, where its file system tells. The top of every file system of a kind
    /// has the same inode.
    born: Option<u128>,
}

impl Identity {
    /// Returns that of a directory; `None` if there is none.
    fn of(directory: &Path) -> io::Result<Option<Self>> {
        let looked = directory.canonicalize().and_then(|path| {
            let metadata = fs::metadata(&path)?;
            let born = metadata.created().ok();
            let born = born.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            Ok(Self {
                path,
                inode: metadata.ino(),
                born: born.map(|since| since.as_nanos()),
            })
        });
        match looked {
            Ok(identity) => Ok(Some(identity)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        let is_born_apart = self.born.zip(other.born).is_some_and(|(a, b)| a != b);
        self.path == other.path && self.inode == other.inode && !is_born_apart
    }

    fn mark(&self, half: &Half) -> String {
        let mut text = format!("{}\ninode {}\n", self.path.display(), self.inode);
        if let Some(born) = self.born {
            text += &format!("born {born}\n");
        }
        if let Some((system, version)) = half.of {
            text += &format!("cluster {system} {version}\n");
        }
        for path in &half.beside {
            text += &format!("beside {}\n", path.display());
        }
        if let Some(path) = &half.wal {
            text += &format!("wal {}\n", path.display());
        }
        text
    }

    /// Reads what a mark says of this directory.
    fn find_in(&self, text: &str) -> Mark {
        let mut lines = text.lines();
        let path = lines.next().unwrap_or_default();
        // A mark that names nothing was not written by us: who knows what it was to say.
        if !path.is_empty() && Path::new(path) != self.path {
            return Mark::Absent;
        }
        let mut half = Half::default();
        let mut marked = Self {
            path: path.into(),
            inode: 0,
            born: None,
        };
        for line in lines {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "inode" => marked.inode = rest.parse().unwrap_or(0),
                "born" => marked.born = rest.parse().ok(),
                "beside" => half.beside.push(PathBuf::from(rest)),
                "wal" => half.wal = Some(PathBuf::from(rest)),
                "cluster" => {
                    let numbers = rest.split_once(' ');
                    half.of = numbers.and_then(|(system, version)| {
                        system.parse().ok().zip(version.parse().ok())
                    });
                }
                _ => {}
            }
        }
        if self.is_same(&marked) {
            Mark::Half(half)
        } else {
            Mark::OfAnother
        }
    }
}

impl PostgresReceiver {
    pub(super) fn seeding_mark(&self) -> PathBuf {
        self.cluster.state.join("seeding")
    }

    /// Returns what the mark says of the data directory.
    pub(super) fn mark(&self) -> Result<Mark, SeedError> {
        let mark = self.seeding_mark();
        let text = match fs::read_to_string(&mark) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mark::Absent),
            Err(error) => return Err(self.file("read", mark)(error)),
        };
        let data_dir = &self.cluster.data_dir;
        let identity = Identity::of(data_dir).map_err(self.file("look at", data_dir.clone()))?;
        Ok(identity.map_or(Mark::Absent, |identity| identity.find_in(&text)))
    }

    /// Returns whether the data directory is half a copy, or may be one: nobody starts or promotes it then.
    pub(super) fn is_seeding(&self) -> bool {
        !matches!(self.mark(), Ok(Mark::Absent))
    }

    /// Returns what is known of the half copy that the data directory is, if it is one of ours for certain.
    pub(super) fn half(&self) -> Result<Option<Half>, SeedError> {
        Ok(match self.mark()? {
            Mark::Half(half) => Some(half),
            Mark::Absent | Mark::OfAnother => None,
        })
    }

    /// Says that the data directory, and these directories beside it, are half a copy, before they are.
    pub(super) fn mark_half(&self, info: &SeedInfo, beside: &[PathBuf]) -> Result<(), SeedError> {
        let data_dir = self.cluster.data_dir.clone();
        let identity = Identity::of(&data_dir)
            .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(self.file("look at", data_dir))?;
        // What an earlier attempt has begun beside it is ours for as long as the copy is not whole.
        let mut half = self.half()?.unwrap_or_default();
        half.of = Some((info.system_identifier, info.version));
        for path in beside {
            if !half.beside.contains(path) {
                half.beside.push(path.clone());
            }
        }
        half.wal = link_target(&self.cluster.data_dir.join("pg_wal")).or(half.wal);
        let mark = self.seeding_mark();
        let text = identity.mark(&half);
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

    fn identity() -> Identity {
        Identity {
            path: "/data/pg".into(),
            inode: 2,
            born: Some(1_700_000_000_123_456_789),
        }
    }

    #[test]
    fn a_mark_says_of_what_it_is_half_a_copy() {
        let half = Half {
            of: Some((7_316_584_213, 15)),
            beside: vec!["/srv/space".into(), "/srv/a space".into()],
            wal: Some("/srv/wal".into()),
        };
        let text = identity().mark(&half);
        assert_eq!(
            text,
            "/data/pg\ninode 2\nborn 1700000000123456789\ncluster 7316584213 15\n\
             beside /srv/space\nbeside /srv/a space\nwal /srv/wal\n"
        );
        assert_eq!(identity().find_in(&text), Mark::Half(half));
    }

    #[test]
    fn only_the_directory_that_was_marked_is_half_a_copy_and_no_other_at_its_path_is_started() {
        let text = identity().mark(&Half::default());
        let other = |change: fn(&mut Identity)| {
            let mut identity = identity();
            change(&mut identity);
            identity.find_in(&text)
        };
        assert_eq!(other(|it| it.path = "/data/other".into()), Mark::Absent);
        assert_eq!(other(|it| it.inode = 3), Mark::OfAnother);
        assert_eq!(other(|it| it.born = Some(1)), Mark::OfAnother);
        // A file system that does not tell.
        assert_eq!(other(|it| it.born = None), Mark::Half(Half::default()));
        for damaged in ["", "\n", "/data/pg", "/data/pg\ninode", "\ninode 2\n"] {
            assert_eq!(identity().find_in(damaged), Mark::OfAnother, "{damaged:?}");
        }
    }
}
