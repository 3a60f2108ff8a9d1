//! What changes are written to, whichever the engine.

use std::path::PathBuf;
use std::sync::Arc;

use super::elastic::ElasticIndex;
use super::engine::{Manner, Searchable, Written};
use super::error::RebuildError;
use super::payload::Payload;
use super::row::{Applied, Change, Entry};

/// How many entries are listed at once.
pub(super) const ENTRIES: usize = 5000;

/// An index that is written.
#[derive(Clone)]
pub(super) enum Target {
    /// In a folder of this node.
    Tantivy { written: Written, path: PathBuf },
    /// In an Elasticsearch.
    Elastic(Arc<ElasticIndex>),
}

/// An index with its state.
pub(super) struct Kept {
    pub(super) target: Target,
    pub(super) payload: Payload,
}

impl Target {
    /// Makes changes and the state durable. A state without changes is written if it `must` be.
    pub(super) async fn apply(
        &self,
        changes: Vec<Change>,
        manner: Manner,
        payload: &Payload,
        must: bool,
    ) -> Result<Applied, RebuildError> {
        match self {
            Self::Tantivy { written, .. } => {
                if changes.is_empty() && !must {
                    return Ok(Applied::default());
                }
                let (written, state) = (written.clone(), payload.text());
                let work = move || written.apply(changes, manner, &state, must);
                Ok(tokio::task::spawn_blocking(work).await??)
            }
            Self::Elastic(index) => Ok(index.apply(changes, manner, payload, must).await?),
        }
    }

    /// Returns the documents beyond a key, in the order of the bytes of their keys; fewer than [`ENTRIES`] at
    /// the end only.
    pub(super) async fn entries(&self, after: Option<String>) -> Result<Vec<Entry>, RebuildError> {
        match self {
            Self::Tantivy { written, .. } => {
                let written = written.clone();
                let work = move || written.entries(after.as_deref(), ENTRIES);
                Ok(tokio::task::spawn_blocking(work).await??)
            }
            Self::Elastic(index) => Ok(index.entries(after.as_deref(), ENTRIES).await?),
        }
    }

    /// Makes what was written visible to [`Target::entries`], where it is not at once.
    pub(super) async fn settle(&self) -> Result<(), RebuildError> {
        match self {
            Self::Tantivy { .. } => Ok(()),
            Self::Elastic(index) => Ok(index.refresh().await?),
        }
    }

    /// Returns how many documents there are.
    pub(super) async fn documents(&self) -> Result<u64, RebuildError> {
        match self {
            Self::Tantivy { written, .. } => Ok(written.searchable.documents()),
            Self::Elastic(index) => Ok(index.count().await?),
        }
    }

    /// Returns what is searched.
    pub(super) fn searchable(&self) -> Option<Arc<Searchable>> {
        match self {
            Self::Tantivy { written, .. } => Some(written.searchable.clone()),
            Self::Elastic(_) => None,
        }
    }
}
