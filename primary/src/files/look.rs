//! Looking at a path: what is there, against what the manifest says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use understudy_replication::event::Severity;
use understudy_replication::files::{
    Digest, Entry, Identity, Kind, Known, LOST_AND_FOUND, PathError, RelPath, Root,
    TARGET_BYTES_MAX, identity, stat_fd,
};
use understudy_replication::wall_time::WallTime;

use super::dirty::RACY;
use super::shared::Shared;
use super::watch::Watch;

/// A change is committed once it has this many operations,
const OPERATIONS_MAX: usize = 4000;
/// or brings this much content.
const CONTENT_BYTES_MAX: u64 = 32 << 20;

/// What a look found to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The path is this now.
    Put { known: Known, has_content: bool },
    /// The path is no more.
    Delete,
    /// The path is what it was, and this is how it looks.
    Learn(Identity),
}

/// Changes that are not committed yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: BTreeMap<RelPath, Change>,
    content_bytes: u64,
}

impl Pending {
    fn add(&mut self, path: RelPath, change: Change) {
        let is_directory = match &change {
            Change::Put { known, has_content } => {
                if *has_content {
                    let size = known.entry.content().map_or(0, |(size, _)| size);
                    self.content_bytes = self.content_bytes.saturating_add(size);
                }
                known.entry.is_directory()
            }
            Change::Delete => false,
            Change::Learn(_) => true,
        };
        if !is_directory {
            // What was seen within it before is void.
            let beneath: Vec<RelPath> = self
                .changes
                .range(path.clone()..)
                .skip_while(|(at, _)| **at == path)
                .take_while(|(at, _)| at.is_beneath(&path))
                .map(|(at, _)| at.clone())
                .collect();
            for at in beneath {
                self.changes.remove(&at);
            }
        }
        self.changes.insert(path, change);
    }

    pub(super) fn is_full(&self) -> bool {
        self.changes.len() >= OPERATIONS_MAX || self.content_bytes >= CONTENT_BYTES_MAX
    }

    pub(super) fn take(&mut self) -> BTreeMap<RelPath, Change> {
        self.content_bytes = 0;
        std::mem::take(&mut self.changes)
    }
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
}

/// Why looking has to stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    /// Full: commit, then go on.
    #[error("the top of the tree cannot be read")]
    Top(#[source] io::Error),
    /// The manifest has entries, and the top has none.
    #[error("the top of the tree is empty")]
    Empty,
    /// A commit on the way failed.
    #[error("what was found cannot be kept")]
    Commit(#[source] super::commit::CommitError),
}

/// Looks at paths of one tree.
pub(super) struct Looker<'a> {
    pub(super) shared: &'a Shared,
    pub(super) root: &'a Root,
    pub(super) watch: &'a mut Watch,
    pub(super) pending: Pending,
    pub(super) again: Vec<Again>,
    /// There are too few watches: what happens where none is must be found by looking.
    pub(super) is_blind: bool,
}

