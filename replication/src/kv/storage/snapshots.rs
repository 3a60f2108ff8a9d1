//! Making snapshots, and taking those of another node.

use std::path::PathBuf;
use std::sync::PoisonError;

use crate::durable;
use crate::log::LogError;
use crate::position::Position;
use crate::wall_time::WallTime;

use super::super::operation::Operation;
use super::super::point::Point;
use super::super::points::Points;
use super::super::snapshot::{Begin, End, Part, SNAPSHOT_PART_BYTES, SnapshotWriter};
use super::super::table::{Cursor, Table};
use super::{Kept, SNAPSHOT_AFTER_BYTES_MIN, Storage, StorageError, Visible};

/// A snapshot of another node on its way here.
#[derive(Debug)]
pub struct Incoming {
    writer: SnapshotWriter,
    path: PathBuf,
    begin: Begin,
    table: Table,
}

/// Walks the table while it changes.
#[derive(Debug, Default)]
pub struct Walk {
    at: Option<Cursor>,
    is_over: bool,
}

impl Storage {
    /// Returns what a snapshot that is made now begins with.
    pub fn begin_snapshot(&self) -> Begin {
        let (opened, bytes) = {
            let chain = self.chain();
            (chain.opened, chain.bytes)
        };
        let visible = self.visible();
        let is_of_run = opened < visible.position();
        Begin {
            opened: if is_of_run { opened } else { Position(0) },
            start: visible.point.clone(),
            made: WallTime::now(),
            is_installed: false,
            keys: u64::try_from(visible.table.len()).unwrap_or(u64::MAX),
            bytes,
        }
    }

    /// Returns the next part of the table, or `None` when it has been walked through.
    pub fn walk(&self, walk: &mut Walk) -> Option<Vec<Operation>> {
        if walk.is_over {
            return None;
        }
        let (operations, next) = self
            .visible()
            .table
            .walk(walk.at.as_ref(), SNAPSHOT_PART_BYTES);
        walk.is_over = next.is_none();
        walk.at = next;
        Some(operations)
    }

    /// Returns what a snapshot that was walked through by now ends with.
    pub fn end_snapshot(&self) -> End {
        let visible = self.visible();
        End {
            end: visible.position(),
            digest: visible.table.digest(),
        }
    }

    /// Returns whether the log has grown by so much that a snapshot should let its older part go.
    pub fn is_snapshot_due(&self) -> bool {
        let live = u64::try_from(self.visible().table.live_bytes()).unwrap_or(u64::MAX);
        let chain = self.chain();
        let since = chain.kept.as_ref().map_or(0, |kept| kept.bytes);
        let grown = chain.bytes.saturating_sub(since);
        grown > SNAPSHOT_AFTER_BYTES_MIN.max(live)
    }

    /// Makes a snapshot of what is visible. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// When it cannot be written; the old one is then still in place.
    pub fn make_snapshot(&self) -> Result<(), StorageError> {
        let is_retired = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_retired {
            return Ok(());
        }
        let begin = self.begin_snapshot();
        let start = begin.start.clone();
        let bytes = begin.bytes;
        let path = self.folder.join("snapshot");
        let mut writer = SnapshotWriter::create(&path, begin)?;
        let mut walk = Walk::default();
        while let Some(operations) = self.walk(&mut walk) {
            writer.push(&Part::Operations(operations))?;
        }
        let end = self.end_snapshot();
        // What is visible is in the log, and durable there, on every node: what follows `start` up to `end` is
        // read from it at the next start.
        self.sync()?;
        let position = end.end;
        writer.finish(end)?;
        let mut chain = self.chain();
        chain.kept = Some(Kept {
            start,
            end: position,
            bytes,
        });
        chain.tell(&self.told);
        Ok(())
    }

    /// Begins to take the snapshot of another node, beside what is here.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn begin_incoming(&self, begin: Begin) -> Result<Incoming, StorageError> {
        let path = self.folder.join("incoming");
        let begin = Begin {
            is_installed: true,
            ..begin
        };
        Ok(Incoming {
            writer: SnapshotWriter::create(&path, begin.clone())?,
            path,
            begin,
            table: Table::new(),
        })
    }

    /// Puts a snapshot that has come whole into the place of everything that is here. The caller has put aside
    /// what only this node has.
    ///
    /// Invariant: the rename is the moment. Before it, everything old is in place; after it, the log is begun
    /// anew where the snapshot needs it, now or at the next start.
    ///
    /// It is given up if `is_wanted` says so at that moment: a node that is about to be promoted keeps what it has.
    ///
    /// # Errors
    /// When a file cannot be written, or it is given up.
    pub fn install(
        &self,
        incoming: Incoming,
        end: End,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<(), StorageError> {
        let Incoming {
            writer,
            path,
            begin,
            table,
        } = incoming;
        let position = end.end;
        writer.finish(end)?;
        let _alone = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
        let mut chain = self.chain();
        // With the locks held: whoever takes the store over waits for them, and has said before that this is
        // not wanted any more.
        if !is_wanted() {
            return Err(StorageError::Stopped);
        }
        let place = self.folder.join("snapshot");
        let renamed =
            std::fs::rename(&path, &place).and_then(|()| durable::sync_directory_of(&place));
        renamed.map_err(|source| LogError::File {
            action: "rename",
            path,
            source,
        })?;
        let start: Point = begin.start.clone();
        chain.log.reset(start.position)?;
        chain.points = Points::new(start.clone());
        chain.kept = Some(Kept {
            start: start.clone(),
            end: position,
            bytes: begin.bytes,
        });
        chain.bytes = begin.bytes;
        chain.opened = begin.opened;
        chain.tell(&self.told);
        *visible = Visible {
            table,
            point: start,
        };
        Ok(())
    }
}

impl Incoming {
    /// Takes a part of the table.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, operations: Vec<Operation>) -> Result<(), StorageError> {
        operations
            .iter()
            .for_each(|operation| self.table.apply(operation));
        self.writer.push(&Part::Operations(operations))?;
        Ok(())
    }
}
