//! What is in the tree already, compared with what should be, directory by directory.
//!
//! Both are in the order of their names, so that they are merged; nothing is held of the tree but the
//! names in one directory. Directories and links are made on the way; which files have to be fetched, and
//! what is too much, is the result.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, Mode, OFlags, fchmod, mkdirat, removexattr};
use rustix::io::Errno;
use understudy_config::Globs;
use understudy_replication::files::{
    Digest, Entry, Identity, Kind, Known, LOST_AND_FOUND, Ledger, Local, Manifest, NodeId,
    RESERVED, RelPath, Root, TOP, identity, names, open_in, stat_fd, stat_in,
};

use super::attributes::{dress, magic};
use super::error::{FilesError, Setback};
use super::seed::check_wanted;
use super::tree::{FRESH, Guarded, Tree, is_absent, open_or_make, verify};

/// Contents from this size on are looked for elsewhere in the tree before they are fetched.
const COPIED_FROM: u64 = 64 << 10;

/// How many entries are remembered at once for a seeding that goes on after this one was broken off.
const ASIDE_MAX: usize = 1000;

/// The two places where a seeding works: the tree, and where directories are built that are not there.
pub(super) struct Places {
    pub(super) tree: Tree,
    pub(super) fresh: Root,
    /// The directories at the top that are built there.
    pub(super) names: BTreeSet<Vec<u8>>,
}

impl Places {
    pub(super) fn new(tree: Tree) -> io::Result<Self> {
        open_or_make(tree.staging(), FRESH)?;
        let fresh = Root::open(&tree.root().path().join(".understudy").join(FRESH))?;
        Ok(Self {
            tree,
            fresh,
            names: BTreeSet::new(),
        })
    }

    pub(super) fn is_fresh(&self, path: &RelPath) -> bool {
        path.names()
            .next()
            .is_some_and(|name| self.names.contains(name))
    }

    /// Returns where a path is for now.
    pub(super) fn root_of(&self, path: &RelPath) -> &Root {
        if self.is_fresh(path) {
            &self.fresh
        } else {
            self.tree.root()
        }
    }

    pub(super) fn place(&self, path: &RelPath) -> PathBuf {
        self.root_of(path).path().join(path.as_path())
    }
}

/// What a survey has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files whose content has to come, and whether another one is in their place.
    pub(super) wanted: Vec<(NodeId, bool)>,
    /// What the primary does not have; nothing beneath another one.
    pub(super) extra: Vec<RelPath>,
    /// Where contents that have to come may be already.
    pub(super) sources: BTreeMap<Digest, RelPath>,
    /// Entries that could not be made, and why.
    pub(super) failed: Vec<(RelPath, String)>,
}

/// Compares the tree with the manifest that it should have.
pub(super) struct Survey<'a> {
    pub(super) places: &'a mut Places,
    /// What was known of the tree before.
    pub(super) known: &'a Manifest,
    pub(super) target: &'a mut Manifest,
    pub(super) ledger: &'a mut Ledger,
    pub(super) exclude: &'a Globs,
    pub(super) is_left: &'a AtomicBool,
}

