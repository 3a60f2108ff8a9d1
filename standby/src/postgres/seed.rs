//! Seeding a standby's Postgres, from whatever is there.
//!
//! | found | done |
//! |---|---|
//! | nothing | a base backup |
//! | half a copy of this cluster | compared, and what differs is fetched |
//! | half a copy of something else, or none to speak of | removed; a base backup |
//! | a standby | it follows |
//! | a standby whose slot was lost, a beginning of the primary | compared, and what differs is fetched |
//! | anything else | refused |

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::event::Severity;
use understudy_replication::postgres::{
    MAINTENANCE_DATABASE, Origins, PostgresError, Relation, SeedInfo, SlotInfo, connect,
};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::PeerClient;

use super::half::Mark;
use super::receiver::PostgresReceiver;

/// How long after its start a seeded server may take to stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// How often in a row the same process must be seen streaming.
const STREAM_LOOKS: u32 = 4;

/// How soon it is looked at again.
const STREAM_INTERVAL: Duration = Duration::from_millis(15);

/// Why a standby's Postgres cannot be seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The versions differ.
    #[error(
        "the primary runs Postgres {theirs}, this machine has {ours}; install postgresql-{theirs} here"
    )]
    Version {
        /// The primary's.
        theirs: u32,
        /// This machine's.
        ours: u32,
    },
    /// There is another cluster.
    #[error(
        "{} holds another Postgres cluster (system identifier {ours}, the primary's is {theirs}); \
         nothing was changed. Move it away, or configure another `data_dir`", data_dir.display()
    )]
    OtherCluster {
        /// The data directory.
        data_dir: PathBuf,
        /// Its system identifier.
        ours: u64,
        /// The primary's.
        theirs: u64,
    },
    /// There is a copy of the primary's cluster that is no standby.
    #[error(
        "{} holds a former primary of the same system identifier; nothing was changed. What only \
         it has would be lost: move it away, and join again", data_dir.display()
    )]
    FormerPrimary {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A standby that cannot follow has parted from the primary.
    #[error(
        "{} is a standby whose slot was lost, and {relation}; nothing was changed. Run `understudy rejoin`, which \
         keeps what only this node has", data_dir.display()
    )]
    Parted {
        /// The data directory.
        data_dir: PathBuf,
        /// What its log is to the primary's.
        relation: Relation,
    },
    /// A standby that cannot follow cannot tell what it has either.
    #[error(
        "{} is a standby whose slot was lost, and whether it has what the primary lacks cannot be told; nothing \
         was changed. Mend its server, or run `understudy rejoin`", data_dir.display()
    )]
    Unasked {
        /// The data directory.
        data_dir: PathBuf,
        /// Why.
        source: StoreFailure,
    },
    /// There is something that is no cluster.
    #[error(
        "{} is not empty, and not a Postgres data directory; nothing was changed. Move its content \
         away, and join again", data_dir.display()
    )]
    NotEmpty {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// Half a copy was there, and something else is now.
    #[error(
        "{} was half a copy when {} was written, and another directory has come to its place since; nothing was \
         changed. If what is there now is whole, remove that file; if not, move it away; and run the same \
         command again", data_dir.display(), mark.display()
    )]
    Replaced {
        /// The data directory.
        data_dir: PathBuf,
        /// What says so.
        mark: PathBuf,
    },
    /// Somebody has started a server on half a copy.
    #[error(
        "somebody has started a server on {}, or put back its control file, while it was half a copy; no server \
         runs there any more. Leave it to Understudy, and run the same command again", data_dir.display()
    )]
    ServerRan {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A file could not be handled.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The backup failed.
    #[error("pg_basebackup failed: {said}")]
    Backup {
        /// Its last words.
        said: String,
    },
    /// A directory beside the data directory is somebody's.
    #[error(
        "{} is not empty, and a tablespace or the write-ahead log is to be there; nothing was changed. \
         Move its content away, and run the same command again", directory.display()
    )]
    Occupied {
        /// The directory.
        directory: PathBuf,
    },
    /// A link of the data directory leads to what is not Postgres' own.
    #[error(
        "a link of the data directory leads to {}, which is no directory of {user}'s apart from it; nothing was \
         changed. Give it to {user}, or mend the link, and run the same command again", directory.display()
    )]
    NotTheirs {
        /// Where it leads.
        directory: PathBuf,
        /// The OS user of the cluster.
        user: String,
    },
    /// A tablespace cannot be where the primary's is.
    #[error(
        "the primary has a tablespace at {}, where this machine can have none: within the data directory, \
         around it, or no absolute path; move the tablespace", location.display()
    )]
    Tablespace {
        /// Where it is on the primary.
        location: PathBuf,
    },
    /// A directory could not be made.
    #[error(transparent)]
    Directory(PostgresError),
    /// The list of files that the primary has told is no cluster's.
    #[error(
        "the primary's list of files lacks {missing}; nothing was changed, run the same command again"
    )]
    NoCluster {
        /// What is missing from it.
        missing: &'static str,
    },
    /// A stream of the comparison ended too early.
    #[error("the primary broke off {what}; run the same command again, it goes on from here")]
    BrokenOff {
        /// Of what.
        what: &'static str,
    },
    /// A stream of the comparison stood still.
    #[error("the primary sent nothing of {what} for {} s; run the same command again, it goes on from here", limit.as_secs())]
    Silent {
        /// Of what.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The server does not stream.
    #[error(
        "postgres in {} is seeded, but receives no stream from the primary after {} s; see {}",
        data_dir.display(), limit.as_secs(), log.display()
    )]
    NotStreaming {
        /// The data directory.
        data_dir: PathBuf,
        /// How long it had.
        limit: Duration,
        /// Where the server says why.
        log: PathBuf,
    },
}

