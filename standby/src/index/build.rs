//! Building an index from rows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::Client;
use understudy_replication::command::CommandError;
use understudy_replication::store::StoreFailure;

use super::engine::{Build, EngineError, Searchable};
use super::shelf::{Record, Shelf, ShelfError};
use super::source::{Row, Source, SourceError};

/// How many batches of rows wait for the engine.
const BATCHES_WAITING_MAX: usize = 2;

/// Why an index was not rebuilt; the one before it, if any, is searched on.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The configuration has no such index.
    #[error("there is no index `{name}`")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// Somebody rebuilds it already.
    #[error("index {name} is being rebuilt already")]
    AlreadyRunning {
        /// The index.
        name: String,
    },
    /// It took too long.
    #[error("the rebuild of index {name} took longer than {} s", limit.as_secs())]
    TimedOut {
        /// The index.
        name: String,
        /// How long it may take.
        limit: Duration,
    },
    /// The database cannot be reached.
    #[error("cannot connect to the database")]
    Connect {
        /// Why not.
        source: StoreFailure,
    },
    /// Its rows cannot be read.
    #[error("cannot read the rows")]
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
    Broken {
        /// How.
        #[from]
        source: tokio::task::JoinError,
    },
    /// The rows ended before the engine was told that they are complete.
    #[error("the build was given up")]
    GivenUp,
}

/// What the reader of rows tells the engine.
enum Message {
    Rows(Vec<Row>),
    /// That was the last one. Without it, the channel's end means that reading has failed.
    Complete,
}

/// What a build has made.
pub(super) struct Built {
    pub(super) searchable: Arc<Searchable>,
    pub(super) record: Record,
}

/// Reads every row of `sql` and builds an index of them, which is then current. `tell` is called
/// with how many rows are read, and how many there are.
///
/// Dropping the future gives the build up; what it left is removed by the next.
pub(super) async fn build(
    client: &mut Client,
    sql: &str,
    limit: Duration,
    shelf: Shelf,
    tell: impl Fn(u64, u64),
) -> Result<Built, RebuildError> {
    let source = Source::open(client, sql, limit).await?;
    tell(0, source.total);
    let (sender, receiver) = mpsc::channel(BATCHES_WAITING_MAX);
    let (columns, text) = (source.columns.clone(), sql.to_owned());
    let writing = tokio::task::spawn_blocking(move || write(&shelf, &columns, &text, receiver));
    let mut read = 0_u64;
    loop {
        let rows = source.next().await?;
        let message = if rows.is_empty() {
            Message::Complete
        } else {
            Message::Rows(rows)
        };
        let is_complete = matches!(message, Message::Complete);
        if let Message::Rows(rows) = &message {
            read = read.saturating_add(u64::try_from(rows.len()).unwrap_or(u64::MAX));
        }
        // An error means that the engine has failed, and its result says why.
        if sender.send(message).await.is_err() || is_complete {
            break;
        }
        tell(read, source.total);
    }
    drop(sender);
    writing.await?
}

/// The engine's side; blocks.
fn write(
    shelf: &Shelf,
    columns: &[String],
    sql: &str,
    mut messages: mpsc::Receiver<Message>,
) -> Result<Built, RebuildError> {
    let path = shelf.begin()?;
    let build = Build::begin(&path, columns)?;
    let mut documents = 0_u64;
    loop {
        match messages.blocking_recv() {
            Some(Message::Rows(rows)) => {
                documents = documents.saturating_add(u64::try_from(rows.len()).unwrap_or(u64::MAX));
                build.add(rows)?;
            }
            Some(Message::Complete) => break,
            None => return Err(RebuildError::GivenUp),
        }
    }
    build.finish()?;
    // It must be readable before it takes the place of one that is.
    let searchable = Arc::new(Searchable::open(&path)?);
    let record = Record::now(documents, sql);
    shelf.publish(&path, &record)?;
    Ok(Built { searchable, record })
}
