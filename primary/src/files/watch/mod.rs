//! Tells which paths something happened to. A hint only; what is there is always read anew.
//!
//! fanotify has one mark for the whole file system, however many directories there are, but needs
//! privileges and a file system that can find a directory again by a handle. Where that is not so,
//! inotify watches each directory.

mod event;
mod fanotify;
mod handle;
mod inotify;
mod told;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use understudy_replication::files::{RelPath, Root, stat_fd};

use fanotify::Fanotify;
use inotify::Inotify;
pub(super) use told::beneath;

/// What happened.
///
/// Those of one drain are in this order: moves as they were made; then places, by the paths that they
/// have after these moves, with what was changed through them; then [`Happening::Anywhere`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happening {
    /// To a path; deep if what it holds is new, too.
    At(RelPath, bool),
    /// A path within the tree got another name within the tree: one rename, of a file or of a whole
    /// directory. A hint as all are: what is there is read anew.
    ///
    /// Both paths are to be looked at, `to` deeply if the hint proves wrong or nothing was known at
    /// `from`. An exchange of two paths is told as two moves.
    Moved {
        from: RelPath,
        to: RelPath,
        is_directory: bool,
    },
    /// A file was changed under this path, which may not be its name any more, while another one is. Told
    /// beside [`Happening::At`].
    Through(RelPath, FileHandle),
    /// The kernel has dropped events, or the top itself is concerned.
    Anywhere,
}

/// Names a file wherever it is, as the kernel does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileHandle(Vec<u8>);

impl FileHandle {
    /// Returns the number of the inode if it can be told without asking.
    pub(super) fn inode(&self) -> Option<u64> {
        handle::inode_of(&self.0)
    }

    /// Returns the number of the inode, on the file system of `on`; `None` if it is no more.
    pub(super) fn find(&self, on: BorrowedFd<'_>) -> Option<u64> {
        let file = handle::open_any(on, &self.0).ok()?;
        let stat = stat_fd(file.as_fd()).ok()?;
        (stat.stx_nlink > 0).then_some(stat.stx_ino)
    }
}

/// Which of the kernel's ways is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Fanotify,
    Inotify,
}

/// A watch on a tree.
pub(super) enum Watch {
    Fanotify(Fanotify),
    Inotify(Inotify),
}

impl Watch {
    /// Opens fanotify where it is permitted, else inotify; or `prefer`, or an error.
    pub(super) fn open(root: &Root, prefer: Option<Backend>) -> io::Result<Self> {
        match prefer {
            Some(Backend::Fanotify) => Fanotify::open(root).map(Self::Fanotify),
            Some(Backend::Inotify) => Inotify::open().map(Self::Inotify),
            None => match Fanotify::open(root) {
                Ok(fanotify) => Ok(Self::Fanotify(fanotify)),
                Err(reason) => {
                    tracing::info!(%reason, "fanotify is not to be had; watching each directory");
                    Inotify::open().map(Self::Inotify)
                }
            },
        }
    }

    /// Returns which way is used.
    pub(super) fn backend(&self) -> Backend {
        match self {
            Self::Fanotify(_) => Backend::Fanotify,
            Self::Inotify(_) => Backend::Inotify,
        }
    }

    /// Returns what can be read once something has happened.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Fanotify(fanotify) => fanotify.fd(),
            Self::Inotify(inotify) => inotify.fd(),
        }
    }

    /// Watches the directory that is open as `fd`, `None` being the top. Before it is listed: what is
    /// made in between is then either listed or told.
    pub(super) fn add(&mut self, path: Option<&RelPath>, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Fanotify(_) => Ok(()),
            Self::Inotify(inotify) => inotify.add(path, fd),
        }
    }

    /// Takes what has happened so far; of very much, a part of some ten thousand happenings.
    pub(super) fn drain(&mut self) -> io::Result<Vec<Happening>> {
        match self {
            Self::Fanotify(fanotify) => fanotify.drain(),
            Self::Inotify(inotify) => inotify.drain(),
        }
    }

    /// Returns whether the last drain took only a part: until it has taken all, nobody can say that
    /// everything that happened before some moment is known.
    pub(super) fn has_more(&self) -> bool {
        match self {
            Self::Fanotify(fanotify) => fanotify.has_more(),
            Self::Inotify(inotify) => inotify.has_more(),
        }
    }
}
