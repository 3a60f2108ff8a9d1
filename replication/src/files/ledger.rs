//! What a node keeps of a store beside its tree: the manifest.
//!
//! ```text
//! manifest (a checkpoint: the whole, written now and then) + journal (what has changed since)
//! ```
//! In memory it is whole. On the disk it is a checkpoint, replaced by renaming, and a log of what was
//! committed since, which is folded into it at opening. When the journal has grown to a share of the
//! checkpoint, the next checkpoint is written and the journal is emptied: so what is written stays in
//! proportion to what changes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;

use super::batch::{Content, Operation};
use super::checkpoint::{self, Unusable};
use super::entry::{Digest, Known, Local};
use super::manifest::{Manifest, Misfit, TOP};
use super::path::RelPath;
use crate::durable;
use crate::epoch::Epoch;
use crate::log::{Log, LogError};
use crate::position::Position;

/// A journal up to this size is not worth a checkpoint.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;

/// How many entries go into one record.
const ENTRIES_IN_RECORD: usize = 500;

/// How much of what an entry takes, path and attributes, goes into one record.
const RECORD_BYTES_MAX: usize = 2 << 20;

/// The form of records. A journal of another one is as good as a damaged one.
const VERSION: u8 = 2;

const CHECKPOINT: &str = "manifest";
const JOURNAL: &str = "journal";
const LOG: &str = "log";

/// What the manifest stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The epoch of the positions.
    pub epoch: Epoch,
    /// The position whose manifest it is.
    pub position: Position,
    /// The newest position at which no content was awaited.
    pub complete: Position,
    /// The root of the manifest: one that has lost something does not have it.
    pub root: Digest,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or folder cannot be read, written, or moved aside.
    #[error("cannot {action} {}", path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The journal or the log failed.
    #[error("cannot keep the log of store {store}")]
    Log {
        /// The store.
        store: StoreName,
        /// Why not.
        source: LogError,
    },
    /// A record cannot be encoded.
    #[error("cannot encode what is kept of store {store}")]
    Encode {
        /// The store.
        store: StoreName,
        /// Why not.
        source: postcard::Error,
    },
    /// A change does not fit the manifest.
    #[error("the manifest of store {store} does not fit")]
    Misfit {
        /// The store.
        store: StoreName,
        /// Where.
        source: Misfit,
    },
}

/// Why the journal does not lead to a manifest.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// It cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It does not agree with itself.
    #[error("{0}")]
    Contents(String),
}

/// A record of the journal.
#[derive(Serialize, Deserialize)]
enum Entry {
    /// Operations, and what the manifest stands for then. Not written any more.
    Commit(Head, Vec<Operation>),
    /// What was learned of paths.
    Learn(Vec<(RelPath, Local)>),
    /// The manifest stands for nothing any more; its entries save reading files again.
    Forget,
    /// What an unfinished seeding has put into its place, in this boot of the machine.
    Aside(String, Vec<(RelPath, Known)>),
    /// What the operations of the [`Entry::Done`] that follows have shown of paths. Without that it is
    /// what a commit has left that broke off.
    Ahead(Vec<(RelPath, Local)>),
    /// Operations, what the manifest stands for then, and how many records in front of this one belong to
    /// it.
    Done(Head, Vec<Operation>, u32),
}

/// The manifest and its durable form. One owner at a time on a node.
pub struct Ledger {
    store: StoreName,
    state: PathBuf,
    /// In memory; what is changed here is kept by [`Ledger::commit`].
    pub manifest: Manifest,
    journal: Log,
    head: Option<Head>,
    checkpoint_bytes: u64,
    /// What was found damaged at opening, for the operators.
    pub damage: Vec<String>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} at {:?})", self.store, self.head)
    }
}

