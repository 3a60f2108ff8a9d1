//! An append-only log in segments: the durable form of what is shipped.
//!
//! ```text
//! append(payload, end) … sync() ──▶ durable ──▶ LogReader from any boundary
//!                                      │
//!                release(before), or too many bytes: the oldest segments go
//! ```
//! A record lies between two positions; its end is its successor's start. A record may end where it
//! starts (it then belongs to the one that follows). What a crash tore at the very end is cut off at
//! opening; damage anywhere else is an error that names the place, because what follows it can have
//! been acknowledged.

mod reader;
mod segment;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable;
use crate::position::Position;

pub use reader::{LogReader, Record};
pub use segment::LOG_PAYLOAD_BYTES_MAX;

/// How large a segment grows before the next is begun.
pub const LOG_SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// How much of a log is kept for those who are behind, unless told otherwise.
pub const LOG_BYTES_MAX: u64 = 1 << 30;

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A record that was durable once is damaged.
    #[error("{} is damaged at byte {offset}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// A segment is of another store, of another version, or does not follow the one before.
    #[error("{} does not belong to the log of store {store}", path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// Whose log it should be.
        store: String,
    },
    /// An earlier sync failed: the kernel may have dropped what it could not write, and a second
    /// sync would report success all the same.
    #[error("the log in {} failed to sync, and has to be opened again", path.display())]
    Poisoned {
        /// The folder.
        path: PathBuf,
    },
    /// The record is longer than a record may be.
    #[error("a record of {bytes} bytes, where {LOG_PAYLOAD_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The record would end before it begins.
    #[error("a record that ends at {end}, in a log that ends at {log_end}")]
    Backwards {
        /// Where the record would end.
        end: Position,
        /// Where the log ends.
        log_end: Position,
    },
    /// The position has been dropped from the log, or was never in it.
    #[error("position {position} is not in the log, which holds {first} to {end}")]
    Gone {
        /// What was asked for.
        position: Position,
        /// Where the log begins.
        first: Position,
        /// Where it ends.
        end: Position,
    },
    /// The position lies within a record.
    #[error("position {position} is not where a record begins")]
    NotABoundary {
        /// What was asked for.
        position: Position,
    },
}

#[derive(Clone, Debug)]
struct Segment {
    first: Position,
    path: PathBuf,
    bytes: u64,
}

/// What readers have to know; shared with them.
#[derive(Debug)]
struct Extent {
    segments: VecDeque<Segment>,
    /// Where the last durable record ends, as a position and as an offset of the last segment.
    durable: (Position, u64),
}

/// A handle by which other threads open readers.
#[derive(Clone, Debug)]
pub struct LogView(Arc<Mutex<Extent>>);

/// A log, open for appending. One at a time, in one thread.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    name: String,
    bytes_max: u64,
    segment_bytes_max: u64,
    extent: LogView,
    tail: File,
    tail_bytes: u64,
    end: Position,
    /// The last record took no positions: it belongs to the one that follows.
    is_within_group: bool,
    is_poisoned: bool,
}

impl Log {
    /// Opens the log of store `name` in `folder`, or creates one that begins at `first`.
    ///
    /// # Errors
    /// When a file cannot be read or written, is foreign, or is damaged before its tail.
    pub fn open(folder: &Path, name: &str, first: Position) -> Result<Self, LogError> {
        Self::open_bounded(folder, name, first, LOG_SEGMENT_BYTES_MAX, LOG_BYTES_MAX)
    }

