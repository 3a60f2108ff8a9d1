//! Seeding: makes the tree equal to the primary's, from whatever is there.
//!
//! ```text
//! may we? ─▶ snapshot ─▶ survey: directories, links ─▶ contents ─▶ what the primary does not have
//!                                                    ─▶ times, one syncfs ─▶ manifest, position
//! ```
//! The manifest stands for nothing meanwhile. What was fetched is remembered on the way, so that an
//! interrupted seeding goes on where it was. Directories at the top that are not there yet are built out
//! of sight, where files can be made under their names, and appear when they are whole.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{AtFlags, OFlags, fsync, linkat, renameat};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Severity;
use understudy_replication::files::wire::{Message, Note, SILENCE_MAX, unpack};
use understudy_replication::files::{
    Head, Known, Loader, Local, Manifest, NodeId, Operation, RelPath, Root, TOP, identity, open_in,
    stat_fd,
};
use understudy_replication::position::Position;
use understudy_replication::rejoin::{Foreseen, Salvaged, Way};
use understudy_replication::store::{Progress, Unit};
use understudy_replication::transport::{FrameReader, PeerClient, PeerError};

use super::attributes::dress;
use super::error::{FilesError, Setback};
use super::foresee::{Foresight, Sums, deleted};
use super::kept::{Counts, Finding, Keeping};
use super::leftovers::Leftovers;
use super::origin::Origin;
use super::seed_fetch;
use super::survey::{Found, Places, Survey};
use super::tree::{Guarded, is_absent};
use super::{Inner, Wanted, Work, blocking};

/// A primary that has to read a cold disk may take this long for the next piece.
pub(super) const CONTENT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a primary that is still looking at its files is asked again, and how often.
const READY_PATIENCE: Duration = Duration::from_secs(600);
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// A seeding that is under way.
pub(super) struct Seeding {
    pub(super) places: Places,
    target: Mutex<Manifest>,
    head: Head,
    /// Nobody wants it any more.
    is_left: Arc<AtomicBool>,
}

impl Seeding {
    /// Returns an error when nobody wants the seeding any more.
    pub(super) fn check_wanted(&self) -> Result<(), FilesError> {
        check_wanted(&self.is_left)
    }

