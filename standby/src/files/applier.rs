//! From the log into the tree.
//!
//! What is in the log behind the manifest's head is applied, group by group: the operations in the tree,
//! one `syncfs`, one commit. A crash leaves the head where it was, and the group is applied again: after a
//! restart and in steady state the same is done.
//!
//! Invariant: between a power cut and the end of the next recovery a name may hold a torn content. What
//! belongs there is in the log, or was made durable before, and recovery comes before the copy is
//! followed, checked or taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use understudy_replication::event::Severity;
use understudy_replication::files::{Head, Local, LogEntry, NodeId, Operation, RelPath};
use understudy_replication::log::LogReader;
use understudy_replication::position::Position;

use super::Inner;
use super::error::{FilesError, concerns_all};
use super::place::{Failed, Placing, lose};
use super::plan::{Logged, Plan};
use super::replica::Replica;
use super::trash::Trash;

/// A group is committed when it has this many operations.
const GROUP_OPERATIONS_MAX: usize = 2000;

/// Or this many bytes of content.
const GROUP_BYTES_MAX: usize = 64 << 20;

/// How long is waited for something to apply before it is looked whether to go on.
const PATIENCE: Duration = Duration::from_millis(500);

/// Reads the log and applies it.
pub(super) struct Applier {
    reader: LogReader,
    /// What the batch that follows will need.
    contents: BTreeMap<u32, Vec<u8>>,
    awaited: BTreeSet<u32>,
    /// A batch that begins the next group.
    next: Option<Logged>,
    /// What begins before this may have been begun by an attempt before, unless it is behind the first
    /// commit.
    begun: Position,
}

/// What a batch comes to: its operations, what was learned in doing them, and what the manifest stands
/// for then.
type Commit = (Vec<Operation>, Vec<(RelPath, Local)>, Head);

/// What is committed together.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    directories: BTreeSet<NodeId>,
    operations: usize,
    bytes: usize,
    failed: Vec<Failed>,
    stale: Vec<(u64, understudy_replication::files::Digest)>,
    used: Vec<String>,
    has_doubt: bool,
}

impl Applier {
    /// Begins behind the manifest's head.
    pub(super) fn open(replica: &Replica) -> Result<Self, FilesError> {
        let head = replica.ledger.head().ok_or(FilesError::Broken)?;
        let view = replica.log.lock().view();
        Ok(Self {
            begun: view.bounds().1,
            reader: view.reader(head.position)?,
            contents: BTreeMap::new(),
            awaited: BTreeSet::new(),
            next: None,
        })
    }

    /// Applies what is in the log now; returns whether there was anything. After an error the replica
    /// has to be opened again.
    pub(super) fn apply_group(
        &mut self,
        inner: &Inner,
        replica: &mut Replica,
    ) -> Result<bool, FilesError> {
        let mut group = Group::default();
        while let Some(mut logged) = self.next()? {
            let is_apart = logged.is_apart();
            if is_apart && !group.commits.is_empty() {
                self.next = Some(logged);
                break;
            }
            self.apply(inner, replica, &mut logged, &mut group)?;
            if is_apart
                || group.operations >= GROUP_OPERATIONS_MAX
                || group.bytes >= GROUP_BYTES_MAX
            {
                break;
            }
        }
        if group.commits.is_empty() {
            return Ok(false);
        }
        self.commit(inner, replica, group)?;
        self.begun = Position(0);
        Ok(true)
    }

