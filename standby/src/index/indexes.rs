//! The indexes of this node.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_postgres::Client;
use understudy_config::Engine;
use understudy_replication::command::Command;
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{IndexState, IndexStatus};
use understudy_replication::store::{BoxFuture, Progress, StoreFailure, Unit};

use super::build::{Built, RebuildError, build};
use super::engine::Searchable;
use super::search::{SearchError, SearchResult, check};
use super::shelf::{Record, Shelf};

/// Connects to this node's Postgres: to the database of that name, or to the configured one.
pub type Connect =
    Arc<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Client, StoreFailure>> + Send + Sync>;

/// The indexes of this node, in the order of the configuration.
pub struct Indexes {
    indexes: Vec<Index>,
    connect: Connect,
    env: Vec<(String, String)>,
    events: Events,
}

struct Index {
    config: understudy_config::Index,
    shelf: Shelf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    searchable: Option<Arc<Searchable>>,
    record: Option<Record>,
    /// Rows read, and rows in all where that is known, while it is rebuilt.
    rebuilding: Option<(u64, Option<u64>)>,
    failure: Option<String>,
}

/// One rebuild of an index at a time; however it ends, the index is free again.
struct Turn<'a>(&'a Index);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().rebuilding = None;
    }
}

impl Index {
    fn open(config: &understudy_config::Index, folder: PathBuf) -> Self {
        let shelf = Shelf::new(folder);
        let mut state = State::default();
        let opened = shelf.clean().and_then(|()| shelf.current());
        match opened {
            Ok(Some((path, record))) => match &config.engine {
                Engine::Tantivy { .. } => match Searchable::open(&path) {
                    Ok(searchable) => {
                        state.searchable = Some(Arc::new(searchable));
                        state.record = Some(record);
                    }
                    // It can be built again; a node must not fail to start for it.
                    Err(error) => state.failure = Some(error_chain(&error)),
                },
                Engine::Command { .. } => state.record = Some(record),
            },
            Ok(None) => {}
            Err(error) => state.failure = Some(error_chain(&error)),
        }
        Self {
            config: config.clone(),
            shelf,
            state: Mutex::new(state),
        }
    }

    fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// Returns what the index is made of, to notice when that has changed.
    fn source(&self) -> String {
        match &self.config.engine {
            Engine::Tantivy { source, .. } => source.clone(),
            Engine::Command { command } => command.join("\0"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<Turn<'_>, RebuildError> {
        let mut state = self.state();
        if state.rebuilding.is_some() {
            return Err(RebuildError::AlreadyRunning {
                name: self.name().to_owned(),
            });
        }
        state.rebuilding = Some((0, None));
        Ok(Turn(self))
    }

    fn status(&self) -> IndexStatus {
        let state = self.state();
        let is_stale = state
            .record
            .as_ref()
            .is_some_and(|record| !record.is_of(&self.source()));
        let stale = || is_stale.then(|| "its source has changed since; rebuild it".to_owned());
        let documents = state.record.as_ref().map_or(0, |record| record.documents);
        let (named, documents, documents_total) = match (state.rebuilding, &state.failure) {
            (Some((read, total)), _) => (IndexState::Rebuilding, read, total),
            (None, Some(_)) => (IndexState::Failed, documents, None),
            (None, None) if state.record.is_some() => (IndexState::Ready, documents, None),
            (None, None) => (IndexState::Absent, 0, None),
        };
        IndexStatus {
            name: self.config.name.clone(),
            state: named,
            documents,
            documents_total,
            built: state.record.as_ref().map(|record| record.built),
            message: state.failure.clone().or_else(stale),
        }
    }
}

impl Indexes {
    /// Opens the indexes beneath `folder`. What cannot be opened is told by its status, and can be
    /// rebuilt. Commands get `env`.
    pub fn open(
        configs: &[understudy_config::Index],
        folder: PathBuf,
        connect: Connect,
        env: Vec<(String, String)>,
        events: Events,
    ) -> Self {
        let index = |config: &understudy_config::Index| {
            Index::open(config, folder.join(config.name.as_str()))
        };
        Self {
            indexes: configs.iter().map(index).collect(),
            connect,
            env,
            events,
        }
    }

    /// Returns the names of the indexes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.indexes.iter().map(Index::name)
    }

    fn find(&self, name: &str) -> Option<&Index> {
        self.indexes.iter().find(|index| index.name() == name)
    }

    /// Builds an index anew, while the one before it is searched on. Returns how many documents it
    /// has. Dropping the future gives it up.
    ///
    /// # Errors
    /// When it is being rebuilt already, takes too long, or cannot be built.
    pub async fn rebuild(&self, name: &str, progress: &dyn Progress) -> Result<u64, RebuildError> {
        let unknown = || RebuildError::Unknown {
            name: name.to_owned(),
        };
        let index = self.find(name).ok_or_else(unknown)?;
        let turn = index.begin()?;
        progress.start(&format!("index {name}"), None, Unit::Items);
        let limit = index.config.timeout;
        let work = self.work(index, progress);
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(RebuildError::TimedOut {
                name: name.to_owned(),
                limit,
            }),
        };
        let mut state = index.state();
        let outcome = match result {
            Ok((searchable, record)) => {
                let documents = record.documents;
                *state = State {
                    searchable,
                    record: Some(record),
                    ..State::default()
                };
                Ok(documents)
            }
            Err(error) => {
                state.failure = Some(error_chain(&error));
                Err(error)
            }
        };
        drop(state);
        drop(turn);
        match &outcome {
            Ok(documents) => {
                progress.end(&format!("{documents} documents"));
                let message = format!("index {name} was rebuilt ({documents} documents)");
                self.events.record(Severity::Info, "index_rebuilt", message);
            }
            Err(error) => {
                progress.end("failed");
                let message = format!("index {name} was not rebuilt: {}", error_chain(error));
                self.events.record(Severity::Error, "index_failed", message);
            }
        }
        outcome
    }

