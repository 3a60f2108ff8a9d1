//! Looking at a path: what is there, against what the manifest says.
//!
//! Looks run on several threads beside the capture, and change nothing: what they find is committed
//! by the capture, one after the other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, Statx};
use rustix::io::Errno;
use understudy_replication::event::Severity;
use understudy_replication::files::{
    Content, Identity, Kind, Known, LOST_AND_FOUND, Local, Manifest, PathError, RESERVED, RelPath,
    Root, TARGET_BYTES_MAX, TOP, identity, names, open_in, stat_in, xattrs,
};
use understudy_replication::wall_time::WallTime;

use super::content::{self, Former};
use super::dirty::RACY;
use super::shared::Shared;
use super::watch::Watch;

/// Files from this size on are read by a thread of their own, so that nothing waits behind them.
pub(super) const LARGE_FROM: u64 = 16 << 20;

/// A file this large that was written to just now is not read yet: it would be read again.
const SETTLING_FROM: u64 = 4 << 20;
const SETTLING: Duration = Duration::from_millis(50);

/// A file that was found changing this often is taken as it is, if it is only appended to: some logs are
/// never at rest. It has changed for some three seconds by then.
const TRIES_BEFORE_GROWN: u32 = 6;

/// And found changing this often, operators are told.
const TRIES_BEFORE_TOLD: u32 = 10;

/// What a look found to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The path is this now.
    Put { known: Known, content: Content },
    /// The path is no more.
    Delete,
    /// The path is what it was, and this is how it looks.
    Learn(Local),
}

/// A path that has to be looked at again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It changed while it was read.
    Unstable(RelPath, Duration),
    /// It was read within the tick of its last change.
    Racy(RelPath),
    /// It was read, and took this long.
    Rested(RelPath, Duration),
    /// It lies in a directory that is not known yet.
    Above(RelPath),
}

/// What looks have found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) changes: Vec<(RelPath, Change)>,
    pub(super) again: Vec<Again>,
    /// Directories that have to be listed.
    pub(super) directories: Vec<RelPath>,
    /// Files that have to be read.
    pub(super) large: Vec<RelPath>,
    /// What seems to have got another path.
    pub(super) moved: Vec<(RelPath, RelPath)>,
    /// There are too few watches: what happens where none is must be found by looking.
    pub(super) is_blind: bool,
    /// Why nothing of the tree can be believed.
    pub(super) failure: Option<LookError>,
}

/// Why nothing of a tree can be believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    #[error("the top of the tree cannot be read")]
    Top(#[source] io::Error),
    /// The manifest has entries, and the top has none.
    #[error("the top of the tree is empty")]
    Empty,
}

/// The tree while it is where it should be.
pub(super) struct Tree {
    pub(super) root: Root,
    pub(super) watch: Mutex<Watch>,
}

impl Tree {
    pub(super) fn new(root: Root, watch: Watch) -> Self {
        Self {
            root,
            watch: Mutex::new(watch),
        }
    }
}

/// Looks at paths of one tree.
pub(super) struct Looker<'a> {
    pub(super) shared: &'a Shared,
    pub(super) tree: &'a Tree,
    pub(super) found: Found,
    /// How often what is looked at was found changing before.
    tries: u32,
}

impl<'a> Looker<'a> {
    pub(super) fn new(shared: &'a Shared, tree: &'a Tree) -> Self {
        Self {
            shared,
            tree,
            found: Found::default(),
            tries: 0,
        }
    }

    /// Looks at a path that was found changing so often before.
    pub(super) fn look_once_more(&mut self, path: &RelPath, is_deep: bool, tries: u32) {
        self.tries = tries;
        self.look(path, is_deep);
        self.tries = 0;
    }

