//! Ships a Postgres cluster: Postgres streams its own log, and this module prepares it for that,
//! keeps a bounded slot per standby, and watches.

mod backups;
mod checkpoint;
mod compare;
mod durability;
mod info;
mod look;
mod opening;
mod reseed;
mod restart;
mod retention;
mod routes;
mod seen;
mod slots;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use tokio_postgres::Client;
use understudy_config::{NodeName, StoreName};
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Position;
use understudy_replication::postgres::{
    Cluster, Duty, MAINTENANCE_DATABASE, PostgresError, connect, one_lsn,
};
use understudy_replication::store::{
    BoxFuture, Durability, Observed, Shipper, Stop, StoreFailure, StoreId, StoreKind, StoreReport,
};

pub use restart::permit_restart;

use backups::Backups;
use durability::Action;
use look::Look;
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
            .with_client(async |client| Look::take(client, &self.cluster).await)
            .await?;
        let now = Instant::now();
        let action = {
            let mut seen = self.seen();
            self.tell_lost_slots(&look, &seen);
            if seen.answers_again() {
                let message = "postgres answers again".to_owned();
                self.events
                    .record(Severity::Info, "postgres_answers", message);
            }
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
        (Durability::Alone { .. }, Durability::Waiting { .. }) => (
            Severity::Info,
            "postgres_sync_required",
            "a standby has caught up: commits are told to wait for it".to_owned(),
        ),
        (_, Durability::Waiting { .. }) => (
            Severity::Warning,
            "postgres_sync_waiting",
            "no standby answers, and commits wait for one".to_owned(),
        ),
        (_, Durability::Alone { .. }) => (
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
                let begun = Instant::now();
                if let Err(error) = self.look().await {
                    if self.ended().is_some() {
                        // Fenced: it does not answer because it was stopped.
                        *self.seen() = Seen::default();
                        return Ok(());
                    }
                    let reason = format!(
                        "postgres does not answer: {}; look at its log, and at what its server waits for; if it \
                         stays so, promote a standby",
                        error_chain(&error)
                    );
                    if self.seen().falls_silent(begun, Instant::now()) {
                        self.events.record(
                            Severity::Error,
                            "postgres_not_answering",
                            reason.clone(),
                        );
                    }
                    let action = self.seen().hears_nothing(reason, Instant::now());
                    if action == Some(Action::Release) {
                        let (severity, kind, text) = told(
                            Durability::Waiting { seconds: 0 },
                            Durability::Alone { seconds: None },
                        );
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
            let is_silent = self.seen().is_silent();
            if is_silent {
                // Whoever waits for this must not wait for a server that would not hear of it.
                self.cluster.stop_at_once().await?;
            } else {
                self.cluster.stop().await?;
            }
            let mut end = self.cluster.control_data().await?.end();
            if end.is_none() && !self.cluster.is_standby() {
                // It had to be stopped at once. What its recovery adds is of no use to anybody, and cannot be sent.
                let log_end = self.cluster.log_end().await;
                self.cluster.recover().await?;
                let recovered = self.cluster.control_data().await?.end();
                end = log_end.map(Position::from).or(recovered);
            }
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
        routes::routes().with_state(self)
    }

    fn report(&self) -> StoreReport {
        self.seen().report(Instant::now())
    }

    fn observed(&self, standby: &NodeName) -> Observed {
        self.seen().observed(standby, Instant::now())
    }
}