    /// Returns the next whole batch, if it is durable.
    fn next(&mut self) -> Result<Option<Logged>, FilesError> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        while let Some(record) = self.reader.next()? {
            match LogEntry::decode(&record.payload)? {
                // The last word counts: what was logged for a batch that broke off is logged again.
                LogEntry::Content(index, content) => {
                    self.contents.insert(index, content);
                }
                LogEntry::Awaited(indexes) => self.awaited = indexes.into_iter().collect(),
                LogEntry::Batch(batch) => {
                    return Ok(Some(Logged {
                        batch,
                        contents: std::mem::take(&mut self.contents),
                        awaited: std::mem::take(&mut self.awaited),
                    }));
                }
            }
        }
        Ok(None)
    }

    fn apply(
        &self,
        inner: &Inner,
        replica: &mut Replica,
        logged: &mut Logged,
        group: &mut Group,
    ) -> Result<(), FilesError> {
        let before = match group.commits.last() {
            Some((_, _, head)) => head.clone(),
            None => replica.ledger.head().cloned().ok_or(FilesError::Broken)?,
        };
        if before.position != logged.batch.start {
            let position = logged.batch.start;
            return Err(FilesError::Diverged { position });
        }
        group.bytes = group.bytes.saturating_add(logged.inline_bytes());
        group.operations = group
            .operations
            .saturating_add(logged.batch.operations.len());
        let blocks = replica.blocks();
        let plan = Plan::new(&mut replica.ledger.manifest, &logged.batch)?;
        let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
        let is_redo = logged.batch.start < self.begun;
        let mut trash = Trash::of(inner.trash, logged.batch.start);
        let mut placing = Placing::new(tree, &blocks, &mut trash, (is_redo, inner.is_trusted()));
        placing.leftovers = std::mem::take(&mut replica.leftovers);
        let performed = placing.perform(&mut replica.ledger.manifest, logged, &plan);
        replica.leftovers = std::mem::take(&mut placing.leftovers);
        let (failed, stale, used) = (placing.failed, placing.stale, placing.used);
        // A look at everything that is under way may miss what moves from where it has yet to come.
        let has_moved = !plan.moved.is_empty() && replica.doubt.is_there();
        group.has_doubt |= placing.has_doubt || has_moved;
        let learned = match performed {
            Ok(learned) => learned,
            // Whatever it says: the disk has gone.
            Err(_) if !tree.root().is_in_place() => {
                return Err(FilesError::NotMounted {
                    path: inner.root.clone(),
                });
            }
            Err(error) => {
                if error.is_failed_sync() {
                    inner.has_lost_writes.store(true, Ordering::Relaxed);
                }
                return Err(error);
            }
        };
        if !failed.is_empty() && !tree.root().is_in_place() {
            return Err(FilesError::NotMounted {
                path: inner.root.clone(),
            });
        }
        group.failed.extend(failed);
        group.stale.extend(stale);
        group.used.extend(used);
        group.directories.extend(&plan.directories);
        let is_whole = replica.is_whole() && !group.has_doubt;
        let head = Head {
            epoch: before.epoch,
            position: logged.batch.end,
            complete: if is_whole {
                logged.batch.end
            } else {
                before.complete
            },
            root: logged.batch.after,
        };
        let operations = std::mem::take(&mut logged.batch.operations);
        group.commits.push((operations, learned, head));
        Ok(())
    }

    fn commit(
        &self,
        inner: &Inner,
        replica: &mut Replica,
        mut group: Group,
    ) -> Result<(), FilesError> {
        let mut learned = Vec::new();
        group.has_doubt |= set_directory_times(replica, &group.directories, &mut learned)?;
        let tree = replica.tree()?;
        inner.sync(tree)?;
        if let Some((_, last, head)) = group.commits.last_mut() {
            last.extend(learned);
            if !replica.is_whole() && head.complete == head.position {
                head.complete = replica
                    .ledger
                    .head()
                    .map_or(Position(0), |before| before.complete);
            }
        }
        for failed in &group.failed {
            // Further on it may have been put after all, or removed.
            let known = replica.ledger.manifest.get(&failed.path);
            if known
                .as_ref()
                .is_some_and(|known| known.local.seen().is_some())
            {
                continue;
            }
            group.has_doubt |= known.is_some();
            inner.entry_failed(&failed.path, failed.hash, failed.reason.clone());
        }
        if group.has_doubt {
            replica.raise_doubt()?;
        }
        replica.store_leftovers()?;
        let mut position = Position(0);
        for (operations, learned, head) in group.commits {
            for (path, local) in &learned {
                if local.seen().is_some() {
                    inner.awaiting.settled(path);
                }
            }
            position = head.position;
            replica.ledger.commit(&operations, learned, head)?;
        }
        replica.ledger.sync()?;
        // From here on nothing of the group is needed any more.
        replica.log.lock().release(position)?;
        for name in &group.used {
            replica.tree()?.unstage(name);
        }
        let blocks = replica.blocks();
        for (size, hash) in group.stale {
            blocks.remove(size, hash);
        }
        inner.tell(replica);
        Ok(())
    }
}

