//! The slots of a server that changes its role.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use understudy_replication::error_chain;
use understudy_replication::postgres::{Cluster, slot_name};

/// Makes a slot for every other node, which keeps the log that it needs to come back; how much that may be
/// is bounded as for any slot. One that is lost already is made anew. The server takes writes by now: that a
/// slot cannot be made is told, and stops nothing.
pub(super) async fn make(cluster: &Cluster, client: &Client) {
    for peer in &cluster.peers {
        let name = slot_name(peer);
        let parameters: [&(dyn ToSql + Sync); 1] = [&name];
        let dropped = client.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = $1 AND NOT active AND wal_status = 'lost'",
            &parameters,
        );
        tell(dropped.await);
        let made = client.execute(
            "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
             (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
            &parameters,
        );
        tell(made.await);
    }
}

/// Drops the slots that a standby still has from when it was primary: nobody reads them, and they would
/// keep its own log. That one cannot be dropped is told, and stops nothing.
pub(super) async fn drop_left(client: &Client) {
    let dropped = client.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_type = 'physical' AND slot_name LIKE 'understudy\\_%' AND NOT active",
        &[],
    );
    tell(dropped.await);
}

fn tell(result: Result<u64, tokio_postgres::Error>) {
    if let Err(error) = result {
        tracing::warn!(
            error = error_chain(&error),
            "cannot change a replication slot"
        );
    }
}
