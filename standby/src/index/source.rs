//! Reading the rows that an index is made of.
//!
//! The operator's query is wrapped, never changed: `SELECT … FROM (query) AS source WHERE …`. Every reading
//! is a read-only transaction of one snapshot, through a portal, so that memory is bounded.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, IsolationLevel, Portal, Transaction};
use understudy_config::Rows;
use understudy_replication::position::Lsn;
use understudy_replication::postgres::History;
use understudy_replication::store::{BoxFuture, StoreFailure};

use super::row::Row;
use super::standing::Stamp;

/// How many rows are read at once.
const BATCH_ROWS: i32 = 500;

/// How many keys with their watermarks are read at once.
pub(super) const BATCH_MARKS: i32 = 5000;

/// How long a short question may take.
const QUESTION_PATIENCE: Duration = Duration::from_secs(20);

/// How long the longest key is, in bytes: the engines have limits of their own above it.
const KEY_BYTES_MAX: usize = 500;

/// Connects to this node's Postgres: to the database of that name, or to the configured one.
pub type Connect =
    Arc<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Client, StoreFailure>> + Send + Sync>;

/// Tells the timelines of this node's Postgres: the present one, those before it, and who opened them. The
/// system identifier and the end are not looked at.
pub type Ancestry = Arc<dyn Fn() -> Result<History, StoreFailure> + Send + Sync>;

/// This node's Postgres.
#[derive(Clone)]
pub struct Database {
    /// How it is reached.
    pub connect: Connect,
    /// Where it comes from.
    pub ancestry: Ancestry,
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
            Self::Connect { .. } | Self::Ancestry { .. } | Self::Late { .. } => true,
            Self::Query { source } => {
                source.is_closed() || source.code().is_none_or(|code| PASSING.contains(code))
            }
            Self::Parameters
            | Self::NoColumns
            | Self::ColumnName { .. }
            | Self::SameName { .. }
            | Self::NoColumn { .. }
            | Self::ColumnType { .. }
            | Self::LongKey { .. } => false,
        }
    }
}

/// Waits no longer than until `deadline`.
async fn by<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SourceError> {
    let limit = deadline.saturating_duration_since(Instant::now());
    match tokio::time::timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SourceError::Late { limit }),
    }
}

/// What the rows are, as the database tells it.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The columns of a document.
    pub(super) columns: Vec<String>,
    query: String,
    /// How the key's type is written.
    key_type: String,
    watermark: Option<Watermark>,
    deleted: Option<String>,
}

#[derive(Clone, Debug)]
struct Watermark {
    column: String,
    /// How its type is written.
    sql_type: String,
    is_time: bool,
}

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

/// The texts of values are kept and compared, so they must not depend on how a server is set up.
const SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; \
     SET timezone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; \
     SET lc_monetary = 'C'; SET lock_timeout = '30s'";

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
        let shape = by_shape(deadline, &client, rows).await?;
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

async fn by_shape(deadline: Instant, client: &Client, rows: &Rows) -> Result<Shape, SourceError> {
    let query = rows.query.trim().trim_end_matches(';').to_owned();
    // Nothing that it says is carried out.
    let statement = by(deadline, client.prepare(&query)).await?;
    if !statement.params().is_empty() {
        return Err(SourceError::Parameters);
    }
    let types: Vec<(String, Type)> = statement
        .columns()
        .iter()
        .map(|column| (column.name().to_owned(), column.type_().clone()))
        .collect();
    let names: Vec<String> = types.iter().map(|(name, _)| name.clone()).collect();
    check_columns(&names)?;
    let find = |name: &str, key: &'static str| {
        let found = types.iter().find(|(column, _)| column == name);
        found
            .map(|(_, of_type)| of_type)
            .ok_or_else(|| SourceError::NoColumn {
                name: name.to_owned(),
                key,
            })
    };
    let written = async |of_type: &Type| -> Result<String, SourceError> {
        let sql = "SELECT format_type($1, NULL)";
        Ok(by(deadline, client.query_one(sql, &[&of_type.oid()]))
            .await?
            .try_get(0)?)
    };
    let key_type = match types.first() {
        Some((_, of_type)) => written(of_type).await?,
        None => return Err(SourceError::NoColumns),
    };
    let mut watermark = None;
    let mut deleted = None;
    if let Some(warm) = &rows.warm {
        let name = warm.watermark.clone();
        let of_type = find(&name, "watermark")?;
        let base = match of_type.kind() {
            Kind::Domain(base) => base,
            _ => of_type,
        };
        let is_time = *base == Type::TIMESTAMP || *base == Type::TIMESTAMPTZ;
        let is_number = [Type::INT2, Type::INT4, Type::INT8].contains(base);
        let sql_type = written(of_type).await?;
        if !is_time && !is_number {
            return Err(SourceError::ColumnType {
                name,
                key: "watermark",
                found: sql_type,
                // A date is the same all day, however much changes.
                expected: "a timestamp or an integer",
            });
        }
        watermark = Some(Watermark {
            column: name,
            sql_type,
            is_time,
        });
        if let Some(name) = &warm.deleted {
            let of_type = find(name, "deleted")?;
            if *of_type != Type::BOOL {
                return Err(SourceError::ColumnType {
                    name: name.clone(),
                    key: "deleted",
                    found: written(of_type).await?,
                    expected: "boolean",
                });
            }
            deleted = Some(name.clone());
        }
    }
    Ok(Shape {
        columns: names
            .into_iter()
            .filter(|name| Some(name) != deleted.as_ref())
            .collect(),
        query,
        key_type,
        watermark,
        deleted,
    })
}

