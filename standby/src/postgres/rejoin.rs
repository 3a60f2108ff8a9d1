//! Makes a standby of a cluster that was primary itself, or has parted from its primary.
//!
//! ```text
//! what is here ──▶ a beginning of what the primary has ──▶ follow
//!             └──▶ parted ─▶ salvage ─┬▶ pg_rewind ──────────────▶ follow
//!                                     └▶ compare block by block ─▶ follow
//! ```
//! Invariant: nothing of the data directory changes before what only it has is in a bundle (or the
//! operator has given it up). From then on, until it is a standby, the file `seeding` names it: whatever
//! state a crash leaves it in, it is compared with the primary's anew.

use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::command::Command;
use understudy_replication::event::Severity;
use understudy_replication::postgres::{
    Duty, History, MAINTENANCE_DATABASE, PostgresError, Relation, SeedInfo, SlotInfo, connect,
    one_lsn,
};
use understudy_replication::rejoin::{Method, Rejoined, Salvaged, Salvaging};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::PeerClient;
use understudy_replication::{durable, error_chain};

use super::parted::{Forked, need_to_copy, reaches};
use super::receiver::PostgresReceiver;
use super::salvage;
use super::seed::SeedError;

/// Taking back what has diverged may take this long.
const REWIND_PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// The primary has this long to write a checkpoint.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(630);

/// An answer of the primary has this long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// A standby's server has this long to say how far it is.
const STANDBY_PATIENCE: Duration = Duration::from_secs(150);

/// A history of timelines is no longer than this.
const HISTORY_BYTES_MAX: usize = 1 << 20;

