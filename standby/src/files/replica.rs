//! The copy: its tree, its ledger, and how a batch becomes visible.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use understudy_config::StoreName;
use understudy_replication::epoch::Epoch;
use understudy_replication::files::{
    Batch, Digest, Entry, Head, Identity, Kind, Ledger, LogEntry, Operation, RelPath,
};
use understudy_replication::position::Position;

use super::error::FilesError;
use super::tree::Tree;

pub(super) struct Replica {
    pub(super) path: PathBuf,
    pub(super) ledger: Ledger,
    /// Opened when it is needed: a standby whose disk is missing still answers.
    pub(super) tree: Option<Tree>,
    /// Files whose content is not here yet.
    pub(super) awaited: BTreeSet<RelPath>,
}

impl Replica {
    pub(super) fn open(store: &StoreName, path: &Path, state: &Path) -> Result<Self, FilesError> {
        let mut ledger = Ledger::open(state, store)?;
        if ledger.is_log_lost && ledger.head().is_some() {
            // What was acknowledged may be gone: the copy has to be compared.
            ledger.forget_head()?;
        }
        let mut replica = Self {
            path: path.to_owned(),
            ledger,
            tree: None,
            awaited: BTreeSet::new(),
        };
        replica.find_awaited();
        Ok(replica)
    }

    /// Finds out anew which contents are not here.
    ///
    /// A copy that is whole at its position awaits nothing: that it does not know how a file looks
    /// then only means that it has not looked. A former primary leaves such entries behind, as it does
    /// not trust a look within the tick of a change.
    pub(super) fn find_awaited(&mut self) {
        let head = self.ledger.head();
        if head.is_none_or(|head| head.complete == head.position) {
            self.awaited.clear();
            return;
        }
        let entries = self.ledger.manifest.entries().into_iter();
        self.awaited = entries
            .filter(|(_, known)| known.is_awaited())
            .map(|(path, _)| path)
            .collect();
    }

    /// Returns up to where the copy is whole.
    pub(super) fn complete(&self) -> Option<Position> {
        let head = self.ledger.head()?;
        if self.awaited.is_empty() {
            return Some(head.position);
        }
        (head.complete.0 > 0).then_some(head.complete)
    }

    pub(super) fn open_tree(&mut self) -> Result<(), FilesError> {
        if self
            .tree
            .as_ref()
            .is_some_and(|tree| tree.root().is_in_place())
        {
            return Ok(());
        }
        let tree = Tree::open(&self.path).map_err(FilesError::tree("open", &self.path))?;
        self.tree = Some(tree);
        Ok(())
    }

    pub(super) fn tree(&self) -> Result<&Tree, FilesError> {
        self.tree.as_ref().ok_or(FilesError::Broken)
    }

    /// Applies again what is in the log and not yet in the table. Repeatable.
    pub(super) fn recover(&mut self) -> Result<(), FilesError> {
        let Some(head) = self.ledger.head().cloned() else {
            return Ok(());
        };
        // The log is emptied when a copy is taken over. A crash in the middle of that leaves one that ends
        // before the table, which has had everything that was in it.
        if self.ledger.log().end() < head.position {
            self.ledger.log().reset(head.position)?;
        }
        let mut reader = self.ledger.log_view().reader(head.position)?;
        let mut superseded = BTreeSet::new();
        while let Some(record) = reader.next()? {
            match LogEntry::decode(&record.payload)? {
                LogEntry::Content(index, content) => {
                    // The staged file may have been torn; what is in the log is whole.
                    let name = staged_name(record.start, index);
                    self.tree()?
                        .stage(&name)
                        .and_then(|mut file| file.write_all(&content))
                        .map_err(FilesError::tree("stage", &self.path))?;
                }
                LogEntry::Superseded(indexes) => superseded = indexes.into_iter().collect(),
                LogEntry::Batch(batch) => {
                    let gone = self.fold(&batch)?;
                    self.apply(&batch, &std::mem::take(&mut superseded), gone)?;
                }
            }
        }
        self.tree()?
            .clear_staging()
            .map_err(FilesError::tree("clear the staging of", &self.path))
    }

    /// Changes the manifest as `batch` says, and checks that both sides then have the same.
    /// Returns the paths that are no more.
    pub(super) fn fold(&mut self, batch: &Batch) -> Result<BTreeSet<RelPath>, FilesError> {
        let diverged = || FilesError::Diverged {
            position: batch.start,
        };
        let head = self.ledger.head().ok_or_else(diverged)?;
        if head.position != batch.start || self.ledger.manifest.root() != batch.before {
            return Err(diverged());
        }
        let mut gone = BTreeSet::new();
        for operation in &batch.operations {
            gone.extend(self.ledger.manifest.fold(operation)?);
        }
        if self.ledger.manifest.root() != batch.after {
            return Err(FilesError::Diverged {
                position: batch.end,
            });
        }
        Ok(gone)
    }

    /// Returns whether nothing would be awaited after `batch`.
    pub(super) fn is_complete_with(&self, batch: &Batch, superseded: &BTreeSet<u32>) -> bool {
        superseded.is_empty()
            && self.awaited.iter().all(|path| {
                batch.operations.iter().any(|operation| match operation {
                    Operation::Put {
                        path: at,
                        entry,
                        has_content,
                    } if at == path => *has_content || entry.content().is_none(),
                    Operation::Put {
                        path: at, entry, ..
                    } => !entry.is_directory() && path.is_beneath(at),
                    Operation::Delete { path: at } => at == path || path.is_beneath(at),
                })
            })
    }

