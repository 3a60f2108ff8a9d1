//! The slots of a server that changes its role.

use tokio_postgres::Client;
use understudy_replication::postgres::{Cluster, PostgresError, slot_name};

/// Makes a slot for every other node, which keeps the log that it needs to come back; how much that may be
/// is bounded as for any slot.
pub(super) async fn make(cluster: &Cluster, client: &Client) -> Result<(), PostgresError> {
    for peer in &cluster.peers {
        let name = slot_name(peer);
        client
            .execute(
                "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
                 (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
                &[&name],
            )
            .await
            .map_err(|source| PostgresError::Query {
                what: "make a slot",
                source,
            })?;
    }
    Ok(())
}

/// Drops the slots that a standby still has from when it was primary: nobody reads them, and they would
/// keep its own log.
pub(super) async fn drop_left(client: &Client) -> Result<(), PostgresError> {
    client
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_type = 'physical' AND slot_name LIKE 'understudy\\_%' AND NOT active",
            &[],
        )
        .await
        .map_err(|source| PostgresError::Query {
            what: "drop the slots that it had as a primary",
            source,
        })?;
    Ok(())
}
