//! What a start makes of what is on the disk.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock};

use crate::durable;
use crate::log::{Log, LogError};
use crate::position::Position;

use super::super::entry::Entry;
use super::super::point::{EntryDigest, Point};
use super::super::points::Points;
use super::super::snapshot::{End, Part, SnapshotReader};
use super::super::table::Table;
use super::{
    Chain, EntryReader, Kept, LOG_NAME, SEGMENT_BYTES_MAX, SETTLED, Storage, StorageError, Told,
    UNSEEDED, Visible,
};

/// What was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// How many keys there are.
    pub keys: usize,
    /// How many entries of the log were read.
    pub entries: u64,
    /// How many operations are durable here, and not known to be committed.
    pub unknown: u64,
    /// How many bytes the entries have, since the first entry ever.
    bytes_ever: u64,
    /// Where the run of the last entry was opened.
    run_opened: Position,
    /// A snapshot from another node had been taken, and the log was begun anew behind it.
    pub has_reset_log: bool,
}

/// A table on its way to being whole.
struct Loading {
    visible: Visible,
    /// What the snapshot says of its end, to compare with.
    end: Option<End>,
    /// What is known to be committed.
    known: Position,
    /// Entries of which that is not known yet; a later one says it.
    waiting: VecDeque<Entry>,
}

impl Loading {
    /// Takes the next entry, and makes visible what is known to be committed by then.
    fn take(&mut self, entry: Entry, path: &Path) -> Result<(), StorageError> {
        let known = entry.head.committed;
        self.waiting.push_back(entry);
        self.know(known, path)
    }

    /// Takes that everything up to `known` is committed, and makes it visible.
    fn know(&mut self, known: Position, path: &Path) -> Result<(), StorageError> {
        self.known = self.known.max(known);
        let known = self.known;
        while let Some(entry) = self.waiting.pop_front_if(|entry| entry.head.end <= known) {
            apply(&mut self.visible.table, &entry)?;
            self.visible.point = entry.point();
            let is_end = |end: &&End| end.end == entry.head.end;
            if let Some(end) = self.end.as_ref().filter(is_end)
                && end.digest != self.visible.table.digest()
            {
                let path = path.to_owned();
                return Err(StorageError::Differs { path, at: end.end });
            }
        }
        Ok(())
    }
}

