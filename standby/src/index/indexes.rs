//! The indexes of this node.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use understudy_config::Engine;
use understudy_replication::event::Events;
use understudy_replication::status::IndexStatus;
use understudy_replication::store::{Progress, Stop, Unit};

use super::error::RebuildError;
use super::keeper::{Index, percent};
use super::search::{SearchError, SearchResult, check};
use super::source::Database;

/// The indexes of this node, in the order of the configuration.
pub struct Indexes {
    indexes: Vec<Arc<Index>>,
    /// Work that was begun for somebody, who may not wait for its end.
    background: Mutex<JoinSet<()>>,
}

/// What a promotion finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CaughtUp {
    /// The index is equal to its rows.
    Ready {
        /// How many documents it has.
        documents: u64,
        /// How long it took.
        seconds: f64,
    },
    /// It is not yet, and work on it goes on.
    RebuildingInBackground {
        /// How far that is; 0 where that is not known.
        percent: u8,
    },
}

impl Indexes {
    /// Opens the indexes beneath `folder`. What cannot be opened is told by its status, and can be
    /// rebuilt. Commands get `env`.
    pub fn open(
        configs: &[understudy_config::Index],
        folder: PathBuf,
        database: Database,
        env: Vec<(String, String)>,
        events: Events,
    ) -> Self {
        let index = |config: &understudy_config::Index| {
            Arc::new(Index::open(
                config,
                folder.join(config.name.as_str()),
                database.clone(),
                env.clone(),
                events.clone(),
            ))
        };
        Self {
            indexes: configs.iter().map(index).collect(),
            background: Mutex::default(),
        }
    }

    /// Returns the names of the indexes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.indexes.iter().map(|index| index.name())
    }

    fn find(&self, name: &str) -> Option<&Arc<Index>> {
        self.indexes.iter().find(|index| index.name() == name)
    }

    /// Returns an index, to look into it.
    #[cfg(test)]
    pub(super) fn index(&self, name: &str) -> &Arc<Index> {
        self.find(name).unwrap()
    }

    /// Breaks off what was begun, as the end of the program does.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        self.background.lock().unwrap().abort_all();
    }

    fn known(&self, name: &str) -> Result<&Arc<Index>, RebuildError> {
        self.find(name).ok_or_else(|| RebuildError::Unknown {
            name: name.to_owned(),
        })
    }

    /// Keeps every index with a watermark warm, in every role, and goes on with builds that were cut short.
    /// Returns when told to stop, and nothing works on the indexes any more.
    pub async fn keep_warm(self: Arc<Self>, stop: Stop) {
        let mut tasks = JoinSet::new();
        for index in &self.indexes {
            tasks.spawn(index.clone().keep(stop.clone()));
        }
        stop.wait().await;
        // Whatever is cut short has been committed up to some place, or not been.
        tasks.shutdown().await;
        let mut background = std::mem::take(
            &mut *self
                .background
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        background.shutdown().await;
    }

    /// Begins work that goes on even if nobody waits for its result any more.
    fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let mut background = self
            .background
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // What has ended is forgotten.
        while background.try_join_next().is_some() {}
        background.spawn(async move {
            let _nobody_waits = sender.send(work.await).is_err();
        });
        receiver
    }

    /// Builds an index anew, while the one before it is searched on; a build that was cut short is gone on
    /// with. Returns how many documents it has. Dropping the future does not end the build.
    ///
    /// # Errors
    /// When it is being rebuilt already, takes too long, or cannot be built.
    pub async fn rebuild(&self, name: &str, progress: &dyn Progress) -> Result<u64, RebuildError> {
        self.rebuild_as(name, false, progress).await
    }

    /// Builds an index anew from its first row, even if half a build is there.
    ///
    /// # Errors
    /// As those of [`Indexes::rebuild`].
    pub async fn rebuild_fresh(
        &self,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<u64, RebuildError> {
        self.rebuild_as(name, true, progress).await
    }

    async fn rebuild_as(
        &self,
        name: &str,
        is_fresh: bool,
        progress: &dyn Progress,
    ) -> Result<u64, RebuildError> {
        let index = self.known(name)?.clone();
        // Who waits for the end of another build would build it a second time.
        if let Some((read, total)) = index.face().building {
            return Err(RebuildError::AlreadyRunning {
                name: name.to_owned(),
                percent: total.map(|total| percent(read, total)),
            });
        }
        let work = {
            let index = index.clone();
            async move {
                let mut keeper = index.take().await;
                index.build(&mut keeper, is_fresh).await
            }
        };
        let mut result = self.begin(work);
        progress.start(&format!("index {name}"), None, Unit::Items);
        let outcome = watch(&index, &mut result, None, progress).await;
        let outcome = outcome.unwrap_or(Err(RebuildError::Broken));
        match &outcome {
            Ok(documents) => progress.end(&format!("{documents} documents")),
            Err(_) => progress.end("failed"),
        }
        outcome
    }

    /// Makes an index equal to its rows: a warm one by reading what has changed since, a cold one by
    /// building it. Waits no longer than `patience`; what is not done by then goes on without the caller.
    ///
    /// # Errors
    /// When there is no such index, or it cannot be made equal; the one before it, if any, is searched on.
    pub async fn catch_up(
        &self,
        name: &str,
        patience: Duration,
        progress: &dyn Progress,
    ) -> Result<CaughtUp, RebuildError> {
        let index = self.known(name)?.clone();
        let start = Instant::now();
        let mut result = self.begin(index.clone().catch_up());
        progress.start(&format!("index {name}"), None, Unit::Items);
        let deadline = start + patience;
        match watch(&index, &mut result, Some(deadline), progress).await {
            Some(Ok(documents)) => {
                progress.end(&format!("{documents} documents"));
                Ok(CaughtUp::Ready {
                    documents,
                    seconds: start.elapsed().as_secs_f64(),
                })
            }
            Some(Err(error)) => {
                progress.end("failed");
                Err(error)
            }
            None => {
                let percent = index.percent().unwrap_or(0);
                progress.end(&format!("goes on in the background, {percent} %"));
                Ok(CaughtUp::RebuildingInBackground { percent })
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
        if matches!(index.config.engine, Engine::Elasticsearch { .. }) {
            return super::elastic::search(index, query, limit).await;
        }
        let searchable = {
            let face = index.face();
            match (&face.searchable, face.building) {
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
        self.indexes.iter().map(|index| index.status()).collect()
    }
}

/// Waits for a result, and tells how far the build of the index is meanwhile. `None` at the deadline.
async fn watch(
    index: &Index,
    result: &mut oneshot::Receiver<Result<u64, RebuildError>>,
    deadline: Option<Instant>,
    progress: &dyn Progress,
) -> Option<Result<u64, RebuildError>> {
    let mut told = index.told.subscribe();
    let mut total_told = None;
    let mut late = Box::pin(async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    });
    let mut tell = |(read, total): (u64, Option<u64>)| {
        if total.is_some() && total != total_told {
            total_told = total;
            progress.start(&format!("index {}", index.name()), total, Unit::Items);
        }
        progress.at(read);
    };
    loop {
        tokio::select! {
            ended = &mut *result => {
                if told.has_changed().unwrap_or(false) {
                    tell(*told.borrow());
                }
                return Some(ended.unwrap_or(Err(RebuildError::Broken)));
            }
            () = &mut late => return None,
            changed = told.changed() => {
                let now = *told.borrow_and_update();
                if changed.is_ok() {
                    tell(now);
                }
            }
        }
    }
}
