//! What this node's settings are: the files, and the newest revision of them.

use std::collections::BTreeMap;

use understudy_replication::epoch::Epoch;
use understudy_replication::settings::{
    Capture, CaptureError, Entry, Fingerprint, History, HistoryError, InstallError, Marker, Origin,
    Revision, RevisionError, RevisionSummary, Scope, SettingPath, capture, fingerprint, finish,
    install,
};
use understudy_replication::wall_time::WallTime;

/// Why the newest revision cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// A rollback that was cut short cannot be completed.
    #[error("cannot complete a change of the settings that was cut short")]
    Finish {
        /// Why not.
        source: InstallError,
    },
    /// The files cannot be read.
    #[error("cannot capture the settings")]
    Capture {
        /// Why not.
        #[from]
        source: CaptureError,
    },
    /// What was read is no revision.
    #[error("cannot replicate the settings")]
    Revision {
        /// Why not.
        #[from]
        source: RevisionError,
    },
    /// The history cannot be read or written.
    #[error("cannot keep the history of the settings")]
    History {
        /// Why not.
        #[from]
        source: HistoryError,
    },
    /// The work was broken off: the program is ending.
    #[error("the settings were not read to their end")]
    Broken {
        /// How.
        source: tokio::task::JoinError,
    },
}

/// The files and their history. Its methods read and write files: call them where blocking is
/// allowed, one at a time.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) scope: Scope,
    pub(super) history: History,
    pub(super) epoch: Epoch,
    seen: Option<Seen>,
}

/// What the last capture found.
#[derive(Debug)]
struct Seen {
    newest: RevisionSummary,
    fingerprint: Fingerprint,
    is_settled: bool,
}

impl Ground {
    pub(super) fn new(scope: Scope, history: History, epoch: Epoch) -> Self {
        Self {
            scope,
            history,
            epoch,
            seen: None,
        }
    }

    /// Returns the newest revision, which is what the files are now: when they have changed, a new
    /// one is made and recorded first.
    pub(super) fn refresh(&mut self) -> Result<RevisionSummary, RefreshError> {
        // A half rolled back tree must not become a revision.
        if finish(&self.scope, &self.history)
            .map_err(|source| RefreshError::Finish { source })?
            .is_some()
        {
            self.seen = None;
        }
        if let Some(seen) = &self.seen
            && seen.is_settled
            && fingerprint(&self.scope)? == seen.fingerprint
        {
            return Ok(seen.newest.clone());
        }
        let Capture {
            entries,
            fingerprint,
            is_settled,
        } = capture(&self.scope)?;
        let newest = self.record(entries)?;
        self.seen = Some(Seen {
            newest: newest.clone(),
            fingerprint,
            is_settled,
        });
        Ok(newest)
    }

    /// Makes the entries the newest revision, if they are not already.
    fn record(
        &self,
        entries: BTreeMap<SettingPath, Entry>,
    ) -> Result<RevisionSummary, RefreshError> {
        let latest = self.history.latest()?;
        let number = latest
            .as_ref()
            .map_or(0, Revision::number)
            .saturating_add(1);
        let revision = Revision::new(number, self.epoch.clone(), WallTime::now(), entries)?;
        let newest = match latest {
            Some(latest) if latest.digest() == revision.digest() => latest,
            Some(_) | None => {
                self.history.record(&revision)?;
                revision
            }
        };
        let (number, digest) = (newest.number(), newest.digest());
        let marker = Marker {
            number,
            digest,
            origin: Origin::Captured,
            is_reloaded: true,
        };
        if self.history.applied()?.as_ref() != Some(&marker) {
            self.history.set_applied(&marker)?;
        }
        Ok(newest.summary())
    }

    /// Makes the files those of `target`, as a new revision.
    pub(super) fn install(&mut self, target: &Revision) -> Result<RevisionSummary, InstallError> {
        self.seen = None;
        let number = self.history.latest()?.as_ref().map_or(0, Revision::number);
        let number = number.saturating_add(1);
        let revision = target.renewed(number, self.epoch.clone(), WallTime::now());
        install(&self.scope, &self.history, &revision, Origin::Captured)?;
        Ok(revision.summary())
    }
}
