//! Ships a Postgres cluster: Postgres streams its own log, and this module prepares it for that,
//! keeps a bounded slot per standby, and watches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio_postgres::Client;
use understudy_config::{NodeName, StoreName};
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Position;
use understudy_replication::postgres::{
    Cluster, MAINTENANCE_DATABASE, PostgresError, SeedInfo, SlotInfo, connect, lsn, one_lsn,
    slot_name,
};
use understudy_replication::store::{
    BoxFuture, Observed, Shipper, Stop, StoreFailure, StoreId, StoreKind, StoreReport,
};
use understudy_replication::transport::Caller;

/// How often the streams are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A query of this module may take this long.
const QUERY_PATIENCE: Duration = Duration::from_secs(5);

/// Asks which settings wait for a restart of the server.
const PENDING_RESTART: &str = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1";

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
}

/// What the last look at the streams has shown.
#[derive(Debug, Default)]
struct Seen {
    streams: BTreeMap<String, Observed>,
    lost_slots: Vec<String>,
    retained_bytes: u64,
    needs_restart: Vec<String>,
    problem: Option<String>,
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
        let was_running = cluster.is_running();
        cluster.configure(&self.pki, None)?;
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
        let rows = client
            .query(PENDING_RESTART, &[])
            .await
            .map_err(|source| query("tell which settings wait for a restart", source))?;
        let needs_restart: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if !needs_restart.is_empty() {
            self.events.record(
                Severity::Warning,
                "postgres_needs_restart",
                format!(
                    "postgres must be restarted for: {}; it is not restarted under its \
                     application, do so when it suits",
                    needs_restart.join(", ")
                ),
            );
        }
        self.seen().needs_restart = needs_restart;
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

    /// Looks at the streams and the slots once.
    async fn look(&self) -> Result<(), PostgresError> {
        let (streams, slots, pending) = self
            .with_client(async |client| {
                let streams = client
                    .query(
                        "SELECT application_name, state, sent_lsn::text, flush_lsn::text, \
                         replay_lsn::text FROM pg_stat_replication",
                        &[],
                    )
                    .await
                    .map_err(|source| query("tell its streams", source))?;
                let slots = client
                    .query(
                        "SELECT slot_name::text, coalesce(wal_status, 'lost') = 'lost', \
                         coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8 \
                         FROM pg_replication_slots WHERE slot_name LIKE 'understudy\\_%'",
                        &[],
                    )
                    .await
                    .map_err(|source| query("tell its slots", source))?;
                let pending = client
                    .query(PENDING_RESTART, &[])
                    .await
                    .map_err(|source| query("tell what waits for a restart", source))?;
                Ok((streams, slots, pending))
            })
            .await?;
        let mut found = BTreeMap::new();
        for row in &streams {
            let state: Option<String> = row.get(1);
            let position = |column| {
                Ok(Position::from(
                    lsn(row, column)?.unwrap_or(understudy_replication::position::Lsn(0)),
                ))
            };
            let stream = match state.as_deref() {
                Some("streaming" | "catchup") => Observed::Streaming {
                    sent: position(2)?,
                    flushed: position(3)?,
                    applied: position(4)?,
                },
                other => Observed::NotStreaming {
                    reason: format!("its stream is in state {}", other.unwrap_or("unknown")),
                    must_reseed: false,
                },
            };
            found.insert(row.get::<_, String>(0), stream);
        }
        let lost: Vec<String> = slots
            .iter()
            .filter(|row| row.get::<_, bool>(1))
            .map(|row| row.get(0))
            .collect();
        let retained = slots
            .iter()
            .map(|row| row.get::<_, i64>(2))
            .max()
            .unwrap_or(0);
        let mut seen = self.seen();
        for slot in lost.iter().filter(|slot| !seen.lost_slots.contains(slot)) {
            self.events.record(
                Severity::Error,
                "must_reseed",
                format!(
                    "slot {slot} has lost write-ahead log that its standby needs: the standby \
                     must be seeded anew with `understudy join`"
                ),
            );
        }
        seen.streams = found;
        seen.needs_restart = pending.iter().map(|row| row.get(0)).collect();
        seen.lost_slots = lost;
        seen.retained_bytes = u64::try_from(retained).unwrap_or(0);
        seen.problem = None;
        Ok(())
    }

    async fn seed_info(&self) -> Result<SeedInfo, PostgresError> {
        self.with_client(async |client| {
            let row = client
                .query_one(
                    "SELECT (SELECT system_identifier::text FROM pg_control_system()), \
                     current_setting('server_version_num')::int / 10000, \
                     (SELECT sum(pg_database_size(oid))::int8 FROM pg_database)",
                    &[],
                )
                .await
                .map_err(|source| query("tell what a standby must know", source))?;
            let identifier: String = row.get(0);
            Ok(SeedInfo {
                system_identifier: identifier.parse().unwrap_or(0),
                version: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
                bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            })
        })
        .await
    }

    /// Makes `node`'s slot, anew if it has lost what the standby would need.
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
        self.with_client(async |client| {
            client
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
            Ok(())
        })
        .await?;
        Ok(SlotInfo {
            name,
            is_lost: false,
        })
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
                    let mut seen = self.seen();
                    seen.streams.clear();
                    seen.problem = Some(format!("postgres does not answer: {error}"));
                    drop(seen);
                    if !self.cluster.is_running() {
                        // The runtime opens the store again, which starts the server.
                        return Err(Box::new(error) as StoreFailure);
                    }
                }
            }
        })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            *self.client.lock().await = None;
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
            .route("/slot", post(make_slot).get(show_slot))
            .with_state(self)
    }

    fn report(&self) -> StoreReport {
        let seen = self.seen();
        let mut problems: Vec<String> = seen.problem.clone().into_iter().collect();
        if !seen.needs_restart.is_empty() {
            problems.push(format!(
                "postgres must be restarted for: {}",
                seen.needs_restart.join(", ")
            ));
        }
        for slot in &seen.lost_slots {
            problems.push(format!(
                "slot {slot} is lost: run `understudy join` again on its standby"
            ));
        }
        StoreReport {
            problems,
            gauges: BTreeMap::from([("retained_wal_bytes".to_owned(), seen.retained_bytes)]),
        }
    }

    fn observed(&self, standby: &NodeName) -> Observed {
        let seen = self.seen();
        let slot = slot_name(standby);
        match seen.streams.get(standby.as_str()) {
            Some(stream) => stream.clone(),
            None if seen.lost_slots.contains(&slot) => Observed::NotStreaming {
                reason: "the write-ahead log that it needs has been removed".to_owned(),
                must_reseed: true,
            },
            None => Observed::NotStreaming {
                reason: "postgres streams nothing to it".to_owned(),
                must_reseed: false,
            },
        }
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
    let name = slot_name(&caller.node);
    let is_lost = shipper.seen().lost_slots.contains(&name);
    Json(SlotInfo { name, is_lost }).into_response()
}
