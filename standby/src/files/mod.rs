//! The standby's end of a files store.
//!
//! ```text
//! /log ─▶ Logger: log, one fdatasync ─▶ flushed
//!           └▶ Applier: into the tree, one syncfs, commit ─▶ applied
//! /content ─▶ fetcher: what did not come along, or could not be placed
//! seed: snapshot, survey, fetch what differs
//! ```
//! Read first: [`FilesReceiver`], then `logger`, `applier` and `place`.

mod applier;
mod attributes;
mod awaiting;
mod check;
mod content;
mod copied;
mod doubt;
mod error;
mod fetch;
mod flow;
mod follow;
mod foresee;
mod kept;
mod leftovers;
mod logger;
mod origin;
mod patching;
mod place;
mod plan;
mod replica;
mod seed;
mod seed_fetch;
#[cfg(test)]
mod served_tests;
mod survey;
mod sync_behind;
#[cfg(test)]
mod tests;
mod trash;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{Notify, watch};
use understudy_config::{Files, Globs};
use understudy_replication::check::{Checked, Depth, Trouble};
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::files::{Local, RelPath};
use understudy_replication::rejoin::{Foreseen, Method, Rejoined, Salvaging};
use understudy_replication::store::{
    BoxFuture, Progress, Received, Receiver, Stop, StoreFailure, StoreId, StoreKind,
};
use understudy_replication::transport::PeerClient;

pub use copied::FilesCopy;
pub use error::FilesError;
pub use kept::{
    Counts, Finding, Had, KEPT_MANIFEST, KEPT_PATHS, KEPT_VERSION, KeptManifest, What, findings,
};

use awaiting::Awaiting;
use flow::Flow;
use replica::Replica;
use trash::Trash;

/// Keeps a copy of a tree of files.
pub struct FilesReceiver {
    inner: Arc<Inner>,
}

struct Inner {
    id: StoreId,
    root: PathBuf,
    state: PathBuf,
    exclude: Globs,
    events: Events,
    /// How long what was deleted is kept.
    trash: Duration,
    /// `None` only while it is opened anew.
    replica: Mutex<Option<Replica>>,
    told: Mutex<Received>,
    moves: watch::Sender<()>,
    flow: Flow,
    awaiting: Awaiting,
    /// What is in memory may be ahead of what is on the disk.
    is_suspect: AtomicBool,
    /// A sync has failed since this process was started.
    has_lost_writes: AtomicBool,
    /// The copy cannot go on from the log.
    must_compare: AtomicBool,
    /// Taken by what works on the copy, with all the threads that it has begun: they may outlive a task
    /// that was told to end.
    work_lock: Arc<tokio::sync::Mutex<()>>,
    /// Nobody else works on the state meanwhile.
    _state_lock: fs::File,
    /// How many wait for the replica.
    waiting: AtomicUsize,
    /// There is something to fetch.
    work: Notify,
}

/// What is held while the copy is worked on, by each thread that does.
type Work = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// How long is waited for somebody else who has the state open.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// A replica that is locked.
struct Locked<'a>(MutexGuard<'a, Option<Replica>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        self.0.as_ref().expect("it is opened before it is used")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Replica {
        self.0.as_mut().expect("it is opened before it is used")
    }
}

impl std::fmt::Debug for FilesReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "FilesReceiver({} in {})",
            self.inner.id.name,
            self.inner.root.display()
        )
    }
}

