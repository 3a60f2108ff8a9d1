//! Reading a log from a boundary on, while it grows and while its oldest part is dropped.

use std::fs::File;
use std::path::PathBuf;

use super::segment::{self, Found, RECORD_HEAD_BYTES};
use super::{LogError, LogView, failed};
use crate::position::Position;

/// A record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The position before it.
    pub start: Position,
    /// The position behind it.
    pub end: Position,
    /// What it holds.
    pub payload: Vec<u8>,
}

/// Reads the durable records of a log, one after the other.
#[derive(Debug)]
pub struct LogReader {
    view: LogView,
    file: File,
    path: PathBuf,
    first: Position,
    offset: u64,
    at: Position,
}

impl LogReader {
    pub(super) fn open(view: LogView, position: Position) -> Result<Self, LogError> {
        let (log_first, log_end) = view.bounds();
        let gone = || LogError::Gone {
            position,
            first: log_first,
            end: log_end,
        };
        if position < log_first || position > log_end {
            return Err(gone());
        }
        let segment = {
            let extent = view.lock();
            extent
                .segments
                .iter()
                .rev()
                .find(|segment| segment.first <= position)
                .cloned()
        };
        let segment = segment.ok_or_else(gone)?;
        let file = File::open(&segment.path).map_err(failed("open", &segment.path))?;
        let mut reader = Self {
            offset: header_bytes(&file, &segment.path)?,
            view,
            file,
            path: segment.path,
            first: segment.first,
            at: segment.first,
        };
        while reader.at < position {
            let before = (reader.offset, reader.at);
            match reader.next()? {
                Some(record) if record.end <= position => {}
                Some(_) => {
                    (reader.offset, reader.at) = before;
                    return Err(LogError::NotABoundary { position });
                }
                None => return Err(gone()),
            }
        }
        Ok(reader)
    }

    /// Returns at which offset of its segment the next record begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the position before the next record.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Returns the next durable record, or `None` when there is none yet.
    ///
    /// # Errors
    /// When the log is damaged, or what comes next has been dropped from it.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends does not go on later"
    )]
    pub fn next(&mut self) -> Result<Option<Record>, LogError> {
        loop {
            let (limit, successor, bounds) = {
                let extent = self.view.lock();
                let at = extent
                    .segments
                    .iter()
                    .position(|segment| segment.first == self.first);
                let is_last = at.is_some_and(|at| at.saturating_add(1) == extent.segments.len());
                let limit = if is_last {
                    Some(extent.durable.1)
                } else {
                    at.and_then(|at| extent.segments.get(at))
                        .map(|segment| segment.bytes)
                };
                let successor = extent
                    .segments
                    .iter()
                    .find(|segment| segment.first > self.first)
                    .cloned();
                let first = extent
                    .segments
                    .front()
                    .map_or(extent.durable.0, |s| s.first);
                (limit, successor, (first, extent.durable.0))
            };
            // A segment that was dropped while it is open here can be read to its end.
            let limit = match limit {
                Some(limit) => limit,
                None => self
                    .file
                    .metadata()
                    .map_err(failed("read", &self.path))?
                    .len(),
            };
            match segment::read(&self.file, self.offset, limit)
                .map_err(failed("read", &self.path))?
            {
                Found::Record { end, payload, next } => {
                    let start = self.at;
                    self.offset = next;
                    self.at = end;
                    return Ok(Some(Record {
                        start,
                        end,
                        payload,
                    }));
                }
                Found::Damaged => {
                    return Err(LogError::Damaged {
                        path: self.path.clone(),
                        offset: self.offset,
                    });
                }
                Found::End => {
                    let Some(successor) = successor else {
                        return Ok(None);
                    };
                    if successor.first != self.at {
                        let (first, end) = bounds;
                        return Err(LogError::Gone {
                            position: self.at,
                            first,
                            end,
                        });
                    }
                    self.file =
                        File::open(&successor.path).map_err(failed("open", &successor.path))?;
                    self.offset = header_bytes(&self.file, &successor.path)?;
                    self.path = successor.path;
                    self.first = successor.first;
                }
            }
        }
    }
}

/// Returns how long the header of a segment is; its content was checked when the log was opened.
fn header_bytes(file: &File, path: &std::path::Path) -> Result<u64, LogError> {
    use std::os::unix::fs::FileExt;
    let mut length = [0; 1];
    file.read_exact_at(&mut length, 20)
        .map_err(failed("read", path))?;
    Ok(21 + u64::from(length[0]) + 8)
}

/// Returns whether an undamaged record follows somewhere behind `offset`.
///
/// What a crash tore is the last thing that was written; an intact record behind the damage means
/// that the disk has lost something which was durable, and cutting it off would hide that.
pub(super) fn has_record_behind(file: &File, offset: u64, length: u64) -> bool {
    // A torn record's own length field may be damaged, so that its successor is looked for byte by
    // byte; only within the bound of one record, which keeps opening quick.
    let head = u64::try_from(RECORD_HEAD_BYTES).unwrap_or(u64::MAX);
    let reach = offset
        .saturating_add(64 << 10)
        .min(length.saturating_sub(head));
    let next = next_by_length(file, offset, length);
    let candidates = (offset.saturating_add(1)..=reach).chain(next);
    for candidate in candidates {
        if let Ok(Found::Record { .. }) = segment::read(file, candidate, length) {
            return true;
        }
    }
    false
}

/// Where the next record begins if the length of the one at `offset` is undamaged.
fn next_by_length(file: &File, offset: u64, length: u64) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let mut size = [0; 4];
    file.read_exact_at(&mut size, offset).ok()?;
    let head = u64::try_from(RECORD_HEAD_BYTES).ok()?;
    let next = offset
        .checked_add(head)?
        .checked_add(u64::from(u32::from_le_bytes(size)))?;
    (next < length).then_some(next)
}
