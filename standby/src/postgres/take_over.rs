//! Makes the standby's server a primary.

use std::time::Duration;

use tokio_postgres::Client;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::postgres::{
    Cluster, Duty, MAINTENANCE_DATABASE, PostgresError, connect,
};
use understudy_replication::store::{Progress, StoreFailure, Unit};

use super::receiver::{PostgresReceiver, ReceiveError};
use super::slots;

/// How long a promotion of the server may take: replay of all that was received comes first.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(3600);

/// How often a server that is promoted is asked whether it is a primary by now.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(1);

impl PostgresReceiver {
    /// Makes the server a primary. It takes writes from somewhere in the middle of this on.
    pub(super) async fn take_over_cluster(
        &self,
        epoch: &Epoch,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        if !cluster.data_dir.join("PG_VERSION").exists() || self.is_seeding() {
            return Err(Box::new(ReceiveError::NotSeeded {
                data_dir: cluster.data_dir.clone(),
            }));
        }
        progress.start("promote postgres", None, Unit::Items);
        // The settings of a primary are there before it is one: from its first moment as such on it waits
        // for nobody, and a start that nobody vouches for fails. A server that runs reads them later.
        if !cluster.is_running() {
            // With less than its log was written with it would not start.
            cluster.control_data().await?;
        }
        cluster.configure(&self.pki, Duty::Primary(&[]))?;
        cluster.vouch()?;
        cluster.start().await?;
        let client = match self.kept_client().await {
            Some(client) => client,
            None => connect(cluster, MAINTENANCE_DATABASE).await?,
        };
        let was_in_recovery = is_in_recovery(&client).await?;
        if was_in_recovery {
            // Noted before it exists: a crash must not leave a timeline of which nobody knows who opened it.
            note_origin(cluster, cluster.next_timeline(), epoch)?;
            cluster.promote().await?;
        }
        let limit = PROMOTE_PATIENCE;
        let left_recovery = async {
            while is_in_recovery(&client).await? {
                tokio::time::sleep(PROMOTE_INTERVAL).await;
            }
            Ok::<_, PostgresError>(())
        };
        tokio::time::timeout(limit, left_recovery)
            .await
            .map_err(|_| ReceiveError::StillInRecovery {
                data_dir: cluster.data_dir.clone(),
                limit,
            })??;
        if was_in_recovery {
            // Where that number was taken already, it is a higher one.
            note_origin(cluster, primary_timeline(&client).await?, epoch)?;
        }
        cluster.reload().await?;
        // Before a checkpoint lets go of the log around the fork, which they need to come back.
        slots::make(cluster, &client).await;
        checkpoint_beside(client);
        progress.end("postgres is primary");
        Ok(())
    }
}

async fn is_in_recovery(client: &Client) -> Result<bool, PostgresError> {
    let row = client
        .query_one("SELECT pg_is_in_recovery()", &[])
        .await
        .map_err(|source| PostgresError::Query {
            what: "tell whether it is in recovery",
            source,
        })?;
    Ok(row.get(0))
}

/// Notes that `epoch` opens `timeline`.
fn note_origin(cluster: &Cluster, timeline: u32, epoch: &Epoch) -> Result<(), PostgresError> {
    let mut origins = cluster.origins()?;
    origins.insert(timeline, epoch.clone());
    cluster.set_origins(&origins)
}

/// Returns the timeline that a primary's server writes on.
async fn primary_timeline(client: &Client) -> Result<u32, PostgresError> {
    let row = client
        .query_one(
            "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)",
            &[],
        )
        .await
        .map_err(|source| PostgresError::Query {
            what: "tell its timeline",
            source,
        })?;
    let text: String = row.get(0);
    u32::from_str_radix(&text, 16).map_err(|_| PostgresError::Timeline { text })
}

/// Writes a checkpoint while the promotion goes on. Until then the control file shows the old timeline,
/// and a `pg_rewind` of the old primary would find nothing to do; who rewinds asks for one as well.
fn checkpoint_beside(client: Client) {
    tokio::spawn(async move {
        if let Err(error) = client.batch_execute("CHECKPOINT").await {
            tracing::warn!(
                error = error_chain(&error),
                "no checkpoint after the promotion"
            );
        }
    });
}
