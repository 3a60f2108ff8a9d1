//! inotify: a watch on each directory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use ::inotify::{EventMask, WatchDescriptor, WatchMask};
use understudy_replication::files::RelPath;

use super::Happening;
use super::told::{Move, Told, beneath, rebased};

/// Room for the events of one read.
const EVENTS_BYTES: usize = 64 << 10;

/// One drain stops after about this many events, each of which leads to two happenings at most: what is
/// left comes with the next.
const EVENTS_MAX: usize = 5000;

/// A watch on each directory of a tree.
pub(in crate::files) struct Inotify {
    inotify: ::inotify::Inotify,
    /// The directory of each watch, `None` being the top.
    directories: HashMap<WatchDescriptor, Option<RelPath>>,
    /// The watch of each directory but the top.
    watches: BTreeMap<RelPath, WatchDescriptor>,
    buffer: Vec<u8>,
    has_more: bool,
}

/// One event, as far as it matters here.
struct Event {
    watch: WatchDescriptor,
    mask: EventMask,
    cookie: u32,
    name: Option<Vec<u8>>,
}

/// What left its place, and may be told to have come to another.
struct Left {
    from: RelPath,
    is_directory: bool,
}

/// What one drain has found.
#[derive(Default)]
struct Drained {
    told: Told,
    left: BTreeMap<u32, Left>,
}

