//! The standby's end of a files store.
//!
//! ```text
//! /log ─▶ Assembly: staged contents, log, one fdatasync ─▶ flushed
//!                              └▶ Replica::apply: rename into place, syncfs, table ─▶ applied
//! seed: snapshot, survey, fetch what differs
//! ```
//! Read first: [`FilesReceiver`], then `replica` and `incoming`.

mod error;
mod follow;
mod incoming;
mod origin;
mod replica;
mod seed;
mod survey;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_config::{Files, Globs};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::store::{
    BoxFuture, Progress, Received, Receiver, Stop, StoreFailure, StoreId, StoreKind,
};
use understudy_replication::transport::PeerClient;

pub use error::FilesError;

use replica::Replica;

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
    /// `None` only while it is opened anew.
    replica: Mutex<Option<Replica>>,
    told: Mutex<Received>,
}

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
        let replica = Replica::open(&id.name, &root, state)?;
        for damage in &replica.ledger.damage {
            events.record(Severity::Warning, "files_ledger", damage.clone());
        }
        let inner = Inner {
            id,
            root,
            state: state.to_owned(),
            exclude: config.exclude.clone(),
            events,
            replica: Mutex::new(None),
            told: Mutex::default(),
        };
        inner.tell(&replica);
        *inner.replica.lock().unwrap_or_else(PoisonError::into_inner) = Some(replica);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

impl Inner {
    fn replica(&self) -> Locked<'_> {
        let guard = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        Locked(guard)
    }

    /// Reads everything from the disk again.
    fn reload(&self) -> Result<(), FilesError> {
        let mut guard = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        // The table is closed before it is opened.
        *guard = None;
        let replica = Replica::open(&self.id.name, &self.root, &self.state)?;
        for damage in &replica.ledger.damage {
            self.events
                .record(Severity::Warning, "files_ledger", damage.clone());
        }
        *guard = Some(replica);
        Ok(())
    }

    fn told(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells how far the copy is.
    fn tell(&self, replica: &Replica) {
        let complete = replica.complete();
        let entries = u64::try_from(replica.ledger.manifest.len()).unwrap_or(u64::MAX);
        let awaited = u64::try_from(replica.awaited.len()).unwrap_or(u64::MAX);
        let log_bytes = replica.ledger.log_view().bytes();
        self.told(|told| {
            told.applied = complete;
            told.flushed = complete;
            told.must_reseed = replica.ledger.head().is_none();
            told.report.gauges.insert("entries".to_owned(), entries);
            told.report
                .gauges
                .insert("awaited_entries".to_owned(), awaited);
            told.report.gauges.insert("log_bytes".to_owned(), log_bytes);
        });
    }

    fn take_over(&self, epoch: &Epoch) -> Result<(), FilesError> {
        self.reload()?;
        let mut replica = self.replica();
        let no_copy = || FilesError::NoCopy {
            store: self.id.name.clone(),
        };
        if replica.ledger.head().is_none() {
            return Err(no_copy());
        }
        replica.open_tree()?;
        replica.recover()?;
        let head = replica.ledger.head().cloned().ok_or_else(no_copy)?;
        if !replica.awaited.is_empty() {
            let names: Vec<String> = replica
                .awaited
                .iter()
                .take(5)
                .map(ToString::to_string)
                .collect();
            self.events.record(
                Severity::Warning,
                "files_behind",
                format!(
                    "store {}: {} files changed while they were sent, and keep their version before \
                     that: {}",
                    self.id.name,
                    replica.awaited.len(),
                    names.join(", ")
                ),
            );
        }
        replica.ledger.log().reset(head.position)?;
        replica.set_epoch(epoch)?;
        replica.ledger.sync()?;
        origin::Origin::forget(&self.state)?;
        replica.tree = None;
        self.tell(&replica);
        Ok(())
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
        Box::pin(async move { Ok(seed::seed(&self.inner, primary, progress).await?) })
    }

    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let followed = follow::follow(&self.inner, &primary, &stop).await;
            if let Err(error) = &followed {
                let text = understudy_replication::error_chain(error);
                self.inner.told(|told| told.stalled = Some(text));
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

    fn take_over<'a>(
        &'a self,
        epoch: &'a Epoch,
        _: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            let (inner, epoch) = (self.inner.clone(), epoch.clone());
            Ok(blocking(move || inner.take_over(&epoch)).await?)
        })
    }
}