impl FilesReceiver {
    /// Opens what `state` holds of the copy at `root`. Blocks; touches nothing in the tree.
    ///
    /// # Errors
    /// When `state` cannot be used.
    pub fn open(
        config: &Files,
        root: PathBuf,
        state: &Path,
        events: Events,
    ) -> Result<Self, FilesError> {
        let id = StoreId {
            name: config.name.clone(),
            kind: StoreKind::Files,
        };
        let inner = Inner {
            id,
            root,
            state: state.to_owned(),
            exclude: config.exclude.clone(),
            events,
            trash: config.trash,
            replica: Mutex::new(None),
            told: Mutex::default(),
            moves: watch::Sender::default(),
            flow: Flow::default(),
            awaiting: Awaiting::default(),
            is_suspect: AtomicBool::new(false),
            has_lost_writes: AtomicBool::new(false),
            must_compare: AtomicBool::new(false),
            work_lock: Arc::default(),
            _state_lock: lock_state(state)?,
            waiting: AtomicUsize::new(0),
            work: Notify::new(),
        };
        inner.reload()?;
        inner.tell(&inner.replica());
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

/// Waits until nobody else has the state open.
fn lock_state(state: &Path) -> Result<fs::File, FilesError> {
    durable::create_directory(state, 0o700).map_err(FilesError::tree("create", state))?;
    let path = state.join("lock");
    let file = fs::File::options().create(true).append(true).open(&path);
    let file = file.map_err(FilesError::tree("open", &path))?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(FilesError::tree("lock", path)(errno)),
        }
    }
}

/// Says that what was begun is not wanted any more, when it is dropped.
struct Wanted(Arc<AtomicBool>);

impl Wanted {
    fn new() -> (Self, Arc<AtomicBool>) {
        let is_left = Arc::new(AtomicBool::new(false));
        (Self(is_left.clone()), is_left)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells those who apply to end, when it is dropped.
struct Following<'a>(&'a Inner);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.flow.change(|state| state.is_stopped = true);
    }
}

impl Inner {
    /// Waits until nothing works on the copy, and keeps others from beginning to.
    async fn begin_work(&self) -> Work {
        Arc::new(self.work_lock.clone().lock_owned().await)
    }

