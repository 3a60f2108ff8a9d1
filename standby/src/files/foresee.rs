//! What a seeding would do, found out without changing anything: the tree compared with the primary's list.
//!
//! It looks at the tree as the survey does, and must come to the same: what differs is fetched, what the
//! primary does not have goes, what is only missing comes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, OFlags};
use understudy_config::Globs;
use understudy_replication::files::{
    Digest, Entry, Identity, Kind, LOST_AND_FOUND, LogEntry, Manifest, NodeId, Operation, RESERVED,
    RelPath, Root, TOP, identity, names, open_in, stat_in,
};

use super::error::FilesError;
use super::kept::{Finding, What};
use super::replica::Replica;
use super::seed::check_wanted;
use super::tree::{is_absent, verify};

/// So many deletions of the own log are remembered.
const DELETED_MAX: usize = 1_000_000;

/// An entry of the primary's list takes so much on the wire, beside its name, more or less, in bytes.
const LISTED_BYTES: u64 = 64;

/// What was found, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// How much has to come, in bytes: the list and the contents.
    pub(super) travelling: u64,
    /// How much would be moved aside, in bytes.
    pub(super) aside: u64,
    /// How much was read of files that are not known to be as they were seen last, in bytes.
    pub(super) read: u64,
}

/// Compares a tree with the list that it should follow.
pub(super) struct Foresight<'a> {
    pub(super) root: &'a Root,
    /// What was known of the tree before.
    pub(super) known: &'a Manifest,
    pub(super) target: &'a Manifest,
    pub(super) exclude: &'a Globs,
    /// What this node has deleted by its own log.
    pub(super) deleted: &'a BTreeSet<RelPath>,
    pub(super) is_left: &'a AtomicBool,
    pub(super) sums: Sums,
}

type Told<'t> = dyn FnMut(Finding) -> Result<(), FilesError> + 't;

