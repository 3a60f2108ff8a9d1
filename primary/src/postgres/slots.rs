//! The slots of standbys: what keeps the log that one of them still needs.

use std::sync::PoisonError;

use understudy_config::NodeName;
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{PostgresError, SlotInfo, parse_segment, slot_name};

use super::look::IS_LOST;
use super::{PostgresShipper, query};

impl PostgresShipper {
    /// Returns what is known of `node`'s slot now. Where there is none it is made: a node that was promoted
    /// before it had read the name of another standby in its configuration made none for it.
    pub(super) async fn show_slot(&self, node: &NodeName) -> Result<SlotInfo, PostgresError> {
        let name = slot_name(node);
        let exists = self
            .with_client(async |client| {
                let exists =
                    "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
                let row = client
                    .query_one(exists, &[&name])
                    .await
                    .map_err(|source| query("tell whether there is a slot", source))?;
                Ok(row.get::<_, bool>(0))
            })
            .await?;
        if !exists {
            return self.make_slot(node).await;
        }
        // Asked anew: a standby that came in the second after the loss would try in vain to follow.
        let row = self
            .with_client(async |client| {
                let is_lost = format!(
                    "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND {IS_LOST})"
                );
                client
                    .query_one(&is_lost, &[&name])
                    .await
                    .map_err(|source| query("tell whether a slot is lost", source))
            })
            .await?;
        Ok(SlotInfo {
            name,
            is_lost: row.get(0),
            oldest: self.oldest().await?,
        })
    }

    /// Makes `node`'s slot, anew if it has lost what the standby would need; tells whether it had.
    pub(super) async fn make_slot(&self, node: &NodeName) -> Result<SlotInfo, PostgresError> {
        let name = slot_name(node);
        let joined = {
            let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            allowed.insert(node.clone()).then(|| allowed.clone())
        };
        if let Some(allowed) = joined {
            self.cluster.allow(&allowed)?;
            self.cluster.reload().await?;
        }
        let dropped = self
            .with_client(async |client| {
                let dropped = client
                    .execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE slot_name = $1 AND wal_status = 'lost' AND NOT active",
                        &[&name],
                    )
                    .await
                    .map_err(|source| query("drop a lost slot", source))?;
                client
                    .execute(
                        "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
                     (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
                        &[&name],
                    )
                    .await
                    .map_err(|source| query("make a slot", source))?;
                Ok(dropped)
            })
            .await?;
        Ok(SlotInfo {
            name,
            is_lost: dropped > 0,
            oldest: self.oldest().await?,
        })
    }

    /// Returns the oldest place that the log still has.
    async fn oldest(&self) -> Result<Option<Lsn>, PostgresError> {
        self.with_client(async |client| {
            let row = client
                .query_one(
                    "SELECT min('00000001' || substr(name, 9)), \
                     (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size') \
                     FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'",
                    &[],
                )
                .await
                .map_err(|source| query("tell how far back its log goes", source))?;
            let (name, bytes): (Option<String>, i64) = (row.get(0), row.get(1));
            let bytes = u64::try_from(bytes).unwrap_or(0);
            Ok(name.and_then(|name| Some(parse_segment(&name, bytes)?.1)))
        })
        .await
    }
}