/// What is in the data directory before seeding.
enum Found {
    /// Nothing: a backup is needed.
    Nothing,
    /// What an earlier seeding left half done.
    Half,
    /// A whole standby of the primary.
    Standby,
}

impl PostgresReceiver {
    /// Asks the primary what has to be known of its cluster; refuses one of another major version.
    pub(super) async fn seed_info(&self, primary: &PeerClient) -> Result<SeedInfo, StoreFailure> {
        let info = self.ask_primary(primary, Duration::from_secs(15)).await?;
        let ours = self.cluster.program_version().await?;
        if ours != info.version {
            let theirs = info.version;
            return Err(Box::new(SeedError::Version { theirs, ours }));
        }
        Ok(info)
    }

    /// Refuses a data directory of another cluster than the primary's.
    pub(super) async fn is_same_cluster(&self, info: &SeedInfo) -> Result<(), StoreFailure> {
        let control = self.cluster.control_data().await?;
        if control.system_identifier == info.system_identifier {
            return Ok(());
        }
        Err(Box::new(SeedError::OtherCluster {
            data_dir: self.cluster.data_dir.clone(),
            ours: control.system_identifier,
            theirs: info.system_identifier,
        }))
    }

    pub(super) async fn seed_cluster(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let path = format!("/store/{}", self.id.name);
        let info = self.seed_info(primary).await?;
        let mut found = self.found(&info).await?;
        self.cluster.remember_minimums(&info.minimums)?;
        self.bring_configuration(primary, &info).await?;
        let before: SlotInfo = primary
            .get(&format!("{path}/slot"))
            .await?
            .json(4096)
            .await?;
        if before.is_lost {
            self.give_up_following(primary, &info, &mut found).await?;
        }
        let slot: SlotInfo = primary
            .call(&format!("{path}/slot"), &(), Duration::from_secs(15))
            .await?;
        if slot.is_lost {
            // Since then.
            self.give_up_following(primary, &info, &mut found).await?;
        }
        match found {
            Found::Standby => {}
            Found::Half if self.can_complete(&info)? => {
                self.reseed(primary, &info, &slot, progress).await?;
            }
            Found::Half => {
                self.backup(primary, &info, &slot, progress).await?;
                self.events.record(
                    Severity::Info,
                    "postgres_reseeded",
                    format!(
                        "by a base backup of node {}: half a copy was removed, and {} bytes were copied",
                        primary.node(),
                        info.bytes
                    ),
                );
            }
            Found::Nothing => self.backup(primary, &info, &slot, progress).await?,
        }
        progress.start("start postgres", None, Unit::Items);
        self.follow(primary).await?;
        self.wait_for_stream().await?;
        progress.end("postgres is streaming");
        Ok(())
    }

