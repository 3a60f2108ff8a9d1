//! Checking the copy: every entry is looked at, and in a scrub every byte is read again.
//!
//! The replica is locked for a short while at a time, in which tree and manifest agree; so following goes
//! on beside it. What is found is put right at once where that needs no content; the rest is awaited from
//! then on, and fetched like everything that is.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use understudy_replication::check::{Checked, Depth, Difference, DifferenceKind};
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::files::{
    Digest, Entry, Identity, LOST_AND_FOUND, Local, Manifest, NodeId, RESERVED, RelPath, TOP,
    identity, names, stat_fd, stat_in,
};
use understudy_replication::position::Position;
use understudy_replication::store::{Progress, Stop, Unit};

use super::content::read_range;
use super::error::{FilesError, Setback, concerns_all};
use super::place::{Placing, lose};
use super::replica::Replica;
use super::trash::{Trash, put_extra};
use super::tree::{Tree, is_absent};
use super::{Inner, Wanted, Work, blocking};

/// How many entries are looked at with the replica locked.
const STEP_ENTRIES: usize = 1000;

/// How long is waited for what has to be fetched.
const REPAIR_PATIENCE: Duration = Duration::from_secs(60);

/// How often a doubtful copy is looked at.
const SETTLE_MIN: Duration = Duration::from_millis(200);
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Who checks waits this long while following fails and begins again.
const SOUND_PATIENCE: Duration = Duration::from_secs(15);

/// How often the progress is told.
const TELL_INTERVAL: Duration = Duration::from_millis(200);

/// How much a scrub reads between two looks at the clock.
const READ_BYTES: u64 = 1 << 20;

/// A file that looks as it should, and the size and the hash that it should have.
type AsTold = (RelPath, Identity, (u64, Digest));

/// A check that is under way.
struct Check {
    inner: Arc<Inner>,
    depth: Depth,
    entries: AtomicU64,
    bytes: AtomicU64,
    is_stopped: Arc<AtomicBool>,
    found: Mutex<Vec<(RelPath, DifferenceKind, String)>>,
}

/// Checks the copy until it is done or told to stop.
pub(super) async fn check(
    inner: &Arc<Inner>,
    depth: Depth,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Checked, FilesError> {
    let counted = inner.clone();
    let (entries, bytes) = blocking(move || {
        let replica = counted.replica();
        let manifest = &replica.ledger.manifest;
        Ok((
            u64::try_from(manifest.len()).unwrap_or(u64::MAX),
            manifest.bytes(),
        ))
    })
    .await?;
    let (total, unit) = match depth {
        Depth::Verify => (entries, Unit::Items),
        Depth::Scrub { .. } => (bytes, Unit::Bytes),
    };
    progress.start(depth.as_str(), Some(total), unit);
    let (_wanted, is_stopped) = Wanted::new();
    let check = Arc::new(Check::new(inner, depth, is_stopped));
    let walking = check.clone();
    let mut walk = tokio::task::spawn_blocking(move || walking.walk());
    let walked = loop {
        tokio::select! {
            walked = &mut walk => break walked,
            () = tokio::time::sleep(TELL_INTERVAL) => progress.at(match depth {
                Depth::Verify => check.entries.load(Ordering::Relaxed),
                Depth::Scrub { .. } => check.bytes.load(Ordering::Relaxed),
            }.min(total)),
            () = stop.wait(), if !check.is_stopped.load(Ordering::Relaxed) => {
                check.is_stopped.store(true, Ordering::Relaxed);
            }
        }
    };
    walked.map_err(|_| FilesError::Broken)??;
    progress.end("done");
    let found = std::mem::take(&mut *check.found.lock().unwrap_or_else(PoisonError::into_inner));
    wait_for_repair(inner, &found, stop).await?;
    let (inner, check) = (inner.clone(), check.clone());
    blocking(move || Ok(told(&inner, &check, found))).await
}

/// While there is a doubt about the copy, looks at everything that nobody awaits, until nothing is found.
/// Returns only when that fails.
pub(super) async fn settle(inner: &Arc<Inner>, work: &Work) -> Result<(), FilesError> {
    let mut pause = SETTLE_MIN;
    let mut is_told = false;
    loop {
        tokio::time::sleep(pause).await;
        let state = inner.flow.lock().clone();
        if !state.is_doubtful {
            (pause, is_told) = (SETTLE_MIN, false);
            continue;
        }
        if !is_told {
            is_told = true;
            inner.events.record(
                Severity::Warning,
                "files_doubt",
                format!(
                    "store {}: something failed while the copy was changed; it is not called whole before \
                     all of it has been looked at",
                    inner.id.name
                ),
            );
        }
        if state.awaited > 0 {
            continue;
        }
        let (_wanted, is_stopped) = Wanted::new();
        let check = Arc::new(Check::new(inner, Depth::Verify, is_stopped));
        let held = work.clone();
        let found = blocking(move || {
            let _held = held;
            check.settle()
        });
        pause = match found.await {
            Ok(0) => SETTLE_MIN,
            Ok(_) => (pause * 2).min(SETTLE_MAX),
            Err(error) if concerns_store(&error) => return Err(error),
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "cannot look at all of a doubtful copy; trying again");
                (pause * 2).min(SETTLE_MAX)
            }
        };
    }
}