impl Inotify {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            inotify: ::inotify::Inotify::init()?,
            directories: HashMap::new(),
            watches: BTreeMap::new(),
            buffer: vec![0; EVENTS_BYTES],
            has_more: false,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

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
        self.place(watch, path.cloned());
        Ok(())
    }

    /// Notes where the directory of a watch is. One that was moved unseen keeps its watch.
    fn place(&mut self, watch: WatchDescriptor, path: Option<RelPath>) {
        if let Some(Some(old)) = self.directories.insert(watch.clone(), path.clone())
            && self.watches.get(&old) == Some(&watch)
        {
            self.watches.remove(&old);
        }
        if let Some(path) = path {
            self.watches.insert(path, watch);
        }
    }

    pub(super) fn drain(&mut self) -> io::Result<Vec<Happening>> {
        let mut drained = Drained::default();
        let (mut taken, mut has_waited) = (0, false);
        self.has_more = loop {
            // What has left comes to another place at once, if it does: that is read in any case. It
            // must not wait for the next drain, before which its old place may be watched again.
            if taken >= EVENTS_MAX && (drained.left.is_empty() || taken >= 2 * EVENTS_MAX) {
                break true;
            }
            let events = self.read()?;
            if events.is_empty() {
                if has_waited || drained.left.is_empty() {
                    break false;
                }
                has_waited = true;
                continue;
            }
            has_waited = false;
            taken += events.len();
            for event in events {
                self.note(event, &mut drained);
            }
        };
        for left in std::mem::take(&mut drained.left).into_values() {
            self.has_left(left, &mut drained.told);
        }
        Ok(drained.told.into_happenings())
    }

    /// Reads some events; none if there are none.
    fn read(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let events = self.inotify.read_events(&mut buffer).map(|events| {
                let event = |event: ::inotify::Event<&std::ffi::OsStr>| Event {
                    watch: event.wd,
                    mask: event.mask,
                    cookie: event.cookie,
                    name: event.name.map(|name| name.as_bytes().to_vec()),
                };
                events.map(event).collect()
            });
            self.buffer = buffer;
            match events {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                events => return events,
            }
        }
    }

    fn note(&mut self, event: Event, drained: &mut Drained) {
        let Event { mask, .. } = event;
        let told = &mut drained.told;
        if mask.intersects(EventMask::Q_OVERFLOW | EventMask::UNMOUNT) {
            told.anywhere();
            return;
        }
        // A watch that was given up: what it tells now is covered by the look that followed.
        let Some(directory) = self.directories.get(&event.watch).cloned() else {
            return;
        };
        if mask.contains(EventMask::IGNORED) {
            self.directories.remove(&event.watch);
            if let Some(directory) = directory
                && self.watches.get(&directory) == Some(&event.watch)
            {
                self.watches.remove(&directory);
            }
            return;
        }
        let Some(name) = event.name else {
            let has_left = mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF);
            match directory {
                None if has_left => told.anywhere(),
                // Its parent tells.
                Some(_) if has_left => {}
                directory => told.at_parent(directory.as_ref()),
            }
            return;
        };
        let has_moved = EventMask::MOVED_FROM | EventMask::MOVED_TO;
        if mask.intersects(EventMask::CREATE | EventMask::DELETE | has_moved) {
            told.at_parent(directory.as_ref());
        }
        let is_directory = mask.contains(EventMask::ISDIR);
        // What cannot be a path in the store is reported by the scan that lists it.
        let path = RelPath::child(directory.as_ref(), &name).ok();
        if mask.contains(EventMask::MOVED_FROM) {
            if let Some(from) = path {
                let left = Left { from, is_directory };
                drained.left.insert(event.cookie, left);
            }
            return;
        }
        if mask.contains(EventMask::MOVED_TO) {
            match (drained.left.remove(&event.cookie), path) {
                (Some(left), Some(to)) => {
                    if left.is_directory {
                        // What has left it is nowhere else; only the place that it left is.
                        for other in drained.left.values_mut() {
                            if let Some(now) = rebased(&other.from, &left.from, &to) {
                                other.from = now;
                            }
                        }
                    }
                    self.has_moved(left, to, told);
                }
                (Some(left), None) => self.has_left(left, told),
                (None, Some(to)) => told.came(to, is_directory),
                (None, None) => {}
            }
            return;
        }
        let Some(path) = path else { return };
        if is_directory && mask.contains(EventMask::DELETE) {
            self.forget(&path);
        }
        if mask.contains(EventMask::CREATE) {
            told.came(path, is_directory);
        } else {
            told.at(path, false);
        }
    }

    fn has_moved(&mut self, left: Left, to: RelPath, told: &mut Told) {
        let Left { from, is_directory } = left;
        let is_watched = self.watches.contains_key(&from) && !self.watches.contains_key(&to);
        if is_directory && (!is_watched || told.has_moved(&to, &from)) {
            // It was not looked at yet; or the two may have been exchanged, which reads like a move
            // there and back, so that the watches of the one cannot be told from those of the other.
            self.forget(&from);
            self.forget(&to);
            told.at(from, true);
            told.came(to, true);
            return;
        }
        if is_directory {
            for path in beneath(&self.watches, &from) {
                match rebased(&path, &from, &to) {
                    Some(now) => self.follow(&path, now),
                    None => self.forget(&path),
                }
            }
            self.follow(&from, to.clone());
        }
        told.moved(Move {
            from,
            to,
            is_directory,
        });
    }

    fn follow(&mut self, from: &RelPath, to: RelPath) {
        if let Some(watch) = self.watches.remove(from) {
            self.place(watch, Some(to));
        }
    }

    fn has_left(&mut self, left: Left, told: &mut Told) {
        if left.is_directory {
            self.forget(&left.from);
        }
        told.at(left.from, false);
    }

    /// Gives up the watches of a directory that has left its place, and of all within it: they would
    /// go on telling of it under its old path.
    fn forget(&mut self, path: &RelPath) {
        for at in beneath(&self.watches, path).iter().chain([path]) {
            let Some(watch) = self.watches.remove(at) else {
                continue;
            };
            self.directories.remove(&watch);
            // It is gone already if the directory is.
            let _gone = self.inotify.watches().remove(watch).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The queue's bound is the machine's and cannot be lowered for a test, so that the kernel's word
    /// is said by the test.
    #[test]
    fn a_queue_that_was_too_short_leads_to_a_look_everywhere() {
        let mut inotify = Inotify::open().unwrap();
        let tree = tempfile::tempdir().unwrap();
        let watch = inotify.inotify.watches();
        let watch = watch.clone().add(tree.path(), WatchMask::CREATE).unwrap();
        let mut drained = Drained::default();
        let event = Event {
            watch,
            mask: EventMask::Q_OVERFLOW,
            cookie: 0,
            name: None,
        };
        inotify.note(event, &mut drained);
        assert_eq!(drained.told.into_happenings(), [Happening::Anywhere]);
    }
}