    /// Makes half a copy of a standby that has lost its slot, and holds nothing that the primary lacks: so it may
    /// be made equal to it. That is marked before there is a new slot: afterwards nothing else would tell that it
    /// cannot follow.
    async fn give_up_following(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        found: &mut Found,
    ) -> Result<(), StoreFailure> {
        if matches!(found, Found::Standby) {
            self.check_beside(info)?;
            let data_dir = self.cluster.data_dir.clone();
            match self.relation_to(primary).await {
                Ok(Relation::Beginning) => {}
                Ok(relation @ (Relation::Forked { .. } | Relation::Foreign { .. })) => {
                    return Err(Box::new(SeedError::Parted { data_dir, relation }));
                }
                Err(source) => return Err(Box::new(SeedError::Unasked { data_dir, source })),
            }
            self.cluster.stop().await?;
            self.mark_half(info, &[])?;
            *found = Found::Half;
        }
        Ok(())
    }

    /// Returns what a standby's log is to the primary's. Only the server itself knows how far it goes.
    async fn relation_to(&self, primary: &PeerClient) -> Result<Relation, StoreFailure> {
        self.follow(primary).await?;
        let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
        let (ours, theirs) = self.histories(primary, &client).await?;
        Ok(ours.relation_to(&theirs))
    }

    /// Notes which epochs opened the timelines of a new copy: those that were noted before are of what was there
    /// before, and a copy that has them would seem to have parted from its primary.
    pub(super) async fn renew_origins(&self, primary: &PeerClient) -> Result<(), PostgresError> {
        if self.take_origins(primary).await {
            return Ok(());
        }
        self.cluster.set_origins(&Origins::default())
    }

    /// Looks at the data directory; refuses what is not ours.
    async fn found(&self, info: &SeedInfo) -> Result<Found, StoreFailure> {
        let data_dir = self.cluster.data_dir.clone();
        let mark = self.mark()?;
        if let Mark::Half(_) = mark {
            return Ok(Found::Half);
        }
        match fs::read_dir(&data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => {
                return Err(Box::new(SeedError::File {
                    action: "read",
                    path: data_dir,
                    source,
                }));
            }
            Ok(mut entries) => {
                if entries.next().is_none() {
                    return Ok(Found::Nothing);
                }
            }
        }
        if mark == Mark::OfAnother {
            let mark = self.seeding_mark();
            return Err(Box::new(SeedError::Replaced { data_dir, mark }));
        }
        if !data_dir.join("PG_VERSION").exists() {
            return Err(Box::new(SeedError::NotEmpty { data_dir }));
        }
        self.is_same_cluster(info).await?;
        if !self.cluster.is_standby() {
            return Err(Box::new(SeedError::FormerPrimary { data_dir }));
        }
        Ok(Found::Standby)
    }

    pub(super) fn file(
        &self,
        action: &'static str,
        path: PathBuf,
    ) -> impl FnOnce(io::Error) -> SeedError {
        move |source| SeedError::File {
            action,
            path,
            source,
        }
    }

    pub(super) async fn wait_for_stream(&self) -> Result<(), StoreFailure> {
        let query = "SELECT max(pid) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let streams = async {
            let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
            // It says so for a moment even if the log that it asks for is gone: then another process asks next.
            let mut seen = (None::<i32>, 0);
            while seen.1 < STREAM_LOOKS {
                tokio::time::sleep(STREAM_INTERVAL).await;
                let row = client.query_one(query, &[]).await;
                let row = row.map_err(|source| PostgresError::Query {
                    what: "tell whether it streams",
                    source,
                })?;
                let receiver: Option<i32> = row.get(0);
                let is_same = receiver.is_some() && receiver == seen.0;
                seen = (receiver, if is_same { seen.1 + 1 } else { 0 });
            }
            Ok::<_, PostgresError>(())
        };
        tokio::time::timeout(STREAM_PATIENCE, streams)
            .await
            .map_err(|_| SeedError::NotStreaming {
                data_dir: self.cluster.data_dir.clone(),
                limit: STREAM_PATIENCE,
                log: self.cluster.state.join("server.log"),
            })??;
        Ok(())
    }
}