impl Foresight<'_> {
    /// Tells every difference but what only the primary has ever had.
    pub(super) fn run(mut self, told: &mut Told<'_>) -> Result<Sums, FilesError> {
        let mut waiting = vec![TOP];
        while let Some(id) = waiting.pop() {
            check_wanted(self.is_left)?;
            self.directory(id, &mut waiting, told)?;
        }
        Ok(self.sums)
    }

    fn failed(&self, path: Option<&RelPath>) -> impl FnOnce(io::Error) -> FilesError + use<> {
        let top = self.root.path();
        let place = path.map_or(top.to_owned(), |path| top.join(path.as_path()));
        FilesError::tree("read", place)
    }

    fn directory(
        &mut self,
        id: NodeId,
        waiting: &mut Vec<NodeId>,
        told: &mut Told<'_>,
    ) -> Result<(), FilesError> {
        let path = self.target.path(id);
        let directory = self.root.directory(path.as_ref());
        let directory = directory.map_err(self.failed(path.as_ref()))?;
        let mut there: BTreeSet<Vec<u8>> = names(&directory)
            .map_err(self.failed(path.as_ref()))?
            .into_iter()
            .collect();
        let first = waiting.len();
        for child in self.target.children(id).to_vec() {
            let name = self.target.name(child).to_vec();
            let Ok(path) = RelPath::child(path.as_ref(), &name) else {
                continue;
            };
            let length = u64::try_from(name.len()).unwrap_or(u64::MAX);
            self.sums.travelling += LISTED_BYTES + length;
            let at = match there.remove(&name) {
                true => self.look(directory.as_fd(), &path)?,
                false => None,
            };
            let Some(at) = at else {
                self.missing(child, &path, told)?;
                continue;
            };
            let entry = self.target.entry(child);
            let is_kind = match &entry.kind {
                Kind::Directory => at.file_type() == FileType::Directory,
                Kind::File { .. } => at.file_type() == FileType::RegularFile,
                Kind::Symlink { .. } => at.file_type() == FileType::Symlink,
            };
            if !is_kind {
                // Something else is there, with all that is in it.
                self.only_here(&path, What::Differs, told)?;
                self.comes(child);
                continue;
            }
            match &entry.kind {
                Kind::Directory => {
                    waiting.push(child);
                    self.attributes(&path, &entry, &at, told)?;
                }
                Kind::Symlink { target } => {
                    let found = self.root.read_link(&path);
                    if found.map_err(self.failed(Some(&path)))? != *target {
                        told(Finding::new(&path, What::Differs, 0))?;
                    }
                }
                Kind::File { size, hash } => {
                    let content = (*size, *hash);
                    if self.holds(directory.as_fd(), &path, content, &at)? {
                        self.attributes(&path, &entry, &at, told)?;
                    } else {
                        self.sums.travelling = self.sums.travelling.saturating_add(*size);
                        self.sums.aside = self.sums.aside.saturating_add(at.size);
                        told(Finding::new(&path, What::Differs, at.size))?;
                    }
                }
            }
        }
        if let Some(added) = waiting.get_mut(first..) {
            added.reverse();
        }
        for name in there {
            if path.is_none() && [RESERVED, LOST_AND_FOUND].contains(&&*name) {
                continue;
            }
            // What cannot be a path of a store was not put there by one.
            let Ok(path) = RelPath::child(path.as_ref(), &name) else {
                continue;
            };
            if !self.exclude.is_match(path.as_path()) {
                self.only_here(&path, What::OnlyHere, told)?;
            }
        }
        Ok(())
    }

    fn look(
        &self,
        directory: BorrowedFd<'_>,
        path: &RelPath,
    ) -> Result<Option<Identity>, FilesError> {
        match stat_in(directory, path.name()) {
            Ok(found) => Ok(Some(identity(&found))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failed(Some(path))(error)),
        }
    }

    /// Counts what has to come of an entry that is not here, and tells what this node has deleted of it.
    fn missing(
        &mut self,
        id: NodeId,
        path: &RelPath,
        told: &mut Told<'_>,
    ) -> Result<(), FilesError> {
        self.comes(id);
        if !self.was_deleted(path) {
            // A directory that only the primary has made may hold nothing that was ever here.
            return Ok(());
        }
        let beneath: Vec<NodeId> = self.target.walk(id).map(|(_, id)| id).collect();
        for id in beneath {
            if let Some(path) = self.target.path(id)
                && !self.target.is_directory(id)
            {
                let bytes = self.target.content(id).map_or(0, |(size, _)| size);
                told(Finding::new(&path, What::DeletedHere, bytes))?;
            }
        }
        Ok(())
    }

    /// Returns whether what the primary has at a path was here, and is not any more by this node's doing.
    fn was_deleted(&self, path: &RelPath) -> bool {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if self.deleted.contains(&path) {
                return true;
            }
            at = path.parent();
        }
        self.known.lookup(path).is_some()
    }

    fn comes(&mut self, id: NodeId) {
        let (entries, bytes) = self.target.weigh(id);
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        let listed = entries.saturating_sub(1).saturating_mul(LISTED_BYTES);
        let comes = bytes.saturating_add(listed);
        self.sums.travelling = self.sums.travelling.saturating_add(comes);
    }

    /// Tells everything at and beneath a path that the primary does not have.
    fn only_here(
        &mut self,
        top: &RelPath,
        what: What,
        told: &mut Told<'_>,
    ) -> Result<(), FilesError> {
        let mut waiting = vec![top.clone()];
        while let Some(path) = waiting.pop() {
            check_wanted(self.is_left)?;
            let found = match self.root.stat(&path) {
                Ok(found) => identity(&found),
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(self.failed(Some(&path))(error)),
            };
            if found.file_type() != FileType::Directory {
                let is_file = found.file_type() == FileType::RegularFile;
                let bytes = if is_file { found.size } else { 0 };
                self.sums.aside = self.sums.aside.saturating_add(bytes);
                told(Finding::new(&path, what, bytes))?;
                continue;
            }
            let beneath = self.root.names(Some(&path));
            let mut beneath = beneath.map_err(self.failed(Some(&path)))?;
            if beneath.is_empty() {
                told(Finding::new(&path, what, 0))?;
            }
            beneath.sort();
            let children = beneath.iter().rev();
            waiting.extend(children.filter_map(|name| RelPath::child(Some(&path), name).ok()));
        }
        Ok(())
    }

    /// Tells an owner or a mode that will be changed: the content stays where it is.
    fn attributes(
        &self,
        path: &RelPath,
        entry: &Entry,
        at: &Identity,
        told: &mut Told<'_>,
    ) -> Result<(), FilesError> {
        let here = (at.mode & 0o7777, at.uid, at.gid);
        // The time of a directory changes with what is put into it.
        let is_same_time = at.file_type() == FileType::Directory || at.mtime_ns == entry.mtime_ns;
        if here == (entry.mode, entry.uid, entry.gid) && is_same_time {
            return Ok(());
        }
        told(Finding::attributes(path, at))
    }

    /// Returns whether a file holds what it should; it is read only if it is as long, and not as it was seen
    /// last.
    fn holds(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &RelPath,
        (size, hash): (u64, Digest),
        at: &Identity,
    ) -> Result<bool, FilesError> {
        if at.size != size {
            return Ok(false);
        }
        let known = self.known.lookup(path);
        if let Some(known) = known.filter(|known| self.known.looks(*known, at)) {
            return Ok(self.known.content(known) == Some((size, hash)));
        }
        self.sums.read = self.sums.read.saturating_add(size);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let read = open_in(directory, path.name(), flags)
            .and_then(|file| verify(&File::from(file), size, hash));
        // What cannot be read is replaced.
        Ok(read.is_ok_and(|found| found.is_some()))
    }
}

/// Returns what the log of this node has deleted of what the primary has. A log that cannot be read tells
/// less: this is for people to know, and nothing is decided by it.
pub(super) fn deleted(replica: &Replica, target: &Manifest) -> BTreeSet<RelPath> {
    let mut deleted = BTreeSet::new();
    let view = replica.log.lock().view();
    let Ok(mut reader) = view.reader(view.bounds().0) else {
        return deleted;
    };
    while let Ok(Some(record)) = reader.next() {
        let Ok(LogEntry::Batch(batch)) = LogEntry::decode(&record.payload) else {
            continue;
        };
        for operation in batch.operations {
            let (Operation::Delete { path } | Operation::Move { from: path, .. }) = operation
            else {
                continue;
            };
            if deleted.len() < DELETED_MAX && target.lookup(&path).is_some() {
                deleted.insert(path);
            }
        }
    }
    deleted
}
