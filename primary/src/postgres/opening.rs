//! Makes the server of a primary run with our settings, and looks at it for the first time.

use std::time::Instant;

use understudy_config::PostgresDurability;
use understudy_replication::event::Severity;
use understudy_replication::postgres::{Duty, MAINTENANCE_DATABASE, connect};
use understudy_replication::store::StoreFailure;

use super::durability::Waiting;
use super::look::Look;
use super::seen::Seen;
use super::{PostgresShipper, ShipError, query, restart};

impl PostgresShipper {
    pub(super) async fn open_cluster(&self) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        *self.ended() = None;
        cluster.check_exists()?;
        if cluster.is_standby() {
            return Err(Box::new(ShipError::IsStandby {
                data_dir: cluster.data_dir.clone(),
            }));
        }
        // Before our settings are written: they depend on it.
        cluster.control_data().await?;
        let was_running = cluster.is_running();
        cluster.vouch()?;
        // As it was left: commits that wait go on waiting until the machine has seen enough.
        let waits =
            matches!(cluster.durability, PostgresDurability::Sync { .. }) && cluster.waits();
        let waits_for = if waits { self.waits_for() } else { Vec::new() };
        cluster.configure(&self.pki, Duty::Primary(&waits_for))?;
        // Who has joined since the configuration was read streams on after a crash of the server.
        cluster.allow(&self.waits_for())?;
        if was_running {
            cluster.reload().await?;
        } else {
            cluster.start().await?;
            self.events.record(
                Severity::Info,
                "postgres_started",
                format!("postgres in {} started", cluster.data_dir.display()),
            );
        }
        if was_running {
            restart::if_permitted(cluster, &self.events).await?;
        } else {
            restart::forget_permission(cluster)?;
        }
        cluster.create_roles().await?;
        let client = connect(cluster, MAINTENANCE_DATABASE).await?;
        let row = client
            .query_one("SELECT pg_is_in_recovery()", &[])
            .await
            .map_err(|source| query("tell whether it is in recovery", source))?;
        if row.get::<_, bool>(0) {
            return Err(Box::new(ShipError::InRecovery {
                data_dir: cluster.data_dir.clone(),
            }));
        }
        let look = Look::take(&client, cluster).await?;
        if !look.needs_restart.is_empty() {
            self.events.record(
                Severity::Warning,
                "postgres_needs_restart",
                format!(
                    "postgres must be restarted for: {}; it is not restarted under its \
                     application, do so when it suits",
                    restart::told(&look.needs_restart)
                ),
            );
        }
        let now = Instant::now();
        let mut seen = Seen::default();
        seen.waiting = match cluster.durability {
            PostgresDurability::Async => None,
            PostgresDurability::Sync { degrade_after } => {
                Some(Waiting::new(degrade_after, waits, now))
            }
        };
        seen.take(look, now);
        *self.seen() = seen;
        *self.client.lock().await = Some(client);
        Ok(())
    }
}