    fn replica(&self) -> Locked<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Locked(guard)
    }

    /// Returns the replica unless it is ahead of what is on the disk: nothing of that may be kept.
    fn sound_replica(&self) -> Result<Locked<'_>, FilesError> {
        let replica = self.replica();
        if self.is_suspect.load(Ordering::Relaxed) {
            return Err(FilesError::Broken);
        }
        Ok(replica)
    }

    /// Waits so long for a replica that can be believed: after a failure it is read from the disk again soon.
    fn sound_replica_within(&self, patience: Duration) -> Result<Locked<'_>, FilesError> {
        let begun = std::time::Instant::now();
        while self.is_suspect.load(Ordering::Relaxed) && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.sound_replica()
    }

    /// Lets those who wait for the replica have it before it is taken again: a lock is not fair.
    fn give_way(&self) {
        for _ in 0..50 {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// From now on what is in memory is not believed.
    fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Relaxed);
    }

    fn reload_if_suspect(&self) -> Result<(), FilesError> {
        if self.is_suspect.load(Ordering::Relaxed) {
            self.reload()?;
        }
        Ok(())
    }

    /// Reads everything from the disk again.
    fn reload(&self) -> Result<(), FilesError> {
        let mut guard = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        // What is open is closed before it is opened; a failure leaves what can be asked.
        if let Some(replica) = guard.as_mut() {
            replica.close();
        }
        let replica = Replica::open(&self.id.name, &self.root, &self.state)?;
        for damage in &replica.ledger.damage {
            self.events
                .record(Severity::Warning, "files_ledger", damage.clone());
        }
        *guard = Some(replica);
        self.is_suspect.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn told(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells how far the copy is.
    fn tell(&self, replica: &Replica) {
        let complete = replica.complete();
        let entries = u64::try_from(replica.ledger.manifest.len()).unwrap_or(u64::MAX);
        let awaited = replica.awaited_count();
        let is_doubtful = replica.doubt.is_there();
        let log_bytes = replica.log.lock().bytes();
        let failed = self.awaiting.count();
        let position = replica.ledger.head().map(|head| head.position);
        self.flow.change(|state| {
            state.awaited = awaited;
            state.is_doubtful = is_doubtful;
            state.applied = position.unwrap_or_default();
        });
        self.told(|told| {
            told.applied = complete;
            told.must_reseed =
                replica.ledger.head().is_none() || self.must_compare.load(Ordering::Relaxed);
            let gauges = [
                ("entries", entries),
                (
                    "awaited_entries",
                    u64::try_from(awaited).unwrap_or(u64::MAX),
                ),
                ("failed_entries", failed),
                ("doubtful", u64::from(is_doubtful)),
                ("log_bytes", log_bytes),
            ];
            for (name, value) in gauges {
                told.report.gauges.insert(name.to_owned(), value);
            }
        });
        if awaited > 0 {
            self.work.notify_waiters();
        }
        self.tell_flushed();
    }

    /// Tells what is durable: everything in the log, as long as nothing is missing up to there.
    fn tell_flushed(&self) {
        let state = self.flow.lock().clone();
        self.told(|told| {
            told.flushed = match told.applied {
                Some(applied) if state.is_free() => Some(applied.max(state.logged)),
                complete => complete,
            };
        });
        self.moves.send_replace(());
    }

    /// Waits until nothing is applied any more.
    async fn failed(&self) {
        let mut moves = self.moves.subscribe();
        loop {
            let state = self.flow.lock().clone();
            if state.has_failed || state.is_ended {
                return;
            }
            let limit = tokio::time::timeout(Duration::from_millis(200), moves.changed());
            let _either = limit.await.is_ok();
        }
    }

    /// Removes for good what has been deleted long enough.
    fn sweep(&self, is_full: bool) -> Result<(), FilesError> {
        // Without the replica, which nobody waits for while a large directory is removed.
        if !self.root.join(".understudy").exists() {
            return Ok(());
        }
        let failed = || FilesError::tree("empty the trash of", &self.root);
        let tree = tree::Tree::open(&self.root).map_err(failed())?;
        let kept = trash::sweep(&tree, self.trash, is_full).map_err(failed())?;
        self.told(|told| {
            told.report
                .gauges
                .insert("trash_deletions".to_owned(), kept);
        });
        Ok(())
    }

    /// The disk is full: what was deleted is in the way.
    fn empty_trash(&self) {
        if let Err(error) = self.sweep(true) {
            let error = understudy_replication::error_chain(&error);
            tracing::warn!(error, "cannot empty the trash");
        }
    }

    fn take_over(self: &Arc<Self>, epoch: &Epoch) -> Result<(), FilesError> {
        self.reload()?;
        let mut replica = self.replica();
        let no_copy = || FilesError::NoCopy {
            store: self.id.name.clone(),
        };
        if replica.ledger.head().is_none() {
            return Err(no_copy());
        }
        replica.open_tree()?;
        let recovered = self.recover(&mut replica);
        if recovered.is_err() {
            self.suspect();
        }
        recovered?;
        if replica.doubt.is_there() {
            drop(replica);
            check::look_at_all(self)?;
            replica = self.replica();
            replica.open_tree()?;
        }
        self.adopt_awaited(&mut replica)?;
        let head = replica.ledger.head().cloned().ok_or_else(no_copy)?;
        let manifest = &replica.ledger.manifest;
        if replica.awaited_count() > 0 {
            let names = manifest.awaited().filter_map(|id| manifest.path(id));
            let names = names.chain(replica.leftovers.iter().cloned());
            let names: Vec<String> = names.take(5).map(|path| path.to_string()).collect();
            self.events.record(
                Severity::Warning,
                "files_behind",
                format!(
                    "store {}: {} entries are not what they should be, and keep their version before \
                     that: {}",
                    self.id.name,
                    replica.awaited_count(),
                    names.join(", ")
                ),
            );
        }
        replica.log.lock().reset(head.position)?;
        replica.set_epoch(epoch)?;
        replica.ledger.sync()?;
        // From now on they are files of the primary.
        replica.leftovers.clear();
        replica.store_leftovers()?;
        origin::Origin::forget(&self.state)?;
        replica.close();
        self.tell(&replica);
        Ok(())
    }

    /// Uses what is there already of what is awaited: a crash can have taken nothing but the knowledge.
    fn adopt_awaited(&self, replica: &mut Replica) -> Result<(), FilesError> {
        let manifest = &replica.ledger.manifest;
        let awaited: Vec<_> = manifest.awaited().collect();
        let mut learned: Vec<(RelPath, Local)> = Vec::new();
        let blocks = replica.blocks();
        let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
        let mut trash = Trash::of(Duration::ZERO, Default::default());
        let placing = place::Placing::new(tree, &blocks, &mut trash, (false, self.is_trusted()));
        let manifest = &mut replica.ledger.manifest;
        for id in awaited {
            let Some(path) = manifest.path(id) else {
                continue;
            };
            match placing.adopt(&path, &manifest.entry(id)) {
                Ok(local) if !local.is_awaited() => {
                    manifest.learn(id, local);
                    learned.push((path, local));
                }
                Ok(_) | Err(error::Setback::Entry(_)) => {}
                Err(error::Setback::Store(error)) => return Err(error),
            }
        }
        if learned.is_empty() {
            return Ok(());
        }
        self.sync(tree)?;
        replica.commit_learned(learned)
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|_| FilesError::Broken)?
}

impl Receiver for FilesReceiver {
    fn id(&self) -> &StoreId {
        &self.inner.id
    }

    fn seed<'a>(
        &'a self,
        primary: &'a PeerClient,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            let work = self.inner.begin_work().await;
            seed::seed(&self.inner, &work, primary, progress).await?;
            Ok(())
        })
    }

    fn rejoin<'a>(
        &'a self,
        primary: &'a PeerClient,
        _: Salvaging,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<Rejoined, StoreFailure>> {
        Box::pin(async move {
            let work = self.inner.begin_work().await;
            let seeded = seed::seed(&self.inner, &work, primary, progress).await?;
            Ok(Rejoined {
                method: Method::Compared {
                    compared: seeded.compared,
                    copied: seeded.travelled,
                },
                salvaged: seeded.salvaged,
                travelled: Some(seeded.travelled),
            })
        })
    }

    fn foresee<'a>(
        &'a self,
        primary: &'a PeerClient,
    ) -> BoxFuture<'a, Result<Option<Foreseen>, StoreFailure>> {
        Box::pin(async move {
            let foreseen = seed::foresee(&self.inner, primary).await?;
            let follows = || Foreseen::follows(0, "the copy follows the primary now");
            Ok(Some(foreseen.unwrap_or_else(follows)))
        })
    }

    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let work = self.inner.begin_work().await;
            let followed = follow::follow(&self.inner, &work, &primary, &stop).await;
            if let Err(error) = &followed {
                let text = understudy_replication::error_chain(error);
                self.inner.told(|told| told.stalled = Some(text));
                self.inner.moves.send_replace(());
            }
            Ok(followed?)
        })
    }

    fn received(&self) -> Received {
        self.inner
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn moves(&self) -> Option<watch::Receiver<()>> {
        Some(self.inner.moves.subscribe())
    }

    fn check<'a>(
        &'a self,
        _: &'a PeerClient,
        depth: Depth,
        progress: &'a dyn Progress,
        stop: &'a Stop,
    ) -> BoxFuture<'a, Result<Checked, StoreFailure>> {
        Box::pin(async move { Ok(check::check(&self.inner, depth, progress, stop).await?) })
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.inner.awaiting.troubles()
    }

    fn take_over<'a>(
        &'a self,
        epoch: &'a Epoch,
        _: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            let work = self.inner.begin_work().await;
            let (inner, epoch) = (self.inner.clone(), epoch.clone());
            let taken = blocking(move || {
                let _held = work;
                inner.take_over(&epoch)
            });
            Ok(taken.await?)
        })
    }
}