impl Shape {
    fn key(&self) -> &str {
        self.columns.first().map_or("", String::as_str)
    }

    /// Returns `FROM …`; the line break ends a comment that the query may end with.
    fn from(&self) -> String {
        format!("FROM (\n{}\n) AS source", self.query)
    }

    /// Returns `SELECT …` of all that a [`Row`] holds.
    fn rows(&self) -> String {
        let texts: Vec<String> = self
            .columns
            .iter()
            .map(|name| format!("\"{name}\"::text"))
            .collect();
        let (mark, is_believed, version) = match &self.watermark {
            None => (
                "NULL::text".to_owned(),
                "true".to_owned(),
                "NULL::bigint".to_owned(),
            ),
            Some(Watermark {
                column,
                is_time: true,
                ..
            }) => (
                format!("\"{column}\"::text"),
                format!("coalesce(\"{column}\" <= {HORIZON}, false)"),
                format!("(extract(epoch FROM \"{column}\") * 1000000)::bigint"),
            ),
            Some(Watermark {
                column,
                is_time: false,
                ..
            }) => (
                format!("\"{column}\"::text"),
                format!("\"{column}\" IS NOT NULL"),
                format!("\"{column}\"::bigint"),
            ),
        };
        let deleted = match &self.deleted {
            None => "false".to_owned(),
            Some(name) => format!("coalesce(\"{name}\", false)"),
        };
        format!(
            "SELECT {}, {mark}, {is_believed}, {deleted}, {version} {}",
            texts.join(", "),
            self.from()
        )
    }

    /// Returns what has to be true of rows that an index holds.
    fn is_kept(&self) -> String {
        let deleted = match &self.deleted {
            None => String::new(),
            Some(name) => format!(" AND \"{name}\" IS NOT TRUE"),
        };
        format!("\"{}\" IS NOT NULL{deleted}", self.key())
    }

    /// Returns the key as the engines order it, byte by byte.
    fn key_bytes(&self) -> String {
        format!("convert_to(\"{}\"::text, 'UTF8')", self.key())
    }
}

/// A watermark beyond this is somebody's mistake: believed, it would hide every change until then. A day,
/// because a timestamp without time zone may be of any.
const HORIZON: &str = "(clock_timestamp() + interval '1 day')";

/// One snapshot of the database.
pub(super) struct Reading<'a> {
    // A portal lives as long as its transaction.
    transaction: Transaction<'a>,
    shape: &'a Shape,
    deadline: Instant,
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

    /// Returns the rows of some keys.
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

fn check_columns(columns: &[String]) -> Result<(), SourceError> {
    if columns.is_empty() {
        return Err(SourceError::NoColumns);
    }
    for (at, name) in columns.iter().enumerate() {
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_plain {
            return Err(SourceError::ColumnName {
                number: at.saturating_add(1),
                name: name.clone(),
            });
        }
        if columns.iter().take(at).any(|earlier| earlier == name) {
            return Err(SourceError::SameName { name: name.clone() });
        }
    }
    Ok(())
}
