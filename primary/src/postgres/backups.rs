//! The backups that re-seeds are made within: a session of the server for each.
//!
//! ```text
//! begin ─▶ pg_backup_start ─▶ questions … ─▶ pg_backup_stop ─▶ end
//!                                 └ silence, or another begin of the same standby: the session is dropped
//! ```
//! Invariant: what a question is answered with was read between start and stop of the session that the
//! question names. A copy whose end fails is none, whatever was answered before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use understudy_config::NodeName;
use understudy_replication::event::{Events, Severity};
use understudy_replication::postgres::reseed::{ClusterPath, Ended, Roots, version_folder};
use understudy_replication::postgres::{
    Cluster, MAINTENANCE_DATABASE, PostgresError, connect, slot_name,
};

use crate::files::limit::{Lane, Limit, Limits};

/// How many standbys are re-seeded at once.
const BACKUPS_MAX: usize = 2;

/// A backup that nobody asks anything of for this long is ended: its standby has vanished.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// A checkpoint comes first, which writes everything that is in the server's memory.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// A statement of the session may take this long otherwise.
const QUERY_PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no backup for a standby, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackupError {
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Enough run already.
    #[error(
        "{BACKUPS_MAX} standbys are seeded from here already; run the same command again later"
    )]
    Busy,
    /// The slot.
    #[error(
        "slot {slot} has no write-ahead log reserved, which a copy would need; run the same command again"
    )]
    NoSlot {
        /// The slot.
        slot: String,
    },
    /// The slot was lost meanwhile.
    #[error(
        "slot {slot} has lost write-ahead log while the copy was made: raise max_slot_wal_keep_size in \
         [postgres], or run the same command again when less is written"
    )]
    SlotLost {
        /// The slot.
        slot: String,
    },
    /// The directories.
    #[error("cannot open the directories of {}", data_dir.display())]
    Directories {
        /// The data directory.
        data_dir: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// It has ended.
    #[error(
        "the backup has ended: the standby was silent for too long, or the server was stopped; run the same command again"
    )]
    Over,
}

/// A backup of a standby.
pub(super) struct Backup {
    id: u64,
    slot: String,
    /// Its session: taken when it ends.
    client: tokio::sync::Mutex<Option<Client>>,
    asked: Mutex<Instant>,
    pub(super) roots: Roots,
    /// The folder of this version in a tablespace.
    pub(super) version_folder: String,
    pub(super) log_folder: Option<ClusterPath>,
    limit: Option<Arc<Limit>>,
}

