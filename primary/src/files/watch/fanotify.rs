//! fanotify: one mark on the file system that a tree lies in.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::fanotify::{EventFFlags, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use understudy_replication::files::{PATH_BYTES_MAX, RelPath, Root, stat_fd};

use super::event::{Entry, Event, Place, parse};
use super::told::{Move, Told};
use super::{FileHandle, Happening, handle};

/// Room for the events of one drain: three to four thousand, each of which leads to three happenings at
/// most in practice.
const EVENTS_BYTES: usize = 256 << 10;

/// No event is longer: three records with the longest handle, two of them with the longest name.
const EVENT_BYTES_MAX: usize = 1024;

/// This many directories outside the tree are known to be outside.
const OUTSIDE_MAX: usize = 16_384;

/// ext4 says that it has no memory for a directory that is gone, while something is being made that has
/// got its inode number. A moment later it says that it is gone.
const TRIES_MAX: usize = 100;

/// Never the opening or reading of files: we open and read all of them ourselves.
const MASK: MaskFlags = MaskFlags::FAN_CREATE
    .union(MaskFlags::FAN_DELETE)
    .union(MaskFlags::FAN_RENAME)
    .union(MaskFlags::FAN_MODIFY)
    .union(MaskFlags::FAN_CLOSE_WRITE)
    .union(MaskFlags::FAN_ATTRIB)
    .union(MaskFlags::FAN_ONDIR);

/// A mark on the file system of a tree.
pub(in crate::files) struct Fanotify {
    fanotify: nix::sys::fanotify::Fanotify,
    tree: Tree,
    buffer: Vec<u8>,
    has_more: bool,
}

/// Where the tree is, and what is not in it.
struct Tree {
    root: OwnedFd,
    /// Where the top was when it was last asked for.
    top: Vec<u8>,
    /// Handles of directories that are not in the tree. On a file system that others use, too, most
    /// events are of such. A directory comes into the tree only if it, or one that it lies in, is
    /// renamed.
    outside: HashSet<Vec<u8>>,
}

/// Where a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Directory {
    /// In the tree; `None` is the top.
    Inside(Option<RelPath>),
    /// Outside the tree, gone, or where nothing is replicated.
    Elsewhere,
}

