//! Checkpoints that others wait for: a switchover, whose own is short then, and a `pg_rewind`, which takes
//! the timeline of the primary from its control file, where only a checkpoint writes it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use understudy_replication::postgres::{MAINTENANCE_DATABASE, PostgresError, connect};

use super::routes::failed;
use super::{PostgresShipper, query};

/// A checkpoint may take this long: all of the shared buffers may have to be written.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);

impl PostgresShipper {
    /// Writes a checkpoint, on a connection of its own: the kept one has to answer meanwhile.
    pub(super) async fn write_checkpoint(&self) -> Result<(), PostgresError> {
        let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
        let written = client.batch_execute("CHECKPOINT");
        tokio::time::timeout(CHECKPOINT_PATIENCE, written)
            .await
            .map_err(|_| PostgresError::Late {
                what: "write a checkpoint",
            })?
            .map_err(|source| query("write a checkpoint", source))
    }
}

/// Writes a checkpoint for a node that is about to rewind.
pub(super) async fn write(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    match shipper.write_checkpoint().await {
        Ok(()) => Json(()).into_response(),
        Err(error) => failed(&error),
    }
}
