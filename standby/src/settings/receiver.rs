//! The receiver of the settings.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use understudy_replication::error_chain;

use tokio::sync::{Notify, OwnedMutexGuard};
use understudy_config::{NameError, Settings};
use understudy_replication::command::CommandError;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Position;
use understudy_replication::rejoin::{Foreseen, Rejoined, Salvaging};
use understudy_replication::settings::{
    Digest, History, HistoryError, Origin, PathError, Scope, wait_until_due,
};
use understudy_replication::store::{
    BoxFuture, Progress, Received, Receiver, Stop, StoreFailure, StoreId, StoreKind, Unit,
};
use understudy_replication::transport::PeerClient;

use super::pull::{PullError, Pulled};
use super::told::Told;

/// Why the receiver cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A configured path cannot be replicated.
    #[error("a path of [settings] cannot be used")]
    Path {
        /// Why not.
        #[from]
        source: PathError,
    },
    /// The history cannot be opened.
    #[error("cannot open the history of the settings")]
    History {
        /// Why not.
        #[from]
        source: HistoryError,
    },
    /// The store has no name.
    #[error("`settings` is no name of a store")]
    Name {
        /// Why not.
        #[from]
        source: NameError,
    },
}

/// Why there are no settings to start with.
#[derive(Debug, thiserror::Error)]
enum SeedError {
    #[error("the settings of node {primary} are not acceptable here: {reason}")]
    Refused { primary: String, reason: String },
}

/// Keeps this node's settings those of the primary.
pub struct SettingsReceiver {
    id: StoreId,
    config: Settings,
    state: PathBuf,
    events: Events,
    history: History,
    place: Arc<tokio::sync::Mutex<Ground>>,
    told: Mutex<Told>,
    /// Woken when somebody waits for what the primary has now.
    hurry: Notify,
}

/// This node's files and their history.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) scope: Scope,
    pub(super) history: History,
}

/// The right to change this node's files.
pub(super) struct Place(Option<OwnedMutexGuard<Ground>>);

impl std::ops::Deref for Place {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        self.0.as_ref().expect("the guard is back after each work")
    }
}

impl Place {
    /// Does `work` where blocking is allowed. The right goes with it: should the caller be cancelled,
    /// nobody else changes the files before the work has ended.
    pub(super) async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Scope, &History) -> Result<T, PullError> + Send + 'static,
    ) -> Result<T, PullError> {
        let guard = self.0.take().expect("the guard is back after each work");
        let (guard, result) = tokio::task::spawn_blocking(move || {
            let result = work(&guard.scope, &guard.history);
            (guard, result)
        })
        .await?;
        self.0 = Some(guard);
        result
    }
}

impl SettingsReceiver {
    /// Opens the settings of this node, whose configured paths lie beneath `root`.
    ///
    /// # Errors
    /// When a configured path cannot be replicated, or the state folder cannot be used.
    pub fn open(
        config: &Settings,
        root: PathBuf,
        state: &Path,
        events: Events,
    ) -> Result<Self, OpenError> {
        let scope = Scope::new(config, root)?;
        let history = History::open(state)?;
        let mut told = Told::default();
        // What was captured here, in an epoch that may have lost, has a number of its own lineage:
        // it is told only after the primary has confirmed it.
        if let Some(marker) = history
            .applied()?
            .filter(|marker| marker.origin == Origin::Received)
        {
            told.position = Some(Position(marker.number));
        }
        if let Some(refusal) = history.refused()? {
            told.refused = Some(refusal.reason);
            told.refused_digest = Some(refusal.summary.digest);
        }
        Ok(Self {
            id: StoreId {
                name: "settings".parse()?,
                kind: StoreKind::Settings,
            },
            config: config.clone(),
            state: state.to_owned(),
            events,
            history: history.clone(),
            place: Arc::new(tokio::sync::Mutex::new(Ground { scope, history })),
            told: Mutex::new(told),
            hurry: Notify::new(),
        })
    }

