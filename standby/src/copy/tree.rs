//! Copying files and folders as they are: owners, modes, times, links, holes.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Timespec, Timestamps, ioctl_ficlone};
use understudy_replication::files::data_ranges;

use super::pace::Pace;
use super::{CopyError, failed};

/// How much is copied between two looks at the clock.
const PIECE_BYTES: u64 = 1 << 20;

/// How often a folder is removed again in which something still came to be.
const REMOVALS_MAX: u32 = 50;

/// Returns whether files in `folder` can share blocks with each other.
pub fn can_share_blocks(folder: &Path) -> io::Result<bool> {
    let [from, to] = ["probe-from", "probe-to"].map(|name| folder.join(name));
    fs::write(&from, [7; 4096])?;
    let source = File::open(&from)?;
    let target = File::create(&to)?;
    let can_share = ioctl_ficlone(&target, &source).is_ok();
    fs::remove_file(&from)?;
    fs::remove_file(&to)?;
    Ok(can_share)
}

/// Copies what `source` is to `target`, which must not be there, with all beneath it but what `is_skipped`
/// says, by its path within. What goes meanwhile is left out.
pub(super) fn copy_tree(
    source: &Path,
    target: &Path,
    pace: &Pace,
    is_skipped: &dyn Fn(&Path) -> bool,
) -> Result<(), CopyError> {
    copy_entry(source, target, Path::new(""), pace, is_skipped)
}

fn copy_entry(
    source: &Path,
    target: &Path,
    within: &Path,
    pace: &Pace,
    is_skipped: &dyn Fn(&Path) -> bool,
) -> Result<(), CopyError> {
    pace.check()?;
    let found = match fs::symlink_metadata(source) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", source)(error)),
    };
    if found.is_symlink() {
        let link = fs::read_link(source).map_err(failed("read", source))?;
        std::os::unix::fs::symlink(link, target).map_err(failed("make", target))?;
        return lchown(target, Some(found.uid()), Some(found.gid()))
            .map_err(failed("give away", target));
    }
    if found.is_file() {
        return match File::open(source) {
            Ok(file) => copy_file(&file, source, target, pace),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("open", source)(error)),
        };
    }
    if !found.is_dir() {
        // Sockets and pipes belong to the processes that made them.
        return Ok(());
    }
    fs::create_dir(target).map_err(failed("make", target))?;
    let entries = match fs::read_dir(source) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", source)(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed("read", source))?.file_name();
        let within = within.join(&name);
        if !is_skipped(&within) {
            copy_entry(
                &source.join(&name),
                &target.join(&name),
                &within,
                pace,
                is_skipped,
            )?;
        }
    }
    let made = File::open(target).map_err(failed("open", target))?;
    dress(&made, &found).map_err(failed("dress", target))
}

/// Copies a file as it is now; one that grows meanwhile is copied as far as it was.
pub(super) fn copy_file(
    source: &File,
    path: &Path,
    target: &Path,
    pace: &Pace,
) -> Result<(), CopyError> {
    let found = source.metadata().map_err(failed("look at", path))?;
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)
        .map_err(failed("make", target))?;
    content(source, &made, found.len(), pace)
        .map_err(|error| error.told(|source| failed("copy", path)(source)))?;
    dress(&made, &found).map_err(failed("dress", target))
}

/// What ends a copy of a content: the word to stop, or the disk.
pub(crate) enum Ended {
    /// Told already in full.
    Copy(CopyError),
    /// What the disk said.
    Disk(io::Error),
}

impl Ended {
    /// Returns the error; `told` says what the disk said of what.
    pub(crate) fn told(self, told: impl FnOnce(io::Error) -> CopyError) -> CopyError {
        match self {
            Self::Copy(error) => error,
            Self::Disk(error) => told(error),
        }
    }
}