    async fn work(
        &self,
        index: &Index,
        progress: &dyn Progress,
    ) -> Result<(Option<Arc<Searchable>>, Record), RebuildError> {
        match &index.config.engine {
            Engine::Tantivy { source, database } => {
                let connecting = (self.connect)(database.clone());
                let connected = connecting.await;
                let mut client = connected.map_err(|source| RebuildError::Connect { source })?;
                let tell = |read, total| {
                    index.state().rebuilding = Some((read, Some(total)));
                    if read == 0 {
                        progress.start(
                            &format!("index {}", index.name()),
                            Some(total),
                            Unit::Items,
                        );
                    }
                    progress.at(read);
                };
                let (limit, shelf) = (index.config.timeout, index.shelf.clone());
                let Built { searchable, record } =
                    build(&mut client, source, limit, shelf, tell).await?;
                Ok((Some(searchable), record))
            }
            Engine::Command { command } => {
                let command = Command::new(command.clone())
                    .env("UNDERSTUDY_INDEX", index.name())
                    .limit(index.config.timeout);
                let command = self
                    .env
                    .iter()
                    .fold(command, |command, (name, value)| command.env(name, value));
                command.run().await?;
                let (shelf, record) = (index.shelf.clone(), Record::now(0, &index.source()));
                let publishing = record.clone();
                tokio::task::spawn_blocking(move || {
                    let path = shelf.begin()?;
                    shelf.publish(&path, &publishing)
                })
                .await??;
                Ok((None, record))
            }
        }
    }

    /// Searches an index: the last one that was built whole.
    ///
    /// # Errors
    /// When the query cannot be understood, or there is nothing to search yet.
    pub async fn search(
        &self,
        name: &str,
        query: &str,
        limit: usize,
    ) -> Result<SearchResult, SearchError> {
        let name = name.to_owned();
        let Some(index) = self.find(&name) else {
            return Err(SearchError::Unknown { name });
        };
        if matches!(index.config.engine, Engine::Command { .. }) {
            return Err(SearchError::Elsewhere { name });
        }
        check(query, limit)?;
        let searchable = {
            let state = index.state();
            match (&state.searchable, state.rebuilding) {
                (Some(searchable), _) => searchable.clone(),
                (None, Some((read, total))) => {
                    let percent = total.map(|total| percent(read, total));
                    return Err(SearchError::Rebuilding { name, percent });
                }
                (None, None) => return Err(SearchError::Absent { name }),
            }
        };
        let query = query.to_owned();
        let task = {
            let name = name.clone();
            tokio::task::spawn_blocking(move || searchable.search(&name, &query, limit))
        };
        task.await
            .unwrap_or_else(|source| Err(SearchError::Broken { name, source }))
    }

    /// Returns how each index is.
    pub fn status(&self) -> Vec<IndexStatus> {
        self.indexes.iter().map(Index::status).collect()
    }
}

fn percent(read: u64, total: u64) -> u8 {
    let percent = read.saturating_mul(100).checked_div(total).unwrap_or(0);
    u8::try_from(percent.min(100)).unwrap_or(100)
}