    /// Returns the revisions that this node has.
    pub fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn config(&self) -> &Settings {
        &self.config
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    pub(super) async fn place(&self) -> Place {
        Place(Some(self.place.clone().lock_owned().await))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how much the settings here are, in bytes.
    pub(super) fn told_bytes(&self) -> u64 {
        self.told().bytes
    }

    pub(super) fn note_applied(&self, number: u64, bytes: u64, entries: u64) {
        let mut told = self.told();
        told.position = Some(Position(number));
        (told.bytes, told.entries) = (bytes, entries);
        (told.refused, told.refused_digest, told.trouble) = (None, None, None);
    }

    /// Keeps saying why the newest revision is not applied; an event the first time.
    pub(super) fn note_refused(&self, digest: Option<Digest>, reason: &str) {
        let problem = format!(
            "{reason}; the settings applied before stay. Correct them on the primary, or roll back \
             there"
        );
        let is_news = {
            let mut told = self.told();
            let is_known = match digest {
                Some(_) => told.refused_digest == digest,
                None => told.refused.as_ref() == Some(&problem),
            };
            told.refused = Some(problem.clone());
            told.refused_digest = digest;
            !is_known
        };
        if is_news {
            self.events
                .record(Severity::Error, "settings_refused", problem);
        }
    }

    pub(super) fn note_trouble(&self, error: &PullError) {
        let problem = error_chain(error);
        let is_news = self.told().trouble.replace(problem.clone()).as_ref() != Some(&problem);
        if is_news {
            self.events
                .record(Severity::Error, "settings_not_applied", problem);
        }
    }

    pub(super) fn note_reload(&self, number: u64, error: Option<&CommandError>) {
        let problem = error.map(|error| {
            let reason = error_chain(error);
            format!("revision {number} of the settings is applied, but {reason}; it is tried again")
        });
        let is_news = {
            let mut told = self.told();
            std::mem::replace(&mut told.reload, problem.clone()) != problem
        };
        if let Some(problem) = problem.filter(|_| is_news) {
            self.events
                .record(Severity::Error, "settings_reload_failed", problem);
        }
    }
}

/// Returns what is told of a pull that the store cannot do without.
fn seeded(primary: &PeerClient, pulled: Pulled) -> Result<String, StoreFailure> {
    match pulled {
        Pulled::Applied { number } => Ok(format!("revision {number} applied")),
        Pulled::Current => Ok("current".to_owned()),
        Pulled::Refused { reason } => {
            let primary = primary.node().to_string();
            Err(SeedError::Refused { primary, reason }.into())
        }
    }
}

impl Receiver for SettingsReceiver {
    fn id(&self) -> &StoreId {
        &self.id
    }

    fn seed<'a>(
        &'a self,
        primary: &'a PeerClient,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            progress.start("settings", None, Unit::Items);
            let outcome = match self.pull(primary).await {
                Ok(pulled) => seeded(primary, pulled),
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(outcome) => {
                    progress.end(&outcome);
                    Ok(())
                }
                Err(error) => {
                    progress.end("failed");
                    Err(error)
                }
            }
        })
    }

    fn rejoin<'a>(
        &'a self,
        primary: &'a PeerClient,
        _: Salvaging,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<Rejoined, StoreFailure>> {
        Box::pin(async move {
            progress.start("settings", None, Unit::Items);
            let rejoined = match self.rejoin_from(primary).await {
                Ok((pulled, rejoined)) => seeded(primary, pulled).map(|told| (told, rejoined)),
                Err(error) => Err(error.into()),
            };
            match rejoined {
                Ok((told, rejoined)) => {
                    progress.end(&told);
                    Ok(rejoined)
                }
                Err(error) => {
                    progress.end("failed");
                    Err(error)
                }
            }
        })
    }

    fn foresee<'a>(
        &'a self,
        primary: &'a PeerClient,
    ) -> BoxFuture<'a, Result<Option<Foreseen>, StoreFailure>> {
        Box::pin(async move { Ok(Some(self.outlook(primary).await?)) })
    }

    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            loop {
                let pulled = tokio::select! {
                    pulled = self.pull(&primary) => pulled,
                    () = stop.wait() => return Ok(()),
                };
                match pulled {
                    Ok(_) => {}
                    // The runtime tells of it, and asks again soon.
                    Err(error @ PullError::Peer { .. }) => return Err(error.into()),
                    // Told already; asking again at once would mend nothing.
                    Err(PullError::Install { .. } | PullError::Broken { .. }) => {}
                }
                tokio::select! {
                    is_due = wait_until_due(&self.config.schedule, &stop) => if !is_due {
                        return Ok(());
                    },
                    () = self.hurry.notified() => {}
                }
            }
        })
    }

    fn hurry(&self) {
        self.hurry.notify_one();
    }

    fn received(&self) -> Received {
        self.told().received()
    }

    fn take_over<'a>(
        &'a self,
        _: &'a Epoch,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            progress.start("settings", None, Unit::Items);
            let completed = self.complete().await;
            progress.end(if completed.is_ok() {
                "complete"
            } else {
                "failed"
            });
            Ok(completed?)
        })
    }
}
