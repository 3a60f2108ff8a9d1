//! From messages to a batch that is durable, and then visible.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;

use understudy_replication::files::wire::{Message, Note};
use understudy_replication::files::{Batch, Digest, LogEntry, RelPath};
use understudy_replication::position::Position;

use super::error::FilesError;
use super::replica::{Replica, staged_name};

/// Contents up to this long are in the log; longer ones are synced as staged files, so that they are
/// not written twice.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// What has happened to the copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progressed {
    /// Nothing yet.
    No,
    /// A batch is durable here up to the position, if none of its content is awaited.
    Flushed(Option<Position>),
}

/// A content that is being received into a staged file.
pub(super) struct Incoming {
    path: RelPath,
    size: u64,
    hash: Digest,
    file: File,
    hasher: blake3::Hasher,
}

impl Incoming {
    pub(super) fn new(path: RelPath, size: u64, hash: Digest, file: File) -> Self {
        Self {
            path,
            size,
            hash,
            file,
            hasher: blake3::Hasher::new(),
        }
    }

    /// Adds a piece.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.hasher.update(bytes);
        if self.hasher.count() > self.size {
            return Err(FilesError::Damaged {
                path: self.path.clone(),
            });
        }
        self.file
            .write_all(bytes)
            .map_err(FilesError::tree("stage", self.path.as_path()))
    }

    /// Checks that all of it has come, and is what was announced.
    pub(super) fn finish(self) -> Result<File, FilesError> {
        let is_whole =
            self.hasher.count() == self.size && Digest::from(self.hasher.finalize()) == self.hash;
        if is_whole {
            Ok(self.file)
        } else {
            Err(FilesError::Damaged { path: self.path })
        }
    }
}

/// A batch whose contents are coming.
struct Receiving {
    batch: Batch,
    contents: VecDeque<(u32, RelPath, u64, Digest)>,
    current: Option<Incoming>,
    /// A content that also goes into the log.
    inline: Vec<u8>,
    superseded: Vec<u32>,
    has_staged: bool,
}

/// Puts batches together. Writes nothing but staged files until one is whole.
#[derive(Default)]
pub(super) struct Assembly {
    receiving: Option<Receiving>,
    /// A batch that is durable and has to be applied.
    logged: Option<(Batch, BTreeSet<u32>, BTreeSet<RelPath>)>,
}

impl Assembly {
    /// Takes the next message. When it completes a batch, that is durable on return;
    /// [`Assembly::apply`] makes it visible.
    pub(super) fn take(
        &mut self,
        replica: &mut Replica,
        message: Message,
    ) -> Result<Progressed, FilesError> {
        let Some(receiving) = &mut self.receiving else {
            let Message::Batch(batch) = message else {
                return Err(message.unexpected("a batch").into());
            };
            self.receiving = Some(Receiving::new(replica, batch)?);
            return self.finish_if_whole(replica);
        };
        match message {
            Message::Chunk(bytes) => receiving.add(&bytes)?,
            Message::Note(Note::Complete) => receiving.complete(replica)?,
            Message::Note(Note::Superseded) => receiving.supersede(replica)?,
            other @ (Message::Batch(_) | Message::Note(_)) => {
                return Err(other.unexpected("the content of a batch").into());
            }
        }
        self.finish_if_whole(replica)
    }

    /// Makes visible what has been made durable.
    pub(super) fn apply(&mut self, replica: &mut Replica) -> Result<(), FilesError> {
        match self.logged.take() {
            Some((batch, superseded, gone)) => replica.apply(&batch, &superseded, gone),
            None => Ok(()),
        }
    }

    fn finish_if_whole(&mut self, replica: &mut Replica) -> Result<Progressed, FilesError> {
        match self.receiving.take() {
            Some(receiving) if receiving.contents.is_empty() => {
                let logged = receiving.log(replica)?;
                let is_complete = replica.is_complete_with(&logged.0, &logged.1);
                let flushed = is_complete.then_some(logged.0.end);
                self.logged = Some(logged);
                Ok(Progressed::Flushed(flushed))
            }
            receiving => {
                self.receiving = receiving;
                Ok(Progressed::No)
            }
        }
    }
}

impl Receiving {
    fn new(replica: &mut Replica, batch: Batch) -> Result<Self, FilesError> {
        let contents = (0_u32..)
            .zip(&batch.operations)
            .filter_map(|(index, operation)| {
                let (size, hash) = operation.content()?;
                Some((index, operation.path().clone(), size, hash))
            });
        let mut receiving = Self {
            contents: contents.collect(),
            batch,
            current: None,
            inline: Vec::new(),
            superseded: Vec::new(),
            has_staged: false,
        };
        receiving.open_next(replica)?;
        Ok(receiving)
    }

    fn open_next(&mut self, replica: &Replica) -> Result<(), FilesError> {
        self.inline.clear();
        let Some((index, path, size, hash)) = self.contents.front().cloned() else {
            return Ok(());
        };
        let staged = replica.tree()?.stage(&staged_name(self.batch.start, index));
        let file = staged.map_err(FilesError::tree("stage", path.as_path()))?;
        self.current = Some(Incoming::new(path, size, hash, file));
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        let Some(current) = &mut self.current else {
            return Err(FilesError::Broken);
        };
        current.add(bytes)?;
        if current.size <= INLINE_BYTES_MAX {
            self.inline.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn complete(&mut self, replica: &mut Replica) -> Result<(), FilesError> {
        let (Some(current), Some((index, ..))) = (self.current.take(), self.contents.pop_front())
        else {
            return Err(FilesError::Broken);
        };
        let (size, path) = (current.size, current.path.clone());
        let file = current.finish()?;
        if size <= INLINE_BYTES_MAX {
            let entry = LogEntry::encode_content(index, &self.inline);
            replica.ledger.log().append(&entry, self.batch.start)?;
        } else {
            file.sync_data()
                .map_err(FilesError::tree("sync", path.as_path()))?;
            self.has_staged = true;
        }
        self.open_next(replica)
    }

    fn supersede(&mut self, replica: &mut Replica) -> Result<(), FilesError> {
        let Some((index, ..)) = self.contents.pop_front() else {
            return Err(FilesError::Broken);
        };
        self.current = None;
        replica
            .tree()?
            .unstage(&staged_name(self.batch.start, index));
        self.superseded.push(index);
        self.open_next(replica)
    }

    /// Makes the batch durable. Checked against the manifest before: what does not fit is not logged.
    fn log(
        self,
        replica: &mut Replica,
    ) -> Result<(Batch, BTreeSet<u32>, BTreeSet<RelPath>), FilesError> {
        let gone = replica.fold(&self.batch)?;
        if self.has_staged {
            replica
                .tree()?
                .sync_staging_names()
                .map_err(FilesError::tree("sync the staging of", &replica.path))?;
        }
        let log = replica.ledger.log();
        if !self.superseded.is_empty() {
            log.append(
                &LogEntry::encode_superseded(&self.superseded)?,
                self.batch.start,
            )?;
        }
        log.append(&LogEntry::encode_batch(&self.batch)?, self.batch.end)?;
        log.sync()?;
        Ok((self.batch, self.superseded.into_iter().collect(), gone))
    }
}