/// Returns whether an error is no matter of single entries.
fn concerns_store(error: &FilesError) -> bool {
    if let FilesError::Tree { source, .. } = error {
        return concerns_all(source);
    }
    true
}

/// Looks at all of the copy, once, and puts right what can be put right from here.
pub(super) fn look_at_all(inner: &Arc<Inner>) -> Result<(), FilesError> {
    let (_wanted, is_stopped) = Wanted::new();
    Check::new(inner, Depth::Verify, is_stopped).settle()?;
    Ok(())
}

/// Waits, though not for ever, until nothing of what was found is awaited.
async fn wait_for_repair(
    inner: &Arc<Inner>,
    found: &[(RelPath, DifferenceKind, String)],
    stop: &Stop,
) -> Result<(), FilesError> {
    let begun = Instant::now();
    let paths: Arc<Vec<RelPath>> = Arc::new(found.iter().map(|(path, ..)| path.clone()).collect());
    while begun.elapsed() < REPAIR_PATIENCE && !stop.is_stopped() {
        inner.work.notify_waiters();
        let (looking, paths) = (inner.clone(), paths.clone());
        let is_awaited = blocking(move || {
            let replica = looking.replica();
            Ok(paths
                .iter()
                .any(|path| is_awaited(&replica.ledger.manifest, path)))
        });
        if !is_awaited.await? {
            break;
        }
        tokio::time::sleep(TELL_INTERVAL).await;
    }
    Ok(())
}

fn is_awaited(manifest: &Manifest, path: &RelPath) -> bool {
    manifest
        .lookup(path)
        .is_some_and(|id| manifest.is_awaited(id))
}

fn told(inner: &Inner, check: &Check, found: Vec<(RelPath, DifferenceKind, String)>) -> Checked {
    let replica = inner.replica();
    let head = replica.ledger.head();
    let mut checked = Checked {
        entries: check.entries.load(Ordering::Relaxed),
        bytes: check.bytes.load(Ordering::Relaxed),
        root: head.map(|head| head.root.to_string()),
        position: head.map(|head| head.position),
        ..Checked::default()
    };
    for (path, kind, detail) in found {
        checked.add(Difference {
            what: path.to_string(),
            kind,
            is_repaired: !is_awaited(&replica.ledger.manifest, &path),
            detail,
        });
    }
    checked.bound();
    checked
}

impl Check {
    fn new(inner: &Arc<Inner>, depth: Depth, is_stopped: Arc<AtomicBool>) -> Self {
        Self {
            inner: inner.clone(),
            depth,
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            is_stopped,
            found: Mutex::default(),
        }
    }

