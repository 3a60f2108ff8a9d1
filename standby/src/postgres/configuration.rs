//! What a standby must know and have of the primary's configuration before its server starts.

use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::event::Severity;
use understudy_replication::postgres::{CONFIGURATION_MESSAGE_BYTES_MAX, Configuration, SeedInfo};
use understudy_replication::store::StoreFailure;
use understudy_replication::transport::{PeerClient, PeerError};

use super::receiver::PostgresReceiver;

/// A primary may take this long to read its configuration.
const CONFIGURATION_PATIENCE: Duration = Duration::from_secs(15);

/// What a primary says of itself is no longer than this: it may have many tablespaces.
const INFO_BYTES_MAX: usize = 1 << 20;

/// Why the configuration here does not fit the primary's.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The primary's is outside of its data directory.
    #[error(
        "the primary has the configuration of its Postgres in {}, and not in the data directory; nothing \
         was changed. Set `config_dir` in [postgres] of understudy.toml on both nodes, and join again",
        theirs.display()
    )]
    Split {
        /// Where the primary has it.
        theirs: PathBuf,
    },
    /// The primary's is in its data directory.
    #[error(
        "the primary has the configuration of its Postgres in the data directory, and this node looks for \
         it in {}; nothing was changed. Take `config_dir` out of [postgres] in understudy.toml, and join \
         again", ours.display()
    )]
    Together {
        /// Where this node looks for it.
        ours: PathBuf,
    },
}

impl PostgresReceiver {
    /// Asks the primary what a standby has to know; it has `limit` to begin its answer.
    pub(super) async fn ask_primary(
        &self,
        primary: &PeerClient,
        limit: Duration,
    ) -> Result<SeedInfo, PeerError> {
        let path = format!("/store/{}/seed-info", self.id.name);
        let answer = primary.get_within(&path, limit).await?;
        answer.json(INFO_BYTES_MAX).await
    }

    /// Gets the folder of the configuration from the primary, if it is not in the data directory and
    /// there is none here yet.
    pub(super) async fn bring_configuration(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
    ) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        match (&info.config_dir, cluster.is_split()) {
            (None, false) => return Ok(()),
            (None, true) => {
                return Err(Box::new(LayoutError::Together {
                    ours: cluster.config_dir.clone(),
                }));
            }
            (Some(theirs), false) => {
                return Err(Box::new(LayoutError::Split {
                    theirs: theirs.clone(),
                }));
            }
            (Some(_), true) => {}
        }
        if cluster.has_configuration() {
            return Ok(());
        }
        let path = format!("/store/{}/configuration", self.id.name);
        let answer = primary.get_within(&path, CONFIGURATION_PATIENCE).await?;
        let configuration: Configuration = answer.json(CONFIGURATION_MESSAGE_BYTES_MAX).await?;
        cluster.create_configuration(&configuration)?;
        self.events.record(
            Severity::Info,
            "postgres_configuration",
            format!(
                "the configuration of postgres in {} is a copy of that of node {}; from now on it is this \
                 node's own",
                cluster.config_dir.display(),
                primary.node()
            ),
        );
        Ok(())
    }
}