    /// Like [`Log::open`], with other bounds.
    ///
    /// # Errors
    /// As for `open`.
    pub fn open_bounded(
        folder: &Path,
        name: &str,
        first: Position,
        segment_bytes_max: u64,
        bytes_max: u64,
    ) -> Result<Self, LogError> {
        durable::create_directory(folder, 0o700).map_err(failed("create", folder))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
            let path = entry.map_err(failed("read", folder))?.path();
            let number = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(parse_name);
            if let Some(first) = number {
                found.push(Segment {
                    first,
                    path,
                    bytes: 0,
                });
            }
        }
        found.sort_by_key(|segment| segment.first);
        // Invariant: a segment is created whole (header, sync, sync of the folder) before it is
        // written to. A last one whose header is not whole was never written to.
        while let Some(last) = found.last() {
            if is_header_torn(&last.path, name, last.first)? {
                remove(&last.path)?;
                found.pop();
            } else {
                break;
            }
        }
        let mut segments: VecDeque<Segment> = found.into();
        let mut end = segments.front().map_or(first, |segment| segment.first);
        let count = segments.len();
        for (at, segment) in segments.iter_mut().enumerate() {
            let is_last = at.saturating_add(1) == count;
            end = check(segment, name, end, is_last)?;
        }
        if segments.is_empty() {
            segments.push_back(create(folder, name, first)?);
        }
        let last = segments.back().expect("one was made if there was none");
        let tail = File::options()
            .write(true)
            .open(&last.path)
            .map_err(failed("open", &last.path))?;
        // What was believed at opening must stay believed: it may have been in the page cache only.
        tail.sync_data().map_err(failed("sync", &last.path))?;
        let tail_bytes = last.bytes;
        let extent = Extent {
            segments,
            durable: (end, tail_bytes),
        };
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            bytes_max,
            segment_bytes_max,
            extent: LogView(Arc::new(Mutex::new(extent))),
            tail,
            tail_bytes,
            end,
            // Unknown after opening; a segment that grows too long costs less than a group that is
            // torn in two.
            is_within_group: true,
            is_poisoned: false,
        })
    }

    /// Returns a handle by which other threads open readers.
    pub fn view(&self) -> LogView {
        self.extent.clone()
    }

    /// Returns the position behind the last appended record, durable or not.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Returns how many bytes it holds, durable or not.
    pub fn bytes(&self) -> u64 {
        let durable = self.extent.lock().durable.1;
        let more = self.tail_bytes.saturating_sub(durable);
        self.extent.bytes().saturating_add(more)
    }

    /// Appends a record that ends at `end`; durable only after [`Log::sync`].
    ///
    /// # Errors
    /// When it cannot be written; nothing is then appended.
    pub fn append(&mut self, payload: &[u8], end: Position) -> Result<(), LogError> {
        self.check_health()?;
        if payload.len() > LOG_PAYLOAD_BYTES_MAX {
            return Err(LogError::TooLong {
                bytes: payload.len(),
            });
        }
        if end < self.end {
            return Err(LogError::Backwards {
                end,
                log_end: self.end,
            });
        }
        // Invariant: records that take no positions stand in the segment of the one that they belong
        // to, so that dropping a segment never takes them from it; and no two segments begin at one
        // position.
        if self.tail_bytes > self.segment_bytes_max && !self.is_within_group {
            self.begin_segment()?;
        }
        let record = segment::record(self.tail_bytes, end, payload);
        // A write that failed half-way is overwritten by the next: the length is ours, not the file's.
        self.tail
            .write_all_at(&record, self.tail_bytes)
            .map_err(failed("write to the log in", &self.folder))?;
        let bytes = u64::try_from(record.len()).unwrap_or(u64::MAX);
        self.tail_bytes = self.tail_bytes.saturating_add(bytes);
        self.is_within_group = end == self.end;
        self.end = end;
        Ok(())
    }

    /// Makes all that was appended durable, and visible to readers.
    ///
    /// # Errors
    /// When it cannot be written. The log is then poisoned: it must be opened again, and ends where it
    /// ended at the last sync.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check_health()?;
        if let Err(source) = self.tail.sync_data() {
            self.is_poisoned = true;
            self.forget_unsynced();
            return Err(LogError::File {
                action: "sync the log in",
                path: self.folder.clone(),
                source,
            });
        }
        let mut extent = self.extent.lock();
        extent.durable = (self.end, self.tail_bytes);
        if let Some(last) = extent.segments.back_mut() {
            last.bytes = self.tail_bytes;
        }
        Ok(())
    }

    /// Cuts off what a failed sync leaves in the page cache: the kernel takes it for written, so that the
    /// next sync would succeed, and whoever opens the log would read, and believe, what is not on the disk.
    fn forget_unsynced(&mut self) {
        let (end, bytes) = self.extent.lock().durable;
        if let Err(error) = self.tail.set_len(bytes) {
            tracing::warn!(%error, "what a failed sync has left in a log cannot be cut off");
            return;
        }
        self.tail_bytes = bytes;
        self.end = end;
    }

    /// Drops the segments that end before `before`, and the oldest beyond the bound.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn release(&mut self, before: Position) -> Result<(), LogError> {
        let mut extent = self.extent.lock();
        while let Some(second) = extent.segments.get(1) {
            let bytes: u64 = extent.segments.iter().map(|segment| segment.bytes).sum();
            if second.first > before && bytes <= self.bytes_max {
                break;
            }
            let Some(oldest) = extent.segments.pop_front() else {
                break;
            };
            remove(&oldest.path)?;
        }
        Ok(())
    }

    /// Drops the oldest segment if it ends before `before`; returns whether it did. Who has many to drop does
    /// it one by one, and lets others append in between.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn release_one(&mut self, before: Position) -> Result<bool, LogError> {
        let mut extent = self.extent.lock();
        let is_needless = extent
            .segments
            .get(1)
            .is_some_and(|second| second.first <= before);
        if !is_needless {
            return Ok(false);
        }
        if let Some(oldest) = extent.segments.pop_front() {
            remove(&oldest.path)?;
        }
        Ok(true)
    }

    /// Forgets everything; the log then begins, and ends, at `first`.
    ///
    /// # Errors
    /// When a file cannot be removed or made.
    pub fn reset(&mut self, first: Position) -> Result<(), LogError> {
        let view = self.extent.clone();
        let mut extent = view.lock();
        // Newest first, so that a crash half-way leaves a log without a gap.
        while let Some(newest) = extent.segments.pop_back() {
            remove(&newest.path)?;
        }
        let fresh = create(&self.folder, &self.name, first)?;
        self.tail = File::options()
            .write(true)
            .open(&fresh.path)
            .map_err(failed("open", &fresh.path))?;
        self.tail_bytes = fresh.bytes;
        self.end = first;
        self.is_within_group = true;
        self.is_poisoned = false;
        extent.durable = (first, fresh.bytes);
        extent.segments.push_back(fresh);
        Ok(())
    }

    /// Cuts off everything behind `to`, durably. The caller has kept elsewhere what must not be lost.
    ///
    /// # Errors
    /// When no record ends there, or a file cannot be cut; what is left is then still a log, which has to be
    /// opened again.
    pub fn truncate(&mut self, to: Position) -> Result<(), LogError> {
        self.check_health()?;
        self.sync()?;
        if to == self.end {
            return Ok(());
        }
        // Finds the place, and refuses what is no boundary before anything is changed.
        let offset = self.view().reader(to)?.offset();
        self.is_poisoned = true;
        let view = self.extent.clone();
        let mut extent = view.lock();
        // Newest first: a crash half-way leaves a log without a gap.
        while let Some(newest) = extent.segments.pop_back_if(|segment| segment.first > to) {
            remove(&newest.path)?;
        }
        // The reader stands in the last segment that begins at or before the place, which is this one.
        let Some(last) = extent.segments.back_mut() else {
            return Ok(());
        };
        self.tail = File::options()
            .write(true)
            .open(&last.path)
            .map_err(failed("open", &last.path))?;
        self.tail
            .set_len(offset)
            .map_err(failed("truncate", &last.path))?;
        self.tail.sync_all().map_err(failed("sync", &last.path))?;
        last.bytes = offset;
        extent.durable = (to, offset);
        self.tail_bytes = offset;
        self.end = to;
        self.is_within_group = true;
        self.is_poisoned = false;
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        // The old one is whole before the new one exists: only the last may be torn.
        self.sync()?;
        let fresh = create(&self.folder, &self.name, self.end)?;
        self.tail = File::options()
            .write(true)
            .open(&fresh.path)
            .map_err(failed("open", &fresh.path))?;
        self.tail_bytes = fresh.bytes;
        let mut extent = self.extent.lock();
        extent.durable = (self.end, fresh.bytes);
        extent.segments.push_back(fresh);
        drop(extent);
        self.release(Position(0))
    }

    fn check_health(&self) -> Result<(), LogError> {
        if self.is_poisoned {
            return Err(LogError::Poisoned {
                path: self.folder.clone(),
            });
        }
        Ok(())
    }
}

