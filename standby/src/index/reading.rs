//! Reading rows: of one snapshot, through a portal, so that memory is bounded.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Portal, Transaction};
use understudy_replication::position::Lsn;

use super::row::Row;
use super::session::Moment;
use super::shape::{HORIZON, Shape};
use super::source::{KEY_BYTES_MAX, SourceError, by};

/// How many rows are read at once.
const BATCH_ROWS: i32 = 500;

/// How many keys with their watermarks are read at once.
const BATCH_MARKS: i32 = 5000;

/// The log is on the disk within some tenths of a second, even of those who do not wait for it.
const DURABLE_PATIENCE: Duration = Duration::from_secs(1);
const DURABLE_INTERVAL: Duration = Duration::from_millis(20);

const IS_DURABLE: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN true \
     ELSE pg_current_wal_flush_lsn() >= $1::text::pg_lsn END";

/// One snapshot of the database.
pub(super) struct Reading<'a> {
    // A portal lives as long as its transaction.
    pub(super) transaction: Transaction<'a>,
    pub(super) shape: &'a Shape,
    pub(super) deadline: Instant,
    pub(super) moment: Moment,
}

/// Rows that are yet to be read.
pub(super) struct Pending(Portal);

impl Reading<'_> {
    /// Returns how many rows an index holds.
    pub(super) async fn count(&self) -> Result<u64, SourceError> {
        let shape = self.shape;
        let sql = format!("SELECT count(*) {} WHERE {}", shape.from(), shape.is_kept());
        let row = by(self.deadline, self.transaction.query_one(&sql, &[])).await?;
        Ok(u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0))
    }

    /// Waits until a primary has all that is visible on its disk, up to `end`: neither a stop nor a crash takes any
    /// of it then. Returns whether it has, as after a write of somebody who does not wait it may take a while.
    pub(super) async fn is_durable_soon(&self, end: Lsn) -> Result<bool, SourceError> {
        let until = self.deadline.min(Instant::now() + DURABLE_PATIENCE);
        let end = end.to_string();
        loop {
            let row = by(
                self.deadline,
                self.transaction.query_one(IS_DURABLE, &[&end]),
            )
            .await?;
            if row.try_get(0)? || Instant::now() >= until {
                return Ok(row.try_get(0)?);
            }
            tokio::time::sleep(DURABLE_INTERVAL).await;
        }
    }

    /// Returns the greatest watermark that is believed.
    pub(super) async fn greatest_mark(&self) -> Result<Option<String>, SourceError> {
        let Some(watermark) = &self.shape.watermark else {
            return Ok(None);
        };
        let column = &watermark.column;
        let believed = if watermark.is_time {
            format!("WHERE \"{column}\" <= {HORIZON}")
        } else {
            String::new()
        };
        let sql = format!(
            "SELECT max(\"{column}\")::text {} {believed}",
            self.shape.from()
        );
        Ok(by(self.deadline, self.transaction.query_one(&sql, &[]))
            .await?
            .try_get(0)?)
    }

    async fn portal(&self, sql: &str, parameters: &[&str]) -> Result<Pending, SourceError> {
        let statement = by(self.deadline, self.transaction.prepare(sql)).await?;
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = parameters
            .iter()
            .map(|text| -> &(dyn tokio_postgres::types::ToSql + Sync) { text })
            .collect();
        let binding = self.transaction.bind(&statement, &parameters);
        Ok(Pending(by(self.deadline, binding).await?))
    }

    /// Begins to read the rows beyond a key, in the order of their keys: not of the texts of these, which
    /// have the same name in the output.
    pub(super) async fn rows_after(&self, key: Option<&str>) -> Result<Pending, SourceError> {
        let shape = self.shape;
        let column = shape.key();
        let beyond = key.map_or_else(String::new, |_| {
            format!(" AND \"{column}\" > $1::text::{}", shape.key_type)
        });
        let sql = format!(
            "{} WHERE {}{beyond} ORDER BY source.\"{column}\"",
            shape.rows(),
            shape.is_kept()
        );
        self.portal(&sql, key.as_slice()).await
    }

    /// Begins to read the rows beyond a watermark, in the order of their watermarks; those that count as
    /// deleted, too.
    pub(super) async fn changes_after(&self, mark: &str) -> Result<Pending, SourceError> {
        let shape = self.shape;
        let Some(watermark) = &shape.watermark else {
            return self.rows_after(None).await;
        };
        let column = &watermark.column;
        let sql = format!(
            "{} WHERE \"{}\" IS NOT NULL AND \"{column}\" > $1::text::{} ORDER BY source.\"{column}\"",
            shape.rows(),
            shape.key(),
            watermark.sql_type
        );
        self.portal(&sql, &[mark]).await
    }

    /// Begins to read the rows beyond a key, in the order of the bytes of their keys.
    pub(super) async fn rows_by_bytes(&self, key: Option<&str>) -> Result<Pending, SourceError> {
        self.by_bytes(&self.shape.rows(), key).await
    }

    /// Begins to read keys and watermarks in the same order.
    pub(super) async fn marks_by_bytes(&self, key: Option<&str>) -> Result<Pending, SourceError> {
        let shape = self.shape;
        let mark = match &shape.watermark {
            None => "NULL::text".to_owned(),
            Some(watermark) => format!("\"{}\"::text", watermark.column),
        };
        let select = format!("SELECT \"{}\"::text, {mark} {}", shape.key(), shape.from());
        self.by_bytes(&select, key).await
    }

    async fn by_bytes(&self, select: &str, key: Option<&str>) -> Result<Pending, SourceError> {
        let shape = self.shape;
        let bytes = shape.key_bytes();
        let beyond = key.map_or_else(String::new, |_| {
            format!(" AND {bytes} > convert_to($1::text, 'UTF8')")
        });
        let sql = format!(
            "{select} WHERE {}{beyond} ORDER BY {bytes}",
            shape.is_kept()
        );
        self.portal(&sql, key.as_slice()).await
    }

    /// Returns the rows of some keys, which this reading has seen.
    pub(super) async fn rows_of(&self, keys: &[String]) -> Result<Vec<Row>, SourceError> {
        let shape = self.shape;
        let sql = format!(
            "{} WHERE {} AND \"{}\" = ANY($1::text[]::{}[])",
            shape.rows(),
            shape.is_kept(),
            shape.key(),
            shape.key_type
        );
        let rows = by(self.deadline, self.transaction.query(&sql, &[&keys])).await?;
        // They are of this very snapshot: else they would be missing for ever, and nobody would know.
        if let (true, Some(key)) = (rows.is_empty(), keys.first()) {
            return Err(SourceError::LostKeys {
                count: keys.len(),
                key: key.chars().take(40).collect(),
            });
        }
        rows.iter().map(|row| self.row(row)).collect()
    }

    /// Returns the next rows; none at the end.
    pub(super) async fn next(&self, pending: &Pending) -> Result<Vec<Row>, SourceError> {
        let reading = self.transaction.query_portal(&pending.0, BATCH_ROWS);
        let rows = by(self.deadline, reading).await?;
        rows.iter().map(|row| self.row(row)).collect()
    }

    /// Returns the next keys and watermarks; none at the end.
    pub(super) async fn next_marks(
        &self,
        pending: &Pending,
    ) -> Result<Vec<(String, Option<String>)>, SourceError> {
        let reading = self.transaction.query_portal(&pending.0, BATCH_MARKS);
        let rows = by(self.deadline, reading).await?;
        let pair = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(pair).collect()
    }

    fn row(&self, row: &tokio_postgres::Row) -> Result<Row, SourceError> {
        let count = self.shape.columns.len();
        let values: Result<Vec<Option<String>>, tokio_postgres::Error> =
            (0..count).map(|at| row.try_get(at)).collect();
        let row = Row {
            values: values?,
            mark: row.try_get(count)?,
            is_believed: row.try_get(count.saturating_add(1))?,
            is_deleted: row.try_get(count.saturating_add(2))?,
            version: row.try_get(count.saturating_add(3))?,
        };
        let bytes = row.key().len();
        if bytes > KEY_BYTES_MAX {
            return Err(SourceError::LongKey {
                bytes,
                start: row.key().chars().take(40).collect(),
            });
        }
        Ok(row)
    }
}
