//! From messages to a batch that is durable.
//!
//! Looks at nothing but what came: whether it follows what came before, and whether each content has its
//! digest. What it means is found out by the applier, for which nobody waits here.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use understudy_replication::event::Severity;
use understudy_replication::files::wire::{Message, Note, unpack};
use understudy_replication::files::{Batch, Blocks, Content, Digest, LogEntry, Operation, RelPath};
use understudy_replication::position::Position;

use super::Inner;
use super::content::Hashing;
use super::error::FilesError;
use super::plan::staged_name;
use super::replica::SharedLog;
use super::tree::Tree;

/// Contents up to this long are in the log; longer ones are synced as staged files, so that they are
/// not written twice.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// As much content of one batch goes into the log; the applier holds it in memory.
const INLINE_BATCH_BYTES_MAX: u64 = 64 << 20;

/// What is logged becomes durable when nothing more has come, or when it is this much,
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// or this old.
const UNSYNCED_TIME_MAX: Duration = Duration::from_millis(20);

/// Nothing more is received while the log is this long.
const LOG_BYTES_FULL: u64 = 512 << 20;

/// How long is waited for the applier before it is looked whether it still runs.
const PATIENCE: Duration = Duration::from_millis(500);

/// Writes what comes into the log.
pub(super) struct Logger {
    inner: Arc<Inner>,
    log: SharedLog,
    tree: Tree,
    blocks: Arc<Blocks>,
    /// The root behind the last batch in the log.
    root: Digest,
    end: Position,
    receiving: Option<Receiving>,
    /// Since when there has been something to sync, and how much it is.
    unsynced: Option<(Instant, u64)>,
    has_staged: bool,
    /// The end of the newest batch that lacks a content.
    held: Option<Position>,
    /// Something of a batch that broke off may be in the log.
    is_first: bool,
}

/// A batch whose contents are coming.
struct Receiving {
    batch: Batch,
    contents: VecDeque<(u32, RelPath, u64, Digest, bool)>,
    current: Option<Incoming>,
    inline_bytes: u64,
    awaited: Vec<u32>,
}

/// A content that is being received.
struct Incoming {
    hashing: Hashing,
    target: Target,
}

enum Target {
    Memory(Vec<u8>),
    Staged(String, File),
}

impl Logger {
    pub(super) fn new(
        inner: &Arc<Inner>,
        (log, blocks): (SharedLog, Arc<Blocks>),
        root: Digest,
    ) -> Result<Self, FilesError> {
        let end = log.lock().end();
        Ok(Self {
            inner: inner.clone(),
            log,
            tree: Tree::open(&inner.root).map_err(FilesError::tree("open", &inner.root))?,
            blocks,
            root,
            end,
            receiving: None,
            unsynced: None,
            has_staged: false,
            held: None,
            is_first: true,
        })
    }

    /// Logs what comes until nothing does. What has come whole is durable on return.
    pub(super) fn run(mut self, mut frames: mpsc::Receiver<Bytes>) -> Result<(), FilesError> {
        let logged = self.receive(&mut frames);
        // What came whole before a mistake is as good as if that had not come.
        let synced = self.sync();
        logged.and(synced)
    }

