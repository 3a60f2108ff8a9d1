//! The store's files, and the table that they give: shared by both roles of a node.
//!
//! ```text
//! STATE/kv/log/       entries, durable with `sync`         ┐ the truth
//! STATE/kv/snapshot   the table as of a part of the log    ┘
//! Visible             the table in memory: committed operations only; made anew at every start
//! ```
//! Invariants:
//! - The log is one history: each entry holds the digest of the one before.
//! - The snapshot needs nothing of the log before its `start`; the log is never released behind that.
//! - The table holds what is known to be committed. Entries behind [`Visible::point`] are durable, and not
//!   visible.
//! - A snapshot that came from another node takes its place by one rename; a log that does not hold its `start`
//!   is superseded by it, and is begun anew, also after a crash in between.

mod error;
mod open;
mod snapshots;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::durable;
use crate::log::{Log, LogError, LogReader, LogView};
use crate::position::Position;

use super::entry::{Entry, EntryError};
use super::operation::Operation;
use super::point::{EntryDigest, Point};
use super::points::Points;
use super::protocol::{Sketch, Tail};
use super::table::Table;

pub use error::StorageError;
pub use open::Opened;
pub use snapshots::{Incoming, Walk};

/// The file that says that the store was begun empty in the place of a damaged one.
const UNSEEDED: &str = "unseeded";

/// The file in which a primary that stops says that everything was committed.
const SETTLED: &str = "settled";

/// The name that the log's segments carry.
const LOG_NAME: &str = "kv";

/// Segments are small, so that what a snapshot has made needless goes soon.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;

/// A snapshot is made when the log has grown by as much as the table, and at least by this.
const SNAPSHOT_AFTER_BYTES_MIN: u64 = 8 << 20;

/// What readers see.
#[derive(Debug)]
pub struct Visible {
    /// Committed operations.
    pub table: Table,
    /// Up to where.
    pub point: Point,
}

impl Visible {
    /// Returns how many operations are visible.
    pub fn position(&self) -> Position {
        self.point.position
    }
}

/// What is known of the snapshot on the disk.
#[derive(Clone, Debug)]
struct Kept {
    start: Point,
    end: Position,
    /// How many bytes the entries up to its start have, since the first entry ever.
    bytes: u64,
}

/// The log and what belongs to it.
#[derive(Debug)]
struct Chain {
    log: Log,
    points: Points,
    kept: Option<Kept>,
    /// How many bytes the entries up to the tail have, since the first entry ever.
    bytes: u64,
    /// Where the opening of the run begins in which the last entry was made.
    opened: Position,
    /// It was begun empty in the place of a damaged one, and has not been made equal to the primary's yet.
    is_unseeded: bool,
}

/// What is told of the chain without its lock.
#[derive(Debug, Default)]
struct Told {
    /// See [`Chain::bytes`].
    bytes: AtomicU64,
    /// Up to where the copy is not whole; 0 when there is nothing to wait for.
    whole_until: AtomicU64,
    /// The files are another's by now.
    is_retired: AtomicBool,
}

impl Chain {
    /// Makes known to others what they may ask.
    fn tell(&self, told: &Told) {
        told.bytes.store(self.bytes, Ordering::SeqCst);
        let kept = self.kept.as_ref().map_or(0, |kept| kept.end.0);
        let until = if self.is_unseeded { u64::MAX } else { kept };
        told.whole_until.store(until, Ordering::SeqCst);
    }
}

/// The store of one node.
#[derive(Debug)]
pub struct Storage {
    folder: PathBuf,
    visible: RwLock<Visible>,
    chain: Mutex<Chain>,
    view: LogView,
    /// Held while a snapshot is written, of either kind, or the log is let go. It says whether the files are
    /// another's by now.
    snapshot: Mutex<bool>,
    /// What others ask for of the chain, whose lock is held while the disk works.
    told: Told,
}

impl Storage {
    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns what readers see.
    pub fn visible(&self) -> RwLockReadGuard<'_, Visible> {
        self.visible.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the point at the end of the log, durable or not.
    pub fn tail(&self) -> Point {
        self.chain().points.tail().clone()
    }

