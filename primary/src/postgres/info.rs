//! What a standby must know of the primary's cluster before it is seeded or follows.

use std::path::PathBuf;

use understudy_replication::postgres::reseed::Tablespace;
use understudy_replication::postgres::{
    History, MINIMUM_SETTINGS, Minimums, PostgresError, SeedInfo, lsn,
};

use super::{PostgresShipper, query};

impl PostgresShipper {
    /// Returns what a standby needs to be seeded.
    pub(super) async fn seed_info(&self) -> Result<SeedInfo, PostgresError> {
        self.with_client(async |client| {
            let row = client
                .query_one(
                    "SELECT (SELECT system_identifier::text FROM pg_control_system()), \
                     current_setting('server_version_num')::int / 10000, \
                     (SELECT sum(pg_database_size(oid))::int8 FROM pg_database), \
                     (SELECT json_object_agg(name, setting::int8) FROM pg_settings \
                      WHERE name = ANY ($1))::text, \
                     (SELECT catalog_version_no FROM pg_control_system())",
                    &[&MINIMUM_SETTINGS.as_slice()],
                )
                .await
                .map_err(|source| query("tell what a standby must know", source))?;
            let identifier: String = row.get(0);
            let tablespaces = client
                .query(
                    "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace \
                     WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY 1",
                    &[],
                )
                .await
                .map_err(|source| query("tell its tablespaces", source))?;
            let tablespace = |row: &tokio_postgres::Row| {
                let path = PathBuf::from(row.get::<_, String>(1));
                Tablespace {
                    oid: row.get(0),
                    location: self.cluster.in_configuration(&path),
                    path,
                }
            };
            let minimums =
                Minimums::parse(row.get(3)).map_err(|source| PostgresError::Settings { source })?;
            Ok(SeedInfo {
                minimums,
                config_dir: self
                    .cluster
                    .is_split()
                    .then(|| self.cluster.config_dir.clone()),
                system_identifier: identifier.parse().unwrap_or(0),
                version: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
                bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
                catalog_version: u32::try_from(row.get::<_, i32>(4)).unwrap_or(0),
                tablespaces: tablespaces.iter().map(tablespace).collect(),
            })
        })
        .await
    }

    /// Returns the history of the server's log, for a standby to tell whether it can follow.
    pub(super) async fn history(&self) -> Result<History, PostgresError> {
        let (identifier, timeline, end) = self
            .with_client(async |client| {
                let row = client
                    .query_one(
                        "SELECT (SELECT system_identifier::text FROM pg_control_system()), \
                         substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8), \
                         pg_current_wal_flush_lsn()::text",
                        &[],
                    )
                    .await
                    .map_err(|source| query("tell its timeline", source))?;
                let identifier: String = row.get(0);
                let timeline: String = row.get(1);
                Ok((identifier, timeline, lsn(&row, 2)?))
            })
            .await?;
        let Ok(timeline) = u32::from_str_radix(&timeline, 16) else {
            return Err(PostgresError::Timeline { text: timeline });
        };
        Ok(History {
            system_identifier: identifier.parse().unwrap_or(0),
            ended: self.cluster.ended_timelines(timeline)?,
            timeline,
            end: end.unwrap_or_default(),
            origins: self.cluster.origins()?,
        })
    }
}