impl Fanotify {
    /// Marks the file system of `root`.
    ///
    /// An error if that is not permitted, if the kernel is older than 5.17, or if the file system
    /// cannot find a directory again by a handle.
    pub(super) fn open(root: &Root) -> io::Result<Self> {
        // Each event tells a directory and a name in it; and what the name led to: the file that was
        // changed may have lost that name by now, and be known under another. That also keeps the kernel
        // from merging what happened to one file with what happened to the next of that name, across a
        // rename in between.
        let report = InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME_TARGET);
        // A queue with a bound would overflow whenever the rest of the file system is busy while a
        // large file is read. What we hold of it is one buffer; what the kernel holds is as much as
        // happens until the next drain.
        let fanotify = nix::sys::fanotify::Fanotify::init(
            InitFlags::FAN_CLASS_NOTIF
                | InitFlags::FAN_CLOEXEC
                | InitFlags::FAN_NONBLOCK
                | InitFlags::FAN_UNLIMITED_QUEUE
                | report,
            EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC,
        )?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        fanotify.mark(mark, MASK, root.fd(), Some("."))?;
        handle::is_permitted(root.fd())?;
        let tree = Tree {
            root: root.fd().try_clone_to_owned()?,
            top: path_of(root.fd())?,
            outside: HashSet::new(),
        };
        Ok(Self {
            fanotify,
            tree,
            buffer: vec![0; EVENTS_BYTES],
            has_more: false,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fanotify.as_fd()
    }

    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    pub(super) fn drain(&mut self) -> io::Result<Vec<Happening>> {
        let filled = self.fill()?;
        let bytes = self.buffer.get(..filled).unwrap_or_default();
        let mut told = self.tree.note(bytes)?;
        if self.tree.has_moved()? {
            // Then directories may have been taken for outside, or for others.
            told = Told::default();
            told.anywhere();
        }
        Ok(told.into_happenings())
    }

    /// Reads events until there are none or the buffer is full, and returns how much of it is.
    fn fill(&mut self) -> io::Result<usize> {
        let mut filled = 0_usize;
        loop {
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            self.has_more = room.len() < EVENT_BYTES_MAX;
            if self.has_more {
                return Ok(filled);
            }
            match rustix::io::read(&self.fanotify, room) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(filled),
                Ok(count) => filled = filled.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Tree {
    /// Returns what events tell about the tree.
    fn note(&mut self, bytes: &[u8]) -> io::Result<Told> {
        let events =
            parse(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Directories are asked for where they are now, after all of these events: so a path is good
        // for the whole drain, and what was outside before may be inside.
        if events.iter().any(|event| {
            event
                .mask
                .contains(MaskFlags::FAN_RENAME | MaskFlags::FAN_ONDIR)
        }) {
            self.outside.clear();
        }
        let mut inside = HashMap::new();
        let mut told = Told::default();
        for event in &events {
            let is_directory = event.mask.contains(MaskFlags::FAN_ONDIR);
            match &event.place {
                Place::Lost => told.anywhere(),
                Place::Unsaid => {}
                Place::Entry(entry) => {
                    if let Directory::Inside(directory) = self.directory(entry, &mut inside)? {
                        note_entry(event.mask, directory.as_ref(), entry.name, &mut told);
                        note_target(event, directory.as_ref(), entry.name, &mut told);
                    }
                }
                Place::Renamed { from, to } => {
                    let [from, to] = [
                        self.entry(from, &mut inside, &mut told)?,
                        self.entry(to, &mut inside, &mut told)?,
                    ];
                    if let (Some(from), Some(to), Some(target)) = (&from, &to, event.target) {
                        told.renamed(from, to, &FileHandle(target.to_vec()));
                    }
                    match (from, to) {
                        (Some(from), Some(to)) => told.moved_by_now(Move {
                            from,
                            to,
                            is_directory,
                        }),
                        (Some(from), None) => told.at(from, false),
                        (None, Some(to)) => told.came(to, is_directory),
                        (None, None) => {}
                    }
                }
            }
        }
        Ok(told)
    }

    /// Returns the path of an end of a rename, if it can be one in the store.
    fn entry<'a>(
        &mut self,
        entry: &Entry<'a>,
        inside: &mut HashMap<&'a [u8], Option<RelPath>>,
        told: &mut Told,
    ) -> io::Result<Option<RelPath>> {
        let Directory::Inside(directory) = self.directory(entry, inside)? else {
            return Ok(None);
        };
        told.at_parent(directory.as_ref());
        Ok(RelPath::child(directory.as_ref(), entry.name).ok())
    }

    /// Returns where the directory of an entry is.
    fn directory<'a>(
        &mut self,
        entry: &Entry<'a>,
        inside: &mut HashMap<&'a [u8], Option<RelPath>>,
    ) -> io::Result<Directory> {
        let handle = entry.directory;
        if self.outside.contains(handle) {
            return Ok(Directory::Elsewhere);
        }
        if let Some(path) = inside.get(handle) {
            return Ok(Directory::Inside(path.clone()));
        }
        let found = self.find(handle)?;
        match &found {
            Directory::Inside(path) => {
                inside.insert(handle, path.clone());
            }
            Directory::Elsewhere => {
                if self.outside.len() >= OUTSIDE_MAX {
                    self.outside.clear();
                }
                self.outside.insert(handle.to_vec());
            }
        }
        Ok(found)
    }

    fn open_directory(&self, handle: &[u8]) -> io::Result<OwnedFd> {
        for _ in 1..TRIES_MAX {
            match handle::open(self.root.as_fd(), handle) {
                Err(error) if is(&error, Errno::NOMEM) => std::thread::yield_now(),
                opened => return opened,
            }
        }
        handle::open(self.root.as_fd(), handle)
    }

    fn find(&self, handle: &[u8]) -> io::Result<Directory> {
        let directory = match self.open_directory(handle) {
            Ok(directory) => directory,
            // Its own end is told by the directory that it was in.
            Err(error) if is_gone(&error) => return Ok(Directory::Elsewhere),
            Err(error) => return Err(error),
        };
        let path = match path_of(directory.as_fd()) {
            Ok(path) => Some(path),
            Err(error) if is(&error, Errno::NAMETOOLONG) => long_path_of(&directory)?,
            Err(error) => return Err(error),
        };
        // Asked for after its path, to which the kernel adds a word if it is gone.
        let is_there = stat_fd(directory.as_fd())?.stx_nlink > 0;
        Ok(match path.filter(|_| is_there) {
            Some(path) => within(&self.top, &path),
            None => Directory::Elsewhere,
        })
    }

    /// Returns whether the top is elsewhere than when it was last asked for.
    fn has_moved(&mut self) -> io::Result<bool> {
        let top = path_of(self.root.as_fd())?;
        let has_moved = top != self.top;
        if has_moved {
            self.outside.clear();
            self.top = top;
        }
        Ok(has_moved)
    }
}

fn note_entry(mask: MaskFlags, directory: Option<&RelPath>, name: &[u8], told: &mut Told) {
    if name == b"." {
        told.at_parent(directory);
        return;
    }
    if mask.intersects(MaskFlags::FAN_CREATE | MaskFlags::FAN_DELETE) {
        told.at_parent(directory);
    }
    // What cannot be a path in the store is reported by the scan that lists it.
    let Ok(path) = RelPath::child(directory, name) else {
        return;
    };
    if mask.contains(MaskFlags::FAN_CREATE) {
        told.came(path, mask.contains(MaskFlags::FAN_ONDIR));
    } else {
        told.at(path, false);
    }
}

/// Notes which file was changed, in case that name is another file's by now, or nobody's.
fn note_target(event: &Event<'_>, directory: Option<&RelPath>, name: &[u8], told: &mut Told) {
    let changed = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_ATTRIB;
    let is_file = event.mask.intersects(changed) && !event.mask.contains(MaskFlags::FAN_ONDIR);
    if let Some(target) = event.target.filter(|_| is_file)
        && let Ok(path) = RelPath::child(directory, name)
    {
        told.through(path, FileHandle(target.to_vec()));
    }
}

/// Returns where `path` is, seen from the top.
fn within(top: &[u8], path: &[u8]) -> Directory {
    if path == top {
        return Directory::Inside(None);
    }
    let top = top.strip_suffix(b"/").unwrap_or(top);
    path.strip_prefix(top)
        .and_then(|rest| rest.strip_prefix(b"/"))
        // Too long a path is reported by the scan, and the reserved directory is the standby's.
        .and_then(|rest| RelPath::new(rest).ok())
        .map_or(Directory::Elsewhere, |path| Directory::Inside(Some(path)))
}

/// Returns the path of what is open.
fn path_of(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(readlinkat(CWD, link, Vec::new())?.into_bytes())
}

/// Returns the path of a directory that is too long for the kernel to tell, by climbing to where it can;
/// `None` if it is too long for a store as well, or if the directory moves meanwhile.
fn long_path_of(directory: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0_usize;
    let mut at = directory.try_clone()?;
    while bytes <= PATH_BYTES_MAX {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(&at, "..", flags, Mode::empty())?;
        let inode = stat_fd(at.as_fd())?.stx_ino;
        let mut name = None;
        for entry in Dir::read_from(&parent)? {
            let entry = entry?;
            let is_other = matches!(entry.file_name().to_bytes(), b"." | b"..");
            if entry.ino() == inode && !is_other {
                name = Some(entry.file_name().to_bytes().to_vec());
                break;
            }
        }
        let Some(name) = name else { return Ok(None) };
        bytes = bytes.saturating_add(name.len()).saturating_add(1);
        names.push(name);
        match path_of(parent.as_fd()) {
            Ok(mut path) => {
                for name in names.iter().rev() {
                    path.push(b'/');
                    path.extend_from_slice(name);
                }
                return Ok(Some(path));
            }
            Err(error) if is(&error, Errno::NAMETOOLONG) => at = parent,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is_gone(error: &io::Error) -> bool {
    is(error, Errno::STALE) || is(error, Errno::NOENT)
}
