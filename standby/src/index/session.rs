//! A connection to the database that an index is made from, and how that is now.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, IsolationLevel};
use understudy_config::Rows;
use understudy_replication::position::Lsn;
use understudy_replication::postgres::History;

use super::reading::Reading;
use super::shape::Shape;
use super::source::{Ancestry, Database, SourceError, by};
use super::standing::Stamp;

/// How long a short question may take.
const QUESTION_PATIENCE: Duration = Duration::from_secs(20);

/// How a database is now.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) is_standby: bool,
    /// What is visible: two moments with the same snapshot see the same rows.
    pub(super) snapshot: String,
    /// The newest commit that is visible, in microseconds since 1970 by the primary's clock.
    pub(super) clock: Option<i64>,
    pub(super) stamp: Stamp,
}

/// A connection, and what is known of the rows.
pub(super) struct Session {
    client: Client,
    pub(super) shape: Shape,
    ancestry: Ancestry,
}

/// What is the case now. On a primary the log ends where something was written; what is visible may not be
/// durable yet, which matters to a crash. On a standby only what is durable is replayed.
const MOMENT: &str = "SELECT r, pg_current_snapshot()::text, \
     (extract(epoch FROM CASE WHEN r THEN pg_last_xact_replay_timestamp() \
     ELSE clock_timestamp() END) * 1000000)::bigint, \
     (CASE WHEN r THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text, \
     (CASE WHEN r THEN NULL ELSE pg_current_wal_flush_lsn() END)::text, \
     (SELECT system_identifier FROM pg_control_system())::text, \
     (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint \
     FROM pg_is_in_recovery() AS r";

/// The texts of values are kept and compared, so they must not depend on how a server is set up. Rows that a
/// policy hides are an error: an index would be smaller than its table, and nobody would know.
const SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; \
     SET timezone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; \
     SET lc_monetary = 'C'; SET lock_timeout = '30s'; SET row_security = off";

impl Session {
    /// Connects, and asks what the rows are.
    pub(super) async fn open(database: &Database, rows: &Rows) -> Result<Self, SourceError> {
        let connecting = (database.connect)(rows.database.clone());
        let client = tokio::time::timeout(QUESTION_PATIENCE, connecting)
            .await
            .map_err(|_| SourceError::Late {
                limit: QUESTION_PATIENCE,
            })?
            .map_err(|source| SourceError::Connect { source })?;
        let deadline = Instant::now() + QUESTION_PATIENCE;
        by(deadline, client.batch_execute(SETTINGS)).await?;
        let shape = Shape::ask(deadline, &client, rows).await?;
        Ok(Self {
            client,
            shape,
            ancestry: database.ancestry.clone(),
        })
    }

    /// Returns how the database is now.
    pub(super) async fn moment(&self) -> Result<Moment, SourceError> {
        let deadline = Instant::now() + QUESTION_PATIENCE;
        let row = by(deadline, self.client.query_one(MOMENT, &[])).await?;
        moment(&row, &self.ancestry)
    }

    /// Begins to read what is visible now; no statement takes longer than until `deadline`.
    pub(super) async fn read(&mut self, deadline: Instant) -> Result<Reading<'_>, SourceError> {
        let question = deadline.min(Instant::now() + QUESTION_PATIENCE);
        let building = self
            .client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start();
        let transaction = by(question, building).await?;
        // The server then gives up by itself, even if it does not notice that we have gone.
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = left.as_millis().clamp(1, 0x7FFF_FFFF);
        let limit = format!("SET LOCAL statement_timeout = {millis}");
        by(question, transaction.batch_execute(&limit)).await?;
        // The first takes the snapshot. A replica moves what it tells to have replayed right after it has
        // made a commit visible, so this is asked once more: then it has seen no less than the snapshot.
        by(question, transaction.query_one(MOMENT, &[])).await?;
        let row = by(question, transaction.query_one(MOMENT, &[])).await?;
        let moment = moment(&row, &self.ancestry)?;
        Ok(Reading {
            transaction,
            shape: &self.shape,
            deadline,
            moment,
        })
    }
}

fn moment(row: &tokio_postgres::Row, ancestry: &Ancestry) -> Result<Moment, SourceError> {
    let number = |column: usize| -> Result<Option<Lsn>, SourceError> {
        let text: Option<String> = row.try_get(column)?;
        Ok(text.and_then(|text| text.parse().ok()))
    };
    let end = number(3)?.unwrap_or_default();
    let is_durable = number(4)?.is_none_or(|flushed| flushed >= end);
    let system_identifier: String = row.try_get(5)?;
    let known = ancestry().map_err(|source| SourceError::Ancestry { source })?;
    Ok(Moment {
        is_standby: row.try_get(0)?,
        snapshot: row.try_get(1)?,
        clock: row.try_get(2)?,
        stamp: Stamp {
            history: History {
                system_identifier: system_identifier.parse().unwrap_or_default(),
                end,
                ..known
            },
            is_durable,
            server_started: row.try_get(6)?,
        },
    })
}