impl PostgresReceiver {
    /// Makes the local cluster a standby of the primary's.
    pub(super) async fn rejoin_cluster(
        &self,
        primary: &PeerClient,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<Rejoined, StoreFailure> {
        let cluster = &self.cluster;
        if !cluster.data_dir.join("PG_VERSION").exists() || self.is_seeding() {
            self.seed_cluster(primary, progress).await?;
            return Ok(Rejoined::by(Method::Seeded));
        }
        let info = self.seed_info(primary).await?;
        self.is_same_cluster(&info).await?;
        cluster.remember_minimums(&info.minimums)?;
        let ours = if cluster.is_standby() {
            self.ask_standby(primary, salvaging).await?
        } else {
            self.come_to_rest(salvaging, progress).await?
        };
        let theirs = self.history_of(primary).await?;
        let Some(ours) = ours else {
            return self.give_up(primary, &info, progress).await;
        };
        match ours.relation_to(&theirs) {
            Relation::Foreign { .. } => {
                // Found by the system identifiers before.
                Err(Box::new(SeedError::OtherCluster {
                    data_dir: cluster.data_dir.clone(),
                    ours: ours.system_identifier,
                    theirs: theirs.system_identifier,
                }))
            }
            Relation::Beginning => {
                let slot = self.make_slot(primary).await?;
                if !reaches(&slot, ours.end) {
                    // Nothing here is only here; but the log from here on is gone.
                    self.check_beside(&info)?;
                    cluster.stop().await?;
                    return self.compare(primary, &info, &slot, None, progress).await;
                }
                self.become_standby(primary, progress).await?;
                Ok(Rejoined::by(Method::Followed))
            }
            Relation::Forked { at, timeline } => {
                cluster.stop().await?;
                let forked = Forked {
                    ours,
                    theirs,
                    at,
                    timeline,
                };
                self.take_back(primary, &info, &forked, salvaging, progress)
                    .await
            }
        }
    }

    /// Asks the server of a standby how far its log goes: nobody else knows. `None` if it cannot tell, and
    /// the operator has given up what only it may have.
    async fn ask_standby(
        &self,
        primary: &PeerClient,
        salvaging: Salvaging,
    ) -> Result<Option<History>, StoreFailure> {
        let asked = async {
            self.follow(primary).await?;
            let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
            let (mut ours, _) = self.histories(primary, &client).await?;
            // What is received and not replayed yet may have been acknowledged to somebody.
            let received = one_lsn(&client, "SELECT pg_last_wal_receive_lsn()::text").await?;
            ours.end = ours.end.max(received.unwrap_or_default());
            Ok::<_, StoreFailure>(ours)
        };
        let late = || Box::new(PostgresError::Late { what: "answer" }) as StoreFailure;
        let asked = tokio::time::timeout(STANDBY_PATIENCE, asked).await;
        match (asked.unwrap_or_else(|_| Err(late())), salvaging) {
            (Ok(ours), _) => Ok(Some(ours)),
            (Err(error), Salvaging::AsFarAsPossible) => {
                tracing::warn!(
                    error = error_chain(error.as_ref()),
                    "the standby cannot tell"
                );
                Ok(None)
            }
            (Err(source), Salvaging::Required) => Err(Box::new(RejoinError::CannotTell {
                data_dir: self.cluster.data_dir.clone(),
                log: self.cluster.state.join("server.log"),
                source,
            })),
        }
    }

    /// Stops the server of a former primary, recovers from a crash, and returns how far its log goes. `None`
    /// if it cannot be recovered, and the operator has given up what only it has.
    async fn come_to_rest(
        &self,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<Option<History>, StoreFailure> {
        let cluster = &self.cluster;
        cluster.stop().await?;
        let mut control = cluster.control_data().await?;
        if control.state != "shut down" {
            progress.start("recover postgres from its crash", None, Unit::Items);
            match (cluster.recover().await, salvaging) {
                (Ok(()), _) => {}
                (Err(error), Salvaging::AsFarAsPossible) => {
                    tracing::warn!(error = error_chain(&error), "cannot recover");
                    return Ok(None);
                }
                (Err(source), Salvaging::Required) => {
                    return Err(Box::new(RejoinError::CannotRecover {
                        data_dir: cluster.data_dir.clone(),
                        source,
                    }));
                }
            }
            control = cluster.control_data().await?;
            progress.end("postgres is at the end of its log");
        }
        Ok(Some(cluster.history_at_rest(&control)?))
    }

    /// Makes a cluster equal to the primary's of which nobody knows what only it has.
    async fn give_up(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        progress: &dyn Progress,
    ) -> Result<Rejoined, StoreFailure> {
        self.cluster.stop().await?;
        let salvaged = salvage::keep_log(
            &self.cluster,
            &self.origin(primary, info.system_identifier, None),
            &self.salvage_folder(),
        )
        .await?;
        self.tell_salvaged(Some(&salvaged), progress);
        let slot = self.make_slot(primary).await?;
        self.compare(primary, info, &slot, Some(salvaged), progress)
            .await
    }

    pub(super) async fn history_of(&self, primary: &PeerClient) -> Result<History, StoreFailure> {
        let path = format!("/store/{}/history", self.id.name);
        Ok(primary.get(&path).await?.json(HISTORY_BYTES_MAX).await?)
    }

    async fn make_slot(&self, primary: &PeerClient) -> Result<SlotInfo, StoreFailure> {
        let path = format!("/store/{}/slot", self.id.name);
        Ok(primary.call(&path, &(), ANSWER_PATIENCE).await?)
    }

    /// Keeps what only this side has, and makes the cluster the primary's again.
    async fn take_back(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        forked: &Forked,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<Rejoined, StoreFailure> {
        let salvaged = self.salvage(primary, forked, salvaging, progress).await?;
        let slot = self.make_slot(primary).await?;
        self.check_beside(info)?;
        if !forked.is_seen_by_pg_rewind() {
            self.events.record(
                Severity::Warning,
                "postgres_same_timeline",
                format!(
                    "this node and node {} have both opened a timeline of the same number apart from each \
                     other (this one is on timeline {}), where they parted at {}: pg_rewind cannot tell them \
                     apart, so the clusters are compared",
                    primary.node(),
                    forked.ours.timeline,
                    forked.at
                ),
            );
            return self.compare(primary, info, &slot, salvaged, progress).await;
        }
        if !reaches(&slot, forked.at) {
            // A rewound server would ask for log that the primary does not have any more.
            return self.compare(primary, info, &slot, salvaged, progress).await;
        }
        // Only a checkpoint tells a pg_rewind of the primary's new timeline.
        let path = format!("/store/{}/checkpoint", self.id.name);
        let _written: () = primary.call(&path, &(), CHECKPOINT_PATIENCE).await?;
        // From here on it is nobody's primary any more; until here it could be one again.
        self.mark_half(info, &[])?;
        match self.rewind(primary, progress).await {
            Ok(said) => {
                self.become_standby(primary, progress).await?;
                let (copied, total) = need_to_copy(&said).unzip();
                Ok(Rejoined {
                    method: Method::Rewound { copied, total },
                    salvaged,
                    travelled: copied,
                })
            }
            Err(error) => {
                self.events.record(
                    Severity::Warning,
                    "postgres_rewind_failed",
                    format!(
                        "pg_rewind failed, so the clusters are compared: {}",
                        error_chain(&error)
                    ),
                );
                self.compare(primary, info, &slot, salvaged, progress).await
            }
        }
    }

    fn origin(
        &self,
        primary: &PeerClient,
        system_identifier: u64,
        ours: Option<&History>,
    ) -> salvage::Origin {
        salvage::Origin {
            node: self.me.clone(),
            made_in: ours.and_then(|ours| ours.origins.get(&ours.timeline).cloned()),
            superseded_by: primary.epoch(),
            system_identifier,
        }
    }

    async fn salvage(
        &self,
        primary: &PeerClient,
        forked: &Forked,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<Option<Salvaged>, StoreFailure> {
        progress.start("keep what only this node has", None, Unit::Items);
        let control = self.cluster.control_data().await?;
        let salvaged = salvage::keep(
            &self.cluster,
            &self.origin(primary, forked.ours.system_identifier, Some(&forked.ours)),
            &forked.ours.beyond(forked.at, forked.timeline),
            control.segment_bytes,
            &self.salvage_folder(),
            salvaging == Salvaging::Required,
        )
        .await?;
        self.tell_salvaged(salvaged.as_ref(), progress);
        Ok(salvaged)
    }

    fn tell_salvaged(&self, salvaged: Option<&Salvaged>, progress: &dyn Progress) {
        let Some(salvaged) = salvaged else {
            return progress.end("there is nothing that the primary lacks");
        };
        let text = format!("kept in {}: {}", salvaged.path.display(), salvaged.summary);
        self.events
            .record(Severity::Warning, "salvaged", text.clone());
        progress.end(&text);
    }

    /// Returns where bundles are kept: beside the other state of the node.
    fn salvage_folder(&self) -> PathBuf {
        let state = &self.cluster.state;
        state.parent().unwrap_or(state).join("salvage")
    }

    /// Takes back what the primary does not have; returns what the program said.
    async fn rewind(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<String, PostgresError> {
        let cluster = &self.cluster;
        cluster.install_certificates(&self.pki)?;
        let source = self.upstream(primary).rewind_conninfo(&cluster.tls_dir());
        let argv = [
            cluster.bin("pg_rewind"),
            format!("--target-pgdata={}", cluster.data_dir.display()),
            format!("--source-server={source}"),
            // Without it, it does not say how much travels.
            "--progress".to_owned(),
        ]
        .into_iter()
        .chain(
            // It starts a server of its own, to recover.
            cluster
                .config_file()
                .map(|path| format!("--config-file={}", path.display())),
        );
        progress.start("rewind postgres", None, Unit::Items);
        let said = Command::new(argv)
            .user(&cluster.user)
            .limit(REWIND_PATIENCE)
            .run()
            .await
            .map_err(|source| PostgresError::Control {
                action: "rewind",
                data_dir: cluster.data_dir.clone(),
                source,
            })?;
        progress.end(&match need_to_copy(&said) {
            Some((copied, total)) => format!(
                "postgres is rewound: {} MB of {} MB travelled",
                copied >> 20,
                total >> 20
            ),
            None => "postgres is rewound".to_owned(),
        });
        Ok(said)
    }

    async fn compare(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        slot: &SlotInfo,
        salvaged: Option<Salvaged>,
        progress: &dyn Progress,
    ) -> Result<Rejoined, StoreFailure> {
        let saved = self.reseed(primary, info, slot, progress).await?;
        self.become_standby(primary, progress).await?;
        Ok(Rejoined {
            method: Method::Compared {
                compared: saved.compared,
                copied: saved.copied,
            },
            salvaged,
            travelled: Some(saved.copied),
        })
    }

    /// Makes a standby of what is a beginning of the primary's, and waits until it streams. The signal file
    /// comes first: with it the server cannot take a write any more, however it is started.
    async fn become_standby(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        let signal = cluster.data_dir.join("standby.signal");
        durable::write(&signal, b"", 0o600).map_err(self.file("write", signal.clone()))?;
        cluster.own(&signal)?;
        cluster.configure(&self.pki, Duty::Standby(&self.upstream(primary)))?;
        progress.start("start postgres", None, Unit::Items);
        self.follow(primary).await?;
        self.wait_for_stream().await?;
        self.take_origins(primary).await;
        // Not before it has all that it needs: without that, it is compared the next time.
        self.unmark_half()?;
        progress.end("postgres is streaming");
        Ok(())
    }
}

/// Why a node cannot rejoin.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// The server of a standby does not answer.
    #[error(
        "the server in {} does not say how far it is, so what only it has cannot be kept: see {}; or run \
         `understudy rejoin --without-salvage` to have it compared with the primary's", data_dir.display(),
        log.display()
    )]
    CannotTell {
        /// The data directory.
        data_dir: PathBuf,
        /// Where the server says why.
        log: PathBuf,
        /// What happened.
        source: StoreFailure,
    },
    /// A former primary cannot be brought to the end of its log.
    #[error(
        "{} cannot be recovered from its crash, so what only it has cannot be told: mend that, or run \
         `understudy rejoin --without-salvage` to keep its log aside as it is, and have it compared with the \
         primary's", data_dir.display()
    )]
    CannotRecover {
        /// The data directory.
        data_dir: PathBuf,
        /// What happened.
        source: PostgresError,
    },
}
