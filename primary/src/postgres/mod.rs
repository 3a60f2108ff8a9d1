//! Ships a Postgres cluster: Postgres streams its own log, and this module prepares it for that,
//! keeps a bounded slot per standby, and watches.

mod backups;
mod checkpoint;
mod compare;
mod durability;
mod look;
mod reseed;
mod restart;
mod retention;
mod seen;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio_postgres::Client;
use understudy_config::{NodeName, PostgresDurability, StoreName};
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::{Lsn, Position};
use understudy_replication::postgres::reseed::Tablespace;
use understudy_replication::postgres::{
    Cluster, Configuration, Duty, History, MAINTENANCE_DATABASE, MINIMUM_SETTINGS, Minimums,
    PostgresError, SeedInfo, SlotInfo, connect, lsn, one_lsn, parse_segment, slot_name,
};
use understudy_replication::store::{
    BoxFuture, Durability, Observed, Shipper, Stop, StoreFailure, StoreId, StoreKind, StoreReport,
};
use understudy_replication::transport::Caller;

pub use restart::permit_restart;

use backups::Backups;
use durability::{Action, Waiting};
use look::{IS_LOST, Look};
use seen::Seen;

/// How often the streams are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A query of this module may take this long.
const QUERY_PATIENCE: Duration = Duration::from_secs(5);

/// Why a cluster cannot be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The data directory is a standby's.
    #[error(
        "{} is a standby's data directory (it has standby.signal); this node's role says \
         primary. Do not remove the file by hand: run `understudy promote`", data_dir.display()
    )]
    IsStandby {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The server runs in recovery.
    #[error("postgres in {} is in recovery, and this node's role says primary", data_dir.display())]
    InRecovery {
        /// The data directory.
        data_dir: PathBuf,
    },
}

/// The primary's end of the Postgres store.
pub struct PostgresShipper {
    id: StoreId,
    cluster: Cluster,
    pki: PathBuf,
    events: Events,
    client: tokio::sync::Mutex<Option<Client>>,
    seen: Mutex<Seen>,
    /// Whose certificates may stream: the configured nodes, and who has joined since.
    allowed: Mutex<BTreeSet<NodeName>>,
    /// Where the cluster ended when it was fenced.
    ended: Mutex<Option<Position>>,
    backups: Arc<Backups>,
}

