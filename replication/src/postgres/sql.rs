//! A connection to the local cluster.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use super::ROLE;
use super::cluster::Cluster;
use super::error::PostgresError;
use crate::position::Lsn;

/// Connecting may take this long, the server's greeting included: one that hangs takes the connection,
/// and says nothing.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// The database that every cluster has, for what concerns the cluster as a whole.
pub const MAINTENANCE_DATABASE: &str = "postgres";

/// Opens a connection to `database` over the Unix socket.
///
/// # Errors
/// When Postgres does not answer, or refuses.
pub async fn connect(cluster: &Cluster, database: &str) -> Result<Client, PostgresError> {
    let mut config = Config::new();
    config
        .host_path(&cluster.socket_dir)
        .port(cluster.port)
        .user(ROLE)
        .dbname(database)
        .application_name("understudy");
    let (client, connection) = tokio::time::timeout(CONNECT_PATIENCE, config.connect(NoTls))
        .await
        .map_err(|_| PostgresError::Late {
            what: "take a connection",
        })?
        .map_err(|source| PostgresError::Connect {
            socket_dir: cluster.socket_dir.clone(),
            port: cluster.port,
            source,
        })?;
    // Ends when the client is dropped, or Postgres closes it.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the local postgres ended");
        }
    });
    Ok(client)
}

/// Returns column `column` of `row` as an LSN; the column is text.
///
/// # Errors
/// When it is neither null nor an LSN.
pub fn lsn(row: &tokio_postgres::Row, column: usize) -> Result<Option<Lsn>, PostgresError> {
    let text: Option<String> = row.try_get(column).map_err(|source| PostgresError::Query {
        what: "read an LSN",
        source,
    })?;
    text.map(|text| text.parse())
        .transpose()
        .map_err(|source| PostgresError::Lsn { source })
}

/// Runs `query`, which returns one LSN as text, within a second.
///
/// # Errors
/// When the query fails, or takes longer.
pub async fn one_lsn(client: &Client, query: &str) -> Result<Option<Lsn>, PostgresError> {
    let row = tokio::time::timeout(Duration::from_secs(1), client.query_one(query, &[]))
        .await
        .map_err(|_| PostgresError::Late {
            what: "tell its position",
        })?
        .map_err(|source| PostgresError::Query {
            what: "tell its position",
            source,
        })?;
    lsn(&row, 0)
}
