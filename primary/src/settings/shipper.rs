//! The shipper of the settings.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use understudy_replication::error_chain;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;
use understudy_config::{NameError, Settings};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Position;
use understudy_replication::settings::{
    Digest, History, HistoryError, PathError, RevisionSummary, Scope, wait_until_due,
};
use understudy_replication::store::{
    BoxFuture, Shipper, Stop, StoreFailure, StoreId, StoreKind, StoreReport,
};
use understudy_replication::transport::{FRAME_BYTES_MAX, frames};

use super::ground::{Ground, RefreshError};

/// Why the shipper cannot be opened.
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

/// Captures this node's settings, and hands them to the standby that asks.
pub struct SettingsShipper {
    id: StoreId,
    config: Settings,
    scope: Scope,
    history: History,
    state: PathBuf,
    events: Events,
    ground: Arc<tokio::sync::Mutex<Ground>>,
    told: Mutex<Told>,
}

/// What the report tells.
#[derive(Debug, Default)]
struct Told {
    newest: Option<RevisionSummary>,
    capture_problem: Option<String>,
    reload_problem: Option<String>,
}

impl SettingsShipper {
    /// Opens the settings of this node, whose configured paths lie beneath `root`.
    ///
    /// # Errors
    /// When a configured path cannot be replicated, or the state folder cannot be used.
    pub fn open(
        config: &Settings,
        root: PathBuf,
        state: &Path,
        epoch: &Epoch,
        events: Events,
    ) -> Result<Self, OpenError> {
        let scope = Scope::new(config, root)?;
        let history = History::open(state)?;
        let ground = Ground::new(scope.clone(), history.clone(), epoch.clone());
        Ok(Self {
            id: StoreId {
                name: "settings".parse()?,
                kind: StoreKind::Settings,
            },
            config: config.clone(),
            scope,
            history,
            state: state.to_owned(),
            events,
            ground: Arc::new(tokio::sync::Mutex::new(ground)),
            told: Mutex::default(),
        })
    }

    /// Returns the revisions that this node has.
    pub fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn config(&self) -> &Settings {
        &self.config
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    pub(super) async fn ground(&self) -> OwnedMutexGuard<Ground> {
        self.ground.clone().lock_owned().await
    }

    pub(super) fn set_reload_problem(&self, problem: Option<String>) {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reload_problem = problem;
    }

    /// Returns the newest revision, after making one if the files have changed.
    async fn refresh(&self) -> Result<RevisionSummary, RefreshError> {
        let mut ground = self.ground().await;
        let refreshed = tokio::task::spawn_blocking(move || ground.refresh())
            .await
            .unwrap_or_else(|source| Err(RefreshError::Broken { source }));
        let mut told_now = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match &refreshed {
            Ok(newest) => {
                let has_changed = told_now
                    .newest
                    .as_ref()
                    .is_some_and(|old| old.number < newest.number);
                told_now.newest = Some(newest.clone());
                let is_mended = told_now.capture_problem.take().is_some();
                drop(told_now);
                if has_changed || is_mended {
                    let what = format!("the settings are at revision {} now", newest.number);
                    self.events
                        .record(Severity::Info, "settings_captured", what);
                }
            }
            Err(error) => {
                let problem = format!(
                    "{}; the standby does not get changes of them",
                    error_chain(error)
                );
                let is_news = told_now.capture_problem.as_ref() != Some(&problem);
                told_now.capture_problem = Some(problem.clone());
                drop(told_now);
                if is_news {
                    self.events
                        .record(Severity::Error, "settings_capture_failed", problem);
                }
            }
        }
        refreshed
    }

    /// Tells a node that comes back which revisions there are, the oldest first.
    async fn answer_list(&self) -> Result<Response, Refusal> {
        // What has changed since the last mark is a revision, too.
        self.refresh().await.map_err(Refusal::Refresh)?;
        let history = self.history.clone();
        match tokio::task::spawn_blocking(move || history.list()).await {
            Ok(list) => Ok(axum::Json(list.map_err(Refusal::History)?).into_response()),
            Err(source) => Err(Refusal::Refresh(RefreshError::Broken { source })),
        }
    }

    /// Answers a standby: nothing when it has the newest revision already.
    async fn answer(&self, have: &Have) -> Result<Response, Refusal> {
        let newest = self.refresh().await.map_err(Refusal::Refresh)?;
        if have.have == Some(newest.digest) && have.number == Some(newest.number) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let history = self.history.clone();
        let load = move || {
            history
                .load(newest.number, newest.digest)
                .map(|found| found.encode())
        };
        let bytes = match tokio::task::spawn_blocking(load).await {
            Ok(bytes) => bytes.map_err(Refusal::History)?,
            Err(source) => return Err(Refusal::Refresh(RefreshError::Broken { source })),
        };
        let (sender, response) = frames();
        // Ends with the last frame, or when the peer goes away.
        tokio::spawn(async move {
            for frame in bytes.chunks(FRAME_BYTES_MAX) {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Ok(response)
    }
}

/// What the standby has.
#[derive(Debug, Deserialize)]
struct Have {
    have: Option<Digest>,
    number: Option<u64>,
}

/// Why a standby gets no revision.
#[derive(Debug)]
enum Refusal {
    Refresh(RefreshError),
    History(HistoryError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let reason = match &self {
            Self::Refresh(error) => error_chain(error),
            Self::History(error) => error_chain(error),
        };
        (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
    }
}

impl Shipper for SettingsShipper {
    fn id(&self) -> &StoreId {
        &self.id
    }

    fn open(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async {
            // Settings that cannot be captured keep no appliance from serving; it is reported, and
            // tried again with each mark.
            drop(self.refresh().await);
            Ok(())
        })
    }

    fn run(self: Arc<Self>, stop: Stop) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            while wait_until_due(&self.config.schedule, &stop).await {
                self.refresh().await?;
            }
            Ok(())
        })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        // Nobody writes settings through this store.
        Box::pin(async { Ok(()) })
    }

    fn mark(&self) -> BoxFuture<'_, Option<Position>> {
        Box::pin(async {
            self.refresh()
                .await
                .ok()
                .map(|newest| Position(newest.number))
        })
    }

    fn routes(self: Arc<Self>) -> axum::Router {
        let revision = async |State(shipper): State<Arc<Self>>, Query(have): Query<Have>| {
            shipper.answer(&have).await
        };
        let list = async |State(shipper): State<Arc<Self>>| shipper.answer_list().await;
        axum::Router::new()
            .route("/revision", get(revision))
            .route("/history", get(list))
            .with_state(self)
    }

    fn report(&self) -> StoreReport {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = StoreReport::default();
        report.problems.extend(told.capture_problem.clone());
        report.problems.extend(told.reload_problem.clone());
        if let Some(newest) = &told.newest {
            report
                .gauges
                .insert("settings_bytes".to_owned(), newest.bytes);
            report
                .gauges
                .insert("settings_entries".to_owned(), newest.entries);
        }
        report
    }
}