    /// Returns how many bytes the entries up to the end of the log have, since the first entry ever: equal logs
    /// have the same, whatever they still hold.
    pub fn bytes_ever(&self) -> u64 {
        self.told.bytes.load(Ordering::SeqCst)
    }

    /// Returns the end of the log, and in which run it was made, as a promotion compares them.
    pub fn end(&self) -> Tail {
        let chain = self.chain();
        Tail {
            point: chain.points.tail().clone(),
            opened: chain.opened,
        }
    }

    /// Returns what of the log is durable, as its first and its last position.
    pub fn bounds(&self) -> (Position, Position) {
        self.view.bounds()
    }

    /// Returns how many bytes the log has.
    pub fn log_bytes(&self) -> u64 {
        self.view.bytes()
    }

    /// Returns the figures that both roles tell of it, by their names in metrics.
    pub fn gauges(&self) -> BTreeMap<String, u64> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let log_bytes = self.log_bytes();
        let visible = self.visible();
        let table = &visible.table;
        BTreeMap::from([
            ("keys".to_owned(), count(table.len())),
            ("table_bytes".to_owned(), count(table.bytes())),
            ("live_bytes".to_owned(), count(table.live_bytes())),
            ("log_bytes".to_owned(), log_bytes),
        ])
    }

    /// Returns up to which position the copy is not yet whole: a snapshot was taken, and the log does not
    /// reach its end yet. Until then the table is none that ever was.
    pub fn whole_from(&self) -> Option<Position> {
        let end = Position(self.told.whole_until.load(Ordering::SeqCst));
        (self.visible().position() < end).then_some(end)
    }

    /// Notes, durably, that everything in the log is committed, so that the next start need not ask a standby.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_settled(&self) -> Result<(), StorageError> {
        let point = self.visible().point.clone();
        if point != self.tail() {
            return Ok(());
        }
        let path = self.folder.join(SETTLED);
        let text =
            serde_json::to_vec(&point).map_err(|error| failed("write", &path)(error.into()))?;
        durable::write(&path, &text, 0o600).map_err(failed("write", &path))
    }

    /// Notes, durably, that the copy has been made equal to the primary's.
    ///
    /// # Errors
    /// When the mark cannot be removed.
    pub fn seeded(&self) -> Result<(), StorageError> {
        let mut chain = self.chain();
        if chain.is_unseeded {
            let mark = self.folder.join(UNSEEDED);
            let removed = fs::remove_file(&mark).and_then(|()| durable::sync_directory_of(&mark));
            removed.map_err(failed("remove", &mark))?;
            chain.is_unseeded = false;
            chain.tell(&self.told);
        }
        Ok(())
    }

    /// Returns the oldest position that the table can be taken back to.
    pub fn base(&self) -> Position {
        let kept = self.chain().kept.as_ref().map(|kept| kept.end);
        kept.unwrap_or_default()
    }

    /// Returns points of the log for the peer to find one that both share: none that is older than the end of
    /// the snapshot, since the table could not be taken back to it.
    pub fn sketch(&self) -> Sketch {
        let chain = self.chain();
        let points = &chain.points;
        let (first, _) = self.view.bounds();
        let base = chain
            .kept
            .as_ref()
            .map_or(first, |kept| kept.end.max(first));
        let base = base.min(points.tail().position);
        // Where nothing is known of the very place, the next point behind it is as good.
        let oldest = points.at_or_after(base).unwrap_or(points.tail());
        Sketch::of(oldest, points.tail(), |at| points.at_or_before(at).cloned())
    }

    /// Returns the digest of the entry that ends at `position`, if that is known.
    pub fn digest_at(&self, position: Position) -> Option<EntryDigest> {
        self.chain().points.digest_at(position)
    }

    /// Returns the point at `position`, if it is known.
    pub fn point_at(&self, position: Position) -> Option<Point> {
        self.chain().points.at(position).cloned()
    }

    /// Returns how many bytes of entries lie behind `position`, which is a point of the log.
    ///
    /// # Errors
    /// When the log cannot be read there.
    pub fn bytes_behind(&self, position: Position) -> Result<u64, StorageError> {
        let ever = self.bytes_ever();
        if position >= self.tail().position {
            return Ok(0);
        }
        let Some(first) = self.reader(position)?.next()? else {
            return Ok(0);
        };
        let own = u64::try_from(first.payload().len()).unwrap_or(u64::MAX);
        let before = first.bytes_after().saturating_sub(own);
        Ok(ever.saturating_sub(before))
    }

    /// Appends entries, each of which follows the one before; durable only after [`Storage::sync`].
    ///
    /// # Errors
    /// When one does not follow, or cannot be written; those before it are then appended.
    pub fn append<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<(), StorageError> {
        let mut chain = self.chain();
        self.check_open()?;
        for entry in entries {
            let tail = chain.points.tail();
            if (entry.head.start, entry.head.previous) != (tail.position, tail.digest) {
                return Err(StorageError::Gap {
                    start: entry.head.start,
                    end: tail.position,
                });
            }
            chain.log.append(entry.payload(), entry.head.end)?;
            chain.bytes = entry.bytes_after();
            chain.opened = entry.head.opened;
            chain.points.push(entry.point(), entry.bytes_after());
        }
        chain.tell(&self.told);
        Ok(())
    }

    /// Makes all that was appended durable; returns the end of it.
    ///
    /// # Errors
    /// When it cannot be made durable. The store must then be opened again: it ends where it ended at the
    /// last sync.
    pub fn sync(&self) -> Result<Position, StorageError> {
        let mut chain = self.chain();
        self.check_open()?;
        chain.log.sync()?;
        Ok(chain.log.end())
    }

    /// Makes visible what `entry` changes. Entries come in the order of the log; one that is visible already
    /// changes nothing.
    ///
    /// # Errors
    /// When its operations cannot be read, or it does not follow what is visible.
    pub fn apply(&self, entry: &Entry) -> Result<(), StorageError> {
        let operations = entry.operations().map_err(of(entry.head.start))?;
        self.apply_operations(entry.head.start, &operations, entry.point())
    }

    /// Makes the operations from `start` to the point `end` visible, as [`Storage::apply`] does.
    ///
    /// # Errors
    /// When they do not follow what is visible.
    pub fn apply_operations(
        &self,
        start: Position,
        operations: &[Operation],
        end: Point,
    ) -> Result<(), StorageError> {
        let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
        if end.position <= visible.position() {
            return Ok(());
        }
        if start != visible.position() {
            return Err(StorageError::Gap {
                start,
                end: visible.position(),
            });
        }
        for operation in operations {
            visible.table.apply(operation);
        }
        visible.point = end;
        Ok(())
    }

    /// Makes everything visible that is in the log up to `position`; returns how far that is.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn apply_up_to(&self, position: Position) -> Result<Position, StorageError> {
        let from = self.visible().position();
        if from >= position {
            return Ok(from);
        }
        let mut reader = self.reader(from)?;
        let mut at = from;
        while let Some(entry) = reader.next()? {
            if entry.head.end > position {
                break;
            }
            self.apply(&entry)?;
            at = entry.head.end;
        }
        Ok(at)
    }

    /// Returns the durable entries from `position` on.
    ///
    /// # Errors
    /// When the log does not hold it.
    pub fn reader(&self, position: Position) -> Result<EntryReader, StorageError> {
        Ok(EntryReader(self.view.reader(position)?))
    }

    /// Refuses to touch files that are another's by now.
    fn check_open(&self) -> Result<(), StorageError> {
        if self.told.is_retired.load(Ordering::SeqCst) {
            return Err(StorageError::Retired);
        }
        Ok(())
    }

    /// Touches no file any more from here on: the store is opened anew by somebody else.
    pub(super) fn retire(&self) {
        {
            let _nobody_appends = self.chain();
            self.told.is_retired.store(true, Ordering::SeqCst);
        }
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Lets the log go before `needed`, as far as the snapshot does not need it, and what is older than the
    /// newest `bytes_max` of it even if it is needed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn release(&self, needed: Position, bytes_max: u64) -> Result<(), StorageError> {
        let is_retired = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_retired {
            return Ok(());
        }
        // One segment after the other, so that nobody waits long for the lock.
        loop {
            let mut chain = self.chain();
            let Some(start) = chain.kept.as_ref().map(|kept| kept.start.position) else {
                return Ok(());
            };
            let before = if self.view.bytes() > bytes_max {
                start
            } else {
                needed.min(start)
            };
            let is_over = !chain.log.release_one(before)?;
            let (first, _) = self.view.bounds();
            chain.points.release(first);
            if is_over {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a log entry by entry.
#[derive(Debug)]
pub struct EntryReader(LogReader);

impl EntryReader {
    /// Returns the next durable entry, or `None` when there is none yet.
    ///
    /// # Errors
    /// When the log is damaged, or what comes next has been dropped from it.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends does not go on later"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, StorageError> {
        let Some(record) = self.0.next()? else {
            return Ok(None);
        };
        let entry = Entry::decode(record.payload.into()).map_err(of(record.start))?;
        if (entry.head.start, entry.head.end) != (record.start, record.end) {
            return Err(StorageError::Broken { at: record.start });
        }
        Ok(Some(entry))
    }

    /// Returns the position before the next entry.
    pub fn position(&self) -> Position {
        self.0.position()
    }
}

/// Returns whether the store in `folder` was begun empty in the place of a damaged one.
pub(super) fn is_begun_anew(folder: &Path) -> bool {
    folder.join(UNSEEDED).exists()
}

/// Makes an empty file, durably.
pub(super) fn mark(path: &Path) -> Result<(), StorageError> {
    durable::write(path, b"", 0o600).map_err(failed("write", path))
}

/// Moves what is in `folder` aside, and begins an empty store there, which is no copy of anything until it has
/// been made equal to the primary's. Returns where the old one is.
///
/// Invariant: under the name there is the old store or the new one with its mark, and never nothing.
///
/// # Errors
/// When a file cannot be moved or made; what was there is then still there, or aside.
pub fn set_aside(folder: &Path) -> Result<PathBuf, StorageError> {
    let named = |suffix: &str| {
        let mut name = folder.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let number = |suffix: &str| {
        (1..u32::MAX)
            .map(|number| named(&format!("{suffix}{number}")))
            .find(|path| !path.exists())
            .unwrap_or_else(|| named(suffix))
    };
    let fresh = named(".fresh");
    // What an earlier call has exchanged and not renamed any more is the damaged one.
    if fresh.join("log").exists() {
        let aside = number(".damaged-");
        fs::rename(&fresh, &aside).map_err(failed("rename", &fresh))?;
    }
    durable::create_directory(folder, 0o700).map_err(failed("create", folder))?;
    durable::create_directory(&fresh, 0o700).map_err(failed("create", &fresh))?;
    let mark = fresh.join(UNSEEDED);
    durable::write(&mark, b"", 0o600).map_err(failed("write", &mark))?;
    let aside = number(".damaged-");
    // In one step: in between there would be no store, and the next start would make an empty one without a mark.
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &fresh, rustix::fs::CWD, folder, exchange)
        .map_err(|error| failed("exchange", folder)(error.into()))?;
    durable::sync_directory_of(folder).map_err(failed("sync the folder of", folder))?;
    fs::rename(&fresh, &aside).map_err(failed("rename", &fresh))?;
    durable::sync_directory_of(folder).map_err(failed("sync the folder of", folder))?;
    Ok(aside)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| {
        LogError::File {
            action,
            path,
            source,
        }
        .into()
    }
}

fn of(start: Position) -> impl FnOnce(EntryError) -> StorageError {
    move |source| StorageError::Entry { start, source }
}

#[cfg(test)]
mod tests;