impl From<CopyError> for Ended {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Makes `target` hold what `source` does: by sharing its blocks, or by copying all but its holes.
pub(crate) fn content(source: &File, target: &File, bytes: u64, pace: &Pace) -> Result<(), Ended> {
    if bytes > 0 && ioctl_ficlone(target, source).is_ok() {
        pace.share(bytes);
        return Ok(pace.check()?);
    }
    let ranges = data_ranges(source, bytes).unwrap_or_else(|_| vec![(0, bytes)]);
    let piece = usize::try_from(PIECE_BYTES.min(bytes.max(1))).unwrap_or(1);
    let mut room = vec![0; piece];
    for (start, length) in ranges {
        let (mut at, end) = (start, start.saturating_add(length));
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(piece).min(piece);
            let Some(some) = room.get_mut(..most) else {
                break;
            };
            let read = source.read_at(some, at)?;
            if read == 0 {
                // It has become shorter.
                break;
            }
            target.write_all_at(some.get(..read).unwrap_or_default(), at)?;
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            at = at.saturating_add(read);
            pace.copy(read)?;
        }
    }
    Ok(target.set_len(bytes)?)
}

/// Gives what was made the owner, the mode and the times of the original.
fn dress(made: &File, found: &Metadata) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        fchown(made, Some(found.uid()), Some(found.gid()))?;
    }
    made.set_permissions(fs::Permissions::from_mode(found.mode() & 0o7777))?;
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    Ok(rustix::fs::futimens(made, &times)?)
}

/// Returns how many bytes the files beneath `path` have; what cannot be looked at counts as nothing.
pub fn tree_bytes(path: &Path) -> u64 {
    let mut bytes = 0_u64;
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        if found.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        } else if found.is_file() {
            // What it takes, and not what it says: holes take nothing.
            bytes = bytes.saturating_add(found.len().min(found.blocks().saturating_mul(512)));
        } else if found.is_symlink() && path.parent().is_some_and(|it| it.ends_with("pg_tblspc")) {
            waiting.extend(fs::canonicalize(&path).ok());
        }
    }
    bytes
}

/// Removes a folder with all beneath it, following no link; processes that were killed may still be writing
/// their last. One that is not there is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_tree(path: &Path) -> Result<(), CopyError> {
    let mut attempt = 0;
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt >= REMOVALS_MAX => return Err(failed("remove", path)(error)),
            Err(_) => {
                attempt += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Makes a folder, and those above it, of this process' user.
pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), CopyError> {
    understudy_replication::durable::create_directory(path, mode).map_err(failed("make", path))
}

/// Returns the parent of a path, made if it is missing.
pub(super) fn make_parent(path: &Path) -> Result<(), CopyError> {
    match path.parent() {
        Some(parent) => make_folder(parent, 0o755),
        None => Ok(()),
    }
}

/// Returns a link's target as a path of its own, whatever it is relative to.
pub(super) fn resolved(link: &Path) -> Result<PathBuf, CopyError> {
    fs::canonicalize(link).map_err(failed("follow", link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::store::Stopper;

    #[test]
    fn a_tree_is_copied_as_it_is_but_for_what_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(source.join("deep/skipped")).unwrap();
        fs::write(source.join("deep/file"), "content").unwrap();
        fs::set_permissions(source.join("deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("nowhere", source.join("link")).unwrap();
        fs::write(source.join("deep/skipped/x"), "x").unwrap();
        let sparse = File::create(source.join("sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"end", (8 << 20) - 3).unwrap();
        let (_stopper, stop) = Stopper::new();
        let pace = Pace::new(None, stop);
        copy_tree(&source, &target, &pace, &|within| {
            within == Path::new("deep/skipped")
        })
        .unwrap();
        assert_eq!(
            fs::read_to_string(target.join("deep/file")).unwrap(),
            "content"
        );
        let (was, is) = (source.join("deep/file"), target.join("deep/file"));
        let (was, is) = (was.metadata().unwrap(), is.metadata().unwrap());
        assert_eq!((was.mode(), was.mtime()), (is.mode(), is.mtime()));
        assert_eq!(
            fs::read_link(target.join("link")).unwrap(),
            Path::new("nowhere")
        );
        assert!(!target.join("deep/skipped").exists());
        let (was, is) = (
            fs::read(source.join("sparse")),
            fs::read(target.join("sparse")),
        );
        assert!(was.unwrap() == is.unwrap());
        assert!(target.join("sparse").metadata().unwrap().blocks() < 100);
        remove_tree(&target).unwrap();
        remove_tree(&target).unwrap();
        assert!(!target.exists());
        // A copy that is not wanted any more ends.
        drop(_stopper);
        assert!(matches!(
            copy_tree(&source, &target, &pace, &|_| false),
            Err(CopyError::Stopped)
        ));
    }
}
