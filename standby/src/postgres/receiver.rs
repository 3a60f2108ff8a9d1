//! The standby's end of the Postgres store: keeps the server streaming, and takes it over.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Client;
use understudy_config::{NodeName, StoreName};
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Position;
use understudy_replication::postgres::{
    Cluster, Duty, History, MAINTENANCE_DATABASE, PostgresError, Relation, SlotInfo, Upstream,
    connect, lsn, one_lsn,
};
use understudy_replication::rejoin::{Foreseen, Rejoined, Salvaging};
use understudy_replication::stall::StallReason;
use understudy_replication::store::{
    BoxFuture, Progress, Received, Receiver, Stop, StoreFailure, StoreId, StoreKind,
};
use understudy_replication::transport::PeerClient;

use super::slots;
use super::stall::{Stalls, seen};

/// How often the position is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often it is asked while somebody waits for it,
const LOOK_INTERVAL_HURRIED: Duration = Duration::from_millis(2);
/// and for how long after that was last said.
const HURRY: Duration = Duration::from_secs(2);

/// How often the primary is asked about the slot while nothing streams.
const SLOT_INTERVAL: Duration = Duration::from_secs(3);

/// How long a primary may take to tell what it has, when it is followed again.
const INFO_PATIENCE: Duration = Duration::from_secs(2);

/// The server answers within this time, or counts as one that does not.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// What is told when the primary's slot is lost.
const SLOT_LOST: &str = "the primary has removed write-ahead log that this standby needs: run `understudy \
     rejoin` here; only what differs is copied, and the primary serves on";

