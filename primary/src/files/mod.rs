//! The primary's end of a files store.
//!
//! ```text
//! fanotify, inotify ─▶ Dirty ─▶ Looker ─▶ commit: log, then journal ─▶ position
//!  patrols, marks ───────┘   (on threads)                                 │
//!                                              routes: snapshot, content, log ─▶ standbys
//! ```
//! Events only say where to look; what is there is read from the file system, and a look at everything
//! (at start, after lost events, every few minutes) is the truth behind them. Read first:
//! [`FilesShipper`], then `capture`.

mod capture;
mod check;
mod commit;
mod content;
mod dirty;
mod jobs;
pub(crate) mod limit;
mod look;
mod press;
mod shared;
mod ship;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use understudy_config::{Files, StoreName};
use understudy_replication::check::{Checked, Depth, Trouble};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::files::{Head, Ledger, LedgerError};
use understudy_replication::log::Log;
use understudy_replication::position::Position;
use understudy_replication::store::{
    BoxFuture, Progress, Shipper, Stop, Stopper, StoreFailure, StoreId, StoreKind, StoreRefusal,
    StoreReport, Unit,
};

use capture::Capture;
use shared::{MarkRequest, Shared};
use ship::Shop;

/// How long a mark may take; then the position is unknown.
const MARK_PATIENCE: Duration = Duration::from_secs(1);

/// How often it is shown how far a long work is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How long a look at everything may take that somebody waits for.
const SYNC_PATIENCE: Duration = Duration::from_secs(3600);

/// Why a files store cannot be shipped.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// What is kept of the store cannot be opened.
    #[error("cannot open what is kept of store {store}")]
    Ledger {
        /// The store.
        store: StoreName,
        /// Why not.
        source: LedgerError,
    },
    /// What was found cannot be kept.
    #[error("cannot capture store {store}")]
    Commit {
        /// The store.
        store: StoreName,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel does not tell when something happens.
    #[error("cannot wait for changes")]
    Wait {
        /// Why not.
        source: io::Error,
    },
    /// The capture's thread cannot be started.
    #[error("cannot start a thread")]
    Thread {
        /// Why not.
        source: io::Error,
    },
    /// The capture panicked.
    #[error("the capture of store {store} broke off")]
    Broken {
        /// The store.
        store: StoreName,
    },
}

/// Ships a tree of files.
pub struct FilesShipper {
    shared: Arc<Shared>,
    is_running: AtomicBool,
    /// One capture at a time.
    capture: Arc<Mutex<()>>,
    stop: Stop,
    _stopper: Stopper,
}

impl std::fmt::Debug for FilesShipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "FilesShipper({} in {})",
            self.shared.id.name,
            self.shared.root.display()
        )
    }
}

impl Drop for FilesShipper {
    fn drop(&mut self) {
        // The receiver of this node may open it from now on, even while a stream is still ending.
        // A capture that has not ended yet opens it no more.
        self.shared.is_left.store(true, Ordering::Release);
        self.shared.close();
    }
}

impl FilesShipper {
    /// Opens what `state` holds of the store whose tree is at `root`. Blocks.
    ///
    /// The tree itself is opened when the capture runs: one that is missing then is a problem that is
    /// told, and not a reason for the node not to start.
    ///
    /// # Errors
    /// When `state` cannot be used.
    pub fn open(
        config: &Files,
        root: PathBuf,
        state: &Path,
        epoch: &Epoch,
        events: Events,
    ) -> Result<Self, FilesError> {
        let id = StoreId {
            name: config.name.clone(),
            kind: StoreKind::Files,
        };
        let (ledger, log, damage) = open_kept(state, &id, epoch)?;
        for damage in damage {
            events.record(Severity::Warning, "files_ledger", damage);
        }
        let shared = Shared::new(
            id,
            epoch.clone(),
            root,
            state.to_owned(),
            config.clone(),
            events,
            ledger,
            log,
        );
        let (stopper, stop) = Stopper::new();
        Ok(Self {
            shared: Arc::new(shared.map_err(|source| FilesError::Wait { source })?),
            is_running: AtomicBool::new(false),
            capture: Arc::default(),
            stop,
            _stopper: stopper,
        })
    }
}

