//! Going back to an earlier revision.

use serde::Serialize;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::settings::{
    HistoryError, InstallError, RefusedError, RevisionSummary, ScopeError, reload, validate,
};

use super::ground::RefreshError;
use super::shipper::SettingsShipper;

/// Why there was no rollback. Nothing has changed, except after [`RollbackError::Install`], which
/// is completed by itself once what it names is mended.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is no such revision, or it cannot be read.
    #[error("cannot roll the settings back to revision {number}")]
    History {
        /// The revision.
        number: u64,
        /// Why not.
        source: HistoryError,
    },
    /// It has paths that are not configured any more.
    #[error("cannot roll the settings back to revision {number}")]
    Scope {
        /// The revision.
        number: u64,
        /// Why not.
        source: ScopeError,
    },
    /// It does not validate any more.
    #[error("cannot roll the settings back to revision {number}")]
    Refused {
        /// The revision.
        number: u64,
        /// Why not.
        source: RefusedError,
    },
    /// The present settings cannot be kept, so they are not replaced.
    #[error("cannot keep the present settings before rolling back to revision {number}")]
    Keep {
        /// The revision.
        number: u64,
        /// Why not.
        source: RefreshError,
    },
    /// The files cannot be changed.
    #[error("the rollback to revision {number} of the settings is not complete")]
    Install {
        /// The revision.
        number: u64,
        /// Why not.
        source: InstallError,
    },
    /// The work was broken off: the program is ending.
    #[error("the rollback to revision {number} of the settings was broken off")]
    Broken {
        /// The revision.
        number: u64,
        /// How.
        source: tokio::task::JoinError,
    },
    /// The settings are those of the revision already.
    #[error("the settings are those of revision {number} already")]
    Same {
        /// The revision.
        number: u64,
    },
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RolledBack {
    /// The revision asked for.
    pub target: u64,
    /// The revision that keeps the settings as they were before.
    pub before: RevisionSummary,
    /// The revision that they are now; it flows to the standby.
    pub now: RevisionSummary,
    /// Why the reload command failed; the settings are applied all the same.
    pub reload_error: Option<String>,
}

impl SettingsShipper {
    /// Makes the settings those of an earlier revision, as a new one: validates it, keeps what is
    /// there now as a revision, applies, reloads. After a crash it is completed by itself.
    ///
    /// # Errors
    /// When the revision is not there, is not valid (any more), or cannot be applied.
    pub async fn rollback(&self, number: u64) -> Result<RolledBack, RollbackError> {
        let history = self.history().clone();
        let broken = |source| RollbackError::Broken { number, source };
        let target = tokio::task::spawn_blocking(move || history.show(number))
            .await
            .map_err(broken)?
            .map_err(|source| RollbackError::History { number, source })?;
        self.scope()
            .admit(&target)
            .map_err(|source| RollbackError::Scope { number, source })?;
        validate(self.config(), self.scope(), self.state(), &target)
            .await
            .map_err(|source| RollbackError::Refused { number, source })?;
        let mut ground = self.ground().await;
        // The lock goes with the work: a rollback whose caller has gone still ends before anything
        // else looks at the files.
        let changed = tokio::task::spawn_blocking(move || {
            let before = ground
                .refresh()
                .map_err(|source| RollbackError::Keep { number, source })?;
            if before.digest == target.digest() {
                return Err(RollbackError::Same { number });
            }
            let now = ground
                .install(&target)
                .map_err(|source| RollbackError::Install { number, source })?;
            Ok((before, now))
        });
        let (before, now) = changed.await.map_err(broken)??;
        self.events().record(
            Severity::Info,
            "settings_rolled_back",
            format!(
                "settings were rolled back to revision {number}, as revision {}",
                now.number
            ),
        );
        let reload_error = reload(self.config())
            .await
            .err()
            .map(|error| error_chain(&error));
        if let Some(error) = &reload_error {
            self.events().record(
                Severity::Error,
                "settings_reload_failed",
                format!(
                    "revision {} of the settings is applied, but {error}",
                    now.number
                ),
            );
        }
        self.set_reload_problem(reload_error.as_ref().map(|error| {
            format!(
                "revision {} of the settings is applied, but {error}; reload by hand",
                now.number
            )
        }));
        Ok(RolledBack {
            target: number,
            before,
            now,
            reload_error,
        })
    }
}
