//! From what was found to what is shipped: batches, logged durably before anybody is told of them.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Instant;

use understudy_replication::event::Severity;
use understudy_replication::files::{
    BATCH_BYTES_MAX, Batch, BatchError, Content, Head, Known, Ledger, LedgerError, Local, LogEntry,
    LogEntryError, Manifest, Misfit, NodeId, OUTBOARD_FROM, Operation, RelPath,
};
use understudy_replication::guard::{Extent, Judgement};
use understudy_replication::log::{Log, LogError};
use understudy_replication::position::Position;

use super::look::Change;
use super::shared::Shared;

/// Room for what surrounds the operations of a batch.
const BATCH_HEAD_BYTES: usize = 1024;

/// A batch has no more operations than this: a standby applies it whole.
const OPERATIONS_MAX: usize = 4000;

/// The problem that the delete guard holds something back.
pub(super) const ABOUT_GUARD: &str = "delete_guard";

/// Why what was found cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    /// The log failed.
    #[error("cannot log a batch")]
    Log(#[from] LogError),
    /// The manifest cannot be kept.
    #[error("cannot keep the manifest")]
    Ledger(#[from] LedgerError),
    /// A batch is too long.
    #[error("cannot encode a batch")]
    Batch(#[from] BatchError),
    /// What was found contradicts the manifest.
    #[error("what was found does not fit the manifest")]
    Misfit(#[from] Misfit),
    /// A record in the log is not one of this store's.
    #[error("cannot read the log")]
    Record(#[from] LogEntryError),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Makes `changes` durable and then visible to those who ship. Returns the paths that have to be looked
/// at again: what did not fit, and other names of what has gone.
///
/// After an error the ledger is closed: what is in memory may be ahead of the log.
pub(super) fn commit(
    shared: &Shared,
    changes: BTreeMap<RelPath, Change>,
) -> Result<Vec<RelPath>, CommitError> {
    let mut again = Vec::new();
    if changes.is_empty() {
        return Ok(again);
    }
    let mut deletes = Vec::new();
    let mut puts = Vec::new();
    let mut learned = Vec::new();
    for (path, change) in changes {
        match change {
            Change::Put { known, content } => puts.push((path, known, content)),
            Change::Delete => deletes.push(path),
            Change::Learn(local) => learned.push((path, local)),
        }
    }
    // The name that a link is made to has its number by then.
    puts.sort_by_key(|(_, _, content)| matches!(content, Content::Link(_)));
    within(shared, |ledger, log| {
        // A file in the place of a directory takes what that held.
        let mut gone = deletes.clone();
        gone.extend(puts.iter().filter_map(|(path, known, _)| {
            let id = ledger.manifest.lookup(path)?;
            let is_replaced = ledger.manifest.is_directory(id) && !known.entry.is_directory();
            is_replaced.then(|| path.clone())
        }));
        gone.sort_unstable();
        if !gone.is_empty() && !is_allowed(shared, &ledger.manifest, &gone) {
            deletes.clear();
            puts.retain(|(path, ..)| gone.binary_search(path).is_err());
        }
        let mut writer = Writer::new(ledger, log);
        for (path, known, content) in puts {
            if writer.ledger.manifest.directory_of(&path).is_none() {
                // The directory has gone or moved since.
                again.extend(path.parent());
                continue;
            }
            let former = writer.ledger.manifest.lookup(&path);
            let held = former.and_then(|id| writer.ledger.manifest.content(id));
            let content = fitting(&writer.ledger.manifest, &path, &known, content, held);
            let replaced = held.filter(|former| Some(*former) != known.entry.content());
            let local = known.local;
            let operation = Operation::Put {
                path: path.clone(),
                entry: known.entry,
                content,
            };
            let left = former.map_or(0, |former| writer.ledger.manifest.link(former));
            if !writer.push(operation, Some(local))? {
                continue;
            }
            let manifest = &writer.ledger.manifest;
            again.extend(unlike_names(shared, manifest, &path, left));
            shared.note_content(manifest, &path);
            if let Some((size, hash)) = replaced
                && size >= OUTBOARD_FROM
                && !shared.is_held(&writer.ledger.manifest, size, hash)
            {
                shared.blocks.remove(size, hash);
            }
        }
        for path in deletes {
            // The directory that held it may have gone in the same look.
            if let Some(id) = writer.ledger.manifest.lookup(&path) {
                // Nobody tells a file's other names that it has one less.
                again.extend(writer.ledger.manifest.linked_outside(id));
                writer.push(Operation::Delete { path }, None)?;
            }
        }
        let position = writer.finish()?;
        for (path, local) in &learned {
            if let Some(id) = ledger.manifest.lookup(path) {
                ledger.manifest.learn(id, *local);
                shared.note_inode(&ledger.manifest, id);
            }
        }
        ledger.learned(learned)?;
        ledger.checkpoint_if_due()?;
        Ok(position)
    })?;
    Ok(again)
}

/// Makes the moves durable that `confirm` finds to be true, each by what the ones before it lead to, and
/// then visible to those who ship. Returns where to they went.
pub(super) fn commit_moves(
    shared: &Shared,
    moves: impl Iterator<Item = (RelPath, RelPath)>,
    confirm: impl Fn(&Manifest, &RelPath, &RelPath) -> Option<Operation>,
) -> Result<Vec<RelPath>, CommitError> {
    let mut moved = Vec::new();
    within(shared, |ledger, log| {
        let mut writer = Writer::new(ledger, log);
        for (from, to) in moves {
            if let Some(operation) = confirm(&writer.ledger.manifest, &from, &to)
                && writer.push(operation, None)?
            {
                moved.push(to);
            }
        }
        writer.finish()
    })?;
    Ok(moved)
}

fn within(
    shared: &Shared,
    act: impl FnOnce(&mut Ledger, &mut Log) -> Result<Option<Position>, CommitError>,
) -> Result<(), CommitError> {
    let mut guard = shared.ledger();
    let mut shipped = shared
        .shipped
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let ledger = guard.as_mut().ok_or(CommitError::Closed)?;
    let log = shipped.as_mut().ok_or(CommitError::Closed)?;
    let result = act(ledger, log);
    drop(shipped);
    drop(guard);
    match result {
        Ok(Some(position)) => {
            shared.position.send_replace(position);
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => {
            shared.close();
            Err(error)
        }
    }
}

/// Gathers operations into batches, and logs each when it is full.
struct Writer<'a> {
    ledger: &'a mut Ledger,
    log: &'a mut Log,
    before: Option<understudy_replication::files::Digest>,
    operations: Vec<Operation>,
    learned: Vec<(RelPath, Local)>,
    room: usize,
    position: Option<Position>,
}

impl<'a> Writer<'a> {
    fn new(ledger: &'a mut Ledger, log: &'a mut Log) -> Self {
        Self {
            ledger,
            log,
            before: None,
            operations: Vec::new(),
            learned: Vec::new(),
            room: BATCH_BYTES_MAX - BATCH_HEAD_BYTES,
            position: None,
        }
    }

    /// Folds an operation into the manifest, and keeps it for the log; `false` if it does not fit.
    fn push(&mut self, operation: Operation, local: Option<Local>) -> Result<bool, CommitError> {
        let bytes = operation.metadata_bytes();
        if bytes > self.room || self.operations.len() >= OPERATIONS_MAX {
            self.flush()?;
        }
        if self.before.is_none() {
            self.before = Some(self.ledger.manifest.root());
        }
        if let Err(misfit) = self.ledger.manifest.fold(&operation) {
            // Nothing has been changed by it; whoever looks next finds out what is there.
            tracing::debug!(%misfit, "what was found does not fit any more");
            return Ok(false);
        }
        if let Some(local) = local
            && let Some(id) = self.ledger.manifest.lookup(operation.path())
        {
            self.ledger.manifest.learn(id, local);
            self.learned.push((operation.path().clone(), local));
        }
        self.room = self.room.saturating_sub(bytes);
        self.operations.push(operation);
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), CommitError> {
        let Some(before) = self.before.take() else {
            return Ok(());
        };
        let head = self.ledger.head().cloned().ok_or(CommitError::Closed)?;
        let after = self.ledger.manifest.root();
        let cost: u64 = self.operations.iter().map(Operation::cost).sum();
        let batch = Batch {
            start: head.position,
            end: Position(head.position.0.saturating_add(cost)),
            before,
            after,
            operations: std::mem::take(&mut self.operations),
        };
        // Invariant: the log first. The manifest can be made again from it, and nothing is shipped
        // that this node could forget.
        self.log
            .append(&LogEntry::encode_batch(&batch)?, batch.end)?;
        self.log.sync()?;
        let head = Head {
            position: batch.end,
            complete: batch.end,
            root: after,
            ..head
        };
        let learned = std::mem::take(&mut self.learned);
        self.ledger.commit(&batch.operations, learned, head)?;
        self.position = Some(batch.end);
        self.room = BATCH_BYTES_MAX - BATCH_HEAD_BYTES;
        Ok(())
    }

    fn finish(mut self) -> Result<Option<Position>, CommitError> {
        self.flush()?;
        Ok(self.position)
    }
}

/// Returns the other names of the file that was just found at `path`, and of the one that had the number
/// `left` and is not there any more, where they are known to be otherwise.
///
/// Invariant: names of one inode are known as equal, or wait for a look. Nobody tells of the other names
/// of a file that was changed, or got one more, under this one; and what was looked at first may be
/// committed last.
fn unlike_names(shared: &Shared, manifest: &Manifest, path: &RelPath, left: u64) -> Vec<RelPath> {
    let Some(id) = manifest.lookup(path) else {
        return Vec::new();
    };
    let link = manifest.link(id);
    let mut names: Vec<NodeId> = Vec::new();
    if left != 0 {
        names.extend(manifest.linked(left));
    }
    if link != 0 && link != left {
        names.extend(manifest.linked(link));
    }
    let inode = manifest.inode(id);
    if let Some(inode) = inode.filter(|_| manifest.content(id).is_some()) {
        if link != 0 {
            names.extend(shared.node_with(manifest, inode));
        } else if let Some(link) = manifest.link_of_inode(inode) {
            // It had no other name yet when it was read.
            names.extend(manifest.linked(link));
            names.push(id);
        }
    }
    shared.note_inode(manifest, id);
    let others = names
        .into_iter()
        .filter(|other| !manifest.is_like(*other, id) || (*other == id && link == 0));
    others.filter_map(|other| manifest.path(other)).collect()
}

/// Returns where the content comes from, now that it is known what the manifest says.
fn fitting(
    manifest: &Manifest,
    path: &RelPath,
    known: &Known,
    content: Content,
    former: Option<(u64, understudy_replication::files::Digest)>,
) -> Content {
    let entry = &known.entry;
    let wanted = entry.content();
    if wanted.is_none() {
        return Content::Same;
    }
    // One more name of a file that the copies have.
    if entry.link != 0 {
        let sibling = manifest
            .linked(entry.link)
            .filter(|id| manifest.content(*id) == wanted)
            .filter_map(|id| manifest.path(id))
            .find(|sibling| sibling != path);
        let was_linked = former == wanted
            && manifest
                .lookup(path)
                .is_some_and(|id| manifest.link(id) == entry.link);
        if was_linked {
            // However it was read: what is put whole becomes a file of its own.
            return Content::Same;
        }
        if let Some(sibling) = sibling {
            return Content::Link(sibling);
        }
    }
    // What was one of several names, and is another file now, must not be changed where the copies have it:
    // that is the file of the other names.
    let is_another = manifest.lookup(path).is_some_and(|id| {
        let seen = known.local.seen().map(|seen| seen.inode);
        manifest.link(id) != 0 && manifest.inode(id) != seen
    });
    // A name that has left others: the copies' file is still theirs, and is not to be changed for it.
    let left = manifest.get(path).map_or(0, |known| known.entry.link);
    if is_another && left != 0 && left != entry.link {
        let mut others = manifest
            .linked(left)
            .filter_map(|id| Some((id, manifest.path(id).filter(|other| other != path)?)))
            .peekable();
        if others.peek().is_some() {
            let held = others.find(|(id, _)| manifest.content(*id) == wanted);
            return held.map_or(Content::Whole, |(_, other)| Content::Copy(other));
        }
    }
    match content {
        Content::Same if former == wanted && !is_another => Content::Same,
        Content::Same => Content::Whole,
        Content::Whole => Content::Whole,
        Content::Patch(patch) => {
            let is_right = patch.base_size == 0
                || former.is_some_and(|(size, base)| (size, base) == (patch.base_size, patch.base));
            if is_right {
                Content::Patch(patch)
            } else {
                Content::Whole
            }
        }
        Content::Copy(from) => {
            let held = manifest.lookup(&from).and_then(|id| manifest.content(id));
            if held == wanted {
                Content::Copy(from)
            } else {
                Content::Whole
            }
        }
        Content::Link(sibling) => {
            // It was there when it was looked for, and may have gone before it was looked at.
            let is_right = manifest.lookup(&sibling).is_some_and(|id| {
                manifest.link(id) == entry.link && manifest.content(id) == wanted
            });
            if is_right {
                Content::Link(sibling)
            } else {
                Content::Whole
            }
        }
    }
}

/// Asks the delete guard.
fn is_allowed(shared: &Shared, manifest: &Manifest, deletes: &[RelPath]) -> bool {
    let before = Extent {
        entries: u64::try_from(manifest.len()).unwrap_or(u64::MAX),
        bytes: manifest.bytes(),
    };
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let mut within: Option<&RelPath> = None;
    for path in deletes {
        if within.is_some_and(|directory| path.is_beneath(directory)) {
            continue;
        }
        within = Some(path);
        if let Some(id) = manifest.lookup(path) {
            let (some_entries, some_bytes) = manifest.weigh(id);
            entries = entries.saturating_add(u64::try_from(some_entries).unwrap_or(u64::MAX));
            bytes = bytes.saturating_add(some_bytes);
        }
    }
    let after = Extent {
        entries: before.entries.saturating_sub(entries),
        bytes: before.bytes.saturating_sub(bytes),
    };
    let mut guard = shared.guard.lock().unwrap_or_else(PoisonError::into_inner);
    let judgement = guard.judge(Instant::now(), before, after);
    drop(guard);
    let mut withheld = shared
        .withheld
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match judgement {
        Judgement::Allow => true,
        Judgement::Stop(stopped) => {
            *withheld = Some(stopped);
            drop(withheld);
            let name = &shared.id.name;
            shared.problem(
                ABOUT_GUARD,
                Severity::Error,
                "files_deletes_withheld",
                format!(
                    "store {name}: {stopped}; nothing is deleted on the standbys until `understudy \
                     sync --allow-deletes {name}` says that it is meant"
                ),
            );
            false
        }
    }
}

/// Brings the manifest up to the end of the log: what was logged, and not yet in the journal when the
/// node stopped. How the files look is not in the log, so that they are read again.
pub(super) fn replay(ledger: &mut Ledger, log: &Log) -> Result<(), CommitError> {
    let Some(mut head) = ledger.head().cloned() else {
        return Ok(());
    };
    let mut reader = log.view().reader(head.position)?;
    while let Some(record) = reader.next()? {
        let LogEntry::Batch(batch) = LogEntry::decode(&record.payload)? else {
            continue;
        };
        for operation in &batch.operations {
            ledger.manifest.fold(operation)?;
        }
        head.position = batch.end;
        head.complete = batch.end;
        head.root = ledger.manifest.root();
        ledger.commit(&batch.operations, Vec::new(), head.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::files::{Digest, Identity, Kind};

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn known(content: &[u8], link: u64, inode: Option<u64>) -> Known {
        let mut known = Known::directory();
        known.entry.kind = Kind::File {
            size: u64::try_from(content.len()).unwrap(),
            hash: Digest::of(content),
        };
        known.entry.link = link;
        known.local = match inode {
            None => Local::Unknown,
            Some(inode) => Local::Seen(Identity {
                inode,
                ..identity()
            }),
        };
        known
    }

    fn identity() -> Identity {
        let file = tempfile::tempfile().unwrap();
        let stat = understudy_replication::files::stat_fd(std::os::fd::AsFd::as_fd(&file)).unwrap();
        understudy_replication::files::identity(&stat)
    }

    #[test]
    fn names_of_one_file_are_told_as_such_and_no_others() {
        let mut manifest = Manifest::default();
        let held = [
            ("one", known(b"linked", 7, Some(1))),
            ("two", known(b"linked", 7, None)),
            ("alone", known(b"other", 0, Some(2))),
        ];
        for (name, known) in held {
            manifest.insert(&path(name), known).unwrap();
        }
        let fit = |name: &str, known: &Known, content: Content| {
            let former = manifest
                .lookup(&path(name))
                .and_then(|id| manifest.content(id));
            fitting(&manifest, &path(name), known, content, former)
        };
        let linked = known(b"linked", 7, Some(1));
        assert_eq!(
            fit("new", &linked, Content::Whole),
            Content::Link(path("one"))
        );
        // Read otherwise, or how it looked not known: still a name of the same file.
        assert_eq!(fit("one", &linked, Content::Whole), Content::Same);
        assert_eq!(fit("two", &linked, Content::Same), Content::Same);
        // What has a link of its own, or none, by now is another file than the copies have there.
        for link in [0, 8] {
            let another = known(b"linked", link, Some(3));
            let copied = Content::Copy(path("two"));
            assert_eq!(fit("one", &another, Content::Same), copied);
        }
        // The last name of a file that had several is still that file.
        let last = known(b"linked", 0, Some(1));
        assert_eq!(fit("one", &last, Content::Same), Content::Same);
        // Another name that was found has become something else.
        let content = Content::Link(path("alone"));
        assert_eq!(
            fit("new", &known(b"more", 9, Some(4)), content),
            Content::Whole
        );
        let content = Content::Link(path("gone"));
        assert_eq!(
            fit("new", &known(b"more", 9, Some(4)), content),
            Content::Whole
        );
    }
}