impl Backup {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Notes that the standby is there.
    pub(super) fn touch(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silent_for(&self) -> Duration {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.elapsed()
    }

    /// Waits until so much may be sent. Safe to cancel.
    pub(super) async fn wait(&self, bytes: usize) {
        if let Some(limit) = &self.limit {
            limit.wait(bytes, Lane::Bulk).await;
        }
    }
}

/// All backups, one for each standby.
pub(super) struct Backups {
    running: Mutex<BTreeMap<NodeName, Arc<Backup>>>,
    /// Held while one begins: they are counted.
    beginning: tokio::sync::Mutex<()>,
    next: AtomicU64,
    limits: Limits,
    events: Events,
}

impl Backups {
    pub(super) fn new(bandwidth: Option<u64>, events: Events) -> Self {
        Self {
            running: Mutex::default(),
            beginning: tokio::sync::Mutex::default(),
            next: AtomicU64::new(1),
            limits: Limits::new(bandwidth),
            events,
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<NodeName, Arc<Backup>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a backup for `node`; one that it had before is over.
    pub(super) async fn begin(
        self: &Arc<Self>,
        cluster: &Cluster,
        node: &NodeName,
    ) -> Result<Arc<Backup>, BackupError> {
        let _beginning = self.beginning.lock().await;
        drop(self.running().remove(node));
        if self.running().len() >= BACKUPS_MAX {
            return Err(BackupError::Busy);
        }
        let client = connect(cluster, MAINTENANCE_DATABASE).await?;
        let slot = slot_name(node);
        renew_slot(&client, &slot).await?;
        let begin = async {
            // What an operator has set for all sessions is not meant for this one.
            let set = "SET statement_timeout = 0; SET idle_session_timeout = 0";
            client.batch_execute(set).await?;
            let label = format!("understudy-reseed-{node}");
            client
                .execute("SELECT pg_backup_start($1, fast => true)", &[&label])
                .await
        };
        within(START_PATIENCE, "begin a backup", begin).await?;
        let (oids, catalog, log) = describe(&client).await?;
        let catalog_version = catalog.1;
        let open = || {
            let links = cluster.data_dir.join("pg_tblspc");
            let places = oids.iter().map(|oid| (*oid, links.join(oid.to_string())));
            Roots::open(&cluster.data_dir, &places.collect())
        };
        let roots = open().map_err(|source| BackupError::Directories {
            data_dir: cluster.data_dir.clone(),
            source,
        })?;
        let backup = Arc::new(Backup {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            slot,
            client: tokio::sync::Mutex::new(Some(client)),
            asked: Mutex::new(Instant::now()),
            roots,
            version_folder: version_folder(catalog.0, catalog_version),
            log_folder: log,
            limit: self.limits.of(node),
        });
        self.running().insert(node.clone(), backup.clone());
        tokio::spawn(watch(
            Arc::downgrade(self),
            node.clone(),
            Arc::downgrade(&backup),
        ));
        Ok(backup)
    }

    /// Returns the backup that a question of `node` names.
    pub(super) fn find(&self, node: &NodeName, id: u64) -> Result<Arc<Backup>, BackupError> {
        let found = self.running().get(node).cloned();
        let backup = found
            .filter(|backup| backup.id == id)
            .ok_or(BackupError::Over)?;
        backup.touch();
        Ok(backup)
    }

    /// Ends a backup, and returns what makes a data directory of the copy.
    pub(super) async fn end(&self, node: &NodeName, id: u64) -> Result<Ended, BackupError> {
        let backup = self.find(node, id)?;
        let client = backup.client.lock().await.take();
        let client = client.ok_or(BackupError::Over)?;
        drop(self.running().remove(node));
        // What is in the log is in the slot: an archive is not waited for.
        let stop = client.query_one(
            "SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)",
            &[],
        );
        let row = within(QUERY_PATIENCE, "end a backup", stop).await?;
        if !has_reserved(&client, &backup.slot).await? {
            let slot = backup.slot.clone();
            return Err(BackupError::SlotLost { slot });
        }
        Ok(Ended { label: row.get(0) })
    }

    /// Ends all: the server is going to be stopped.
    pub(super) fn end_all(&self) {
        self.running().clear();
    }
}

/// Ends a backup whose standby has vanished. Ends with the backup, or with the store.
async fn watch(backups: Weak<Backups>, node: NodeName, watched: Weak<Backup>) {
    loop {
        tokio::time::sleep(SILENCE / 4).await;
        let (Some(backups), Some(backup)) = (backups.upgrade(), watched.upgrade()) else {
            return;
        };
        if backup.silent_for() < SILENCE {
            continue;
        }
        let mut running = backups.running();
        if running
            .get(&node)
            .is_some_and(|found| found.id == backup.id)
        {
            running.remove(&node);
            drop(running);
            backups.events.record(
                Severity::Warning,
                "postgres_reseed_ended",
                format!(
                    "node {node} has asked for nothing for {} s while it was seeded again: the backup for it \
                     is ended; run the same command on it again",
                    SILENCE.as_secs()
                ),
            );
        }
        return;
    }
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PostgresError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| PostgresError::Late { what })?
        .map_err(|source| PostgresError::Query { what, source })
}

/// Has the slot keep the log from now on: what it has kept for the old copy would only bring nearer the day
/// on which it is lost.
async fn renew_slot(client: &Client, slot: &str) -> Result<(), BackupError> {
    let slot_name: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&slot];
    let drop_old = client.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = $1 AND NOT active",
        &slot_name,
    );
    within(QUERY_PATIENCE, "drop a slot", drop_old).await?;
    let make = client.execute(
        "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
         (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
        &slot_name,
    );
    within(QUERY_PATIENCE, "make a slot", make).await?;
    if has_reserved(client, slot).await? {
        Ok(())
    } else {
        let slot = slot.to_owned();
        Err(BackupError::NoSlot { slot })
    }
}

async fn has_reserved(client: &Client, slot: &str) -> Result<bool, PostgresError> {
    let slot_name: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&slot];
    let reserved = client.query_one(
        "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 \
         AND restart_lsn IS NOT NULL AND wal_status <> 'lost')",
        &slot_name,
    );
    let row = within(QUERY_PATIENCE, "tell what a slot keeps", reserved).await?;
    Ok(row.get(0))
}

type Described = (Vec<u32>, (u32, u32), Option<ClusterPath>);

/// Returns the tablespaces, the versions of the server and of its catalogue, and the folder of its log if
/// that is within the data directory.
async fn describe(client: &Client) -> Result<Described, PostgresError> {
    let facts = client.query_one(
        "SELECT ARRAY(SELECT oid FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'), \
         current_setting('server_version_num')::int / 10000, \
         (SELECT catalog_version_no FROM pg_control_system()), current_setting('log_directory')",
        &[],
    );
    let row = within(QUERY_PATIENCE, "tell its tablespaces", facts).await?;
    let number = |column| u32::try_from(row.get::<_, i32>(column)).unwrap_or(0);
    let log: String = row.get(3);
    // One that is elsewhere, or that no path names, is none of the copy.
    Ok((row.get(0), (number(1), number(2)), log.parse().ok()))
}