impl Ledger {
    /// Opens what is in `state`, or begins anew. What is damaged is moved aside, and the head is then
    /// `None`.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(state: &Path, store: &StoreName) -> Result<Self, LedgerError> {
        durable::create_directory(state, 0o700).map_err(folder_error("create", state))?;
        let mut damage = Vec::new();
        let path = state.join(CHECKPOINT);
        let loaded = match checkpoint::load(&path, store) {
            Ok(loaded) => loaded,
            Err(Unusable::Disk(error)) => return Err(folder_error("read", &path)(error)),
            Err(Unusable::Damaged(reason)) => {
                damage.push(format!(
                    "the manifest of store {store} is made anew: {reason}"
                ));
                move_aside(&path)?;
                None
            }
        };
        let is_lost = !damage.is_empty();
        let (checkpoint, checkpoint_bytes) = loaded.unwrap_or_default();
        let folder = state.join(JOURNAL);
        let first = Position(checkpoint.journal);
        let opened = Log::open_bounded(
            &folder,
            store.as_str(),
            first,
            crate::log::LOG_SEGMENT_BYTES_MAX,
            u64::MAX,
        );
        let journal = match opened {
            Ok(journal) => journal,
            Err(error) if is_damage(&error) => {
                damage.push(format!(
                    "the journal of store {store} is begun anew: {error}"
                ));
                move_aside(&folder)?;
                open_log(&folder, store, first)?
            }
            Err(error) => return Err(log_error(store)(error)),
        };
        let mut ledger = Self {
            store: store.clone(),
            state: state.to_owned(),
            manifest: checkpoint.manifest,
            journal,
            head: checkpoint.head,
            checkpoint_bytes,
            damage,
        };
        if is_lost {
            ledger
                .journal
                .reset(Position(0))
                .map_err(log_error(store))?;
        } else {
            match ledger.fold_journal(first) {
                Ok(()) => {}
                // A disk that does not give it now says nothing of what it holds.
                Err(Unfit::Log(error @ LogError::File { .. })) => {
                    return Err(log_error(store)(error));
                }
                Err(reason) => {
                    ledger.damage.push(format!(
                        "the manifest of store {store} is made anew: {reason}"
                    ));
                    ledger.head = None;
                    ledger.manifest = Manifest::default();
                    ledger.checkpoint()?;
                }
            }
        }
        if ledger.damage.is_empty() {
            return Ok(ledger);
        }
        // What is left may be a part of what was: good for saving work, not for standing for anything.
        ledger.forget_head()?;
        Ok(ledger)
    }

    /// Opens the log of the store whose state is in `state`; one that is damaged is begun anew, and
    /// the text says so.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open_log(state: &Path, store: &StoreName) -> Result<(Log, Option<String>), LedgerError> {
        durable::create_directory(state, 0o700).map_err(folder_error("create", state))?;
        let folder = state.join(LOG);
        match Log::open(&folder, store.as_str(), Position(0)) {
            Ok(log) => Ok((log, None)),
            Err(error) if is_damage(&error) => {
                let damage = format!("the log of store {store} is begun anew: {error}");
                move_aside(&folder)?;
                Ok((open_log(&folder, store, Position(0))?, Some(damage)))
            }
            Err(error) => Err(log_error(store)(error)),
        }
    }

    /// Returns what the manifest stands for; `None` when it stands for nothing.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Keeps that `operations`, which have been folded into the manifest, have led to `head`, and what
    /// was learned of how paths look: both or neither, wherever it breaks off. Durable after
    /// [`Ledger::sync`].
    ///
    /// # Errors
    /// When the journal fails; nothing is then committed.
    pub fn commit(
        &mut self,
        operations: &[Operation],
        learned: Vec<(RelPath, Local)>,
        head: Head,
    ) -> Result<(), LedgerError> {
        // Invariant: that something is awaited is known before the operation that should have brought it.
        let mut ahead = 0_u32;
        for some in in_records(learned) {
            self.append(&Entry::Ahead(some))?;
            ahead = ahead.saturating_add(1);
        }
        // What is folded later needs no more of a content than whether there was one.
        let operations = operations.iter().map(without_content).collect();
        self.append(&Entry::Done(head.clone(), operations, ahead))?;
        self.head = Some(head);
        Ok(())
    }

    /// Keeps what was learned of how paths look.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn learned(&mut self, learned: Vec<(RelPath, Local)>) -> Result<(), LedgerError> {
        in_records(learned)
            .into_iter()
            .try_for_each(|some| self.append(&Entry::Learn(some)))
    }

    /// Keeps what was put into its place while the manifest stands for nothing, so that an interrupted
    /// seeding need not do it again. Believed only until the machine is started anew: what was not
    /// synced is in its memory that long.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn keep_aside(&mut self, mut known: Vec<(RelPath, Known)>) -> Result<(), LedgerError> {
        let boot = boot_id();
        while !known.is_empty() {
            let weights = known.iter().map(|(path, known)| {
                let xattrs = known.entry.xattrs.bytes();
                path.as_bytes()
                    .len()
                    .saturating_add(xattrs)
                    .saturating_add(250)
            });
            let rest = known.split_off(prefix(weights));
            self.append(&Entry::Aside(boot.clone(), known))?;
            known = rest;
        }
        Ok(())
    }

    /// Makes durable what was committed, and writes a checkpoint when it is time.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.journal.sync().map_err(log_error(&self.store))?;
        self.checkpoint_if_due()
    }

    /// Writes a checkpoint when the journal has grown enough.
    ///
    /// # Errors
    /// When it cannot be written; the former one and the journal still stand.
    pub fn checkpoint_if_due(&mut self) -> Result<(), LedgerError> {
        let due = JOURNAL_BYTES_MIN.max(self.checkpoint_bytes / 2);
        if self.journal.bytes() < due {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Durably forgets what the manifest stands for, and keeps the entries: they save reading files
    /// again.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn forget_head(&mut self) -> Result<(), LedgerError> {
        self.head = None;
        self.append(&Entry::Forget)?;
        self.journal.sync().map_err(log_error(&self.store))
    }

    /// Durably replaces everything by `manifest`, standing for `head`.
    ///
    /// # Errors
    /// When it cannot be written; what was there still stands.
    pub fn replace(&mut self, manifest: Manifest, head: Head) -> Result<(), LedgerError> {
        self.manifest = manifest;
        self.head = Some(head);
        self.checkpoint()
    }

    /// Writes the whole, and then empties the journal.
    ///
    /// # Errors
    /// When it cannot be written; the former one and the journal still stand.
    pub fn checkpoint(&mut self) -> Result<(), LedgerError> {
        let path = self.state.join(CHECKPOINT);
        let journal = self.journal.end();
        // Invariant: the checkpoint names the end of the journal that it holds, and is in its place
        // before that is dropped. After a crash in between what is in both is skipped.
        self.checkpoint_bytes = checkpoint::store(
            &path,
            &self.store,
            &self.manifest,
            self.head.as_ref(),
            journal.0,
        )
        .map_err(folder_error("write", &path))?;
        self.journal.reset(journal).map_err(log_error(&self.store))
    }

    fn append(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        let bytes =
            postcard::to_extend(entry, vec![VERSION]).map_err(|source| LedgerError::Encode {
                store: self.store.clone(),
                source,
            })?;
        let end = Position(self.journal.end().0.saturating_add(1));
        self.journal
            .append(&bytes, end)
            .map_err(log_error(&self.store))
    }

    /// Brings the manifest up to the end of the journal.
    fn fold_journal(&mut self, first: Position) -> Result<(), Unfit> {
        if self.journal.end() < first {
            // It was emptied behind the checkpoint, and then lost.
            return Ok(self.journal.reset(first)?);
        }
        let boot = boot_id();
        let mut ahead = Vec::new();
        let mut reader = self.journal.view().reader(first)?;
        while let Some(record) = reader.next()? {
            let entry = match record.payload.split_first() {
                Some((&VERSION, rest)) => postcard::from_bytes(rest)
                    .map_err(|error| Unfit::Contents(error.to_string()))?,
                Some(_) | None => {
                    return Err(Unfit::Contents(
                        "it was written by another version".to_owned(),
                    ));
                }
            };
            if let Entry::Ahead(learned) = entry {
                ahead.push(learned);
                continue;
            }
            let mut before = std::mem::take(&mut ahead);
            match entry {
                Entry::Commit(head, operations) => self.fold_all(head, &operations)?,
                Entry::Done(head, operations, count) => {
                    self.fold_all(head, &operations)?;
                    let from = usize::try_from(count)
                        .ok()
                        .and_then(|count| before.len().checked_sub(count))
                        .ok_or_else(|| Unfit::Contents("a part of it is not there".to_owned()))?;
                    for learned in before.split_off(from) {
                        self.learn_all(learned);
                    }
                }
                Entry::Learn(learned) => self.learn_all(learned),
                Entry::Forget => self.head = None,
                Entry::Aside(then, known) if then == boot && self.head.is_none() => {
                    for (path, known) in known {
                        self.insert_aside(&path, known);
                    }
                }
                Entry::Aside(..) | Entry::Ahead(_) => {}
            }
        }
        match &self.head {
            Some(head) if head.root != self.manifest.root() => {
                Err(Unfit::Contents("it does not hold what it held".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn fold_all(&mut self, head: Head, operations: &[Operation]) -> Result<(), Unfit> {
        for operation in operations {
            self.manifest
                .fold(operation)
                .map_err(|error| Unfit::Contents(error.to_string()))?;
        }
        self.head = Some(head);
        Ok(())
    }

    fn learn_all(&mut self, learned: Vec<(RelPath, Local)>) {
        for (path, local) in learned {
            if let Some(id) = self.manifest.lookup(&path) {
                self.manifest.learn(id, local);
            }
        }
    }

    /// What an unfinished seeding has done is not a whole tree: the directories above may be missing.
    fn insert_aside(&mut self, path: &RelPath, known: Known) {
        if self.manifest.directory_of(path).is_none() {
            let mut above = Vec::new();
            let mut at = path.parent();
            while let Some(parent) = at {
                at = parent.parent();
                above.push(parent);
            }
            for parent in above.into_iter().rev() {
                let id = self.manifest.lookup(&parent);
                if id.is_none_or(|id| !self.manifest.is_directory(id)) {
                    // Each lies in the one that was made before it.
                    let _made = self.manifest.insert(&parent, Known::directory()).is_ok();
                }
            }
        }
        let _inserted = self.manifest.insert(path, known).is_ok();
    }

    /// Returns whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.manifest.children(TOP).is_empty()
    }
}

/// Cuts what was learned into what fits into a record.
fn in_records(mut learned: Vec<(RelPath, Local)>) -> Vec<Vec<(RelPath, Local)>> {
    let mut records = Vec::new();
    while !learned.is_empty() {
        let weights = learned
            .iter()
            .map(|(path, _)| path.as_bytes().len().saturating_add(80));
        let rest = learned.split_off(prefix(weights));
        records.push(std::mem::replace(&mut learned, rest));
    }
    records
}

/// Returns how many of the first go into one record.
fn prefix(weights: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0_usize;
    weights
        .take(ENTRIES_IN_RECORD)
        .take_while(|weight| {
            let is_first = bytes == 0;
            bytes = bytes.saturating_add(*weight);
            is_first || bytes <= RECORD_BYTES_MAX
        })
        .count()
}

fn without_content(operation: &Operation) -> Operation {
    match operation {
        Operation::Put {
            path,
            entry,
            content: Content::Whole | Content::Patch(_) | Content::Copy(_) | Content::Link(_),
        } => Operation::Put {
            path: path.clone(),
            entry: entry.clone(),
            content: Content::Whole,
        },
        Operation::Put {
            content: Content::Same,
            ..
        }
        | Operation::Delete { .. }
        | Operation::Move { .. }
        | Operation::Swap { .. } => operation.clone(),
    }
}

/// Returns what names this boot of the machine; never the same where it cannot be told.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| {
        let now = crate::wall_time::WallTime::now();
        format!("unknown at {}", now.0)
    })
}

fn open_log(folder: &Path, store: &StoreName, first: Position) -> Result<Log, LedgerError> {
    Log::open(folder, store.as_str(), first).map_err(log_error(store))
}

fn is_damage(error: &LogError) -> bool {
    match error {
        LogError::Damaged { .. } | LogError::Foreign { .. } => true,
        LogError::File { .. }
        | LogError::Poisoned { .. }
        | LogError::TooLong { .. }
        | LogError::Backwards { .. }
        | LogError::Gone { .. }
        | LogError::NotABoundary { .. } => false,
    }
}

/// Keeps what is damaged, once, for those who want to look at it.
fn move_aside(path: &Path) -> Result<(), LedgerError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    let removed = match fs::symlink_metadata(&aside) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&aside),
        Ok(_) => fs::remove_file(&aside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(folder_error("remove", &aside))?;
    match fs::rename(path, &aside) {
        Ok(()) => durable::sync_directory_of(path).map_err(folder_error("sync", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(folder_error("move aside", path)(error)),
    }
}

fn folder_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Folder {
        action,
        path,
        source,
    }
}

fn log_error(store: &StoreName) -> impl FnOnce(LogError) -> LedgerError {
    let store = store.clone();
    move |source| LedgerError::Log { store, source }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Identity, Kind};
    use super::*;
    use crate::files::Loader;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn store() -> StoreName {
        "docs".parse().unwrap()
    }

    fn put(name: &str, content: &str) -> Operation {
        let mut entry = Known::directory().entry;
        if !content.is_empty() {
            entry.kind = Kind::File {
                size: 1,
                hash: Digest::of(content.as_bytes()),
            };
        }
        Operation::Put {
            path: path(name),
            entry,
            content: Content::Whole,
        }
    }

    fn seen(inode: u64) -> Local {
        Local::Seen(Identity {
            inode,
            size: 1,
            mtime_ns: 0,
            ctime_ns: 3,
            mode: 0o100_755,
            uid: 0,
            gid: 0,
        })
    }

    fn commit(ledger: &mut Ledger, position: u64, operations: &[Operation], inode: u64) {
        for operation in operations {
            ledger.manifest.fold(operation).unwrap();
        }
        let learned: Vec<_> = operations
            .iter()
            .map(|operation| (operation.path().clone(), seen(inode)))
            .collect();
        for (path, local) in &learned {
            let id = ledger.manifest.lookup(path).unwrap();
            ledger.manifest.learn(id, *local);
        }
        let head = Head {
            epoch: Epoch::first("a".parse().unwrap()),
            position: Position(position),
            complete: Position(position),
            root: ledger.manifest.root(),
        };
        ledger.commit(operations, learned, head).unwrap();
        ledger.sync().unwrap();
    }

    #[test]
    fn what_was_committed_is_there_again_with_and_without_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
        assert_eq!(ledger.head(), None);
        commit(&mut ledger, 10, &[put("d", ""), put("d/a", "1")], 5);
        let mut expected = ledger.manifest.entries();
        for is_checkpointed in [false, true, false] {
            if is_checkpointed {
                ledger.checkpoint().unwrap();
                commit(&mut ledger, 20, &[put("d/b", "2")], 6);
                expected = ledger.manifest.entries();
            }
            drop(ledger);
            ledger = Ledger::open(folder.path(), &store()).unwrap();
            assert_eq!(ledger.damage, [""; 0]);
            assert_eq!(ledger.manifest.entries(), expected);
        }
        assert_eq!(ledger.head().unwrap().position, Position(20));
    }

    #[test]
    fn a_crash_between_the_checkpoint_and_the_end_of_the_journal_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
        commit(&mut ledger, 10, &[put("d", ""), put("d/a", "1")], 5);
        let journal = folder.path().join("journal");
        let kept = folder.path().join("kept");
        fs_extra_copy(&journal, &kept);
        ledger.checkpoint().unwrap();
        let expected = ledger.manifest.entries();
        drop(ledger);
        fs::remove_dir_all(&journal).unwrap();
        fs::rename(&kept, &journal).unwrap();
        let ledger = Ledger::open(folder.path(), &store()).unwrap();
        assert_eq!(ledger.damage, [""; 0]);
        assert_eq!(ledger.manifest.entries(), expected);
    }

    #[test]
    fn a_commit_that_broke_off_anywhere_is_none_and_another_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
        commit(&mut ledger, 10, &[put("a", "1"), put("b", "1")], 5);
        let before = ledger.manifest.entries();
        let [segment] = <[_; 1]>::try_from(
            fs::read_dir(folder.path().join(JOURNAL))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let from = fs::metadata(&segment).unwrap().len();
        commit(&mut ledger, 20, &[put("a", "2"), put("c", "1")], 6);
        let after = ledger.manifest.entries();
        drop(ledger);
        let whole = fs::read(&segment).unwrap();
        for length in usize::try_from(from).unwrap()..whole.len() {
            fs::write(&segment, &whole[..length]).unwrap();
            let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
            assert_eq!(ledger.damage, [""; 0]);
            assert_eq!(ledger.manifest.entries(), before, "after {length} bytes");
            assert_eq!(ledger.head().unwrap().position, Position(10));
            // What has been learned in vain says nothing of what is done then.
            commit(&mut ledger, 30, &[put("a", "2")], 7);
            let expected = ledger.manifest.entries();
            drop(ledger);
            let ledger = Ledger::open(folder.path(), &store()).unwrap();
            assert_eq!(ledger.manifest.entries(), expected);
        }
        fs::write(&segment, &whole).unwrap();
        let ledger = Ledger::open(folder.path(), &store()).unwrap();
        assert_eq!(ledger.manifest.entries(), after);
    }

    fn fs_extra_copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    #[test]
    fn a_damaged_checkpoint_or_journal_is_told_and_stands_for_nothing() {
        for damaged in ["manifest", "journal"] {
            let folder = tempfile::tempdir().unwrap();
            let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
            commit(&mut ledger, 10, &[put("d", ""), put("d/a", "1")], 5);
            ledger.checkpoint().unwrap();
            for number in 0..20 {
                commit(
                    &mut ledger,
                    11 + number,
                    &[put(&format!("d/{number}"), "2")],
                    6,
                );
            }
            drop(ledger);
            let mut file = folder.path().join(damaged);
            if file.is_dir() {
                file = fs::read_dir(&file).unwrap().next().unwrap().unwrap().path();
            }
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 0x40;
            fs::write(&file, bytes).unwrap();
            let ledger = Ledger::open(folder.path(), &store()).unwrap();
            assert_eq!(ledger.damage.len(), 1, "{damaged}: {:?}", ledger.damage);
            assert_eq!(ledger.head(), None);
            drop(ledger);
            let ledger = Ledger::open(folder.path(), &store()).unwrap();
            assert_eq!(ledger.damage, [""; 0], "told once");
            assert_eq!(ledger.head(), None);
        }
    }

    #[test]
    fn what_a_seeding_left_behind_is_there_until_the_manifest_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
        let mut known = Known::directory();
        known.entry.kind = Kind::File {
            size: 1,
            hash: Digest::of(b"1"),
        };
        known.local = seen(9);
        ledger
            .keep_aside(vec![(path("deep/er/file"), known.clone())])
            .unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(folder.path(), &store()).unwrap();
        assert_eq!(ledger.head(), None);
        assert_eq!(ledger.manifest.get(&path("deep/er/file")), Some(known));
        let mut whole = Loader::default().finish();
        let head = Head {
            epoch: Epoch::first("a".parse().unwrap()),
            position: Position(1),
            complete: Position(1),
            root: whole.root(),
        };
        ledger.replace(whole, head.clone()).unwrap();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), &store()).unwrap();
        assert_eq!(ledger.head(), Some(&head));
        assert!(ledger.is_empty());
    }
}
