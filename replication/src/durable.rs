//! Small files that are always a whole old or a whole new version, across a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// To whom a file is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Replaces the file at `path` by `content`, with permission bits `mode`, durably.
///
/// Invariant: a crash at any line leaves the old file or the new one, and after the return it is the
/// new one. Temporary beside it, fsync, rename, fsync of the directory, in this order. Two writers
/// of one path must not run at once.
///
/// # Errors
/// When a step fails; the old file is then still in place.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_for(path, content, mode, None)
}

/// Replaces a file as [`write()`] does, by one that belongs to `owner`; without one, to this process.
///
/// It is given away before it has its name: whoever may write in the directory can put a link there, and
/// nothing is ever given away through a name.
///
/// # Errors
/// When a step fails; the old file is then still in place.
pub fn write_for(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        // Left by a crash; created anew so that its mode is ours from the first byte.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A new file or an error: no link that has come into its place meanwhile is followed.
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    // The umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory_of(path)
}

/// Makes the creation, renaming or removal of `path` durable.
///
/// # Errors
/// When its directory cannot be opened or synced.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Creates `path` and its missing parents with permission bits `mode`, durably.
///
/// # Errors
/// When a directory cannot be made or synced.
pub fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directory(parent, mode)?;
    }
    match fs::create_dir(path) {
        Ok(()) => {
            // Who owns the parent may have put a link in its place.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = File::from(rustix::fs::open(path, flags, Mode::empty())?);
            made.set_permissions(fs::Permissions::from_mode(mode))?;
            sync_directory_of(path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_the_mode_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.json");
        write(&path, b"old", 0o600).unwrap();
        // What a crash in the middle of an earlier write left behind.
        fs::write(folder.path().join("role.json.new"), b"half").unwrap();
        write(&path, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.json");
        write(&path, b"old", 0o600).unwrap();
        fs::create_dir(folder.path().join("role.json.new")).unwrap();
        assert!(write(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