    /// Makes a batch visible that has been folded and is durable in the log. Repeatable: whatever of
    /// it has been done already is found to be so.
    pub(super) fn apply(
        &mut self,
        batch: &Batch,
        superseded: &BTreeSet<u32>,
        gone: BTreeSet<RelPath>,
    ) -> Result<(), FilesError> {
        let before = self.ledger.head().cloned().ok_or(FilesError::Broken)?;
        self.sync_contents(batch, superseded)?;
        let mut touched = gone;
        let mut directories = BTreeSet::new();
        for (index, operation) in (0_u32..).zip(&batch.operations) {
            touched.insert(operation.path().clone());
            directories.extend(operation.path().parent());
            match operation {
                Operation::Put {
                    path,
                    entry,
                    has_content,
                } => {
                    if entry.is_directory() {
                        directories.insert(path.clone());
                    }
                    let staged = (*has_content && !superseded.contains(&index))
                        .then(|| staged_name(batch.start, index));
                    let local = self.put(path, entry, staged.as_deref(), *has_content)?;
                    self.ledger.manifest.learn(path, local);
                }
                Operation::Delete { path } => {
                    self.tree()?
                        .remove(path)
                        .map_err(FilesError::tree("remove", self.path.join(path.as_path())))?;
                }
            }
        }
        self.set_directory_times(&directories)?;
        let tree = self.tree()?;
        tree.sync().map_err(FilesError::tree("sync", &self.path))?;
        self.note_awaited(&touched);
        let head = Head {
            epoch: before.epoch,
            position: batch.end,
            complete: if self.awaited.is_empty() {
                batch.end
            } else {
                before.complete
            },
            root: batch.after,
        };
        self.ledger.commit(&touched, head)?;
        self.ledger.sync()?;
        self.ledger.log().release(batch.end)?;
        Ok(())
    }

    /// A file is whole before it is renamed into place, whenever the power fails.
    fn sync_contents(&self, batch: &Batch, superseded: &BTreeSet<u32>) -> Result<(), FilesError> {
        let staged: Vec<String> = (0_u32..)
            .zip(&batch.operations)
            .filter(|(index, operation)| {
                operation.content().is_some() && !superseded.contains(index)
            })
            .map(|(index, _)| staged_name(batch.start, index))
            .collect();
        self.tree()?
            .sync_staged(&staged)
            .map_err(FilesError::tree("sync", &self.path))
    }

    fn put(
        &self,
        path: &RelPath,
        entry: &Entry,
        staged: Option<&str>,
        has_content: bool,
    ) -> Result<Option<Identity>, FilesError> {
        let tree = self.tree()?;
        let place = || self.path.join(path.as_path());
        match &entry.kind {
            Kind::Directory => {
                tree.place_directory(path, entry)
                    .map_err(FilesError::tree("make", place()))?;
                Ok(None)
            }
            Kind::Symlink { target } => {
                let placed = tree.place_symlink(path, entry, target);
                placed.map_err(FilesError::tree("link", place()))?;
                Ok(None)
            }
            Kind::File { size, hash } => {
                if let Some(staged) = staged {
                    let placed = tree.place_file(staged, path, entry);
                    let placed = placed.map_err(FilesError::tree("write", place()))?;
                    if placed.is_some() {
                        return Ok(placed);
                    }
                }
                let known = self.ledger.manifest.get(path).and_then(|known| known.local);
                self.adopt(path, entry, (*size, *hash), known.filter(|_| !has_content))
                    .map_err(FilesError::tree("change", place()))
            }
        }
    }

    /// Uses the file that is there, if it holds what it should.
    fn adopt(
        &self,
        path: &RelPath,
        entry: &Entry,
        (size, hash): (u64, Digest),
        known: Option<Identity>,
    ) -> std::io::Result<Option<Identity>> {
        let Ok(tree) = self.tree() else {
            return Ok(None);
        };
        let found = tree.look(path)?;
        let is_known = found.is_some() && found == known;
        if is_known || tree.verify(path, size, hash)?.is_some() {
            return tree.set_attributes(path, entry).map(Some);
        }
        Ok(None)
    }

    /// What is put into a directory changes its time; it gets the primary's back.
    pub(super) fn set_directory_times(
        &self,
        directories: &BTreeSet<RelPath>,
    ) -> Result<(), FilesError> {
        for path in directories {
            let Some(known) = self.ledger.manifest.get(path) else {
                continue;
            };
            if known.entry.is_directory() {
                self.tree()?
                    .set_mtime(path, known.entry.mtime_ns)
                    .map_err(FilesError::tree(
                        "set the time of",
                        self.path.join(path.as_path()),
                    ))?;
            }
        }
        Ok(())
    }

    fn note_awaited(&mut self, touched: &BTreeSet<RelPath>) {
        let manifest = &self.ledger.manifest;
        self.awaited
            .retain(|path| manifest.get(path).is_some_and(|known| known.is_awaited()));
        for path in touched {
            if manifest.get(path).is_some_and(|known| known.is_awaited()) {
                self.awaited.insert(path.clone());
            }
        }
    }

    /// Takes the primary's epoch for the positions from now on.
    pub(super) fn set_epoch(&mut self, epoch: &Epoch) -> Result<(), FilesError> {
        let Some(head) = self.ledger.head().cloned() else {
            return Ok(());
        };
        if head.epoch != *epoch {
            self.ledger.commit(
                &BTreeSet::new(),
                Head {
                    epoch: epoch.clone(),
                    ..head
                },
            )?;
            self.ledger.sync()?;
        }
        Ok(())
    }
}

/// The name under which the content for an operation is staged.
pub(super) fn staged_name(start: Position, index: u32) -> String {
    format!("{start}-{index}")
}
