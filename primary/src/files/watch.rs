//! inotify: tells which paths something happened to. A hint only; what is there is always read anew.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use understudy_replication::files::RelPath;

/// Room for the events of one read.
const EVENTS_BYTES: usize = 64 << 10;

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// To a path; deep if what it holds is new, too.
    At(RelPath, bool),
    /// A path within the tree got another name within the tree.
    Moved { from: RelPath, to: RelPath, is_directory: bool },
    /// The kernel has dropped events, or the top itself is concerned.
    Anywhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend { Fanotify, Inotify }

/// A watch on each directory of a tree.
pub(super) struct Watch {
    inotify: Inotify,
    /// The directory of each watch, `None` being the top.
    directories: HashMap<WatchDescriptor, Option<RelPath>>,
    watches: BTreeMap<Option<RelPath>, WatchDescriptor>,
    buffer: Vec<u8>,
}

impl Watch {
    pub(super) fn backend(&self) -> Backend { Backend::Inotify }
    pub(super) fn open(_: &understudy_replication::files::Root, _: Option<Backend>) -> io::Result<Self> {
        Ok(Self {
            inotify: Inotify::init()?,
            directories: HashMap::new(),
            watches: BTreeMap::new(),
            buffer: vec![0; EVENTS_BYTES],
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches the directory that is open as `fd`. Before it is listed: what is made in between is
    /// then either listed or told.
    pub(super) fn add(&mut self, path: Option<&RelPath>, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::EXCL_UNLINK;
        // By what is open and not by its path, which may lead elsewhere by now.
        let place = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let watch = self.inotify.watches().add(place, mask)?;
        let path = path.cloned();
        // A directory that was moved keeps its watch: it has a new path now.
        if let Some(Some(old)) = self.directories.insert(watch.clone(), path.clone())
            && Some(&old) != path.as_ref()
        {
            self.watches.remove(&Some(old));
        }
        self.watches.insert(path, watch);
        Ok(())
    }

    /// Takes all that has happened so far.
    pub(super) fn drain(&mut self) -> io::Result<Vec<Happening>> {
        let mut happenings = Vec::new();
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let events: io::Result<Vec<_>> = self.inotify.read_events(&mut buffer).map(|events| {
                events
                    .map(|event| {
                        let name = event.name.map(|name| name.as_bytes().to_vec());
                        (event.wd, event.mask, name)
                    })
                    .collect()
            });
            self.buffer = buffer;
            match events {
                Ok(events) if events.is_empty() => return Ok(happenings),
                Ok(events) => {
                    for (watch, mask, name) in events {
                        self.note(&watch, mask, name.as_deref(), &mut happenings);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(happenings),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn note(
        &mut self,
        watch: &WatchDescriptor,
        mask: EventMask,
        name: Option<&[u8]>,
        happenings: &mut Vec<Happening>,
    ) {
        if mask.intersects(EventMask::Q_OVERFLOW | EventMask::UNMOUNT) {
            happenings.push(Happening::Anywhere);
            return;
        }
        // A watch that was given up: what it tells now is covered by the look that followed.
        let Some(directory) = self.directories.get(watch).cloned() else {
            return;
        };
        if mask.contains(EventMask::IGNORED) {
            self.directories.remove(watch);
            if self.watches.get(&directory) == Some(watch) {
                self.watches.remove(&directory);
            }
            return;
        }
        let Some(name) = name else {
            match directory {
                Some(directory) => happenings.push(Happening::At(directory, false)),
                None if mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF) => {
                    happenings.push(Happening::Anywhere);
                }
                None => {}
            }
            return;
        };
        let has_moved =
            EventMask::CREATE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO;
        if mask.intersects(has_moved)
            && let Some(directory) = &directory
        {
            // Its modification time has changed.
            happenings.push(Happening::At(directory.clone(), false));
        }
        // What cannot be a path in the store is reported by the scan that lists it.
        let Ok(path) = RelPath::child(directory.as_ref(), name) else {
            return;
        };
        let is_directory = mask.contains(EventMask::ISDIR);
        if is_directory && mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE) {
            self.forget(&path);
        }
        let is_new = mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
        happenings.push(Happening::At(path, is_directory && is_new));
    }

    /// Gives up the watches of a directory that has left its place, and of all within it: they would
    /// go on telling of it under its old path.
    fn forget(&mut self, path: &RelPath) {
        let left: Vec<_> = self
            .watches
            .range(Some(path.clone())..)
            .take_while(|(at, _)| {
                at.as_ref()
                    .is_some_and(|at| at == path || at.is_beneath(path))
            })
            .map(|(at, watch)| (at.clone(), watch.clone()))
            .collect();
        for (at, watch) in left {
            self.watches.remove(&at);
            self.directories.remove(&watch);
            // It is gone already if the directory is.
            let _gone = self.inotify.watches().remove(watch).is_err();
        }
    }
}
