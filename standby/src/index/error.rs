//! Why an index was not rebuilt or brought up to date.

use std::time::Duration;

use understudy_replication::command::CommandError;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::postgres::Relation;

use super::elastic::ElasticError;
use super::engine::EngineError;
use super::shelf::ShelfError;
use super::source::SourceError;

/// Why an index was not rebuilt or brought up to date; the one before it, if any, is searched on.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The configuration has no such index.
    #[error("there is no index `{name}`")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// Somebody rebuilds it already.
    #[error("index {name} is being rebuilt already{}", percent.map_or_else(String::new, |p| format!(", {p} %")))]
    AlreadyRunning {
        /// The index.
        name: String,
        /// How far, where that is known.
        percent: Option<u8>,
    },
    /// It took too long.
    #[error("the rebuild of index {name} took longer than {} s; the next goes on from there", limit.as_secs())]
    TimedOut {
        /// The index.
        name: String,
        /// How long it may take.
        limit: Duration,
    },
    /// All nodes use one, and the primary keeps it.
    #[error(
        "index {name} is shared by all nodes, and this node is not the primary, which keeps it"
    )]
    NotPrimary {
        /// The index.
        name: String,
    },
    /// The replica is not where it was yet.
    #[error("this replica was restarted, and has not replayed again what index {name} has seen")]
    Behind {
        /// The index.
        name: String,
    },
    /// Its rows cannot be read.
    #[error(transparent)]
    Source {
        /// Why not.
        #[from]
        source: SourceError,
    },
    /// The engine failed.
    #[error("cannot build it")]
    Engine {
        /// Why not.
        #[from]
        source: EngineError,
    },
    /// Elasticsearch failed.
    #[error(transparent)]
    Elastic {
        /// Why.
        #[from]
        source: ElasticError,
    },
    /// Its folder cannot be changed.
    #[error("cannot keep it")]
    Shelf {
        /// Why not.
        #[from]
        source: ShelfError,
    },
    /// Its command failed.
    #[error("its command failed")]
    Command {
        /// How.
        #[from]
        source: CommandError,
    },
    /// The work was broken off: the program is ending.
    #[error("the build was broken off")]
    Broken,
}

impl From<tokio::task::JoinError> for RebuildError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Broken
    }
}

impl RebuildError {
    /// Returns whether the next attempt may do better, without anybody's doing.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Source { source } => source.is_passing(),
            Self::Elastic { source } => source.is_passing(),
            Self::Engine { source } => source.is_passing(),
            Self::Behind { .. } | Self::NotPrimary { .. } => true,
            Self::Unknown { .. }
            | Self::AlreadyRunning { .. }
            | Self::TimedOut { .. }
            | Self::Shelf { .. }
            | Self::Command { .. }
            | Self::Broken => false,
        }
    }

    /// Returns by whom this node was superseded, if that is why: in which epoch, and through which alias of an
    /// Elasticsearch that one writes.
    pub(super) fn superseded(&self) -> Option<(&Epoch, &str)> {
        let Self::Elastic {
            source: ElasticError::Superseded { theirs, alias, .. },
        } = self
        else {
            return None;
        };
        Some((theirs, alias))
    }

    /// Returns whether what was written to is another's now, or gone: it has to be opened anew.
    pub(super) fn is_unclaimed(&self) -> bool {
        let Self::Elastic { source } = self else {
            return false;
        };
        matches!(source, ElasticError::Unclaimed)
    }

    /// Returns the whole story.
    pub(super) fn chain(&self) -> String {
        error_chain(self)
    }
}

/// Says why an index is compared with its rows one by one.
pub(super) fn parting(relation: Option<Relation>) -> String {
    match relation {
        Some(relation) => relation.to_string(),
        None => "a crash took what was not durable".to_owned(),
    }
}