/// A history of timelines is no longer than this.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// Why a cluster cannot be received or taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It has not been seeded.
    #[error("{} has not been seeded; run `understudy rejoin`", data_dir.display())]
    NotSeeded {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The server did not leave recovery.
    #[error("postgres in {} did not leave recovery within {} s", data_dir.display(), limit.as_secs())]
    StillInRecovery {
        /// The data directory.
        data_dir: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

/// The standby's end of the Postgres store.
pub struct PostgresReceiver {
    pub(super) id: StoreId,
    pub(super) cluster: Cluster,
    pub(super) me: NodeName,
    pub(super) pki: PathBuf,
    pub(super) events: Events,
    received: Mutex<Received>,
    /// The newest timeline that was received in this run.
    timeline: AtomicU32,
    /// Changes with every move of the positions.
    moved: watch::Sender<()>,
    /// Until when somebody waits for the positions.
    hurried: watch::Sender<Option<Instant>>,
    /// The connection of the last look, for a promotion that has no time to make one.
    kept: tokio::sync::Mutex<Option<Client>>,
    stalls: Mutex<Stalls>,
}

impl PostgresReceiver {
    /// Returns the receiver of `cluster` on node `me`; `pki` is the folder of its certificates.
    pub fn new(
        name: StoreName,
        cluster: Cluster,
        me: NodeName,
        pki: PathBuf,
        events: Events,
    ) -> Self {
        Self {
            id: StoreId {
                name,
                kind: StoreKind::Postgres,
            },
            cluster,
            me,
            pki,
            events,
            received: Mutex::new(Received::default()),
            timeline: AtomicU32::new(0),
            moved: watch::Sender::new(()),
            hurried: watch::Sender::new(None),
            kept: tokio::sync::Mutex::new(None),
            stalls: Mutex::new(Stalls::default()),
        }
    }

    /// Returns whether the data directory is half a copy, which must not be promoted.
    pub fn is_half_a_copy(&self) -> bool {
        self.is_seeding()
    }

    /// Returns where to stream from. Every node's Postgres listens on the configured port.
    pub(super) fn upstream(&self, primary: &PeerClient) -> Upstream {
        Upstream {
            primary: primary.node().clone(),
            address: SocketAddr::new(primary.address().ip(), self.cluster.port),
            me: self.me.clone(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut Received)) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (received.flushed, received.applied);
        change(&mut received);
        if before != (received.flushed, received.applied) {
            self.moved.send_replace(());
        }
    }

    /// Returns the connection of the last look, if it is still open.
    pub(super) async fn kept_client(&self) -> Option<Client> {
        let kept = self.kept.lock().await.take();
        kept.filter(|client| !client.is_closed())
    }

    /// Waits until the next look is due: soon while somebody waits for what it shows.
    async fn next_look(&self) {
        let mut hurried = self.hurried.subscribe();
        let is_hurried = |until: &Option<Instant>| until.is_some_and(|it| it > Instant::now());
        if is_hurried(&hurried.borrow_and_update()) {
            return tokio::time::sleep(LOOK_INTERVAL_HURRIED).await;
        }
        let woken = async {
            // The sender lives as long as this.
            let _gone = hurried.wait_for(is_hurried).await.is_err();
        };
        // Overdue or woken, it is the same.
        let _overdue = tokio::time::timeout(LOOK_INTERVAL, woken).await.is_err();
    }

    /// Writes the settings of a standby of `primary`, and makes the running server follow them.
    pub(super) async fn follow(&self, primary: &PeerClient) -> Result<(), PostgresError> {
        let upstream = self.upstream(primary);
        // It may have been given more since. A primary that does not answer has nothing new to say.
        if let Ok(info) = self.ask_primary(primary, INFO_PATIENCE).await
            && !info.minimums.is_empty()
        {
            self.cluster.remember_minimums(&info.minimums)?;
        }
        // Our settings depend on it.
        self.cluster.control_data().await?;
        self.cluster
            .configure(&self.pki, Duty::Standby(&upstream))?;
        if !self.cluster.is_running() {
            return self.cluster.start().await;
        }
        if !self.is_deaf().await {
            return self.cluster.reload().await;
        }
        self.events.record(
            Severity::Warning,
            "postgres_restarting",
            format!(
                "postgres in {} is restarted, so that it listens to the address that clients use when this node \
                 is promoted",
                self.cluster.data_dir.display()
            ),
        );
        self.cluster.stop().await?;
        self.cluster.start().await
    }

    /// Returns whether the server, which runs, would not hear who comes to the address that moves. A reload does
    /// not change that, and a promotion does not restart it.
    async fn is_deaf(&self) -> bool {
        if !self.cluster.listens_everywhere {
            return false;
        }
        match self.cluster.present_settings().await {
            Ok(present) => {
                let needs = self.cluster.needs(&present);
                needs.iter().any(|need| need.setting == "listen_addresses")
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "postgres does not tell where it listens");
                false
            }
        }
    }

    /// Asks the server once how far it is.
    async fn look(&self, client: &Client) -> Result<bool, PostgresError> {
        let received = one_lsn(client, "SELECT pg_last_wal_receive_lsn()::text").await?;
        let replayed = one_lsn(client, "SELECT pg_last_wal_replay_lsn()::text").await?;
        let row = client
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
                 pg_is_wal_replay_paused(), \
                 (SELECT max(wait_event) FROM pg_stat_activity WHERE backend_type = 'startup' \
                  AND wait_event LIKE 'RecoveryConflict%'), \
                 (SELECT max(received_tli) FROM pg_stat_wal_receiver)",
                &[],
            )
            .await
            .map_err(|source| PostgresError::Query {
                what: "tell whether it streams",
                source,
            })?;
        let (is_streaming, is_paused): (bool, bool) = (row.get(0), row.get(1));
        let conflict: Option<String> = row.get(2);
        if let Some(timeline) = row
            .get::<_, Option<i32>>(3)
            .and_then(|it| u32::try_from(it).ok())
        {
            self.timeline.fetch_max(timeline, Ordering::Relaxed);
        }
        self.update(|state| {
            // After a restart nothing has been received yet, but what was replayed is durable.
            state.flushed = received.max(replayed).map(Position::from);
            state.applied = replayed.map(Position::from);
            let is_final = state.stall_reason.is_some_and(StallReason::is_final);
            if !is_final || is_streaming {
                let stall = seen(is_streaming, is_paused, conflict.as_deref());
                (state.stall_reason, state.stalled) = stall.unzip();
            }
            if is_streaming {
                state.must_reseed = false;
            }
        });
        Ok(is_streaming)
    }

    /// Returns the histories of the log here and on the primary.
    pub(super) async fn histories(
        &self,
        primary: &PeerClient,
        client: &Client,
    ) -> Result<(History, History), StoreFailure> {
        // Ours first: what it gets meanwhile must not look as if the primary did not have it. As far as it is
        // replayed: Postgres follows another timeline from there.
        let row = client
            .query_one(
                "SELECT (SELECT system_identifier::text FROM pg_control_system()), \
                 greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
                 (SELECT min_recovery_end_timeline FROM pg_control_recovery()), \
                 (SELECT max(received_tli) FROM pg_stat_wal_receiver)), \
                 pg_last_wal_replay_lsn()::text",
                &[],
            )
            .await
            .map_err(|source| PostgresError::Query {
                what: "tell its timeline",
                source,
            })?;
        let identifier: String = row.get(0);
        let timeline = u32::try_from(row.get::<_, i32>(1)).unwrap_or(0);
        // Without a stream the server tells of the one that it has received from only after a checkpoint.
        let timeline = timeline
            .max(self.timeline.load(Ordering::Relaxed))
            .max(self.cluster.newest_timeline());
        let ours = History {
            system_identifier: identifier.parse().unwrap_or(0),
            ended: self.cluster.ended_timelines(timeline)?,
            timeline,
            end: lsn(&row, 2)?.unwrap_or_default(),
            origins: self.cluster.origins()?,
        };
        let path = format!("/store/{}/history", self.id.name);
        let theirs: History = primary.get(&path).await?.json(HISTORY_BYTES_MAX).await?;
        Ok((ours, theirs))
    }

    /// Asks the primary why nothing streams: `None` if the slot here is lost, else what the log here is to
    /// that of the primary.
    async fn why_no_stream(
        &self,
        primary: &PeerClient,
        client: &Client,
    ) -> Option<Result<Relation, StoreFailure>> {
        let path = format!("/store/{}/slot", self.id.name);
        if let Ok(answer) = primary.get(&path).await
            && let Ok(slot) = answer.json::<SlotInfo>(4096).await
            && slot.is_lost
        {
            return None;
        }
        let histories = self.histories(primary, client).await;
        Some(histories.map(|(ours, theirs)| ours.relation_to(&theirs)))
    }

    /// Notes which epochs opened the timelines of the primary, which are this server's while it streams from
    /// it. Returns whether they are noted.
    pub(super) async fn take_origins(&self, primary: &PeerClient) -> bool {
        let path = format!("/store/{}/history", self.id.name);
        let asked = async { primary.get(&path).await?.json(HISTORY_BYTES_MAX).await };
        let Ok::<History, _>(theirs) = asked.await else {
            return false;
        };
        let noted = self.cluster.set_origins(&theirs.origins);
        if let Err(error) = &noted {
            tracing::warn!(%error, "cannot note which epochs opened the timelines");
        }
        noted.is_ok()
    }

    /// Notes why the copy does not advance, and tells what is new of it.
    fn stall(&self, reason: StallReason, sentence: String) {
        self.update(|state| {
            state.must_reseed |= reason.is_final();
            (state.stall_reason, state.stalled) = (Some(reason), Some(sentence));
        });
        self.tell();
    }

    /// Tells by an event that the copy does not advance, or does again: each change once.
    fn tell(&self) {
        let Received {
            stalled,
            stall_reason,
            ..
        } = self.received();
        let news = self
            .stalls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .see(tokio::time::Instant::now(), stall_reason);
        if let Some(news) = news {
            let (severity, kind, text) = news.event(&stalled.unwrap_or_default());
            self.events.record(severity, kind, text);
        }
    }

    /// Notes that the server does not answer, or that it is of another cluster, which may be why.
    async fn does_not_answer(&self, primary: &PeerClient, failure: &StoreFailure) {
        let path = format!("/store/{}/history", self.id.name);
        let theirs = async { primary.get(&path).await?.json(HISTORY_BYTES_MAX).await };
        if let Ok(control) = self.cluster.control_data().await
            && let Ok::<History, _>(theirs) = theirs.await
            && control.system_identifier != theirs.system_identifier
        {
            let relation = Relation::Foreign {
                ours: control.system_identifier,
                theirs: theirs.system_identifier,
            };
            return self.stall(StallReason::Foreign, relation.to_string());
        }
        let why = understudy_replication::error_chain(failure.as_ref());
        let sentence = format!("postgres does not answer on this standby: {why}");
        self.stall(StallReason::NotAnswering, sentence);
    }
}