    pub(super) fn target(&self) -> MutexGuard<'_, Manifest> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a seeding has done.
#[derive(Debug)]
pub(super) struct Seeded {
    /// How much the tree holds, in bytes.
    pub(super) compared: u64,
    /// How much travelled, in bytes: the list and what differed.
    pub(super) travelled: u64,
    /// What only this node had, if it was primary.
    pub(super) salvaged: Option<Salvaged>,
}

pub(super) async fn seed(
    inner: &Arc<Inner>,
    work: &Work,
    primary: &PeerClient,
    progress: &dyn Progress,
) -> Result<Seeded, FilesError> {
    // Threads that are under way when this is dropped end soon, and hold the work until then.
    let (_wanted, is_left) = Wanted::new();
    let (checked, held) = (inner.clone(), work.clone());
    let begun = blocking(move || {
        let _held = held;
        begin(&checked)
    });
    let keeping = begun.await?;
    // Until it is done: it may be broken off anywhere.
    inner.suspect();
    let mut phases = Phases::new(inner);
    progress.start("listing files", None, Unit::Items);
    let (mut target, head, listed) = snapshot(inner, primary).await?;
    phases.over("listing");
    progress.end(&format!("{} files", target.len()));
    let compared = target.bytes();
    if let Some(keeping) = keeping.clone() {
        progress.start("keep what only this node has", None, Unit::Items);
        let (foreseen, held, is_left) = (inner.clone(), work.clone(), is_left.clone());
        let noted = blocking(move || {
            let _held = held;
            keeping.note(&foreseen, &target, &is_left)?;
            Ok(target)
        });
        target = noted.await?;
        phases.over("noting");
        progress.end("noted");
    }
    progress.start("comparing files", None, Unit::Items);
    let (surveyed, held) = (inner.clone(), work.clone());
    let surveyed = blocking(move || {
        let _held = held;
        survey(&surveyed, target, head, is_left)
    });
    let (seeding, mut found) = surveyed.await?;
    let seeding = Arc::new(seeding);
    let copied = (inner.clone(), seeding.clone(), work.clone());
    found = blocking(move || {
        let (inner, seeding, _held) = copied;
        seed_fetch::copy_known(&inner, &seeding, &mut found)?;
        Ok(found)
    })
    .await?;
    let wanted = std::mem::take(&mut found.wanted);
    progress.end(&format!(
        "{} of {} files to fetch",
        wanted.len(),
        seeding.target().len()
    ));
    phases.over("comparing");
    let fetched = seed_fetch::fetch((inner, work), primary, &seeding, wanted, progress).await?;
    phases.over("fetching");
    progress.start("making it durable", None, Unit::Items);
    let (finished, held) = (inner.clone(), work.clone());
    let finished = blocking(move || {
        let _held = held;
        finish(&finished, seeding, &found, keeping)
    });
    let salvaged = finished.await?;
    phases.over("making durable");
    progress.end(
        salvaged
            .as_ref()
            .map_or("done", |salvaged| &salvaged.summary),
    );
    Ok(Seeded {
        compared,
        travelled: listed.saturating_add(fetched),
        salvaged,
    })
}

/// What a node that was primary keeps, and under which name.
#[derive(Clone)]
struct Former {
    name: String,
    /// When it last changed the tree, and where it was then.
    was: (Epoch, Position),
}

impl Former {
    fn keeping(&self, inner: &Inner) -> Keeping {
        let kept = inner.root.join(".understudy/kept").join(&self.name);
        Keeping::new(&inner.state, &inner.id.name, &self.name, kept)
    }

    /// Writes down what is about to be set aside, or changed without that.
    fn note(
        &self,
        inner: &Inner,
        target: &Manifest,
        is_left: &AtomicBool,
    ) -> Result<(), FilesError> {
        let keeping = self.keeping(inner);
        keeping.write_down(|told| compare(inner, target, is_left, told))?;
        Ok(())
    }
}

/// Compares the tree with the primary's list, and changes nothing.
fn compare(
    inner: &Inner,
    target: &Manifest,
    is_left: &AtomicBool,
    told: &mut dyn FnMut(Finding) -> Result<(), FilesError>,
) -> Result<Sums, FilesError> {
    let replica = inner.replica();
    let root = Root::open(&inner.root).map_err(FilesError::tree("open", &inner.root))?;
    let foresight = Foresight {
        root: &root,
        known: &replica.ledger.manifest,
        target,
        exclude: &inner.exclude,
        deleted: &deleted(&replica, target),
        is_left,
        sums: Sums::default(),
    };
    foresight.run(told)
}

/// Tells what a seeding would do; `None` while the copy is followed.
pub(super) async fn foresee(
    inner: &Arc<Inner>,
    primary: &PeerClient,
) -> Result<Option<Foreseen>, FilesError> {
    let Ok(work) = inner.work_lock.clone().try_lock_owned() else {
        return Ok(None);
    };
    let (_wanted, is_left) = Wanted::new();
    let (target, _, _) = snapshot(inner, primary).await?;
    let inner = inner.clone();
    let foreseen = blocking(move || {
        let _held = work;
        inner.reload_if_suspect()?;
        let origin = Origin::load(&inner.state)?;
        let was_held = inner.replica().ledger.head().is_some();
        let is_empty = holds_nothing(&inner.root)?;
        if !is_empty && origin.is_none() && !was_held {
            return Err(FilesError::NotEmpty {
                store: inner.id.name.clone(),
                path: inner.root.clone(),
            });
        }
        let was_primary = origin.map_or(was_held, |origin| origin.kept.is_some());
        if is_empty {
            let mut foreseen =
                Foreseen::follows(target.bytes(), "the primary's list: nothing is here");
            foreseen.way = Way::Seeded;
            return Ok(foreseen);
        }
        let mut counts = Counts::default();
        let sums = compare(&inner, &target, &is_left, &mut |finding| {
            counts.add(finding.what);
            Ok(())
        })?;
        Ok(Foreseen {
            way: Way::Compared,
            salvaged_bytes: Some(if was_primary { sums.aside } else { 0 }),
            travelling_bytes: Some(sums.travelling),
            read_bytes: sums.read,
            basis: format!(
                "the primary's list compared with this tree: {} files differ, {} are only here, {} were deleted \
                 here, {} have other attributes",
                counts.differing, counts.only_here, counts.deleted_here, counts.attributes
            ),
        })
    });
    Ok(Some(foreseen.await?))
}

/// Tells the log how long each part of a seeding took.
struct Phases<'a> {
    inner: &'a Inner,
    begun: std::time::Instant,
}

