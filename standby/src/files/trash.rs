//! What was deleted is kept for a while, out of sight.
//!
//! ```text
//! .understudy/trash/SECONDS-POSITION/INDEX-NAME      .understudy/gone-…: to be removed at once
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, fstatvfs, renameat, unlinkat};
use rustix::io::Errno;
use understudy_replication::files::{RelPath, identity, names, open_in, stat_in};
use understudy_replication::position::Position;
use understudy_replication::wall_time::WallTime;

use super::tree::{GONE, Guarded, TRASH, Tree, open_or_make, remove};

/// The trash is emptied, the oldest first, while less than this share of the file system is free.
const FREE_PERCENT_MIN: u64 = 5;

/// Names are cut to fit with what is put in front of them.
const NAME_BYTES_KEPT: usize = 200;

/// Where one batch's deletions go.
pub(super) struct Trash {
    is_kept: bool,
    name: String,
    open: Option<OwnedFd>,
}

impl Trash {
    /// Where the deletions of the batch that begins at `start` go, if they are kept.
    pub(super) fn of(retention: Duration, start: Position) -> Self {
        Self {
            is_kept: !retention.is_zero(),
            name: format!("{}-{start}", WallTime::now().0 / 1000),
            open: None,
        }
    }

    /// Takes a name out of the tree.
    pub(super) fn put(
        &mut self,
        tree: &Tree,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        index: u32,
    ) -> io::Result<()> {
        if !self.is_kept {
            return tree.take_away(parent, path, &Guarded::new());
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let trash = open_or_make(tree.staging(), TRASH)?;
                open_or_make(trash.as_fd(), &self.name)?
            }
        };
        let name = path.name();
        let name = name.get(..NAME_BYTES_KEPT).unwrap_or(name);
        let name = [format!("{index}-").as_bytes(), name].concat();
        let moved = renameat(parent, path.name(), &open, name.as_slice());
        self.open = Some(open);
        match moved {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // The same deletion, done again after a crash.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {
                tree.take_away(parent, path, &Guarded::new())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Removes for good what has been taken out of the tree: directories that nobody asked to keep, and what
/// has been in the trash for longer than `retention`; more of it when the disk fills up. Returns how many
/// deletions are kept.
pub(super) fn sweep(tree: &Tree, retention: Duration, is_full: bool) -> io::Result<u64> {
    for name in names(&reopen(tree.staging())?)? {
        if name.starts_with(GONE.as_bytes()) {
            remove(tree.staging(), &name)?;
        }
    }
    let Ok(trash) = open_in(tree.staging(), TRASH.as_bytes(), flags()) else {
        return Ok(0);
    };
    let mut kept: Vec<(u64, Vec<u8>)> = names(&trash)?
        .into_iter()
        .map(|name| {
            let text = String::from_utf8_lossy(&name);
            let seconds = text.split('-').next().and_then(|text| text.parse().ok());
            (seconds.unwrap_or(0), name)
        })
        .collect();
    kept.sort();
    let now = WallTime::now().0 / 1000;
    let mut count = u64::try_from(kept.len()).unwrap_or(u64::MAX);
    for (seconds, name) in kept {
        let is_old = seconds.saturating_add(retention.as_secs()) <= now;
        if !is_old && !is_full && !is_short(tree)? {
            break;
        }
        remove(trash.as_fd(), &name)?;
        count = count.saturating_sub(1);
    }
    Ok(count)
}

/// Puts what a check has found to be too much into the trash, whether deletions are kept or not: nobody
/// has said that it may go.
pub(super) fn put_extra(tree: &Tree, parent: BorrowedFd<'_>, path: &RelPath) -> io::Result<()> {
    let mut trash = Trash::of(Duration::MAX, Position(0));
    let found = identity(&stat_in(parent, path.name())?);
    let inode = u32::try_from(found.inode % u64::from(u32::MAX)).unwrap_or_default();
    if found.file_type() != FileType::Directory && found.file_type() != FileType::RegularFile {
        return match unlinkat(parent, path.name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        };
    }
    trash.put(tree, parent, path, inode)
}

fn flags() -> rustix::fs::OFlags {
    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY
}

fn reopen(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_in(directory, b".", flags())
}

fn is_short(tree: &Tree) -> io::Result<bool> {
    let found = fstatvfs(tree.staging())?;
    Ok(found.f_bavail.saturating_mul(100) < found.f_blocks.saturating_mul(FREE_PERCENT_MIN))
}