impl Receiver for PostgresReceiver {
    fn id(&self) -> &StoreId {
        &self.id
    }

    fn seed<'a>(
        &'a self,
        primary: &'a PeerClient,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(self.seed_cluster(primary, progress))
    }

    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>> {
        let (receiver, upstream) = (Arc::clone(&self), Arc::clone(&primary));
        let following: BoxFuture<'static, Result<(), StoreFailure>> = Box::pin(async move {
            if self.is_seeding() || !self.cluster.is_standby() {
                return Err(Box::new(ReceiveError::NotSeeded {
                    data_dir: self.cluster.data_dir.clone(),
                }) as StoreFailure);
            }
            tokio::select! {
                followed = self.follow(&primary) => followed?,
                // A server that starts may have to replay for long first.
                () = stop.wait() => return Ok(()),
            }
            let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
            slots::drop_left(&client).await;
            let mut knows_origins = false;
            let mut asked = None::<tokio::time::Instant>;
            let mut parted = None::<Relation>;
            let mut is_first = true;
            loop {
                if !std::mem::take(&mut is_first) {
                    tokio::select! {
                        () = self.next_look() => {}
                        () = stop.wait() => {
                            *self.kept.lock().await = Some(client);
                            return Ok(());
                        }
                    }
                }
                let looked = tokio::time::timeout(LOOK_PATIENCE, self.look(&client)).await;
                let is_streaming = looked.unwrap_or(Err(PostgresError::Late { what: "answer" }))?;
                self.tell();
                if is_streaming && !knows_origins {
                    // A primary that is gone must not make a promotion wait for its answer.
                    tokio::select! {
                        taken = self.take_origins(&primary) => knows_origins = taken,
                        () = stop.wait() => continue,
                    }
                }
                knows_origins &= is_streaming;
                if is_streaming || asked.is_some_and(|at| at.elapsed() < SLOT_INTERVAL) {
                    continue;
                }
                asked = Some(tokio::time::Instant::now());
                let why = tokio::select! {
                    why = self.why_no_stream(&primary, &client) => why,
                    () = stop.wait() => continue,
                };
                let Some(relation) = why else {
                    self.stall(StallReason::MustReseed, SLOT_LOST.to_owned());
                    // Said once; the server itself keeps trying.
                    asked = asked.map(|at| at + Duration::from_secs(3600));
                    continue;
                };
                match relation {
                    Ok(Relation::Beginning) => {
                        parted = None;
                        self.update(|state| {
                            if state
                                .stall_reason
                                .is_some_and(|reason| reason.is_of_history())
                            {
                                state.must_reseed = false;
                                (state.stall_reason, state.stalled) = (None, None);
                            }
                        });
                    }
                    // Told at the second look: while others are promoted, positions change.
                    Ok(relation @ (Relation::Forked { .. } | Relation::Foreign { .. }))
                        if parted != Some(relation) =>
                    {
                        parted = Some(relation);
                    }
                    Ok(relation @ Relation::Forked { .. }) => {
                        self.stall(StallReason::Parted, relation.to_string());
                    }
                    Ok(relation @ Relation::Foreign { .. }) => {
                        self.stall(StallReason::Foreign, relation.to_string());
                    }
                    // Who cannot be asked is asked again.
                    Err(error) => tracing::debug!(%error, "cannot compare the timelines"),
                }
            }
        });
        Box::pin(async move {
            let followed = following.await;
            if let Err(failure) = &followed {
                receiver.does_not_answer(&upstream, failure).await;
            }
            followed
        })
    }

    fn rejoin<'a>(
        &'a self,
        primary: &'a PeerClient,
        salvaging: Salvaging,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<Rejoined, StoreFailure>> {
        Box::pin(self.rejoin_cluster(primary, salvaging, progress))
    }

    fn foresee<'a>(
        &'a self,
        primary: &'a PeerClient,
    ) -> BoxFuture<'a, Result<Option<Foreseen>, StoreFailure>> {
        Box::pin(async move { Ok(Some(self.foresee_cluster(primary).await?)) })
    }

    fn hurry(&self) {
        self.hurried.send_replace(Some(Instant::now() + HURRY));
    }

    fn moves(&self) -> Option<watch::Receiver<()>> {
        Some(self.moved.subscribe())
    }

    fn received(&self) -> Received {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn take_over<'a>(
        &'a self,
        epoch: &'a Epoch,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(self.take_over_cluster(epoch, progress))
    }
}
