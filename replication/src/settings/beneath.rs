//! Changing files beneath the configured paths, and nowhere else.
//!
//! The directory above a configured path is opened as the operator wrote it; from there on the
//! kernel resolves beneath it and follows no link (`openat2`), whoever puts one there meanwhile.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::capture::access;
use super::path::SettingPath;
use super::revision::{Access, Entry, REVISION_BYTES_MAX};
use super::scope::Scope;
use crate::durable;

/// What a file is called until it is whole. One per directory: only one writer is at work.
pub(super) const TEMPORARY_NAME: &str = ".understudy-new";

/// The directory that an entry lies in, opened without following a link.
pub(super) struct Parent {
    directory: OwnedFd,
    name: String,
}

/// What is at a path now.
#[derive(Debug)]
pub(super) enum Present {
    /// Nothing.
    Nothing,
    /// What a revision could have.
    Entry(Entry),
    /// A socket, a pipe or a device, which is not replaced.
    Special,
}

impl Parent {
    /// Opens the directory above `path`. With `is_made`, the directories above a configured path
    /// are made where they are missing; otherwise a missing one is an error.
    pub(super) fn open(
        scope: &Scope,
        base: &SettingPath,
        path: &SettingPath,
        is_made: bool,
    ) -> io::Result<Self> {
        let above_base = scope.resolve(base);
        let above_base = above_base.parent().unwrap_or(Path::new("/"));
        if is_made {
            durable::create_directory(above_base, 0o755)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(above_base, flags, Mode::empty())?;
        let name = name_of(path);
        if base == path {
            return Ok(Self {
                directory: top,
                name,
            });
        }
        let strip = base.relative().parent().unwrap_or(Path::new(""));
        let inner = path
            .relative()
            .strip_prefix(strip)
            .map_err(io::Error::other)?;
        let inner = inner.parent().unwrap_or(Path::new("."));
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = rustix::fs::openat2(&top, inner, flags, Mode::empty(), resolve)?;
        Ok(Self { directory, name })
    }

    /// Reads what is there now.
    pub(super) fn present(&self) -> io::Result<Present> {
        let stat = match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Present::Nothing),
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&self.directory, &self.name, Vec::new())?;
                // A target that is not text is never one of ours, and its copy is only for people.
                let target = target.to_string_lossy().into_owned();
                Ok(Present::Entry(Entry::Symlink { target }))
            }
            FileType::Directory => {
                let directory = File::from(self.open_child(OFlags::DIRECTORY)?);
                Ok(Present::Entry(Entry::Directory {
                    access: access(&directory.metadata()?),
                }))
            }
            FileType::RegularFile => {
                let file = File::from(self.open_child(OFlags::NONBLOCK)?);
                let metadata = file.metadata()?;
                if metadata.len() > REVISION_BYTES_MAX {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                let mut content = Vec::new();
                file.take(REVISION_BYTES_MAX).read_to_end(&mut content)?;
                let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
                Ok(Present::Entry(Entry::File {
                    content,
                    access: access(&metadata),
                    modified: (metadata.mtime(), nanoseconds),
                }))
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Ok(Present::Special),
        }
    }

    fn open_child(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.directory,
            &self.name,
            flags,
            Mode::empty(),
        )?)
    }

    /// Replaces what is there by a file, in one step.
    pub(super) fn put_file(
        &self,
        content: &[u8],
        access: Access,
        modified: (i64, u32),
    ) -> io::Result<()> {
        self.discard_temporary()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(
            &self.directory,
            TEMPORARY_NAME,
            flags,
            Mode::from_raw_mode(0o600),
        )?;
        let mut file = File::from(file);
        file.write_all(content)?;
        set_access(&file, access)?;
        let time = Timespec {
            tv_sec: modified.0,
            tv_nsec: modified.1.into(),
        };
        rustix::fs::futimens(
            &file,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )?;
        file.sync_all()?;
        self.rename_temporary()
    }

    /// Replaces what is there by a link, in one step.
    pub(super) fn put_symlink(&self, target: &str) -> io::Result<()> {
        self.discard_temporary()?;
        rustix::fs::symlinkat(target, &self.directory, TEMPORARY_NAME)?;
        self.rename_temporary()
    }

    /// Makes a directory there, or gives the one that is there this mode and owner.
    pub(super) fn put_directory(&self, access: Access) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.directory, &self.name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let directory = self.open_child(OFlags::DIRECTORY)?;
        set_access(&directory, access)?;
        rustix::fs::fsync(&directory)?;
        self.sync()
    }

    /// Removes a file or a link.
    pub(super) fn remove_file(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => self.sync(),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory if nothing is in it; returns whether it is gone.
    pub(super) fn remove_directory(&self) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => self.sync().map(|()| true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn discard_temporary(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, TEMPORARY_NAME, AtFlags::empty()) {
            // Left by a crash.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn rename_temporary(&self) -> io::Result<()> {
        rustix::fs::renameat(&self.directory, TEMPORARY_NAME, &self.directory, &self.name)?;
        self.sync()
    }

    /// Makes what happened in the directory durable.
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

fn name_of(path: &SettingPath) -> String {
    let name = path.relative().file_name().map(OsStr::to_string_lossy);
    name.unwrap_or_default().into_owned()
}

/// Returns whether this process may give files away.
pub(super) fn can_give_away() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sets the owner, then the mode: changing the owner takes the set-user-id bit away.
fn set_access(file: impl AsFd, access: Access) -> io::Result<()> {
    let owner = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
    match rustix::fs::fchown(&file, Some(owner.0), Some(owner.1)) {
        Ok(()) => {}
        // A node that runs as its own user keeps its files as that user's.
        Err(Errno::PERM) if !can_give_away() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::fchmod(
        &file,
        Mode::from_raw_mode(access.mode & 0o7777),
    )?)
}