impl Looker<'_> {
    /// Looks at `path`; at what it holds, too, if `is_deep` or if it is new.
    pub(super) fn look(
        &mut self,
        path: &RelPath,
        is_deep: bool,
        is_owed: bool,
    ) -> Result<(), LookError> {
        if self.is_excluded(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent()
            && !self
                .known(&parent)
                .is_some_and(|known| known.entry.is_directory())
        {
            // Its event came before that of its directory was looked at.
            return self.look(&parent, true, false);
        }
        self.look_within(path, is_deep, is_owed)
    }

    /// Looks at all there is.
    pub(super) fn look_at_all(&mut self) -> Result<(), LookError> {
        self.look_into(None)
    }

    fn look_within(
        &mut self,
        path: &RelPath,
        is_deep: bool,
        is_owed: bool,
    ) -> Result<(), LookError> {
        let found = match self.root.stat(path) {
            Ok(found) => identity(&found),
            Err(error) => {
                self.note_unreadable(path, &error);
                return Ok(());
            }
        };
        match found.file_type() {
            FileType::Directory => {
                self.shared.mended(path);
                let known = self.known(path);
                let was_directory = known
                    .as_ref()
                    .is_some_and(|known| known.entry.is_directory());
                let entry = found.entry(Kind::Directory);
                if known.is_none_or(|known| known.entry != entry) {
                    self.put(path, entry, None, false);
                }
                if is_deep || !was_directory {
                    self.look_into(Some(path))?;
                }
            }
            FileType::RegularFile => {
                self.look_at_file(path, found, is_owed);
            }
            FileType::Symlink => match self.root.read_link(path) {
                Ok(target) if target.len() <= TARGET_BYTES_MAX => {
                    self.shared.mended(path);
                    let entry = found.entry(Kind::Symlink { target });
                    if self.known(path).is_none_or(|known| known.entry != entry) {
                        self.put(path, entry, None, false);
                    }
                }
                Ok(_) => {
                    self.note_left_out(path, "the target of the symbolic link is too long");
                }
                Err(error) => self.note_unreadable(path, &error),
            },
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.note_left_out(path, "sockets, pipes and devices are not replicated");
            }
        }
        if self.pending.is_full() {
            super::commit::commit(self.shared, self.pending.take()).map_err(LookError::Commit)?;
        }
        Ok(())
    }

    /// Looks at what a directory holds, `None` being the top, at every depth.
    fn look_into(&mut self, path: Option<&RelPath>) -> Result<(), LookError> {
        let names = self.root.directory(path).and_then(|directory| {
            // Watched before it is listed: what comes in between is listed, or told.
            match self.watch.add(path, directory.as_fd()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {
                    self.is_blind = true;
                }
                Err(error) => return Err(error),
            }
            understudy_replication::files::names(&directory)
        });
        let mut names = match (names, path) {
            (Ok(names), _) => names,
            (Err(error), None) => return Err(LookError::Top(error)),
            (Err(error), Some(path)) => {
                self.note_unreadable(path, &error);
                return Ok(());
            }
        };
        names.sort_unstable();
        let mut held = Vec::with_capacity(names.len());
        for name in &names {
            match RelPath::child(path, name) {
                Ok(child) if self.is_excluded(&child) => {}
                Ok(child) => held.push(child),
                Err(PathError::Reserved) => {}
                Err(error) => {
                    let parent = path.map(ToString::to_string).unwrap_or_default();
                    self.shared.problem(
                        &format!("{parent}/"),
                        Severity::Warning,
                        "files_left_out",
                        format!(
                            "store {}: something in `/{parent}` is not replicated: {error}",
                            self.shared.id.name
                        ),
                    );
                }
            }
        }
        let known: Vec<RelPath> = {
            let ledger = self.shared.ledger();
            let names = ledger.as_ref().map(|ledger| {
                let children = ledger.manifest.children(path);
                children
                    .filter_map(|(name, _)| RelPath::child(path, name).ok())
                    .collect()
            });
            names.unwrap_or_default()
        };
        if path.is_none() && held.is_empty() && !known.is_empty() {
            return Err(LookError::Empty);
        }
        for gone in known
            .iter()
            .filter(|known| held.binary_search(known).is_err())
        {
            self.pending.add(gone.clone(), Change::Delete);
        }
        for child in &held {
            self.look_within(child, true, false)?;
        }
        Ok(())
    }

    fn look_at_file(&mut self, path: &RelPath, found: Identity, is_owed: bool) {
        let known = self.known(path);
        let is_known = known
            .as_ref()
            .is_some_and(|known| known.local == Some(found));
        if is_known && !is_owed {
            return;
        }
        let begun = Instant::now();
        let read = self.root.file(path).and_then(|file| read_stable(&file));
        let cost = begun.elapsed();
        let (found, hash) = match read {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.again.push(Again::Unstable(path.clone(), cost));
                return;
            }
            Err(error) => {
                self.note_unreadable(path, &error);
                return;
            }
        };
        self.shared.mended(path);
        self.again.push(Again::Rested(path.clone(), cost));
        let is_racy = is_racy(found);
        if is_racy {
            self.again.push(Again::Racy(path.clone()));
        }
        let local = (!is_racy).then_some(found);
        let entry = found.entry(Kind::File {
            size: found.size,
            hash,
        });
        let has_content = is_owed
            || known
                .as_ref()
                .is_none_or(|known| known.entry.content() != entry.content());
        if known.as_ref().is_some_and(|known| known.entry == entry) && !is_owed {
            if let Some(local) = local {
                self.pending.add(path.clone(), Change::Learn(local));
            }
        } else {
            self.put(path, entry, local, has_content);
        }
    }

    fn put(&mut self, path: &RelPath, entry: Entry, local: Option<Identity>, has_content: bool) {
        let known = Known { entry, local };
        self.pending
            .add(path.clone(), Change::Put { known, has_content });
    }

    /// Returns what is known of a path, with what this look has found already.
    fn known(&self, path: &RelPath) -> Option<Known> {
        match self.pending.changes.get(path) {
            Some(Change::Put { known, .. }) => return Some(known.clone()),
            Some(Change::Delete) => return None,
            Some(Change::Learn(_)) | None => {}
        }
        self.shared.ledger().as_ref()?.manifest.get(path).cloned()
    }

    fn is_excluded(&self, path: &RelPath) -> bool {
        if path.names().next() == Some(LOST_AND_FOUND) {
            return true;
        }
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if self.shared.exclude.is_match(path.as_path()) {
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
                self.pending.add(path.clone(), Change::Delete);
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

    fn note_left_out(&mut self, path: &RelPath, reason: &str) {
        if self.known(path).is_some() {
            self.pending.add(path.clone(), Change::Delete);
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

/// Hashes a file; `None` if it changed meanwhile.
fn read_stable(file: &File) -> io::Result<Option<(Identity, Digest)>> {
    let before = identity(&stat_fd(file.as_fd())?);
    if before.file_type() != FileType::RegularFile {
        return Ok(None);
    }
    let (hash, bytes) = Digest::of_reader(file)?;
    let after = identity(&stat_fd(file.as_fd())?);
    Ok((before == after && bytes == after.size).then_some((after, hash)))
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