    /// Looks at everything, and ends the doubt if nothing was found. Returns how much was.
    fn settle(&self) -> Result<usize, FilesError> {
        let reasons = self
            .inner
            .sound_replica_within(SOUND_PATIENCE)?
            .doubt
            .reasons();
        self.walk()?;
        let count = self
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        tracing::info!(store = %self.inner.id.name, differences = count, "looked at a doubtful copy");
        if count == 0 {
            let mut replica = self.inner.sound_replica_within(SOUND_PATIENCE)?;
            replica.end_doubt(reasons)?;
            self.inner.tell(&replica);
        }
        Ok(count)
    }

    fn found(&self, path: RelPath, kind: DifferenceKind, detail: &str) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.push((path, kind, detail.to_owned()));
    }

    fn check_stop(&self) -> Result<(), FilesError> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err(FilesError::Stopped);
        }
        Ok(())
    }

    /// Looks at each directory, from the top down. One that has moved meanwhile is known to agree: the
    /// applier has looked at it.
    fn walk(&self) -> Result<(), FilesError> {
        if self.inner.replica().ledger.head().is_none() {
            return Err(FilesError::NoCopy {
                store: self.inner.id.name.clone(),
            });
        }
        // Its own, for what is read without the replica.
        let place = &self.inner.root;
        let tree = Tree::open(place).map_err(FilesError::tree("open", place))?;
        let mut waiting: Vec<Option<RelPath>> = vec![None];
        let begun = Instant::now();
        while let Some(path) = waiting.pop() {
            self.directory(&tree, path.as_ref(), &mut waiting, begun)?;
        }
        Ok(())
    }

    fn directory(
        &self,
        tree: &Tree,
        path: Option<&RelPath>,
        waiting: &mut Vec<Option<RelPath>>,
        begun: Instant,
    ) -> Result<(), FilesError> {
        let mut all: BTreeSet<Vec<u8>> = BTreeSet::new();
        match tree
            .root()
            .directory(path)
            .and_then(|directory| names(&directory))
        {
            Ok(names) => all.extend(names),
            // It has gone since, or is lost: what it should hold tells.
            Err(error) if is_absent(&error) => {}
            Err(error) => {
                let place = path.map_or(self.inner.root.clone(), |path| {
                    self.inner.root.join(path.as_path())
                });
                return Err(FilesError::tree("read", place)(error));
            }
        }
        {
            let replica = self.inner.replica();
            let manifest = &replica.ledger.manifest;
            let id = path.map_or(Some(TOP), |path| manifest.lookup(path));
            let children = id.map_or(&[][..], |id| manifest.children(id));
            all.extend(children.iter().map(|child| manifest.name(*child).to_vec()));
        }
        if path.is_none() {
            all.remove(RESERVED);
            all.remove(LOST_AND_FOUND);
        }
        let all: Vec<Vec<u8>> = all.into_iter().collect();
        for some in all.chunks(STEP_ENTRIES) {
            self.check_stop()?;
            let read = self.step(path, some, waiting)?;
            if let Depth::Scrub { bytes_per_second } = self.depth {
                for (path, found, content) in read {
                    self.read_again(tree, &path, found, content, (begun, bytes_per_second))?;
                }
            }
        }
        Ok(())
    }

    /// Looks at some of the names in a directory. Returns the files that look as they should.
    fn step(
        &self,
        parent: Option<&RelPath>,
        some: &[Vec<u8>],
        waiting: &mut Vec<Option<RelPath>>,
    ) -> Result<Vec<AsTold>, FilesError> {
        let mut read = Vec::new();
        let mut locked = self.inner.sound_replica_within(SOUND_PATIENCE)?;
        let replica = &mut *locked;
        replica.open_tree()?;
        let tree = replica.tree()?;
        let directory = match tree.root().directory(parent) {
            Ok(directory) => Some(directory),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(FilesError::tree("read", &self.inner.root)(error)),
        };
        let mut different = Vec::new();
        let mut entries = 0_u64;
        for name in some {
            let Ok(path) = RelPath::child(parent, name) else {
                continue;
            };
            let found = match directory.as_ref().map(|at| stat_in(at.as_fd(), name)) {
                Some(Ok(found)) => Some(identity(&found)),
                None => None,
                Some(Err(error)) if is_absent(&error) => None,
                Some(Err(error)) => {
                    let place = self.inner.root.join(path.as_path());
                    return Err(FilesError::tree("read", place)(error));
                }
            };
            let manifest = &replica.ledger.manifest;
            let Some(id) = manifest.lookup(&path) else {
                if found.is_some() && !self.inner.exclude.is_match(path.as_path()) {
                    different.push((path, None, found));
                }
                continue;
            };
            entries = entries.saturating_add(1);
            if manifest.is_directory(id) {
                waiting.push(Some(path.clone()));
            }
            let content = manifest.content(id);
            if let (Depth::Verify, Some((size, _))) = (self.depth, content) {
                self.bytes.fetch_add(size, Ordering::Relaxed);
            }
            match found {
                // It is known already that it is not what it should be.
                _ if manifest.is_awaited(id) => different.push((path, Some(id), found)),
                Some(found) if manifest.looks(id, &found) => {
                    read.extend(content.map(|content| (path, found, content)));
                }
                found => different.push((path, Some(id), found)),
            }
        }
        self.entries.fetch_add(entries, Ordering::Relaxed);
        if !different.is_empty() {
            self.put_right(replica, different)?;
        }
        Ok(read)
    }

    /// Puts right what can be put right from here, and lets the rest be fetched.
    fn put_right(
        &self,
        replica: &mut Replica,
        different: Vec<(RelPath, Option<NodeId>, Option<Identity>)>,
    ) -> Result<(), FilesError> {
        let blocks = replica.blocks();
        let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
        let mut trash = Trash::of(self.inner.trash, Position(0));
        let mut placing = Placing::new(tree, &blocks, &mut trash, (false, self.inner.is_trusted()));
        let manifest = &mut replica.ledger.manifest;
        let mut learned = Vec::new();
        let mut directories = BTreeSet::new();
        for (path, id, found) in different {
            let place = self.inner.root.join(path.as_path());
            directories.extend(manifest.directory_of(&path));
            let Some(id) = id else {
                let parent = tree.root().parent(&path);
                let moved = parent.and_then(|parent| put_extra(tree, parent.as_fd(), &path));
                match moved {
                    Ok(()) => self.found(path, DifferenceKind::Extra, "it is in the trash now"),
                    Err(error) if concerns_all(&error) => {
                        return Err(FilesError::tree("remove", place)(error));
                    }
                    Err(error) => {
                        let detail = format!("it cannot be removed: {error}");
                        self.inner.entry_failed(&path, None, detail.clone());
                        self.found(path, DifferenceKind::Extra, &detail);
                    }
                }
                continue;
            };
            let entry = manifest.entry(id);
            let (kind, local) = match found {
                _ if manifest.is_awaited(id) => {
                    self.found(path, DifferenceKind::Missing, "it is still to come");
                    continue;
                }
                None => (Some(DifferenceKind::Missing), None),
                Some(found) if found.file_type() != type_of(&entry) => {
                    (Some(DifferenceKind::Changed), None)
                }
                // Nothing that is replicated shows; only what it holds can have changed.
                Some(found) => {
                    let is_dressed = is_as_told(&entry, &found);
                    let adopted = if entry.content().is_some() {
                        placing.adopt(&path, &entry)
                    } else {
                        placing.put_shape(&path, &entry)
                    };
                    let kind = (!is_dressed).then_some(DifferenceKind::Changed);
                    match adopted {
                        Ok(Local::Awaited) => (Some(DifferenceKind::Changed), None),
                        Ok(local) => (kind, Some(local)),
                        Err(Setback::Entry(reason)) => {
                            let hash = entry.content().map(|(_, hash)| hash);
                            self.inner.entry_failed(&path, hash, reason);
                            (Some(DifferenceKind::Changed), None)
                        }
                        Err(Setback::Store(error)) => return Err(error),
                    }
                }
            };
            match local {
                Some(local) => {
                    manifest.learn(id, local);
                    learned.push((path.clone(), local));
                    if entry.is_directory() {
                        directories.insert(id);
                    }
                }
                None => lose(manifest, id, &mut learned),
            }
            if let Some(kind) = kind {
                self.found(path, kind, "");
            }
        }
        self.inner.keep(replica, &directories, learned)
    }

    /// Reads a file that looks as it should, no faster than asked for.
    fn read_again(
        &self,
        tree: &Tree,
        path: &RelPath,
        found: Identity,
        (size, hash): (u64, Digest),
        (begun, bytes_per_second): (Instant, u64),
    ) -> Result<(), FilesError> {
        let mut hasher = blake3::Hasher::new();
        let read = tree.root().file(path).and_then(|file| {
            let mut at = 0;
            while at < size {
                let some = READ_BYTES.min(size - at);
                read_range(&file, (at, some), &mut |_, bytes| {
                    hasher.update(bytes);
                    Ok(())
                })?;
                at += some;
                let all = self
                    .bytes
                    .fetch_add(some, Ordering::Relaxed)
                    .saturating_add(some);
                if self.is_stopped.load(Ordering::Relaxed) {
                    break;
                }
                #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
                let due = Duration::from_secs_f64(all as f64 / bytes_per_second.max(1) as f64);
                std::thread::sleep(
                    due.saturating_sub(begun.elapsed())
                        .min(Duration::from_secs(1)),
                );
            }
            Ok(identity(&stat_fd(file.as_fd())?))
        });
        self.check_stop()?;
        if matches!(&read, Ok(after) if *after == found) && Digest::from(hasher.finalize()) == hash
        {
            return Ok(());
        }
        let mut locked = self.inner.sound_replica_within(SOUND_PATIENCE)?;
        let replica = &mut *locked;
        let Some(id) = replica.ledger.manifest.lookup(path) else {
            return Ok(());
        };
        let is_same = replica.ledger.manifest.looks(id, &found)
            && replica.ledger.manifest.content(id) == Some((size, hash))
            && tree.look(path).is_ok_and(|now| now == Some(found));
        // It is another by now; that was looked at when it came.
        if !is_same {
            return Ok(());
        }
        let detail = match read {
            Ok(_) => "its content has changed, and nothing else tells that".to_owned(),
            Err(error) => format!("it cannot be read: {error}"),
        };
        self.found(path.clone(), DifferenceKind::Rotten, &detail);
        let mut learned = Vec::new();
        lose(&mut replica.ledger.manifest, id, &mut learned);
        replica.open_tree()?;
        self.inner.keep(replica, &BTreeSet::new(), learned)
    }
}

fn type_of(entry: &Entry) -> FileType {
    use understudy_replication::files::Kind;
    match entry.kind {
        Kind::File { .. } => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink { .. } => FileType::Symlink,
    }
}

/// Returns whether a path has the size, mode and time that its entry tells.
fn is_as_told(entry: &Entry, found: &Identity) -> bool {
    let size = entry.content().map_or(found.size, |(size, _)| size);
    let is_link = found.file_type() == FileType::Symlink;
    let is_owned =
        !rustix::process::geteuid().is_root() || (found.uid, found.gid) == (entry.uid, entry.gid);
    found.size == size
        && found.mtime_ns == entry.mtime_ns
        && (is_link || found.mode & 0o7777 == entry.mode)
        && is_owned
}