    /// Looks at `path`, and notes that what it holds has to be looked at if `is_deep` or if it is new.
    pub(super) fn look(&mut self, path: &RelPath, is_deep: bool) {
        if self.is_excluded(path) {
            return;
        }
        if !self.has_directory(path) {
            // Its event came before that of its directory was looked at.
            self.found.again.extend(path.parent().map(Again::Above));
            return;
        }
        let stat = match self.tree.root.stat(path) {
            Ok(stat) => stat,
            Err(error) => return self.note_unreadable(path, &error),
        };
        let found = identity(&stat);
        let known = self.known(path);
        match found.file_type() {
            FileType::Directory => {
                let was_directory = known
                    .as_ref()
                    .is_some_and(|known| known.entry.is_directory());
                match self.tree.root.handle(path) {
                    Ok(handle) => self.note_directory(path, found, handle.as_fd(), known),
                    Err(error) => return self.note_unreadable(path, &error),
                }
                if is_deep || !was_directory {
                    self.found.directories.push(path.clone());
                }
            }
            FileType::RegularFile if found.size >= LARGE_FROM => {
                if !known.is_some_and(|known| known.local == Local::Seen(found)) {
                    self.found.large.push(path.clone());
                }
            }
            FileType::RegularFile => self.look_at_file(path, &stat, known),
            FileType::Symlink => self.look_at_link(path, found, known),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.note_left_out(path, "sockets, pipes and devices are not replicated");
            }
        }
    }

    /// Reads the large file at `path`.
    pub(super) fn look_at_large(&mut self, path: &RelPath, tries: u32) {
        self.tries = tries;
        match self.tree.root.stat(path) {
            Ok(stat) if identity(&stat).file_type() == FileType::RegularFile => {
                self.look_at_file(path, &stat, self.known(path));
            }
            Ok(_) => self.look(path, false),
            Err(error) => self.note_unreadable(path, &error),
        }
    }

    /// Looks at what a directory holds, `None` being the top, and notes the directories in it: all that
    /// lies beneath is looked at before nothing more is noted. In a scan, what is new is looked for under
    /// the path that it had.
    pub(super) fn list(&mut self, path: Option<&RelPath>, is_scan: bool) {
        let listed = self.tree.root.directory(path).and_then(|directory| {
            // Watched before it is listed: what comes in between is listed, or told.
            let watched = {
                let mut watch = self
                    .tree
                    .watch
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                watch.add(path, directory.as_fd())
            };
            match watched {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {
                    self.found.is_blind = true;
                }
                Err(error) => return Err(error),
            }
            let names = names(&directory)?;
            Ok((directory, names))
        });
        let (directory, mut names) = match (listed, path) {
            (Ok(listed), _) => listed,
            (Err(error), None) => {
                self.found.failure = Some(LookError::Top(error));
                return;
            }
            (Err(error), Some(path)) => return self.note_unreadable(path, &error),
        };
        if path.is_none() {
            names.retain(|name| name != RESERVED && name != LOST_AND_FOUND);
        }
        if !self.shared.exclude().patterns().is_empty() {
            names.retain(|name| {
                let child = RelPath::child(path, name);
                !child.is_ok_and(|child| self.shared.exclude().is_match(child.as_path()))
            });
        }
        names.sort_unstable();
        let mut stats: Vec<(Vec<u8>, Statx)> = Vec::with_capacity(names.len());
        let mut unknown = Vec::new();
        for name in names {
            match stat_in(directory.as_fd(), &name) {
                Ok(stat) => stats.push((name, stat)),
                Err(error) => unknown.push((name, error)),
            }
        }
        if path.is_none() && stats.is_empty() && unknown.is_empty() {
            let is_known_empty = self
                .shared
                .ledger()
                .as_ref()
                .is_none_or(|ledger| ledger.manifest.is_empty());
            if !is_known_empty {
                self.found.failure = Some(LookError::Empty);
            }
            return;
        }
        let compared = self.compare(path, &stats, &unknown);
        for name in compared.gone {
            if let Ok(child) = RelPath::child(path, &name) {
                self.found.changes.push((child, Change::Delete));
            }
        }
        for (name, error) in unknown {
            if let Ok(child) = RelPath::child(path, &name) {
                self.note_unreadable(&child, &error);
            }
        }
        for number in compared.different {
            let Some((name, stat)) = stats.get(number) else {
                continue;
            };
            self.look_in(path, directory.as_fd(), name, stat, is_scan);
        }
        for number in compared.directories {
            let child = stats
                .get(number)
                .map(|(name, _)| RelPath::child(path, name));
            self.found.directories.extend(child.and_then(Result::ok));
        }
    }

    /// Compares a listing with the manifest, holding that no longer than for this.
    fn compare(
        &self,
        path: Option<&RelPath>,
        stats: &[(Vec<u8>, Statx)],
        unknown: &[(Vec<u8>, io::Error)],
    ) -> Compared {
        let mut compared = Compared::default();
        let guard = self.shared.ledger();
        let empty = Manifest::default();
        let manifest = guard.as_ref().map_or(&empty, |ledger| &ledger.manifest);
        let at = match path {
            None => Some(TOP),
            Some(path) => manifest.lookup(path),
        };
        let mut held = at
            .map_or(&[][..], |at| manifest.children(at))
            .iter()
            .peekable();
        let is_unknown = |name: &[u8]| {
            unknown
                .iter()
                .any(|(unknown, _)| unknown.as_slice() == name)
        };
        for (number, (name, stat)) in stats.iter().enumerate() {
            while let Some(gone) = held.next_if(|id| manifest.name(**id) < name.as_slice()) {
                let gone = manifest.name(*gone);
                if !is_unknown(gone) {
                    compared.gone.push(gone.to_vec());
                }
            }
            let node = held.next_if(|id| manifest.name(**id) == name.as_slice());
            let found = identity(stat);
            match node {
                Some(id) if manifest.looks(*id, &found) => {
                    if manifest.is_directory(*id) {
                        compared.directories.push(number);
                    }
                }
                Some(_) | None => compared.different.push(number),
            }
        }
        for gone in held {
            let gone = manifest.name(*gone);
            if !is_unknown(gone) {
                compared.gone.push(gone.to_vec());
            }
        }
        compared
    }

    /// Looks at something that is not known to be as it is.
    fn look_in(
        &mut self,
        parent: Option<&RelPath>,
        directory: BorrowedFd<'_>,
        name: &[u8],
        stat: &Statx,
        is_scan: bool,
    ) {
        let path = match RelPath::child(parent, name) {
            Ok(path) => path,
            Err(PathError::Reserved) => return,
            Err(error) => {
                let parent = parent.map(ToString::to_string).unwrap_or_default();
                self.shared.problem(
                    &format!("{parent}/"),
                    Severity::Warning,
                    "files_left_out",
                    format!(
                        "store {}: something in `/{parent}` is not replicated: {error}",
                        self.shared.id.name
                    ),
                );
                return;
            }
        };
        let found = identity(stat);
        let known = self.known(&path);
        if is_scan && known.is_none() && self.has_moved(&path, &found) {
            return;
        }
        match found.file_type() {
            FileType::Directory => {
                match open_in(directory, name, OFlags::PATH) {
                    Ok(handle) => self.note_directory(&path, found, handle.as_fd(), known),
                    Err(error) => return self.note_unreadable(&path, &error),
                }
                self.found.directories.push(path);
            }
            FileType::RegularFile if found.size >= LARGE_FROM => self.found.large.push(path),
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                match open_in(directory, name, flags) {
                    Ok(file) => self.read(&path, &File::from(file), stat, known),
                    Err(error) => self.note_unreadable(&path, &error),
                }
            }
            FileType::Symlink => self.look_at_link(&path, found, known),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.note_left_out(&path, "sockets, pipes and devices are not replicated");
            }
        }
    }

    /// Whether something new is what has gone from another path.
    fn has_moved(&mut self, path: &RelPath, found: &Identity) -> bool {
        let from = {
            let guard = self.shared.ledger();
            let Some(ledger) = guard.as_ref() else {
                return false;
            };
            let manifest = &ledger.manifest;
            let Some((id, from)) = self
                .shared
                .node_with(manifest, found.inode)
                .and_then(|id| Some((id, manifest.path(id)?)))
            else {
                return false;
            };
            let is_same = manifest.local(id).seen().is_some_and(|seen| {
                // A directory's time may have changed with what it holds; a move changes every ctime.
                let is_directory = found.file_type() == FileType::Directory;
                let seen = Identity {
                    ctime_ns: found.ctime_ns,
                    mtime_ns: if is_directory {
                        found.mtime_ns
                    } else {
                        seen.mtime_ns
                    },
                    ..seen
                };
                seen == *found
            });
            if !is_same {
                return false;
            }
            from
        };
        let is_still_there = self
            .tree
            .root
            .stat(&from)
            .is_ok_and(|stat| stat.stx_ino == found.inode);
        if is_still_there {
            return false;
        }
        self.found.moved.push((from, path.clone()));
        true
    }

    /// Returns the path of which is known that it was this file, when it had no other.
    fn sibling(&self, path: &RelPath, inode: u64) -> Option<RelPath> {
        let guard = self.shared.ledger();
        let manifest = &guard.as_ref()?.manifest;
        if manifest.link_of_inode(inode).is_some() {
            return None;
        }
        let id = self.shared.node_with(manifest, inode)?;
        manifest.path(id).filter(|sibling| sibling != path)
    }

    fn note_directory(
        &mut self,
        path: &RelPath,
        found: Identity,
        handle: BorrowedFd<'_>,
        known: Option<Known>,
    ) {
        let xattrs = match xattrs(handle) {
            Ok(xattrs) => xattrs,
            Err(error) => return self.note_unreadable(path, &error),
        };
        self.shared.mended(path);
        let mut entry = found.entry(Kind::Directory);
        entry.xattrs = xattrs;
        let local = Local::Seen(found);
        self.note(path, Known { entry, local }, Content::Same, known);
    }

    fn look_at_link(&mut self, path: &RelPath, found: Identity, known: Option<Known>) {
        match self.tree.root.read_link(path) {
            Ok(target) if target.len() <= TARGET_BYTES_MAX => {
                self.shared.mended(path);
                let entry = found.entry(Kind::Symlink { target });
                let local = Local::Seen(found);
                self.note(path, Known { entry, local }, Content::Same, known);
            }
            Ok(_) => self.note_left_out(path, "the target of the symbolic link is too long"),
            Err(error) => self.note_unreadable(path, &error),
        }
    }

    fn look_at_file(&mut self, path: &RelPath, stat: &Statx, known: Option<Known>) {
        let found = identity(stat);
        if known
            .as_ref()
            .is_some_and(|known| known.local == Local::Seen(found))
        {
            self.shared.mended(path);
            return;
        }
        match self.tree.root.file(path) {
            Ok(file) => self.read(path, &file, stat, known),
            Err(error) => self.note_unreadable(path, &error),
        }
    }

    fn read(&mut self, path: &RelPath, file: &File, stat: &Statx, known: Option<Known>) {
        let begun = Instant::now();
        let may_grow = self.tries >= TRIES_BEFORE_GROWN;
        if stat.stx_size >= SETTLING_FROM
            && !may_grow
            && age(identity(stat).mtime_ns).is_some_and(|age| age < SETTLING)
        {
            self.found
                .again
                .push(Again::Unstable(path.clone(), Duration::ZERO));
            return;
        }
        let elsewhere = |size, hash| self.shared.elsewhere(size, hash, path);
        let former = Former {
            content: known.as_ref().and_then(|known| known.entry.content()),
            blocks: &self.shared.blocks,
            elsewhere: &elsewhere,
        };
        let read = content::read(file, stat, &former, may_grow);
        let cost = begun.elapsed();
        let held = match read {
            Ok(Some(held)) => held,
            Ok(None) => {
                self.found.again.push(Again::Unstable(path.clone(), cost));
                return self.note_unstable(path);
            }
            Err(error) => return self.note_unreadable(path, &error),
        };
        self.shared.mended(path);
        self.found.again.push(Again::Rested(path.clone(), cost));
        let found = held.found;
        let is_racy = is_racy(found);
        if is_racy {
            self.found.again.push(Again::Racy(path.clone()));
        }
        let local = held.local(is_racy);
        let mut entry = found.entry(Kind::File {
            size: found.size,
            hash: held.hash,
        });
        entry.xattrs = held.xattrs;
        let mut content = held.content;
        if held.names > 1 {
            entry.link = self.shared.link_of(found.inode);
            if let Some(sibling) = self.sibling(path, found.inode) {
                // Nobody tells of a name that has become one of several.
                self.look(&sibling, false);
                content = Content::Link(sibling);
            }
        }
        self.note(path, Known { entry, local }, content, known);
    }

    fn note(&mut self, path: &RelPath, now: Known, content: Content, known: Option<Known>) {
        let change = match known {
            Some(known) if known.entry == now.entry => {
                if known.local == now.local {
                    return;
                }
                Change::Learn(now.local)
            }
            Some(_) | None => Change::Put {
                known: now,
                content,
            },
        };
        self.found.changes.push((path.clone(), change));
    }

    fn known(&self, path: &RelPath) -> Option<Known> {
        self.shared.ledger().as_ref()?.manifest.get(path)
    }

    fn has_directory(&self, path: &RelPath) -> bool {
        let guard = self.shared.ledger();
        guard
            .as_ref()
            .is_some_and(|ledger| ledger.manifest.directory_of(path).is_some())
    }

    pub(super) fn is_excluded(&self, path: &RelPath) -> bool {
        if path.names().next() == Some(LOST_AND_FOUND) {
            return true;
        }
        if self.shared.exclude().patterns().is_empty() {
            return false;
        }
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if self.shared.exclude().is_match(path.as_path()) {
                return true;
            }
            at = path.parent();
        }
        false
    }

    /// A path that cannot be read is gone only if the system says so in these words.
    fn note_unreadable(&mut self, path: &RelPath, error: &io::Error) {
        let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(|errno| errno.raw_os_error());
        if error
            .raw_os_error()
            .is_some_and(|errno| gone.contains(&errno))
        {
            if self.known(path).is_some() {
                self.found.changes.push((path.clone(), Change::Delete));
            }
            self.shared.mended(path);
            return;
        }
        let reason = if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) {
            "another file system is mounted there; make it a store of its own".to_owned()
        } else {
            error.to_string()
        };
        self.shared.problem(
            &path.to_string(),
            Severity::Warning,
            "files_unreadable",
            format!(
                "store {}: {path} cannot be read, and its copies stay as they are: {reason}",
                self.shared.id.name
            ),
        );
    }

    fn note_unstable(&self, path: &RelPath) {
        if self.tries >= TRIES_BEFORE_TOLD {
            self.shared.problem(
                &path.to_string(),
                Severity::Warning,
                "files_unstable",
                format!(
                    "store {}: {path} is written to all the time, and cannot be read as it is at one \
                     moment; its copies stay as they are until it rests",
                    self.shared.id.name
                ),
            );
        }
    }

    fn note_left_out(&mut self, path: &RelPath, reason: &str) {
        if self.known(path).is_some() {
            self.found.changes.push((path.clone(), Change::Delete));
        }
        self.shared.problem(
            &path.to_string(),
            Severity::Warning,
            "files_left_out",
            format!(
                "store {}: {path} is not replicated: {reason}",
                self.shared.id.name
            ),
        );
    }
}

#[derive(Default)]
struct Compared {
    gone: Vec<Vec<u8>>,
    /// What is new or looks otherwise, by its place in the listing.
    different: Vec<usize>,
    /// Directories that look as they did.
    directories: Vec<usize>,
}

/// Returns how long ago a time of a file was; `None` in the future.
fn age(time_ns: i64) -> Option<Duration> {
    let then = u64::try_from(time_ns.max(0) / 1_000_000).unwrap_or(0);
    WallTime::now()
        .0
        .checked_sub(then)
        .map(Duration::from_millis)
}

/// Returns whether the file was changed so shortly ago that the next change might leave its times as
/// they are. A time in the future (a clock was set back) says nothing either.
fn is_racy(found: Identity) -> bool {
    let racy = u64::try_from(RACY.as_millis()).unwrap_or(u64::MAX);
    let changed = found.ctime_ns.max(0) / 1_000_000;
    let changed = u64::try_from(changed).unwrap_or(0);
    let now = WallTime::now().0;
    now < changed.saturating_add(racy) && changed < now.saturating_add(racy)
}