    fn receive(&mut self, frames: &mut mpsc::Receiver<Bytes>) -> Result<(), FilesError> {
        loop {
            let frame = match frames.try_recv() {
                Ok(frame) => Some(frame),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    self.sync()?;
                    frames.blocking_recv()
                }
            };
            let Some(mut frame) = frame else {
                return Ok(());
            };
            while let Some(message) = unpack(&mut frame)? {
                self.take(message)?;
            }
            let is_due = |(since, bytes): (Instant, u64)| {
                bytes >= UNSYNCED_BYTES_MAX || since.elapsed() >= UNSYNCED_TIME_MAX
            };
            if self.unsynced.is_some_and(is_due) {
                self.sync()?;
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<(), FilesError> {
        match message {
            Message::Note(Note::Hello { epoch, .. }) => {
                self.inner.flow.change(|state| state.epoch = Some(epoch));
                self.inner.told(|told| told.must_reseed = false);
                Ok(())
            }
            // Only what has been done shows that it can be done.
            Message::Note(Note::Heartbeat { .. }) => {
                if !self.inner.flow.lock().has_failed {
                    self.inner.told(|told| told.stalled = None);
                }
                Ok(())
            }
            message @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                self.take_part(message)
            }
        }
    }

    fn take_part(&mut self, message: Message) -> Result<(), FilesError> {
        let Some(receiving) = &mut self.receiving else {
            let Message::Batch(batch) = message else {
                return Err(message.unexpected("a batch").into());
            };
            self.begin(batch)?;
            return self.finish_if_whole();
        };
        match message {
            Message::Chunk(bytes) => {
                let Some((_, path, size, ..)) = receiving.contents.front() else {
                    return Err(FilesError::Broken);
                };
                let Some(current) = &mut receiving.current else {
                    return Err(FilesError::Broken);
                };
                let at = current.hashing.count();
                current.hashing.update(&bytes);
                if current.hashing.count() > *size {
                    return Err(Message::Chunk(bytes)
                        .unexpected("the end of a content")
                        .into());
                }
                match &mut current.target {
                    Target::Memory(held) => held.extend_from_slice(&bytes),
                    Target::Staged(_, file) => {
                        let written = file.write_all_at(&bytes, at);
                        written.map_err(FilesError::tree("stage", path.as_path()))?;
                    }
                }
            }
            Message::Note(Note::Complete) => self.complete()?,
            Message::Note(Note::Superseded | Note::Deferred) => self.leave_out()?,
            other @ (Message::Batch(_) | Message::Note(_)) => {
                return Err(other.unexpected("the content of a batch").into());
            }
        }
        self.finish_if_whole()
    }

    fn begin(&mut self, batch: Batch) -> Result<(), FilesError> {
        if batch.start != self.end || batch.before != self.root {
            return Err(FilesError::Diverged {
                position: batch.start,
            });
        }
        self.wait_for_room()?;
        let contents = (0_u32..)
            .zip(&batch.operations)
            .filter_map(|(index, operation)| {
                let (size, hash) = operation.literal()?;
                Some((
                    index,
                    operation.path().clone(),
                    size,
                    hash,
                    is_whole(operation),
                ))
            });
        self.receiving = Some(Receiving {
            contents: contents.collect(),
            batch,
            current: None,
            inline_bytes: 0,
            awaited: Vec::new(),
        });
        self.open_next()
    }

    /// Waits while the log is full. Only between batches: a half one cannot be applied.
    fn wait_for_room(&mut self) -> Result<(), FilesError> {
        while self.log.lock().view().bytes() > LOG_BYTES_FULL {
            self.sync()?;
            let applied = self.inner.flow.lock().applied;
            let state = self.inner.flow.wait(PATIENCE, |state| {
                state.applied > applied || state.has_failed || state.is_stopped
            });
            if state.has_failed || state.is_stopped {
                return Err(FilesError::Stopped);
            }
            if applied >= self.end {
                break;
            }
        }
        Ok(())
    }

    fn open_next(&mut self) -> Result<(), FilesError> {
        let Some(receiving) = &mut self.receiving else {
            return Ok(());
        };
        let Some((index, path, size, _, is_whole)) = receiving.contents.front() else {
            return Ok(());
        };
        let total = receiving.inline_bytes.saturating_add(*size);
        let is_inline = *size <= INLINE_BYTES_MAX && total <= INLINE_BATCH_BYTES_MAX;
        let target = if is_inline {
            receiving.inline_bytes = total;
            Target::Memory(Vec::new())
        } else {
            let name = staged_name(receiving.batch.start, *index);
            let staged = self.tree.stage(&name);
            Target::Staged(
                name,
                staged.map_err(FilesError::tree("stage", path.as_path()))?,
            )
        };
        receiving.current = Some(Incoming {
            hashing: if *is_whole {
                Hashing::of_file(*size)
            } else {
                Hashing::plain()
            },
            target,
        });
        Ok(())
    }

    fn complete(&mut self) -> Result<(), FilesError> {
        let Some(receiving) = &mut self.receiving else {
            return Err(FilesError::Broken);
        };
        let (Some(current), Some((index, path, size, hash, _))) =
            (receiving.current.take(), receiving.contents.pop_front())
        else {
            return Err(FilesError::Broken);
        };
        let count = current.hashing.count();
        let (found, outboard) = current.hashing.finish();
        if count != size || found != hash {
            self.inner.content_damaged(&path);
            drop_target(&self.tree, current.target);
            receiving.awaited.push(index);
            return self.open_next();
        }
        if let Some(outboard) = outboard {
            self.blocks.put(hash, &outboard);
        }
        let content = match current.target {
            Target::Memory(content) => content,
            Target::Staged(_, file) => {
                let synced = file.sync_data();
                synced.map_err(FilesError::tree("sync", path.as_path()))?;
                self.has_staged = true;
                // Says that what was logged for a batch that broke off does not count.
                Vec::new()
            }
        };
        let entry = LogEntry::encode_content(index, &content);
        self.log.lock().append(&entry, receiving.batch.start)?;
        note_unsynced(&mut self.unsynced, entry.len());
        self.open_next()
    }

    fn leave_out(&mut self) -> Result<(), FilesError> {
        let Some(receiving) = &mut self.receiving else {
            return Err(FilesError::Broken);
        };
        if let Some((index, ..)) = receiving.contents.pop_front() {
            receiving.awaited.push(index);
        }
        if let Some(current) = receiving.current.take() {
            drop_target(&self.tree, current.target);
        }
        self.open_next()
    }

    fn finish_if_whole(&mut self) -> Result<(), FilesError> {
        match self.receiving.take() {
            Some(receiving) if receiving.contents.is_empty() => self.append(&receiving),
            receiving => {
                self.receiving = receiving;
                Ok(())
            }
        }
    }

    fn append(&mut self, receiving: &Receiving) -> Result<(), FilesError> {
        let batch = &receiving.batch;
        let mut log = self.log.lock();
        if !receiving.awaited.is_empty() || self.is_first {
            log.append(&LogEntry::encode_awaited(&receiving.awaited)?, batch.start)?;
        }
        let bytes = LogEntry::encode_batch(batch)?;
        log.append(&bytes, batch.end)?;
        drop(log);
        self.is_first = false;
        note_unsynced(&mut self.unsynced, bytes.len());
        self.end = batch.end;
        self.root = batch.after;
        if !receiving.awaited.is_empty() {
            self.held = Some(batch.end);
        }
        Ok(())
    }

    /// Makes what has come whole durable, and tells it.
    fn sync(&mut self) -> Result<(), FilesError> {
        let is_told = self.inner.flow.lock().logged >= self.end;
        if is_told || self.unsynced.is_none() {
            return Ok(());
        }
        if std::mem::take(&mut self.has_staged) {
            let synced = self.tree.sync_staging_names();
            synced.map_err(FilesError::tree("sync the staging of", &self.inner.root))?;
        }
        self.log.lock().sync()?;
        self.unsynced = None;
        self.inner.flow.change(|state| {
            state.logged = self.end;
            if self.held.is_some() {
                state.held = self.held;
            }
        });
        self.inner.tell_flushed();
        Ok(())
    }
}

fn is_whole(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Put {
            content: Content::Whole,
            ..
        }
    )
}

fn drop_target(tree: &Tree, target: Target) {
    if let Target::Staged(name, _) = target {
        tree.unstage(&name);
    }
}

fn note_unsynced(unsynced: &mut Option<(Instant, u64)>, bytes: usize) {
    let (since, before) = unsynced.unwrap_or((Instant::now(), 0));
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    *unsynced = Some((since, before.saturating_add(bytes)));
}

impl Inner {
    /// Tells that a content was not what was announced. It is asked for again.
    pub(super) fn content_damaged(&self, path: &RelPath) {
        self.told(|told| {
            let count = told.report.gauges.entry("damaged_contents".to_owned());
            *count.or_default() += 1;
        });
        self.events.record(
            Severity::Warning,
            "files_damaged",
            format!(
                "store {}: the content of {path} does not have the hash that was announced, and is \
                 asked for again",
                self.id.name
            ),
        );
    }
}
