//! Reading the rows that an index is made of.

use std::time::Duration;

use tokio_postgres::{Client, IsolationLevel, Portal, Transaction};

/// How many rows are read at once.
const BATCH_ROWS: i32 = 1000;

/// A row: its columns as text, in order.
pub(super) type Row = Vec<Option<String>>;

/// Why rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The database refused the query, or the connection broke.
    #[error("the source of the index cannot be read")]
    Query {
        /// Why not.
        #[from]
        source: tokio_postgres::Error,
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
}

/// An open query: one snapshot of the database, read in batches through a portal.
pub(super) struct Source<'a> {
    // A portal lives as long as its transaction.
    transaction: Transaction<'a>,
    portal: Portal,
    pub(super) columns: Vec<String>,
    pub(super) total: u64,
}

impl<'a> Source<'a> {
    /// Opens `sql` in a read-only snapshot; no statement may take longer than `limit`.
    pub(super) async fn open(
        client: &'a mut Client,
        sql: &str,
        limit: Duration,
    ) -> Result<Self, SourceError> {
        let transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        // The server then gives up by itself, even if it does not notice that we have gone.
        let millis = limit.as_millis().clamp(1, 0x7FFF_FFFF);
        transaction
            .batch_execute(&format!("SET LOCAL statement_timeout = {millis}"))
            .await?;
        let sql = sql.trim().trim_end_matches(';');
        let statement = transaction.prepare(sql).await?;
        if !statement.params().is_empty() {
            return Err(SourceError::Parameters);
        }
        let columns: Vec<String> = statement
            .columns()
            .iter()
            .map(|column| column.name().to_owned())
            .collect();
        check_columns(&columns)?;
        // The line break ends a comment that the query may end with.
        let rows = format!("FROM (\n{sql}\n) AS source");
        let count = transaction
            .query_one(&format!("SELECT count(*) {rows}"), &[])
            .await?;
        let total = u64::try_from(count.try_get::<_, i64>(0)?).unwrap_or(0);
        let texts: Vec<String> = columns
            .iter()
            .map(|name| format!("\"{name}\"::text"))
            .collect();
        let wrapped = format!("SELECT {} {rows}", texts.join(", "));
        let statement = transaction.prepare(&wrapped).await?;
        let portal = transaction.bind(&statement, &[]).await?;
        Ok(Self {
            transaction,
            portal,
            columns,
            total,
        })
    }

    /// Returns the next rows; none at the end.
    pub(super) async fn next(&self) -> Result<Vec<Row>, SourceError> {
        let rows = self
            .transaction
            .query_portal(&self.portal, BATCH_ROWS)
            .await?;
        let texts = rows
            .iter()
            .map(|row| (0..row.len()).map(|at| row.try_get(at)).collect());
        Ok(texts.collect::<Result<_, _>>()?)
    }
}

fn check_columns(columns: &[String]) -> Result<(), SourceError> {
    if columns.is_empty() {
        return Err(SourceError::NoColumns);
    }
    for (at, name) in columns.iter().enumerate() {
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_plain {
            return Err(SourceError::ColumnName {
                number: at + 1,
                name: name.clone(),
            });
        }
        if columns.iter().take(at).any(|earlier| earlier == name) {
            return Err(SourceError::SameName { name: name.clone() });
        }
    }
    Ok(())
}
