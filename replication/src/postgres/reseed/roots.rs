//! The directories of a cluster on this machine, and what is beneath them.
//!
//! The data directory and those of the tablespaces are opened once, as the operator has placed them. From
//! there on the kernel resolves beneath them and follows no link, whatever a path says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::path::ClusterPath;

/// A tablespace, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// What the server knows it by.
    pub oid: u32,
    /// Its directory, as the configuration would say it: without the `root` of a machine.
    pub location: PathBuf,
    /// Its directory on the primary's machine.
    pub path: PathBuf,
}

/// A thing that was found beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A link, a socket, …
    Other,
}

/// The data directory and the tablespaces of a cluster on this machine.
#[derive(Debug)]
pub struct Roots {
    data: OwnedFd,
    tablespaces: BTreeMap<u32, OwnedFd>,
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Roots {
    /// Opens the directories.
    ///
    /// # Errors
    /// When one is not there; the error names no path.
    pub fn open(data_dir: &Path, tablespaces: &BTreeMap<u32, PathBuf>) -> io::Result<Self> {
        let opened = tablespaces
            .iter()
            .map(|(oid, path)| Ok((*oid, open_directory(path)?)));
        Ok(Self {
            data: open_directory(data_dir)?,
            tablespaces: opened.collect::<io::Result<_>>()?,
        })
    }

    /// Returns the numbers of the tablespaces.
    pub fn tablespaces(&self) -> impl Iterator<Item = u32> {
        self.tablespaces.keys().copied()
    }

    /// Returns every directory that is a file system's place of its own, perhaps.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.data.as_fd()).chain(self.tablespaces.values().map(AsFd::as_fd))
    }

    /// Finds the directory that a path is beneath, and the rest of the path.
    fn beneath<'a>(&'a self, path: &'a ClusterPath) -> (BorrowedFd<'a>, &'a str) {
        let in_tablespace = path
            .in_tablespace()
            .and_then(|(oid, within)| Some((self.tablespaces.get(&oid)?.as_fd(), within)));
        in_tablespace.unwrap_or((self.data.as_fd(), path.as_str()))
    }

    /// Opens what is at `path`, with a mode if it is to be made.
    ///
    /// # Errors
    /// When there is nothing, or a link in the way.
    pub fn open_at(&self, path: &ClusterPath, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let (root, rest) = self.beneath(path);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::openat2(root, rest, flags, mode, resolve)?)
    }

    /// Opens a file to read it.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(&self, path: &ClusterPath) -> io::Result<File> {
        let file = File::from(self.open_at(path, OFlags::RDONLY, 0)?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ))
        }
    }

    /// Opens the directory that `path` is in, and returns the name within it.
    fn parent<'a>(&self, path: &'a ClusterPath) -> io::Result<(OwnedFd, &'a str)> {
        let (root, rest) = self.beneath(path);
        let (above, name) = match rest.rsplit_once('/') {
            Some((above, _)) => (above, path.name()),
            None => (".", path.name()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let above = rustix::fs::openat2(root, above, flags, Mode::empty(), resolve)?;
        Ok((above, name))
    }

    /// Makes a directory, unless there is one; returns it opened.
    ///
    /// # Errors
    /// When it cannot be made, or something else is there.
    pub fn make_directory(&self, path: &ClusterPath) -> io::Result<OwnedFd> {
        let (above, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)
    }

    /// Removes a file, a link, or a directory that is empty.
    ///
    /// # Errors
    /// When it cannot be removed; that it is gone already is none.
    pub fn remove(&self, path: &ClusterPath, found: Found) -> io::Result<()> {
        let (above, name) = match self.parent(path) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let flags = match found {
            Found::Directory => AtFlags::REMOVEDIR,
            Found::File(_) | Found::Other => AtFlags::empty(),
        };
        match rustix::fs::unlinkat(&above, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns what is in a directory, `None` for the top of the data directory; sorted by name. What
    /// vanishes meanwhile is left out, as is a name that is no text: Postgres makes none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self, directory: Option<&ClusterPath>) -> io::Result<Vec<(ClusterPath, Found)>> {
        let opened = match directory {
            Some(path) => self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?,
            None => rustix::fs::openat(
                &self.data,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?,
        };
        let mut all = Vec::new();
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let path = match directory {
                Some(directory) => directory.child(name),
                None => name.parse(),
            };
            let Ok(path) = path else { continue };
            let stat = match rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let found = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    Found::File(u64::try_from(stat.st_size).unwrap_or_default())
                }
                FileType::Directory => Found::Directory,
                FileType::Symlink
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => Found::Other,
            };
            all.push((path, found));
        }
        all.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn path(text: &str) -> ClusterPath {
        text.parse().unwrap()
    }

    #[test]
    fn a_link_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let data = folder.path().join("data");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(data.join("base")).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        symlink(&outside, data.join("base/out")).unwrap();
        symlink(outside.join("secret"), data.join("base/file")).unwrap();
        let roots = Roots::open(&data, &BTreeMap::new()).unwrap();
        for hostile in ["base/out/secret", "base/file"] {
            assert!(roots.read(&path(hostile)).is_err(), "{hostile}");
            let make = OFlags::WRONLY | OFlags::CREATE;
            assert!(
                roots.open_at(&path(hostile), make, 0o600).is_err(),
                "{hostile}"
            );
        }
        assert!(roots.make_directory(&path("base/out")).is_err());
        assert!(roots.make_directory(&path("base/out/new")).is_err());
        assert!(
            roots
                .remove(&path("base/out/secret"), Found::File(1))
                .is_err()
        );
        // The link itself goes, and not what it leads to.
        roots.remove(&path("base/file"), Found::Other).unwrap();
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"x");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn a_tablespace_is_a_root_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (data, space) = (folder.path().join("data"), folder.path().join("space"));
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::create_dir_all(space.join("PG_15_1/5")).unwrap();
        fs::write(space.join("PG_15_1/5/7"), "abc").unwrap();
        symlink(&space, data.join("pg_tblspc/16400")).unwrap();
        let tablespaces = BTreeMap::from([(16400, space)]);
        let roots = Roots::open(&data, &tablespaces).unwrap();
        let within = path("pg_tblspc/16400/PG_15_1/5");
        assert_eq!(
            roots.list(Some(&within)).unwrap(),
            [(within.child("7").unwrap(), Found::File(3))]
        );
        assert!(roots.read(&within.child("7").unwrap()).is_ok());
        // Of another tablespace nothing is known, and its link is not followed.
        assert!(roots.list(Some(&path("pg_tblspc/16401/PG_15_1"))).is_err());
        assert_eq!(
            roots.list(Some(&path("pg_tblspc"))).unwrap(),
            [(path("pg_tblspc/16400"), Found::Other)]
        );
    }
}
