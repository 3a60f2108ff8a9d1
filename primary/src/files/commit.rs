//! From what was found to what is shipped: batches, logged durably before anybody is told of them.

use std::collections::{BTreeMap, BTreeSet};

use understudy_replication::files::{
    BATCH_BYTES_MAX, Batch, BatchError, Ledger, LedgerError, LogEntry, LogEntryError, Misfit,
    Operation, RelPath,
};
use understudy_replication::log::LogError;
use understudy_replication::position::Position;

use super::look::Change;
use super::shared::Shared;

/// Room for what surrounds the operations of a batch.
const BATCH_HEAD_BYTES: usize = 1024;

/// Why what was found cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    /// The log failed.
    #[error("cannot log a batch")]
    Log(#[from] LogError),
    /// The table failed.
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

/// Makes `changes` durable and then visible to those who ship.
///
/// After an error the ledger is closed: what is in memory may be ahead of the log.
pub(super) fn commit(
    shared: &Shared,
    changes: BTreeMap<RelPath, Change>,
) -> Result<(), CommitError> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut guard = shared.ledger();
    let ledger = guard.as_mut().ok_or(CommitError::Closed)?;
    let result = commit_to(ledger, changes);
    match result {
        Ok(Some(position)) => {
            drop(guard);
            shared.position.send_replace(position);
        }
        Ok(None) => {}
        Err(error) => {
            *guard = None;
            return Err(error);
        }
    }
    Ok(())
}

fn commit_to(
    ledger: &mut Ledger,
    changes: BTreeMap<RelPath, Change>,
) -> Result<Option<Position>, CommitError> {
    let mut operations = Vec::new();
    let mut deletes = Vec::new();
    let mut locals = BTreeMap::new();
    for (path, change) in changes {
        match change {
            Change::Put { known, has_content } => {
                locals.insert(path.clone(), known.local);
                operations.push(Operation::Put {
                    path,
                    entry: known.entry,
                    has_content,
                });
            }
            // A directory that held it may have been deleted in the same look.
            Change::Delete => deletes.push(Operation::Delete { path }),
            Change::Learn(local) => {
                locals.insert(path, Some(local));
            }
        }
    }
    operations.append(&mut deletes);
    let mut learned: BTreeSet<RelPath> = locals.keys().cloned().collect();
    let mut position = None;
    let mut operations = operations.into_iter().peekable();
    while operations.peek().is_some() {
        let mut room = BATCH_BYTES_MAX - BATCH_HEAD_BYTES;
        let mut some = Vec::new();
        while let Some(operation) = operations.next_if(|next| next.metadata_bytes() <= room) {
            room = room.saturating_sub(operation.metadata_bytes());
            some.push(operation);
        }
        let mut head = ledger.head().cloned().ok_or(CommitError::Closed)?;
        let before = ledger.manifest.root();
        let mut touched = BTreeSet::new();
        for operation in &some {
            touched.extend(ledger.manifest.fold(operation)?);
            touched.insert(operation.path().clone());
            if let Some(local) = locals.get(operation.path()) {
                ledger.manifest.learn(operation.path(), *local);
            }
            learned.remove(operation.path());
        }
        let after = ledger.manifest.root();
        let cost: u64 = some.iter().map(Operation::cost).sum();
        let batch = Batch {
            start: head.position,
            end: Position(head.position.0.saturating_add(cost)),
            before,
            after,
            operations: some,
        };
        // Invariant: the log first. The table can be made again from it, and nothing is shipped that
        // this node could forget.
        ledger
            .log()
            .append(&LogEntry::encode_batch(&batch)?, batch.end)?;
        ledger.log().sync()?;
        head.position = batch.end;
        head.complete = batch.end;
        head.root = after;
        ledger.commit(&touched, head)?;
        position = Some(batch.end);
    }
    for path in &learned {
        ledger
            .manifest
            .learn(path, locals.get(path).copied().flatten());
    }
    ledger.keep(&learned)?;
    Ok(position)
}

/// Brings the manifest up to the end of the log: what was logged, and not yet in the table when the
/// node stopped. How the files look is not in the log, so that they are read again.
pub(super) fn replay(ledger: &mut Ledger) -> Result<(), CommitError> {
    let Some(mut head) = ledger.head().cloned() else {
        return Ok(());
    };
    let mut reader = ledger.log_view().reader(head.position)?;
    while let Some(record) = reader.next()? {
        let LogEntry::Batch(batch) = LogEntry::decode(&record.payload)? else {
            continue;
        };
        let mut touched = BTreeSet::new();
        for operation in &batch.operations {
            touched.extend(ledger.manifest.fold(operation)?);
            touched.insert(operation.path().clone());
        }
        head.position = batch.end;
        head.complete = batch.end;
        head.root = ledger.manifest.root();
        ledger.commit(&touched, head.clone())?;
    }
    Ok(())
}
