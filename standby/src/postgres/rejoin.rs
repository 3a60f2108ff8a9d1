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
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{
    Duty, History, MAINTENANCE_DATABASE, PostgresError, Relation, SeedInfo, SlotInfo, connect,
};
use understudy_replication::rejoin::{Method, Rejoined, Salvaged, Salvaging};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::PeerClient;
use understudy_replication::{durable, error_chain};

use super::receiver::PostgresReceiver;
use super::salvage;
use super::seed::SeedError;

/// Taking back what has diverged may take this long.
const REWIND_PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// The primary has this long to write a checkpoint.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(630);

/// An answer of the primary has this long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

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
        let (ours, theirs) = if cluster.is_standby() {
            // Only the server itself knows how far a standby's log goes.
            self.follow(primary).await?;
            let client = connect(cluster, MAINTENANCE_DATABASE).await?;
            self.histories(primary, &client).await?
        } else {
            let ours = self.come_to_rest(salvaging, progress).await?;
            (ours, self.history_of(primary).await?)
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
                if slot.is_lost || slot.oldest.is_some_and(|oldest| ours.end < oldest) {
                    // Nothing here is only here; but the log from here on is gone.
                    self.check_beside(&info)?;
                    cluster.stop().await?;
                    self.mark_half(&info, &[])?;
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

    /// Stops the server of a former primary, recovers from a crash, and returns how far its log goes.
    async fn come_to_rest(
        &self,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<History, StoreFailure> {
        let cluster = &self.cluster;
        cluster.stop().await?;
        let mut control = cluster.control_data().await?;
        if control.state != "shut down" {
            progress.start("recover postgres from its crash", None, Unit::Items);
            match (cluster.recover().await, salvaging) {
                (Ok(()), _) => {}
                // It cannot even be read: the operator has given up what only it has.
                (Err(error), Salvaging::AsFarAsPossible) => {
                    tracing::warn!(error = error_chain(&error), "cannot recover");
                }
                (Err(error), Salvaging::Required) => return Err(Box::new(error)),
            }
            control = cluster.control_data().await?;
            progress.end("postgres is at the end of its log");
        }
        Ok(cluster.history_at_rest(&control)?)
    }

    async fn history_of(&self, primary: &PeerClient) -> Result<History, StoreFailure> {
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
        let salvaged = self.salvage(forked, salvaging, progress).await?;
        let slot = self.make_slot(primary).await?;
        self.check_beside(info)?;
        // From here on it is nobody's primary any more.
        self.mark_half(info, &[])?;
        if forked.ours.timeline == forked.theirs.timeline {
            // Both have opened a timeline of this number: pg_rewind would find nothing to do.
            self.events.record(
                Severity::Warning,
                "postgres_same_timeline",
                format!(
                    "this node and node {} have both opened timeline {} apart from each other, where they \
                     parted at {}: pg_rewind cannot tell them apart, so the clusters are compared",
                    primary.node(),
                    forked.ours.timeline,
                    forked.at
                ),
            );
            return self.compare(primary, info, &slot, salvaged, progress).await;
        }
        // Only a checkpoint tells a pg_rewind of the primary's new timeline.
        let path = format!("/store/{}/checkpoint", self.id.name);
        let _written: () = primary.call(&path, &(), CHECKPOINT_PATIENCE).await?;
        match self.rewind(primary, progress).await {
            Ok(()) => {
                self.become_standby(primary, progress).await?;
                Ok(Rejoined {
                    method: Method::Rewound,
                    salvaged,
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

    async fn salvage(
        &self,
        forked: &Forked,
        salvaging: Salvaging,
        progress: &dyn Progress,
    ) -> Result<Option<Salvaged>, StoreFailure> {
        progress.start("keep what only this node has", None, Unit::Items);
        let control = self.cluster.control_data().await?;
        let salvaged = salvage::keep(
            &self.cluster,
            forked.ours.system_identifier,
            &forked.ours.beyond(forked.at, forked.timeline),
            control.segment_bytes,
            &self.salvage_folder(),
            salvaging == Salvaging::Required,
        )
        .await?;
        match &salvaged {
            Some(salvaged) => {
                let text = format!("kept in {}: {}", salvaged.path.display(), salvaged.summary);
                self.events
                    .record(Severity::Warning, "salvaged", text.clone());
                progress.end(&text);
            }
            None => progress.end("there is nothing that the primary lacks"),
        }
        Ok(salvaged)
    }

    /// Returns where bundles are kept: beside the other state of the node.
    fn salvage_folder(&self) -> PathBuf {
        let state = &self.cluster.state;
        state.parent().unwrap_or(state).join("salvage")
    }

    /// Takes back what the primary does not have.
    async fn rewind(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<(), PostgresError> {
        let cluster = &self.cluster;
        cluster.install_certificates(&self.pki)?;
        let source = self.upstream(primary).rewind_conninfo(&cluster.tls_dir());
        let argv = [
            cluster.bin("pg_rewind"),
            format!("--target-pgdata={}", cluster.data_dir.display()),
            format!("--source-server={source}"),
        ]
        .into_iter()
        .chain(
            // It starts a server of its own, to recover.
            cluster
                .config_file()
                .map(|path| format!("--config-file={}", path.display())),
        );
        progress.start("rewind postgres", None, Unit::Items);
        Command::new(argv)
            .user(&cluster.user)
            .limit(REWIND_PATIENCE)
            .run()
            .await
            .map_err(|source| PostgresError::Control {
                action: "rewind",
                data_dir: cluster.data_dir.clone(),
                source,
            })?;
        progress.end("postgres is rewound");
        Ok(())
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
        self.unmark_half()?;
        progress.start("start postgres", None, Unit::Items);
        self.follow(primary).await?;
        self.wait_for_stream().await?;
        self.take_origins(primary).await;
        progress.end("postgres is streaming");
        Ok(())
    }
}

/// Two clusters that have parted.
struct Forked {
    ours: History,
    theirs: History,
    at: Lsn,
    timeline: u32,
}
