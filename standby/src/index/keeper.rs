//! One index of this node: what is told of it, and who works on it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use understudy_config::Engine;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{IndexState, IndexStatus};

use super::elastic::Elastic;
use super::engine::{Searchable, Written};
use super::error::RebuildError;
use super::session::{Moment, Session};
use super::shelf::{Record, Shelf};
use super::source::{Database, SourceError};
use super::target::{Kept, Target};

/// An index.
pub(super) struct Index {
    pub(super) config: understudy_config::Index,
    pub(super) shelf: Shelf,
    pub(super) database: Database,
    pub(super) env: Vec<(String, String)>,
    pub(super) events: Events,
    face: Mutex<Face>,
    /// One works on it at a time.
    pub(super) keeper: Arc<tokio::sync::Mutex<Keeper>>,
    /// How many rows are read, and of how many.
    pub(super) told: watch::Sender<(u64, Option<u64>)>,
    /// Has the one who keeps it warm look at once.
    pub(super) wake: Notify,
    elastic: OnceLock<Arc<Elastic>>,
}

/// What is told of an index.
#[derive(Default)]
pub(super) struct Face {
    pub(super) searchable: Option<Arc<Searchable>>,
    pub(super) record: Option<Record>,
    pub(super) documents: u64,
    /// Rows read, and rows in all where that is known, while it is built.
    pub(super) building: Option<(u64, Option<u64>)>,
    /// Why the last build failed.
    pub(super) failure: Option<String>,
    /// What keeps it from being kept warm, for now.
    pub(super) trouble: Option<String>,
    /// The epoch of another node that writes to it, as it was told last.
    pub(super) superseded: Option<Epoch>,
    /// When it was equal to its rows last.
    pub(super) current: Option<Instant>,
}

/// What the one who works on an index holds.
#[derive(Default)]
pub(super) struct Keeper {
    pub(super) session: Option<Session>,
    /// The index that is searched, opened to be written.
    pub(super) current: Option<Kept>,
    /// What was visible when it was brought up to date last.
    pub(super) seen: Option<String>,
    /// It was made sure then that no document is left of a row that is gone.
    pub(super) is_counted: bool,
    /// A promotion has not waited until every row was compared: the next refresh does that.
    pub(super) owes_sweep: bool,
}

/// A build; however it ends, the index is free again.
pub(super) struct Turn(Arc<Index>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.face().building = None;
    }
}