impl<'a> Phases<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self {
            inner,
            begun: std::time::Instant::now(),
        }
    }

    fn over(&mut self, phase: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        tracing::info!(store = %self.inner.id.name, phase, seconds, "seeding");
        self.begun = std::time::Instant::now();
    }
}

pub(super) fn check_wanted(is_left: &AtomicBool) -> Result<(), FilesError> {
    if is_left.load(Ordering::Relaxed) {
        return Err(FilesError::Stopped);
    }
    Ok(())
}

/// Makes sure that nothing is harmed which no seeding has made. Returns what has to be kept of a node that was
/// primary.
fn begin(inner: &Inner) -> Result<Option<Former>, FilesError> {
    inner.reload_if_suspect()?;
    let mut replica = inner.replica();
    let device = std::fs::metadata(&inner.root).ok().map(|found| found.dev());
    let is_empty = holds_nothing(&inner.root)?;
    let origin = Origin::load(&inner.state)?;
    // A node that has held this store, as a standby or as the primary, has a head.
    let was_held = origin.is_some() || replica.ledger.head().is_some();
    if !is_empty && !was_held {
        return Err(FilesError::NotEmpty {
            store: inner.id.name.clone(),
            path: inner.root.clone(),
        });
    }
    if let Some(origin) = &origin
        && is_empty
        && device.is_some_and(|device| device != origin.device)
    {
        return Err(FilesError::NotMounted {
            path: inner.root.clone(),
        });
    }
    replica.open_tree()?;
    let kept = match &origin {
        Some(origin) => origin.kept.clone(),
        None if is_empty => None,
        None => replica
            .ledger
            .head()
            .map(|head| format!("{}-{}", head.epoch, head.position)),
    };
    if let Some(name) = &kept {
        if let Some(tree) = &mut replica.tree {
            tree.keep(name)
                .map_err(FilesError::tree("keep files of", &inner.root))?;
        }
    }
    let former = match kept.clone() {
        Some(name) => Some(Former {
            was: parse_kept(&name).ok_or(FilesError::Broken)?,
            name,
        }),
        None => None,
    };
    let device = std::fs::metadata(&inner.root)
        .map_err(FilesError::tree("read", &inner.root))?
        .dev();
    // Before the head is forgotten: an interrupted seeding goes on as what it was.
    Origin { device, kept }.store(&inner.state)?;
    replica.ledger.forget_head()?;
    inner.tell(&replica);
    Ok(former)
}