impl Survey<'_> {
    pub(super) fn run(mut self) -> Result<Found, FilesError> {
        let mut found = Found::default();
        let mut links = BTreeSet::new();
        let mut aside = Vec::new();
        let mut waiting = vec![(TOP, false)];
        while let Some((id, is_new)) = waiting.pop() {
            check_wanted(self.is_left)?;
            self.directory(id, is_new, &mut waiting, &mut found, &mut links, &mut aside)?;
            if aside.len() >= ASIDE_MAX {
                self.ledger.keep_aside(std::mem::take(&mut aside))?;
            }
        }
        self.ledger.keep_aside(aside)?;
        found.sources = self.sources(&found);
        Ok(found)
    }

    fn directory(
        &mut self,
        id: NodeId,
        is_new: bool,
        waiting: &mut Vec<(NodeId, bool)>,
        found: &mut Found,
        links: &mut BTreeSet<u64>,
        aside: &mut Vec<(RelPath, Known)>,
    ) -> Result<(), FilesError> {
        let path = self.target.path(id);
        let root = path
            .as_ref()
            .map_or(self.places.tree.root(), |path| self.places.root_of(path));
        let place = path
            .as_ref()
            .map_or(root.path().to_owned(), |path| self.places.place(path));
        let failed = || FilesError::tree("read", &place);
        let directory = root.directory(path.as_ref()).map_err(failed())?;
        let mut there: BTreeSet<Vec<u8>> = BTreeSet::new();
        if !is_new {
            there.extend(names(&directory).map_err(failed())?);
        }
        let known = match &path {
            None => Some(TOP),
            Some(path) => self.known.lookup(path),
        };
        let first = waiting.len();
        for child in self.target.children(id).to_vec() {
            let name = self.target.name(child);
            let is_there = there.remove(name);
            let Ok(path) = RelPath::child(path.as_ref(), name) else {
                continue;
            };
            let at = if is_there {
                let looked = stat_in(directory.as_fd(), path.name());
                looked.map(Some).or_else(|error| {
                    if is_absent(&error) {
                        Ok(None)
                    } else {
                        Err(error)
                    }
                })
            } else {
                Ok(None)
            };
            let at = at.map_err(failed())?;
            let known = known.and_then(|known| self.known.child(known, path.name()));
            let entry = self.target.entry(child);
            let is_held = match (&entry.kind, &at) {
                (Kind::Directory, at) => {
                    let is_directory = at
                        .as_ref()
                        .is_some_and(|at| identity(at).file_type() == FileType::Directory);
                    let made =
                        self.make_directory(directory.as_fd(), &path, at.is_some(), is_directory);
                    match made {
                        Ok(is_new) => waiting.push((child, is_new)),
                        Err(setback) => self.note(setback, &path, child, found)?,
                    }
                    continue;
                }
                (Kind::Symlink { target }, at) => {
                    let at = at.as_ref().map(identity);
                    let is_known = at.as_ref().zip(known).is_some_and(|(at, known)| {
                        self.known.looks(known, at) && self.known.entry(known) == entry
                    });
                    let placed = match at.filter(|_| is_known) {
                        Some(at) => Ok(at),
                        None => self.places.tree.place_symlink(
                            directory.as_fd(),
                            &path,
                            &entry,
                            target,
                            &Guarded::new(),
                        ),
                    };
                    match placed.map_err(Setback::at("make", &place)) {
                        Ok(at) => self.target.learn(child, Local::Seen(at)),
                        Err(setback) => self.note(setback, &path, child, found)?,
                    }
                    continue;
                }
                (Kind::File { .. }, None) => None,
                (Kind::File { .. }, Some(at)) => {
                    // A file of its own is not one that others are names of.
                    let is_shared = entry.link == 0 && at.stx_nlink > 1;
                    let at = identity(at);
                    let held = self.holds(directory.as_fd(), &path, &entry, at, known);
                    match held.map_err(Setback::at("read", &place)) {
                        Ok(held) => held.filter(|_| !is_shared),
                        Err(Setback::Store(error)) => return Err(error),
                        // What cannot be read is replaced.
                        Err(Setback::Entry(_)) => None,
                    }
                }
            };
            match is_held {
                Some((at, is_read)) => {
                    self.target.learn(child, Local::Seen(at));
                    if entry.link != 0 {
                        links.insert(entry.link);
                    }
                    if is_read {
                        let local = Local::Seen(at);
                        aside.push((path, Known { entry, local }));
                    }
                }
                // Further names are linked when the first is there.
                None if entry.link != 0 && !links.insert(entry.link) => {}
                None => found.wanted.push((child, at.is_some())),
            }
        }
        // The first is the next: contents are asked for in the order of the tree.
        if let Some(added) = waiting.get_mut(first..) {
            added.reverse();
        }
        for name in there {
            self.note_extra(&directory, path.as_ref(), &name, found)?;
        }
        Ok(())
    }

    fn note_extra(
        &self,
        directory: &OwnedFd,
        parent: Option<&RelPath>,
        name: &[u8],
        found: &mut Found,
    ) -> Result<(), FilesError> {
        if parent.is_none() && [RESERVED, LOST_AND_FOUND].contains(&name) {
            return Ok(());
        }
        // What cannot be a path of a store was not put there by one.
        let Ok(path) = RelPath::child(parent, name) else {
            return Ok(());
        };
        if self.places.is_fresh(&path) {
            let removed = self
                .places
                .tree
                .take_away(directory.as_fd(), &path, &Guarded::new());
            return removed.map_err(FilesError::tree("remove", self.places.place(&path)));
        }
        if !self.exclude.is_match(path.as_path()) {
            found.extra.push(path);
        }
        Ok(())
    }

    fn note(
        &mut self,
        setback: Setback,
        path: &RelPath,
        id: NodeId,
        found: &mut Found,
    ) -> Result<(), FilesError> {
        match setback {
            Setback::Store(error) => Err(error),
            Setback::Entry(reason) => {
                let mut lost = Vec::new();
                super::place::lose(self.target, id, &mut lost);
                found.failed.push((path.clone(), reason));
                Ok(())
            }
        }
    }

    /// Makes a directory where there is none; one at the top elsewhere for now. Returns whether there is
    /// nothing in it.
    fn make_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        is_there: bool,
        is_directory: bool,
    ) -> Result<bool, Setback> {
        let place = self.places.place(path);
        if is_directory {
            if self.places.is_fresh(path) {
                make_plain(parent, path.name()).map_err(Setback::at("change", &place))?;
            }
            return Ok(false);
        }
        let is_at_top = path.parent().is_none();
        if is_there {
            let taken = self.places.tree.take_away(parent, path, &Guarded::new());
            taken.map_err(Setback::at("remove", &place))?;
        }
        let mode = Mode::from_raw_mode(0o700);
        if !is_at_top {
            let made = mkdirat(parent, path.name(), mode).map_err(io::Error::from);
            made.map_err(Setback::at("make", &place))?;
            return Ok(true);
        }
        self.places.names.insert(path.name().to_vec());
        let fresh = self.places.fresh.fd();
        match mkdirat(fresh, path.name(), mode) {
            Ok(()) => Ok(true),
            // By a seeding that was broken off.
            Err(Errno::EXIST) => match make_plain(fresh, path.name()) {
                Ok(()) => Ok(false),
                Err(_) => {
                    let removed = super::tree::remove(fresh, path.name());
                    removed.map_err(Setback::at("remove", &place))?;
                    let made = mkdirat(fresh, path.name(), mode).map_err(io::Error::from);
                    made.map_err(Setback::at("make", &place))?;
                    Ok(true)
                }
            },
            Err(errno) => Err(Setback::at("make", &place)(errno.into())),
        }
    }

    /// Returns how a file looks that holds what it should, with all that its entry says, and whether it
    /// had to be read for that. Read only if it is as long as it should be.
    fn holds(
        &self,
        directory: BorrowedFd<'_>,
        path: &RelPath,
        entry: &Entry,
        at: Identity,
        known: Option<NodeId>,
    ) -> io::Result<Option<(Identity, bool)>> {
        let Some((size, hash)) = entry.content() else {
            return Ok(None);
        };
        if at.file_type() != FileType::RegularFile || at.size != size {
            return Ok(None);
        }
        let known = known.filter(|known| self.known.looks(*known, &at));
        match known {
            Some(known) if self.known.content(known) != Some((size, hash)) => return Ok(None),
            Some(known) if self.known.entry(known) == *entry => return Ok(Some((at, false))),
            Some(_) => {
                let file = open_in(directory, path.name(), OFlags::PATH)?;
                dress(file.as_fd(), entry)?;
                return Ok(Some((identity(&stat_fd(file.as_fd())?), false)));
            }
            None => {}
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(open_in(directory, path.name(), flags)?);
        if verify(&file, size, hash)?.is_none() {
            return Ok(None);
        }
        dress(file.as_fd(), entry)?;
        Ok(Some((identity(&stat_fd(file.as_fd())?), true)))
    }

    /// Returns where in the tree the larger of the wanted contents are said to be, by what was known.
    fn sources(&self, found: &Found) -> BTreeMap<Digest, RelPath> {
        let wanted: BTreeSet<Digest> = found
            .wanted
            .iter()
            .filter_map(|(id, _)| self.target.content(*id))
            .filter(|(size, _)| *size >= COPIED_FROM)
            .map(|(_, hash)| hash)
            .collect();
        let mut sources = BTreeMap::new();
        if wanted.is_empty() {
            return sources;
        }
        for (_, id) in self.known.walk(TOP) {
            if let Some((_, hash)) = self.known.content(id)
                && wanted.contains(&hash)
                && self.known.inode(id).is_some()
            {
                sources.extend(self.known.path(id).map(|path| (hash, path)));
            }
        }
        sources
    }
}

/// Takes from a directory what would be inherited by what is made in it.
fn make_plain(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let directory = open_in(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    fchmod(&directory, Mode::from_raw_mode(0o700))?;
    match removexattr(magic(directory.as_fd()), "system.posix_acl_default") {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