impl Index {
    pub(super) fn open(
        config: &understudy_config::Index,
        folder: PathBuf,
        database: Database,
        env: Vec<(String, String)>,
        events: Events,
    ) -> Self {
        let shelf = Shelf::new(folder);
        let mut face = Face::default();
        let opened = shelf.clean().and_then(|()| shelf.current());
        match opened {
            Ok(Some((path, record))) => match &config.engine {
                Engine::Tantivy { .. } => match Searchable::open(&path) {
                    Ok(searchable) => {
                        face.documents = searchable.documents();
                        face.searchable = Some(Arc::new(searchable));
                        face.record = Some(record);
                    }
                    // It can be built again; a node must not fail to start for it.
                    Err(error) => face.failure = Some(error_chain(&error)),
                },
                Engine::Command { .. } => face.record = Some(record),
                // It tells itself whether it is there.
                Engine::Elasticsearch { .. } => {}
            },
            Ok(None) => {}
            Err(error) => face.failure = Some(error_chain(&error)),
        }
        Self {
            config: config.clone(),
            shelf,
            database,
            env,
            events,
            face: Mutex::new(face),
            keeper: Arc::default(),
            told: watch::Sender::new((0, None)),
            wake: Notify::new(),
            elastic: OnceLock::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// Returns what the index is made of, to notice when that has changed.
    pub(super) fn source(&self) -> String {
        match &self.config.engine {
            Engine::Tantivy { rows } | Engine::Elasticsearch { rows, .. } => rows.query.clone(),
            Engine::Command { command } => command.join("\0"),
        }
    }

    pub(super) fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the client of the index's Elasticsearch, which reads its files at first use.
    pub(super) fn elastic(&self) -> Result<&Arc<Elastic>, RebuildError> {
        if let Some(elastic) = self.elastic.get() {
            return Ok(elastic);
        }
        let Engine::Elasticsearch { place, .. } = &self.config.engine else {
            return Err(RebuildError::Broken);
        };
        let opened = Arc::new(Elastic::open(place, self.name())?);
        Ok(self.elastic.get_or_init(|| opened))
    }

    fn is_shared(&self) -> bool {
        match &self.config.engine {
            Engine::Elasticsearch { place, .. } => place.is_shared,
            Engine::Tantivy { .. } | Engine::Command { .. } => false,
        }
    }

    /// Refuses to write to what another node keeps.
    pub(super) fn may_write(&self, moment: &Moment) -> Result<(), RebuildError> {
        if moment.is_standby && self.is_shared() {
            return Err(RebuildError::NotPrimary {
                name: self.name().to_owned(),
            });
        }
        Ok(())
    }

    /// Returns the epoch in which this node may write.
    pub(super) fn epoch(&self) -> Result<Epoch, RebuildError> {
        let told = (self.database.tenure)();
        let writer = told.map_err(|source| SourceError::Tenure { source })?;
        // One that has heard of a higher epoch may have a Postgres that still takes writes.
        if self.is_shared() && !writer.is_primary {
            return Err(RebuildError::NotPrimary {
                name: self.name().to_owned(),
            });
        }
        Ok(writer.epoch)
    }

    /// Tells that another node writes to the index, if that is why it failed; once of each epoch.
    pub(super) fn note_superseded(&self, error: &RebuildError) -> bool {
        let Some((theirs, alias)) = error.superseded() else {
            return false;
        };
        let mut face = self.face();
        face.trouble = Some(error.chain());
        let is_news = face.superseded.replace(theirs.clone()).as_ref() != Some(theirs);
        drop(face);
        if is_news {
            let message = format!(
                "index {} is written by node {} in epoch {theirs}, and no more by this node; if no node is in \
                 that epoch, remove the alias {alias} from Elasticsearch",
                self.name(),
                theirs.node
            );
            self.events
                .record(Severity::Warning, "index_superseded", message);
        }
        true
    }

    pub(super) fn behind(&self) -> RebuildError {
        RebuildError::Behind {
            name: self.name().to_owned(),
        }
    }

    /// Takes the index for a build.
    pub(super) fn begin_turn(self: &Arc<Self>) -> Result<Turn, RebuildError> {
        let mut face = self.face();
        if let Some((read, total)) = face.building {
            return Err(RebuildError::AlreadyRunning {
                name: self.name().to_owned(),
                percent: total.map(|total| percent(read, total)),
            });
        }
        face.building = Some((0, None));
        drop(face);
        self.told.send_replace((0, None));
        Ok(Turn(self.clone()))
    }

    /// Tells how far a build is.
    pub(super) fn tell(&self, read: u64, total: Option<u64>) {
        self.face().building = Some((read, total));
        self.told.send_replace((read, total));
    }

    /// Returns how far the build is that is going on.
    pub(super) fn percent(&self) -> Option<u8> {
        let (read, total) = self.face().building?;
        Some(percent(read, total?))
    }

    /// Takes note of how a build ended.
    pub(super) fn note_build(&self, outcome: &Result<u64, RebuildError>) {
        let name = self.name();
        if let Err(error) = outcome
            && self.note_superseded(error)
        {
            return;
        }
        let mut face = self.face();
        match outcome {
            Ok(documents) => {
                face.failure = None;
                face.trouble = None;
                face.superseded = None;
                face.current = Some(Instant::now());
                drop(face);
                let message = format!("index {name} was rebuilt ({documents} documents)");
                self.events.record(Severity::Info, "index_rebuilt", message);
            }
            Err(error) if error.is_passing() => face.trouble = Some(error.chain()),
            Err(error) => {
                let why = error.chain();
                // Said once, however often it is tried.
                let is_news = face.failure.replace(why.clone()).as_ref() != Some(&why);
                drop(face);
                if is_news {
                    let message = format!("index {name} was not rebuilt: {why}");
                    self.events.record(Severity::Error, "index_failed", message);
                }
            }
        }
    }

    /// Opens the index that is searched, to write to it.
    pub(super) async fn open_current(&self) -> Result<Option<Kept>, RebuildError> {
        use super::payload::Payload;
        let Some(rows) = self.config.engine.rows() else {
            return Ok(None);
        };
        if let Engine::Elasticsearch { .. } = &self.config.engine {
            let Some((index, payload)) = self.elastic()?.current(rows, &self.epoch()?).await?
            else {
                return Ok(None);
            };
            let documents = index.count().await?;
            let mut face = self.face();
            face.documents = documents;
            face.record = Some(Record::now(documents, &self.source()));
            let target = Target::Elastic(index);
            return Ok(Some(Kept { target, payload }));
        }
        let Some(searchable) = self.face().searchable.clone() else {
            return Ok(None);
        };
        let (shelf, rows) = (self.shelf.clone(), rows.clone());
        let work = move || -> Result<Option<Kept>, RebuildError> {
            let Some((path, _)) = shelf.current()? else {
                return Ok(None);
            };
            let written = Written::open(searchable)?;
            let payload = written
                .state()?
                .and_then(|state| Payload::parse(&state, &rows));
            let Some(payload) = payload.filter(Payload::is_ready) else {
                return Ok(None);
            };
            let target = Target::Tantivy { written, path };
            Ok(Some(Kept { target, payload }))
        };
        let opened = tokio::task::spawn_blocking(work).await??;
        if let Some(searchable) = opened.as_ref().and_then(|kept| kept.target.searchable()) {
            self.face().documents = searchable.documents();
        }
        Ok(opened)
    }

    pub(super) fn status(&self) -> IndexStatus {
        let face = self.face();
        let is_stale = face
            .record
            .as_ref()
            .is_some_and(|record| !record.is_of(&self.source()));
        let stale = || is_stale.then(|| "its source has changed since; rebuild it".to_owned());
        let (state, documents, documents_total) = match (face.building, &face.failure) {
            (Some((read, total)), _) => (IndexState::Rebuilding, read, total),
            (None, Some(_)) => (IndexState::Failed, face.documents, None),
            (None, None) if face.record.is_some() => (IndexState::Ready, face.documents, None),
            (None, None) => (IndexState::Absent, 0, None),
        };
        let rows = self.config.engine.rows();
        let is_kept_warm = rows.is_some_and(|rows| rows.warm.is_some());
        let seconds = |at: Instant| at.elapsed().as_secs();
        let behind_seconds = face.current.filter(|_| is_kept_warm).map(seconds);
        let message = face
            .failure
            .clone()
            .or_else(|| face.trouble.clone())
            .or_else(stale);
        IndexStatus {
            name: self.config.name.clone(),
            state,
            documents,
            documents_total,
            percent: documents_total.map(|total| percent(documents, total)),
            built: face.record.as_ref().map(|record| record.built),
            message,
            engine: self.config.engine.as_str().to_owned(),
            is_warm: is_kept_warm && face.record.is_some() && face.current.is_some(),
            behind_seconds,
        }
    }
}

pub(super) fn percent(read: u64, total: u64) -> u8 {
    let percent = read.saturating_mul(100).checked_div(total).unwrap_or(0);
    u8::try_from(percent.min(100)).unwrap_or(100)
}

/// How long to wait after so many failures in a row.
pub(super) fn back_off(failures: u32) -> Duration {
    const LONGEST: Duration = Duration::from_secs(30);
    Duration::from_millis(500_u64 << failures.min(6)).min(LONGEST)
}