/// Returns whether there is nothing of a store at `root`.
fn holds_nothing(root: &Path) -> Result<bool, FilesError> {
    match std::fs::read_dir(root) {
        Ok(mut entries) => Ok(entries.all(|entry| {
            entry.is_ok_and(|entry| {
                entry.file_name() == ".understudy" || entry.file_name() == "lost+found"
            })
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(FilesError::tree("read", root)(error)),
    }
}

/// Reads the primary's manifest, and tells how much came for it, in bytes.
async fn snapshot(
    inner: &Arc<Inner>,
    primary: &PeerClient,
) -> Result<(Manifest, Head, u64), FilesError> {
    let path = format!("/store/{}/snapshot", inner.id.name);
    let begun = tokio::time::Instant::now();
    let response = loop {
        match primary.get_within(&path, CONTENT_PATIENCE).await {
            Err(PeerError::Refused { status, .. })
                if status.as_u16() == 503 && begun.elapsed() < READY_PATIENCE =>
            {
                tokio::time::sleep(READY_INTERVAL).await;
            }
            response => break response?,
        }
    };
    let mut frames = response.frames();
    let mut loader = Loader::default();
    let mut announced = None;
    let (mut count, mut bytes) = (0_u64, 0_u64);
    loop {
        let mut frame = next(&mut frames, CONTENT_PATIENCE).await?;
        bytes = bytes.saturating_add(u64::try_from(frame.len()).unwrap_or(u64::MAX));
        while let Some(message) = unpack(&mut frame)? {
            match (message, &announced) {
                (
                    Message::Note(Note::Snapshot {
                        epoch,
                        position,
                        root,
                        entries,
                        ..
                    }),
                    None,
                ) => {
                    let head = Head {
                        epoch,
                        position,
                        complete: position,
                        root,
                    };
                    announced = Some((head, entries));
                }
                (Message::Note(Note::Listed(depth, name, entry)), Some((_, entries))) => {
                    let local = Local::Unknown;
                    loader.push(depth, &name, Known { entry, local })?;
                    count = count.saturating_add(1);
                    if count > *entries {
                        return Err(FilesError::Snapshot);
                    }
                }
                (Message::Note(Note::End), Some((head, entries))) => {
                    let mut manifest = loader.finish();
                    if count != *entries || manifest.root() != head.root {
                        return Err(FilesError::Snapshot);
                    }
                    return Ok((manifest, head.clone(), bytes));
                }
                (other, _) => return Err(other.unexpected("an entry").into()),
            }
        }
    }
}

pub(super) async fn next(
    frames: &mut FrameReader,
    patience: Duration,
) -> Result<Bytes, FilesError> {
    match tokio::time::timeout(patience, frames.next()).await {
        Ok(frame) => frame?.ok_or(FilesError::Ended),
        Err(_) => Err(FilesError::Silent {
            seconds: SILENCE_MAX.as_secs(),
        }),
    }
}

/// Compares, makes directories and links, and adjusts what is held already.
fn survey(
    inner: &Inner,
    mut target: Manifest,
    head: Head,
    is_left: Arc<AtomicBool>,
) -> Result<(Seeding, Found), FilesError> {
    let mut replica = inner.replica();
    replica.open_tree()?;
    let tree = replica.tree.take().ok_or(FilesError::Broken)?;
    let place = || FilesError::tree("clear the staging of", &inner.root);
    tree.clear_staging(|name| name == super::tree::FRESH)
        .map_err(place())?;
    let mut places = Places::new(tree).map_err(place())?;
    let known = std::mem::take(&mut replica.ledger.manifest);
    let survey = Survey {
        places: &mut places,
        known: &known,
        target: &mut target,
        ledger: &mut replica.ledger,
        exclude: &inner.exclude,
        is_left: &is_left,
    };
    let found = survey.run()?;
    for (path, reason) in &found.failed {
        inner.entry_failed(path, None, reason.clone());
    }
    let seeding = Seeding {
        places,
        target: Mutex::new(target),
        head,
        is_left,
    };
    Ok((seeding, found))
}

/// Removes what the primary does not have, and lets the manifest stand for the snapshot.
fn finish(
    inner: &Inner,
    seeding: Arc<Seeding>,
    found: &Found,
    former: Option<Former>,
) -> Result<Option<Salvaged>, FilesError> {
    let Ok(seeding) = Arc::try_unwrap(seeding) else {
        return Err(FilesError::Broken);
    };
    seeding.check_wanted()?;
    let Seeding {
        places,
        target,
        head,
        ..
    } = seeding;
    let mut target = target.into_inner().unwrap_or_else(PoisonError::into_inner);
    link_names(inner, &places, &mut target)?;
    let mut leftovers = Leftovers::default();
    for path in &found.extra {
        let place = inner.root.join(path.as_path());
        let removed = places.tree.remove(path);
        // What only this node has is never deleted, now or later.
        if places.tree.is_keeping() {
            removed.map_err(FilesError::tree("set aside", place))?;
            continue;
        }
        match removed.map_err(Setback::at("remove", &place)) {
            Ok(()) => {}
            Err(Setback::Entry(reason)) => {
                inner.entry_failed(path, None, reason);
                let path = path.clone();
                leftovers.left_by(&Operation::Delete { path });
            }
            Err(Setback::Store(error)) => return Err(error),
        }
    }
    dress_directories(inner, &places, &mut target)?;
    appear(inner, &places, &mut target)?;
    await_the_rest(&mut target);
    let complete = if target.awaited_count() == 0 && leftovers.count() == 0 {
        head.position
    } else {
        Position(0)
    };
    let mut replica = inner.replica();
    replica.leftovers = leftovers;
    replica.store_leftovers()?;
    // The log first: without a head nobody asks it.
    replica.log.lock().reset(head.position)?;
    let superseded_by = head.epoch.clone();
    replica.ledger.replace(target, Head { complete, ..head })?;
    // All of it is in its place: nothing more is moved there.
    let mut salvaged = None;
    if let Some(former) = former {
        let keeping = former.keeping(inner);
        salvaged = keeping.finish(&inner.id.name, former.was, superseded_by)?;
    }
    if let Some(salvaged) = &salvaged {
        inner.events.record(
            Severity::Warning,
            "files_kept",
            format!(
                "store {}: this node was its primary: {}; `understudy salvage show` lists them",
                inner.id.name, salvaged.summary
            ),
        );
    }
    // From here on it is a copy that a seeding has made, whatever it was.
    let device = std::fs::metadata(&inner.root)
        .map_err(FilesError::tree("read", &inner.root))?
        .dev();
    Origin { device, kept: None }.store(&inner.state)?;
    replica.close();
    inner.is_suspect.store(false, Ordering::Relaxed);
    inner.must_compare.store(false, Ordering::Relaxed);
    inner.flow.change(|state| {
        state.logged = Position(0);
        state.held = None;
    });
    inner.tell(&replica);
    Ok(salvaged)
}

/// Returns the epoch and the position of which the name of what is kept is made.
fn parse_kept(name: &str) -> Option<(Epoch, Position)> {
    let (epoch, position) = name.rsplit_once('-')?;
    Some((epoch.parse().ok()?, Position(position.parse().ok()?)))
}

fn collect(target: &Manifest, is_meant: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
    let all = target.walk(TOP).map(|(_, id)| id);
    all.filter(|id| is_meant(*id)).collect()
}

/// Makes the names of each file that has several lead to one.
fn link_names(inner: &Inner, places: &Places, target: &mut Manifest) -> Result<(), FilesError> {
    let mut done = BTreeSet::new();
    for id in collect(target, |id| target.link(id) != 0) {
        let link = target.link(id);
        if !done.insert(link) {
            continue;
        }
        let names: Vec<NodeId> = target.linked(link).collect();
        let first = names
            .iter()
            .copied()
            .find(|name| target.inode(*name).is_some());
        let Some((first, from)) = first.and_then(|id| Some((id, target.path(id)?))) else {
            continue;
        };
        for name in &names {
            let is_same = target.content(*name) == target.content(first);
            if target.inode(*name) == target.inode(first) || !is_same {
                continue;
            }
            let Some(path) = target.path(*name) else {
                continue;
            };
            let linked = link_name(places, &from, &path);
            match linked.map_err(Setback::at("link", &places.place(&path))) {
                Ok(()) => target.learn(*name, target.local(first)),
                Err(Setback::Store(error)) => return Err(error),
                Err(Setback::Entry(reason)) => {
                    target.learn(*name, Local::Awaited);
                    inner.entry_failed(&path, target.content(*name).map(|(_, hash)| hash), reason);
                }
            }
        }
        // Each further name shows in how the file looks.
        let found = places.root_of(&from).stat(&from);
        let found = identity(&found.map_err(FilesError::tree("read", places.place(&from)))?);
        for name in names {
            if target.inode(name) == Some(found.inode) {
                target.learn(name, Local::Seen(found));
            }
        }
    }
    Ok(())
}

fn link_name(places: &Places, from: &RelPath, to: &RelPath) -> std::io::Result<()> {
    const STAGED: &str = "name";
    let source = places.root_of(from).parent(from)?;
    let parent = places.root_of(to).parent(to)?;
    places.tree.unstage(STAGED);
    let staging = places.tree.staging();
    linkat(&source, from.name(), staging, STAGED, AtFlags::empty())?;
    places
        .tree
        .rename_staged(STAGED, parent.as_fd(), to, &Guarded::new())?;
    places.tree.unstage(STAGED);
    Ok(())
}

/// From the bottom up, when nothing is put into them any more.
fn dress_directories(
    inner: &Inner,
    places: &Places,
    target: &mut Manifest,
) -> Result<(), FilesError> {
    let directories = collect(target, |id| {
        target.is_directory(id) && !target.is_awaited(id)
    });
    for id in directories.into_iter().rev() {
        let Some(path) = target.path(id) else {
            continue;
        };
        let dressed = places.root_of(&path).handle(&path).and_then(|directory| {
            dress(directory.as_fd(), &target.entry(id))?;
            Ok(identity(&stat_fd(directory.as_fd())?))
        });
        match dressed.map_err(Setback::at("change", &places.place(&path))) {
            Ok(found) => target.learn(id, Local::Seen(found)),
            Err(Setback::Store(error)) => return Err(error),
            Err(Setback::Entry(reason)) => {
                target.learn(id, Local::Awaited);
                inner.entry_failed(&path, None, reason);
            }
        }
    }
    Ok(())
}

/// Makes all durable, and lets appear what was built out of sight.
fn appear(inner: &Inner, places: &Places, target: &mut Manifest) -> Result<(), FilesError> {
    let failed = || FilesError::tree("sync", &inner.root);
    places.tree.sync().map_err(failed())?;
    let (fresh, top) = (places.fresh.fd(), places.tree.root().fd());
    for name in &places.names {
        let place = inner
            .root
            .join(std::ffi::OsStr::new(&*String::from_utf8_lossy(name)));
        match renameat(fresh, name.as_slice(), top, name.as_slice()).map_err(std::io::Error::from) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(FilesError::tree("move to", place)(error)),
        }
        // The rename shows in how it looks.
        let found = open_in(top, name, OFlags::PATH).and_then(|found| stat_fd(found.as_fd()));
        let found = identity(&found.map_err(FilesError::tree("read", place))?);
        if let Some(id) = target.child(TOP, name).filter(|id| !target.is_awaited(*id)) {
            target.learn(id, Local::Seen(found));
        }
    }
    fsync(top).map_err(std::io::Error::from).map_err(failed())?;
    places.tree.sync().map_err(failed())
}

/// What is not here now is still to come.
fn await_the_rest(target: &mut Manifest) {
    for id in collect(target, |id| target.local(id) == Local::Unknown) {
        target.learn(id, Local::Awaited);
    }
}