impl PostgresShipper {
    /// Returns the shipper of `cluster`; `pki` is the folder of this node's certificates.
    pub fn new(name: StoreName, cluster: Cluster, pki: PathBuf, events: Events) -> Self {
        Self {
            id: StoreId {
                name,
                kind: StoreKind::Postgres,
            },
            ended: Mutex::new(None),
            allowed: Mutex::new(cluster.peers.iter().cloned().collect()),
            backups: Arc::new(Backups::new(cluster.bandwidth, events.clone())),
            cluster,
            pki,
            events,
            client: tokio::sync::Mutex::new(None),
            seen: Mutex::new(Seen::default()),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, Option<Position>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open_cluster(&self) -> Result<(), StoreFailure> {
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
        let look = Look::take(&client, cluster.ip).await?;
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

    /// Runs `work` with the kept connection, which is given up when the work fails.
    async fn with_client<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, PostgresError>,
    ) -> Result<T, PostgresError> {
        let mut kept = self.client.lock().await;
        let client = match kept.take() {
            Some(client) if !client.is_closed() => client,
            Some(_) | None => connect(&self.cluster, MAINTENANCE_DATABASE).await?,
        };
        let result = tokio::time::timeout(QUERY_PATIENCE, work(&client))
            .await
            .map_err(|_| PostgresError::Late { what: "answer" })
            .and_then(|result| result);
        if result.is_ok() {
            *kept = Some(client);
        }
        result
    }

    /// Looks at the streams and the slots once, and has commits wait or not wait accordingly.
    async fn look(&self) -> Result<(), PostgresError> {
        let look = self
            .with_client(async |client| Look::take(client, self.cluster.ip).await)
            .await?;
        let now = Instant::now();
        let action = {
            let mut seen = self.seen();
            self.tell_lost_slots(&look, &seen);
            seen.take(look, now);
            self.see_waiting(&mut seen, now)
        };
        match action {
            Some(Action::Require) => self.have_commits_wait(true).await,
            Some(Action::Release) => self.have_commits_wait(false).await,
            None => Ok(()),
        }
    }

    fn tell_lost_slots(&self, look: &Look, seen: &Seen) {
        for slot in look.slots.iter().filter(|slot| slot.is_lost) {
            if !seen
                .slots
                .iter()
                .any(|known| known.is_lost && known.name == slot.name)
            {
                self.events.record(
                    Severity::Error,
                    "must_reseed",
                    format!(
                        "slot {} has lost write-ahead log that its standby needs: run `understudy rejoin` \
                         there",
                        slot.name
                    ),
                );
            }
        }
    }

    /// Lets the machine see what the server says, and tells what it makes of that.
    fn see_waiting(&self, seen: &mut Seen, now: Instant) -> Option<Action> {
        let streams = seen.for_waiting(now, &self.waits_for());
        let waiting = seen.waiting.as_mut()?;
        let before = waiting.claim(now);
        let action = waiting.see(now, &streams);
        let after = waiting.claim(now);
        let is_same = std::mem::discriminant(&before) == std::mem::discriminant(&after);
        if !is_same {
            let (severity, kind, text) = told(before, after);
            self.events.record(severity, kind, text);
        }
        action
    }

    /// Whom commits may wait for: everybody who may stream.
    fn waits_for(&self) -> Vec<NodeName> {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.iter().cloned().collect()
    }

    async fn have_commits_wait(&self, is_required: bool) -> Result<(), PostgresError> {
        // Who has joined since the configuration was read may stream, too.
        let allowed = self.waits_for();
        let waits_for = if is_required { allowed.as_slice() } else { &[] };
        self.cluster
            .configure(&self.pki, Duty::Primary(waits_for))?;
        self.cluster.allow(&allowed)?;
        self.cluster.reload().await
    }

    async fn seed_info(&self) -> Result<SeedInfo, PostgresError> {
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
    async fn history(&self) -> Result<History, PostgresError> {
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

    /// Returns what is known of `node`'s slot now.
    async fn show_slot(&self, node: &NodeName) -> Result<SlotInfo, PostgresError> {
        let name = slot_name(node);
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
    async fn make_slot(&self, node: &NodeName) -> Result<SlotInfo, PostgresError> {
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

/// Returns the event of a change of what is claimed of commits.
fn told(before: Durability, after: Durability) -> (Severity, &'static str, String) {
    match (before, after) {
        (_, Durability::Overridden) => (
            Severity::Warning,
            "postgres_sync_overridden",
            "some sessions do not wait for a standby: somebody has set synchronous_commit for them"
                .to_owned(),
        ),
        (_, Durability::Held) => (
            Severity::Info,
            "postgres_sync_held",
            "commits wait for a standby again, and one is there".to_owned(),
        ),
        (Durability::Alone, Durability::Waiting { .. }) => (
            Severity::Info,
            "postgres_sync_required",
            "a standby has caught up: commits are told to wait for it".to_owned(),
        ),
        (_, Durability::Waiting { .. }) => (
            Severity::Warning,
            "postgres_sync_waiting",
            "no standby answers, and commits wait for one".to_owned(),
        ),
        (_, Durability::Alone) => (
            Severity::Error,
            "postgres_sync_alone",
            "no standby has answered for as long as `degrade_after` allows: commits wait for none, and \
             what is written from now on is on this node only"
                .to_owned(),
        ),
    }
}

fn query(what: &'static str, source: tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, source }
}

impl Shipper for PostgresShipper {
    fn id(&self) -> &StoreId {
        &self.id
    }

    fn open(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(self.open_cluster())
    }

    fn run(self: Arc<Self>, stop: Stop) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let mut tick = tokio::time::interval(WATCH_INTERVAL);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = stop.wait() => return Ok(()),
                }
                if let Err(error) = self.look().await {
                    if self.ended().is_some() {
                        // Fenced: it does not answer because it was stopped.
                        *self.seen() = Seen::default();
                        return Ok(());
                    }
                    let reason = format!("postgres does not answer: {error}");
                    let action = self.seen().hears_nothing(reason, Instant::now());
                    if action == Some(Action::Release) {
                        let (severity, kind, text) =
                            told(Durability::Waiting { seconds: 0 }, Durability::Alone);
                        self.events.record(severity, kind, text);
                        // Neither the settings' file nor the signal needs a connection.
                        if let Err(error) = self.have_commits_wait(false).await {
                            tracing::warn!(%error, "cannot let commits go on");
                        }
                    }
                    if !self.cluster.is_running() {
                        // The runtime opens the store again, which starts the server.
                        return Err(Box::new(error) as StoreFailure);
                    }
                }
            }
        })
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        // The shutdown's own checkpoint has little left to write then.
        Box::pin(async move { Ok(self.write_checkpoint().await?) })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            *self.client.lock().await = None;
            self.backups.end_all();
            // In peace: the server sends its shutdown checkpoint to the standbys, so that nothing
            // committed is left behind while the link is up.
            self.cluster.stop().await?;
            let end = self.cluster.control_data().await?.end();
            *self.ended() = end;
            Ok(())
        })
    }

    fn mark(&self) -> BoxFuture<'_, Option<Position>> {
        Box::pin(async move {
            let ended = *self.ended();
            if ended.is_some() {
                return ended;
            }
            let flushed = self
                .with_client(async |client| {
                    one_lsn(client, "SELECT pg_current_wal_flush_lsn()::text").await
                })
                .await;
            flushed.ok().flatten().map(Position::from)
        })
    }

    fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/seed-info", get(seed_info))
            .route("/configuration", get(configuration))
            .route("/history", get(history))
            .route("/checkpoint", post(checkpoint::write))
            .route("/slot", post(make_slot).get(show_slot))
            .merge(reseed::routes())
            .with_state(self)
    }

    fn report(&self) -> StoreReport {
        self.seen().report(Instant::now())
    }

    fn observed(&self, standby: &NodeName) -> Observed {
        self.seen().observed(standby, Instant::now())
    }
}

fn failed(error: &PostgresError) -> Response {
    let reason = understudy_replication::error_chain(error);
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

async fn seed_info(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    match shipper.seed_info().await {
        Ok(info) => Json(info).into_response(),
        Err(error) => failed(&error),
    }
}

/// Sends the folder of the configuration, for a standby that has none.
async fn configuration(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    if !shipper.cluster.is_split() {
        let reason = "the configuration is in the data directory, and comes with a base backup";
        return (StatusCode::CONFLICT, reason).into_response();
    }
    match Configuration::read(&shipper.cluster.config_dir) {
        Ok(configuration) => Json(configuration).into_response(),
        Err(error) => {
            let reason = understudy_replication::error_chain(&error);
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
    }
}

async fn history(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    match shipper.history().await {
        Ok(history) => Json(history).into_response(),
        Err(error) => failed(&error),
    }
}

async fn make_slot(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match shipper.make_slot(&caller.node).await {
        Ok(slot) => Json(slot).into_response(),
        Err(error) => failed(&error),
    }
}

async fn show_slot(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match shipper.show_slot(&caller.node).await {
        Ok(slot) => Json(slot).into_response(),
        Err(error) => failed(&error),
    }
}
