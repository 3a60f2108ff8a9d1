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
        cluster.configure(&self.pki, Duty::Primary(&[]))?;
        cluster.vouch()?;
        cluster.start().await?;
        let client = match self.kept_client().await {
            Some(client) => client,
            None => connect(cluster, MAINTENANCE_DATABASE).await?,
        };
        if is_in_recovery(&client).await? {
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
        note_origin(cluster, &client, epoch).await?;
        cluster.reload().await?;
        // Before a checkpoint lets go of the log around the fork, which they need to come back.
        slots::make(cluster, &client).await?;
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

/// Notes that `epoch` has opened the server's present timeline. Before anybody can follow on it: the role
/// is primary only after the take-over, which is repeated when a crash cuts it short.
async fn note_origin(
    cluster: &Cluster,
    client: &Client,
    epoch: &Epoch,
) -> Result<(), PostgresError> {
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
    let Ok(timeline) = u32::from_str_radix(&text, 16) else {
        return Err(PostgresError::Timeline { text });
    };
    let mut origins = cluster.origins()?;
    // A primary that is promoted once more, by force, goes on on the timeline that it is on.
    origins.entry(timeline).or_insert_with(|| epoch.clone());
    cluster.set_origins(&origins)
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