impl LogView {
    /// Returns a reader of the records from `position` on.
    ///
    /// # Errors
    /// When no record begins (and the log does not end) there, or a file cannot be read.
    pub fn reader(&self, position: Position) -> Result<LogReader, LogError> {
        LogReader::open(self.clone(), position)
    }

    /// Returns where the log begins, and where its durable part ends.
    pub fn bounds(&self) -> (Position, Position) {
        let extent = self.lock();
        let first = extent
            .segments
            .front()
            .map_or(extent.durable.0, |segment| segment.first);
        (first, extent.durable.0)
    }

    /// Returns how many bytes the log holds.
    pub fn bytes(&self) -> u64 {
        self.lock()
            .segments
            .iter()
            .map(|segment| segment.bytes)
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, Extent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a segment through, cuts a torn tail off the last, and returns where it ends.
fn check(
    segment: &mut Segment,
    name: &str,
    expected: Position,
    is_last: bool,
) -> Result<Position, LogError> {
    let path = segment.path.clone();
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed("open", &path))?;
    let length = file.metadata().map_err(failed("read", &path))?.len();
    let header = segment::header(name, segment.first);
    let mut found = vec![0; header.len()];
    let is_whole = file.read_exact_at(&mut found, 0).is_ok();
    if !is_whole || found != header || segment.first != expected {
        return Err(LogError::Foreign {
            path,
            store: name.to_owned(),
        });
    }
    let mut offset = u64::try_from(header.len()).unwrap_or(u64::MAX);
    let mut end = segment.first;
    loop {
        match segment::read(&file, offset, length).map_err(failed("read", &path))? {
            segment::Found::Record {
                end: next_end,
                next,
                ..
            } if next_end >= end => {
                offset = next;
                end = next_end;
            }
            segment::Found::End => break,
            segment::Found::Record { .. } | segment::Found::Damaged => {
                if !is_last || reader::has_record_behind(&file, offset, length) {
                    return Err(LogError::Damaged { path, offset });
                }
                file.set_len(offset).map_err(failed("truncate", &path))?;
                file.sync_all().map_err(failed("sync", &path))?;
                break;
            }
        }
    }
    segment.bytes = offset;
    Ok(end)
}

fn is_header_torn(path: &Path, name: &str, first: Position) -> Result<bool, LogError> {
    let length = fs::metadata(path).map_err(failed("read", path))?.len();
    let header = u64::try_from(segment::header(name, first).len()).unwrap_or(u64::MAX);
    Ok(length < header)
}

fn create(folder: &Path, name: &str, first: Position) -> Result<Segment, LogError> {
    let path = folder.join(format!("{:020}.log", first.0));
    let header = segment::header(name, first);
    // A segment that begins where the last one does holds nothing yet, or was reset: made anew.
    let file = File::create(&path).map_err(failed("create", &path))?;
    file.write_all_at(&header, 0)
        .map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    durable::sync_directory_of(&path).map_err(failed("sync the folder of", &path))?;
    let bytes = u64::try_from(header.len()).unwrap_or(u64::MAX);
    Ok(Segment { first, path, bytes })
}

fn remove(path: &Path) -> Result<(), LogError> {
    fs::remove_file(path).map_err(failed("remove", path))?;
    durable::sync_directory_of(path).map_err(failed("sync the folder of", path))
}

fn parse_name(name: &str) -> Option<Position> {
    let number = name.strip_suffix(".log")?;
    number.parse().ok().map(Position)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