/// What is put into a directory changes its time; it gets the primary's back. Returns whether one was not
/// there, or did not take it.
pub(super) fn set_directory_times(
    replica: &mut Replica,
    directories: &BTreeSet<NodeId>,
    learned: &mut Vec<(RelPath, Local)>,
) -> Result<bool, FilesError> {
    let mut has_failed = false;
    let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
    let manifest = &mut replica.ledger.manifest;
    for id in directories {
        let is_there =
            manifest.is_listed(*id) && manifest.is_directory(*id) && !manifest.is_awaited(*id);
        let path = if is_there { manifest.path(*id) } else { None };
        let Some(path) = path else { continue };
        match tree.set_directory_mtime(&path, manifest.mtime_ns(*id)) {
            Ok(Some(found)) => {
                manifest.learn(*id, Local::Seen(found));
                learned.push((path, Local::Seen(found)));
            }
            Ok(None) => {
                has_failed = true;
                lose(manifest, *id, learned);
            }
            Err(error) if concerns_all(&error) => {
                let place = tree.root().path().join(path.as_path());
                return Err(FilesError::tree("set the time of", place)(error));
            }
            Err(error) => {
                tracing::debug!(%path, %error, "cannot set the time of a directory");
                has_failed = true;
                manifest.learn(*id, Local::Awaited);
                learned.push((path, Local::Awaited));
            }
        }
    }
    Ok(has_failed)
}

impl Inner {
    /// Makes everything in the tree durable.
    pub(super) fn sync(&self, tree: &super::tree::Tree) -> Result<(), FilesError> {
        let synced = tree.sync();
        if synced.is_err() {
            // A second attempt would report success, and the page cache would show what is lost.
            self.has_lost_writes.store(true, Ordering::Relaxed);
        }
        synced.map_err(FilesError::tree("sync", &self.root))
    }

    /// Returns whether what can be read is what is on the disk.
    pub(super) fn is_trusted(&self) -> bool {
        !self.has_lost_writes.load(Ordering::Relaxed)
    }

    /// Applies again what is in the log and not yet in the manifest. Repeatable.
    pub(super) fn recover(&self, replica: &mut Replica) -> Result<(), FilesError> {
        if replica.ledger.head().is_none() {
            return Ok(());
        }
        let mut applier = Applier::open(replica)?;
        while applier.apply_group(self, replica)? {}
        self.clear_leftovers(replica)?;
        replica.clear_staging()
    }

    /// Applies what the logger makes durable, until that has ended and everything is applied.
    pub(super) fn apply_all(&self) -> Result<(), FilesError> {
        let applied = self.apply_until_ended();
        if let Err(error) = &applied {
            self.suspect();
            if error.is_full() {
                self.empty_trash();
            }
        }
        self.flow
            .change(|state| state.has_failed |= applied.is_err());
        applied
    }

    fn apply_until_ended(&self) -> Result<(), FilesError> {
        let mut applier = Applier::open(&self.replica())?;
        loop {
            let state = self.flow.wait(PATIENCE, |state| {
                state.is_ended
                    || state.is_stopped
                    || state.epoch.is_some()
                    || state.logged > state.applied
            });
            if state.is_stopped {
                return Ok(());
            }
            // Others have to look at the copy as well.
            self.give_way();
            let mut replica = self.replica();
            if let Some(epoch) = state.epoch {
                replica.set_epoch(&epoch)?;
                self.flow.change(|state| state.epoch = None);
            }
            let applied = self
                .clear_leftovers(&mut replica)
                .and_then(|()| applier.apply_group(self, &mut replica));
            if applied.is_err() {
                // Before others see what is in memory.
                self.suspect();
            }
            drop(replica);
            let is_done = !applied?;
            if is_done && state.is_ended {
                return Ok(());
            }
        }
    }

    /// Remembers that an entry could not be brought up to date, and tells it once.
    pub(super) fn entry_failed(
        &self,
        path: &RelPath,
        hash: Option<understudy_replication::files::Digest>,
        reason: String,
    ) {
        if self.awaiting.failed(path, hash, Some(reason.clone())) {
            self.events.record(
                Severity::Warning,
                "files_entry",
                format!(
                    "store {}: {path} cannot be brought up to date, and is tried again: {reason}",
                    self.id.name
                ),
            );
        }
    }
}

impl Replica {
    /// Takes the primary's epoch for the positions from now on.
    pub(super) fn set_epoch(
        &mut self,
        epoch: &understudy_replication::epoch::Epoch,
    ) -> Result<(), FilesError> {
        let Some(head) = self.ledger.head().cloned() else {
            return Ok(());
        };
        if head.epoch != *epoch {
            let epoch = epoch.clone();
            self.ledger
                .commit(&[], Vec::new(), Head { epoch, ..head })?;
            self.ledger.sync()?;
        }
        Ok(())
    }
}