impl Storage {
    /// Opens the store in `folder`, or makes an empty one.
    ///
    /// The table is made of the snapshot and of what the log says to be committed. A torn end of the log is
    /// cut off; everything else that does not fit together is refused, and nothing is changed.
    ///
    /// # Errors
    /// When a file cannot be read or written, is damaged, or does not belong to the others.
    pub fn open(folder: &Path) -> Result<(Self, Opened), StorageError> {
        let log_folder = folder.join("log");
        let is_unseeded = folder.join(UNSEEDED).exists();
        durable::create_directory(folder, 0o700).map_err(|source| LogError::File {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join("snapshot");
        let snapshot = SnapshotReader::open(&path)?;
        let begin = snapshot.as_ref().map(|(_, begin)| begin.clone());
        let start = begin.as_ref().map_or(Point::ORIGIN, |it| it.start.clone());
        let (mut table, mut end) = (Table::new(), None);
        if let Some((mut reader, _)) = snapshot {
            end = Some(load(&mut reader, &mut table)?);
        }
        let mut log = open_log(&log_folder, start.position)?;
        let mut opened = Opened::default();
        let is_installed = begin.as_ref().is_some_and(|begin| begin.is_installed);
        if is_installed && !holds(&log, &start)? {
            log.reset(start.position)?;
            opened.has_reset_log = true;
        }
        let (first, last) = log.view().bounds();
        match &end {
            None if first > Position(0) => return Err(StorageError::Lost { path, first, last }),
            // One that was installed may still wait for the rest of the log.
            Some(end)
                if first > start.position
                    || last < start.position
                    || (!is_installed && last < end.end) =>
            {
                let (start, end) = (start.position, end.end);
                return Err(StorageError::Short {
                    path,
                    start,
                    end,
                    first,
                    last,
                });
            }
            None | Some(_) => {}
        }
        let mut loading = Loading {
            visible: Visible {
                table,
                point: start.clone(),
            },
            known: end.as_ref().map_or(Position(0), |end| end.end),
            end: end.clone(),
            waiting: VecDeque::new(),
        };
        let points = replay(&log, &start, &mut loading, &path, &mut opened)?;
        // What the last stop has said holds if the log still is as it was then.
        let settled = fs::read(folder.join(SETTLED)).ok();
        let settled: Option<Point> = settled.and_then(|text| serde_json::from_slice(&text).ok());
        if settled.as_ref() == Some(points.tail()) {
            loading.know(points.tail().position, &path)?;
        }
        opened.keys = loading.visible.table.len();
        let position = loading.visible.position();
        opened.unknown = points.tail().position.ahead_of(position);
        let view = log.view();
        let bytes = begin.as_ref().map_or(0, |begin| begin.bytes);
        let kept = end.map(|end| Kept {
            start,
            end: end.end,
            bytes,
        });
        let storage = Self {
            folder: folder.to_owned(),
            visible: RwLock::new(loading.visible),
            chain: Mutex::new(Chain {
                bytes: opened.bytes_ever.max(bytes),
                opened: if opened.entries > 0 {
                    opened.run_opened
                } else {
                    begin.as_ref().map_or(Position(0), |begin| begin.opened)
                },
                log,
                points,
                kept,
                is_unseeded,
            }),
            view,
            snapshot: Mutex::new(false),
            told: Told::default(),
        };
        storage.chain().tell(&storage.told);
        Ok((storage, opened))
    }

    /// Cuts off everything behind `to`. The caller has put it aside.
    ///
    /// # Errors
    /// When what is visible cannot be taken back so far; nothing is changed then. Or when a file cannot be
    /// changed.
    pub fn truncate(&self, to: &Point) -> Result<(), StorageError> {
        // One that is under way must not hold what is cut.
        let _no_snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = self.chain();
        let kept = chain.kept.clone();
        if let Some(kept) = kept.as_ref().filter(|kept| kept.end > to.position) {
            return Err(StorageError::TooFarBack {
                to: to.position,
                snapshot: kept.end,
            });
        }
        chain.log.truncate(to.position)?;
        chain.points.truncate(to.clone());
        let (first, _) = self.view.bounds();
        drop(chain);
        self.find_run(first, to)?;
        if self.visible().position() <= to.position {
            return Ok(());
        }
        self.rebuild(to.position)
    }

    /// Finds in which run the last entry was made, after some were cut off.
    fn find_run(&self, first: Position, to: &Point) -> Result<(), StorageError> {
        let mark = self
            .chain()
            .points
            .at_or_before(Position(to.position.0.saturating_sub(1)))
            .cloned();
        let from = mark.map_or(first, |mark| mark.position.max(first));
        let mut reader = self.reader(from)?;
        while let Some(entry) = reader.next()? {
            let mut chain = self.chain();
            chain.opened = entry.head.opened;
            chain.bytes = entry.bytes_after();
            chain.tell(&self.told);
        }
        Ok(())
    }

    /// Makes the table anew from snapshot and log, up to `to`.
    fn rebuild(&self, to: Position) -> Result<(), StorageError> {
        let path = self.folder.join("snapshot");
        let (mut table, mut point) = (Table::new(), Point::ORIGIN);
        if let Some((mut reader, begin)) = SnapshotReader::open(&path)? {
            let end = load(&mut reader, &mut table)?;
            if end.end > to {
                let snapshot = end.end;
                return Err(StorageError::TooFarBack { to, snapshot });
            }
            point = begin.start;
        }
        let mut reader = self.reader(point.position)?;
        while let Some(entry) = reader.next()?.filter(|entry| entry.head.end <= to) {
            apply(&mut table, &entry)?;
            point = entry.point();
        }
        let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
        *visible = Visible { table, point };
        Ok(())
    }
}

/// Opens the log, of which nothing goes by itself: what the snapshot needs stays, whatever its size.
pub(super) fn open_log(folder: &Path, first: Position) -> Result<Log, LogError> {
    Log::open_bounded(folder, LOG_NAME, first, SEGMENT_BYTES_MAX, u64::MAX)
}

/// Reads the parts of a snapshot into `table`.
pub(super) fn load(reader: &mut SnapshotReader, table: &mut Table) -> Result<End, StorageError> {
    loop {
        match reader.part()? {
            Part::Operations(operations) => {
                operations
                    .iter()
                    .for_each(|operation| table.apply(operation));
            }
            Part::End(end) => return Ok(end),
            // A second beginning changes nothing.
            Part::Begin(_) => {}
        }
    }
}

/// Returns whether the log has `point` among its own.
fn holds(log: &Log, point: &Point) -> Result<bool, StorageError> {
    let view = log.view();
    let (first, last) = view.bounds();
    if point.position < first || point.position > last {
        return Ok(false);
    }
    if first == point.position {
        // The entry behind it says what it follows; a log without one follows nothing yet.
        let mut reader = EntryReader(view.reader(first)?);
        let next = reader.next()?;
        return Ok(next.is_none_or(|entry| entry.head.previous == point.digest));
    }
    let mut reader = EntryReader(view.reader(first)?);
    while let Some(entry) = reader.next()? {
        if entry.head.end >= point.position {
            return Ok(entry.head.end == point.position && entry.digest == point.digest);
        }
    }
    Ok(false)
}

/// Reads the log through: makes sure that it is one history, and makes visible what is known to be committed.
fn replay(
    log: &Log,
    start: &Point,
    loading: &mut Loading,
    path: &Path,
    opened: &mut Opened,
) -> Result<Points, StorageError> {
    let (first, _) = log.view().bounds();
    let mut reader = EntryReader(log.view().reader(first)?);
    let mut points: Option<Points> = (first == start.position).then(|| Points::new(start.clone()));
    while let Some(entry) = reader.next()? {
        let points = points.get_or_insert_with(|| {
            Points::new(Point {
                position: entry.head.start,
                epoch: None,
                digest: entry.head.previous,
            })
        });
        if entry.head.previous != points.tail().digest {
            return Err(StorageError::Broken {
                at: entry.head.start,
            });
        }
        // The snapshot and the log have to be of one history, too.
        if entry.head.start == start.position && entry.head.previous != start.digest {
            return Err(StorageError::Broken { at: start.position });
        }
        opened.entries = opened.entries.saturating_add(1);
        opened.bytes_ever = entry.bytes_after();
        opened.run_opened = entry.head.opened;
        points.push(entry.point(), entry.bytes_after());
        if entry.head.start >= start.position {
            loading.take(entry, path)?;
        }
    }
    Ok(points.unwrap_or_else(|| {
        Points::new(Point {
            position: first,
            epoch: None,
            digest: if first == start.position {
                start.digest
            } else {
                EntryDigest::NONE
            },
        })
    }))
}

fn apply(table: &mut Table, entry: &Entry) -> Result<(), StorageError> {
    let operations = entry.operations().map_err(super::of(entry.head.start))?;
    operations
        .iter()
        .for_each(|operation| table.apply(operation));
    Ok(())
}