impl FilesShipper {
    /// Asks the capture for a position that covers all that has happened, in a scan also all that it
    /// was not told of.
    async fn ask_for_mark(&self, patience: Duration, is_scan: bool) -> Option<Position> {
        if !self.is_running.load(Ordering::Acquire) {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        let asked = Instant::now();
        let until = asked + patience;
        self.shared.ask(|inbox| {
            if is_scan {
                inbox.scan_wanted.get_or_insert(asked);
            }
            inbox.marks.push(MarkRequest {
                asked,
                until,
                reply,
            });
        });
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(position)) => position,
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// Opens what is kept, brings the manifest up to the log, and makes both those of `epoch`. Tells what
/// was damaged.
fn open_kept(
    state: &Path,
    id: &StoreId,
    epoch: &Epoch,
) -> Result<(Ledger, Log, Vec<String>), FilesError> {
    let ledger_error = |source| FilesError::Ledger {
        store: id.name.clone(),
        source,
    };
    let commit_error = |source: commit::CommitError| FilesError::Commit {
        store: id.name.clone(),
        source: Box::new(source),
    };
    let mut ledger = Ledger::open(state, &id.name).map_err(ledger_error)?;
    let mut damage = ledger.damage.clone();
    let (mut log, lost) = Ledger::open_log(state, &id.name).map_err(ledger_error)?;
    let is_log_lost = lost.is_some();
    damage.extend(lost);
    let replayed = commit::replay(&mut ledger, &log);
    if let Err(error) = &replayed {
        damage.push(format!(
            "the log of store {} does not fit its manifest: {error}",
            id.name
        ));
    }
    let head = ledger.head().cloned();
    let is_lost = replayed.is_err() || is_log_lost;
    match (is_lost, head) {
        (false, Some(head)) if head.epoch == *epoch => {}
        (false, Some(head)) => {
            let head = Head {
                epoch: epoch.clone(),
                ..head
            };
            ledger.commit(&[], Vec::new(), head).map_err(ledger_error)?;
            ledger.sync().map_err(ledger_error)?;
        }
        (_, head) => {
            // Nothing that a standby has can be continued: positions go on behind all that were told,
            // and every standby compares everything, which ships what differs.
            let end = head.map_or(log.end(), |head| head.position.max(log.end()));
            let position = Position(if end.0 == 0 {
                0
            } else {
                end.0.saturating_add(1)
            });
            let mut manifest = std::mem::take(&mut ledger.manifest);
            let root = manifest.root();
            let head = Head {
                epoch: epoch.clone(),
                position,
                complete: position,
                root,
            };
            ledger.replace(manifest, head).map_err(ledger_error)?;
        }
    }
    // The log can be behind the manifest only if it lost what was synced.
    let position = ledger.head().map_or(Position(0), |head| head.position);
    if log.end() != position {
        log.reset(position)
            .map_err(|error| commit_error(error.into()))?;
    }
    Ok((ledger, log, damage))
}

impl Shipper for FilesShipper {
    fn id(&self) -> &StoreId {
        &self.shared.id
    }

    fn open(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        // The application's files are where they are.
        Box::pin(async { Ok(()) })
    }

    fn run(self: Arc<Self>, stop: Stop) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let (done, finished) = oneshot::channel();
            let (shared, guard) = (self.shared.clone(), self.capture.clone());
            let is_stopped = Arc::new(AtomicBool::new(false));
            let flag = is_stopped.clone();
            // Before anybody can ask for a mark: all that happened until then is to be looked for.
            let begun = Instant::now();
            thread::Builder::new()
                .name(format!("files-{}", self.shared.id.name))
                .spawn(move || {
                    let _one = guard.lock().unwrap_or_else(PoisonError::into_inner);
                    let result = Capture::new(shared, flag, begun).and_then(Capture::run);
                    // Who waits for it may have been dropped.
                    let _gone = done.send(result).is_err();
                })
                .map_err(|source| FilesError::Thread { source })?;
            self.is_running.store(true, Ordering::Release);
            // Dropping this future stops the thread as well.
            let running = Running {
                shipper: &self,
                is_stopped,
            };
            let mut finished = finished;
            let result = tokio::select! {
                result = &mut finished => result,
                () = stop.wait() => {
                    running.stop();
                    finished.await
                }
            };
            match result {
                Ok(result) => Ok(result?),
                Err(_) => Err(FilesError::Broken {
                    store: self.shared.id.name.clone(),
                }
                .into()),
            }
        })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            if self.is_running.load(Ordering::Acquire) {
                // All that was written before is in the log then; a file that is still being written
                // to belongs to a service that should have been stopped.
                if self.mark().await.is_none() {
                    tracing::warn!(store = %self.shared.id.name, "a last capture did not cover all");
                }
                return Ok(());
            }
            let (shared, guard) = (self.shared.clone(), self.capture.clone());
            let captured = tokio::task::spawn_blocking(move || {
                let _one = guard.lock().unwrap_or_else(PoisonError::into_inner);
                Capture::new(shared, Arc::default(), Instant::now()).and_then(Capture::finish)
            });
            match captured.await {
                Ok(result) => Ok(result?),
                Err(_) => Err(FilesError::Broken {
                    store: self.shared.id.name.clone(),
                }
                .into()),
            }
        })
    }

    fn mark(&self) -> BoxFuture<'_, Option<Position>> {
        Box::pin(async move {
            if !self.is_running.load(Ordering::Acquire) {
                return None;
            }
            self.ask_for_mark(MARK_PATIENCE, false).await
        })
    }

    fn sync_now(&self) -> BoxFuture<'_, Result<Position, StoreFailure>> {
        Box::pin(async move {
            let position = self.ask_for_mark(SYNC_PATIENCE, true).await;
            let id = self.shared.id.clone();
            let withheld = self
                .shared
                .withheld
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(withheld) = *withheld {
                return Err(StoreRefusal::DeletesWithheld { id, withheld }.into());
            }
            drop(withheld);
            Ok(position.ok_or(StoreRefusal::NoPosition { id })?)
        })
    }

    fn allow_deletes(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            let mut guard = self
                .shared
                .guard
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            guard.allow(Instant::now(), SYNC_PATIENCE);
            drop(guard);
            // The capture takes the allowance back when it has looked at everything.
            self.shared
                .ask(|inbox| inbox.scan_wanted = Some(Instant::now()));
            Ok(())
        })
    }

    fn check<'a>(
        &'a self,
        depth: Depth,
        progress: &'a dyn Progress,
        stop: &'a Stop,
    ) -> BoxFuture<'a, Result<Checked, StoreFailure>> {
        Box::pin(async move {
            let name = &self.shared.id.name;
            progress.start(&format!("looking at store {name}"), None, Unit::Items);
            self.sync_now().await?;
            let shared = self.shared.clone();
            let Depth::Scrub { bytes_per_second } = depth else {
                progress.end("done");
                return Ok(check::state(&shared));
            };
            let bytes = shared
                .ledger()
                .as_ref()
                .map_or(0, |ledger| ledger.manifest.bytes());
            progress.start(&format!("reading store {name}"), Some(bytes), Unit::Bytes);
            let done = Arc::new(check::Done::default());
            // Who waits may be dropped, and the thread must not go on then.
            let _stopping = Stopping(done.clone());
            let (shared, seen) = (self.shared.clone(), done.clone());
            let mut scrubbing =
                tokio::task::spawn_blocking(move || check::scrub(&shared, bytes_per_second, &seen));
            let scrubbed = loop {
                tokio::select! {
                    scrubbed = &mut scrubbing => break scrubbed,
                    () = stop.wait() => done.is_stopped.store(true, Ordering::Release),
                    () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
                }
                progress.at(done.bytes.load(Ordering::Acquire));
                if stop.is_stopped() {
                    break scrubbing.await;
                }
            };
            progress.end("done");
            match scrubbed {
                Ok(checked) => Ok(checked.map_err(|source| FilesError::Wait { source })?),
                Err(_) => Err(FilesError::Broken {
                    store: name.clone(),
                }
                .into()),
            }
        })
    }

    fn root_at(&self, position: Position) -> Option<String> {
        check::root_at(&self.shared, position)
    }

    fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = self.shared.troubles();
        // That is of the whole store, and stands among its problems; it is no entry.
        troubles.retain(|trouble| trouble.path != commit::ABOUT_GUARD);
        troubles
    }

    fn routes(self: Arc<Self>) -> axum::Router {
        ship::routes(Shop {
            shared: self.shared.clone(),
            stop: self.stop.clone(),
        })
    }

    fn report(&self) -> StoreReport {
        let log = self.shared.log();
        let mut report = StoreReport {
            problems: self.shared.problems(),
            ..StoreReport::default()
        };
        report.gauges.insert("log_bytes".to_owned(), log.bytes());
        if let Some(ledger) = self.shared.ledger().as_ref() {
            let entries = u64::try_from(ledger.manifest.len()).unwrap_or(u64::MAX);
            report.gauges.insert("entries".to_owned(), entries);
        }
        report
    }
}

/// Stops a scrub when the future that waits for it ends or is dropped.
struct Stopping(Arc<check::Done>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.is_stopped.store(true, Ordering::Release);
    }
}

/// Stops the capture when the future that waits for it ends or is dropped.
struct Running<'a> {
    shipper: &'a FilesShipper,
    is_stopped: Arc<AtomicBool>,
}

impl Running<'_> {
    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.shipper.shared.ask(|_| {});
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shipper.is_running.store(false, Ordering::Release);
        self.stop();
    }
}

#[cfg(test)]
mod tests;
