//! The database that an index is made from, and why it cannot be read.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use understudy_replication::epoch::Epoch;
use understudy_replication::postgres::History;
use understudy_replication::store::{BoxFuture, StoreFailure};

/// How long the longest key is, in bytes: the engines have limits of their own above it.
pub(super) const KEY_BYTES_MAX: usize = 500;

/// Connects to this node's Postgres: to the database of that name, or to the configured one.
pub type Connect =
    Arc<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Client, StoreFailure>> + Send + Sync>;

/// Tells the timelines of this node's Postgres: the present one, those before it, and who opened them. The
/// system identifier and the end are not looked at.
pub type Ancestry = Arc<dyn Fn() -> Result<History, StoreFailure> + Send + Sync>;

/// Tells who this node is to the others, at any moment.
pub type Tenure = Arc<dyn Fn() -> Result<Writer, StoreFailure> + Send + Sync>;

/// What this node may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The highest epoch that it has made durable.
    pub epoch: Epoch,
    /// It opened that epoch itself, and has not been superseded as far as it knows.
    pub is_primary: bool,
}

/// This node's Postgres.
#[derive(Clone)]
pub struct Database {
    /// How it is reached.
    pub connect: Connect,
    /// Where it comes from.
    pub ancestry: Ancestry,
    /// In which epoch it is.
    pub tenure: Tenure,
}

/// Why rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The database cannot be reached.
    #[error("cannot connect to the database")]
    Connect {
        /// Why not.
        source: StoreFailure,
    },
    /// The database refused the query, or the connection broke.
    #[error("the source of the index cannot be read")]
    Query {
        /// Why not.
        #[from]
        source: tokio_postgres::Error,
    },
    /// The database did not answer in time.
    #[error("the database has not answered within {} s", limit.as_secs())]
    Late {
        /// How long it was waited for.
        limit: Duration,
    },
    /// Where the database comes from is not known.
    #[error("the history of the database cannot be told")]
    Ancestry {
        /// Why not.
        source: StoreFailure,
    },
    /// The role of this node is not known.
    #[error("the role of this node cannot be told")]
    Tenure {
        /// Why not.
        source: StoreFailure,
    },
    /// The query wants parameters.
    #[error("the source of the index has parameters, which nobody could give")]
    Parameters,
    /// The query returns no columns.
    #[error("the source of the index returns no columns")]
    NoColumns,
    /// A column cannot be searched by its name.
    #[error(
        "column {number} of the index's source is called `{name}`; give it a name of letters, \
         digits and `_` with AS"
    )]
    ColumnName {
        /// Which column, from 1.
        number: usize,
        /// Its name.
        name: String,
    },
    /// Two columns have one name.
    #[error("the index's source has two columns `{name}`; rename one with AS")]
    SameName {
        /// The name.
        name: String,
    },
    /// A column that the configuration names is not there.
    #[error("the index's source has no column `{name}`, which is its `{key}`")]
    NoColumn {
        /// The name.
        name: String,
        /// The key of the configuration.
        key: &'static str,
    },
    /// A column that the configuration names is of no use.
    #[error("column `{name}` is of type {found}, and `{key}` has to be {expected}")]
    ColumnType {
        /// The name.
        name: String,
        /// The key of the configuration.
        key: &'static str,
        /// Its type.
        found: String,
        /// The types that would do.
        expected: &'static str,
    },
    /// Rows that are there are not found by their keys.
    #[error(
        "none of {count} rows is found again by its key, such as `{key}`: give the source a key whose text \
         means the same value, with a cast in its query"
    )]
    LostKeys {
        /// How many.
        count: usize,
        /// One of them.
        key: String,
    },
    /// A key is too long.
    #[error(
        "a row's key has {bytes} bytes, and at most {KEY_BYTES_MAX} can be; it begins `{start}`"
    )]
    LongKey {
        /// How long it is.
        bytes: usize,
        /// Its beginning.
        start: String,
    },
}

impl SourceError {
    /// Returns whether another attempt may do better: Postgres was stopped, promoted or busy, or recovery
    /// had to have the query out of its way.
    pub(super) fn is_passing(&self) -> bool {
        const PASSING: [SqlState; 10] = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::DATABASE_DROPPED,
            SqlState::QUERY_CANCELED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        match self {
            Self::Connect { .. }
            | Self::Ancestry { .. }
            | Self::Tenure { .. }
            | Self::Late { .. } => true,
            Self::Query { source } => {
                source.is_closed() || source.code().is_none_or(|code| PASSING.contains(code))
            }
            Self::Parameters
            | Self::NoColumns
            | Self::ColumnName { .. }
            | Self::SameName { .. }
            | Self::NoColumn { .. }
            | Self::ColumnType { .. }
            | Self::LostKeys { .. }
            | Self::LongKey { .. } => false,
        }
    }
}

/// Waits no longer than until `deadline`.
pub(super) async fn by<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SourceError> {
    let limit = deadline.saturating_duration_since(Instant::now());
    match tokio::time::timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SourceError::Late { limit }),
    }
}
