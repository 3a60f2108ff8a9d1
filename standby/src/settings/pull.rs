//! Fetching the primary's newest revision, and what becomes of it.

use std::error::Error;
use understudy_replication::error_chain;

use understudy_replication::command::CommandError;
use understudy_replication::event::Severity;
use understudy_replication::settings::{
    Applied, DecodeError, ENCODED_BYTES_MAX, HistoryError, InstallError, Marker, Origin,
    RefusedError, Revision, ScopeError, finish, install, reload, restore, validate,
};
use understudy_replication::transport::{PeerClient, PeerError};

use super::receiver::{Place, SettingsReceiver};

/// Why a pull failed. What was applied before is in place, whatever it is.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The primary could not be asked.
    #[error("cannot get the settings from the primary")]
    Peer {
        /// Why not.
        #[from]
        source: PeerError,
    },
    /// This node's files or history cannot be read or written.
    #[error("cannot change the settings of this node")]
    Install {
        /// Why not.
        #[from]
        source: InstallError,
    },
    /// The work was broken off: the program is ending.
    #[error("the change of the settings was broken off")]
    Broken {
        /// How.
        #[from]
        source: tokio::task::JoinError,
    },
}

impl From<HistoryError> for PullError {
    fn from(source: HistoryError) -> Self {
        Self::Install {
            source: source.into(),
        }
    }
}

/// What became of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// The newest revision was applied already.
    Current,
    /// The newest revision has been applied.
    Applied {
        /// Its number.
        number: u64,
    },
    /// The newest revision is not acceptable here; what was applied before stays.
    Refused {
        /// Why, in a sentence.
        reason: String,
    },
}

/// What a pull did.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) pulled: Pulled,
    /// What was written and removed here, and what was kept of it.
    pub(super) applied: Applied,
    /// How much came, in bytes.
    pub(super) travelled: u64,
}

/// Why a revision is not acceptable here.
#[derive(Debug, thiserror::Error)]
enum Unacceptable {
    #[error("what the primary sent is no revision of the settings")]
    Decode(#[source] DecodeError),
    #[error(transparent)]
    Scope(ScopeError),
    #[error(transparent)]
    Validate(RefusedError),
}

impl SettingsReceiver {
    /// Fetches the primary's newest revision, and applies it if it is acceptable. One at a time;
    /// safe to cancel: files are changed by a task of their own, which ends its work.
    ///
    /// # Errors
    /// When the primary cannot be asked, or this node's files cannot be changed.
    pub async fn pull(&self, primary: &PeerClient) -> Result<Pulled, PullError> {
        Ok(self.pull_whole(primary).await?.pulled)
    }

    /// Does what [`pull`](Self::pull) does, and tells all of it.
    pub(super) async fn pull_whole(&self, primary: &PeerClient) -> Result<Pull, PullError> {
        let mut place = self.place().await;
        let pulled = self.pull_into(&mut place, primary).await;
        if let Err(error @ (PullError::Install { .. } | PullError::Broken { .. })) = &pulled {
            self.note_trouble(error);
        }
        pulled
    }

    /// Gets the primary's newest revision; nothing if it is the one that this node `has`.
    pub(super) async fn fetch(
        &self,
        has: Option<&Marker>,
        primary: &PeerClient,
    ) -> Result<Vec<u8>, PullError> {
        let path = match has {
            Some(Marker { number, digest, .. }) => {
                format!("/store/settings/revision?have={digest}&number={number}")
            }
            None => "/store/settings/revision".to_owned(),
        };
        let mut reader = primary.get(&path).await?.frames();
        let mut bytes = Vec::new();
        while let Some(frame) = reader.next().await? {
            let length = bytes.len().saturating_add(frame.len());
            if length > ENCODED_BYTES_MAX {
                let peer = primary.node().to_string();
                let bytes_max = ENCODED_BYTES_MAX;
                return Err(PeerError::TooLong {
                    peer,
                    bytes: length,
                    bytes_max,
                }
                .into());
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes)
    }

    async fn pull_into(&self, place: &mut Place, primary: &PeerClient) -> Result<Pull, PullError> {
        let have = place.history.applied()?;
        let bytes = self.fetch(have.as_ref(), primary).await?;
        let travelled = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let (pulled, applied) = self.take(place, have, bytes).await?;
        Ok(Pull {
            pulled,
            applied,
            travelled,
        })
    }

    /// Takes in what the primary has sent to a node that `had` something.
    async fn take(
        &self,
        place: &mut Place,
        had: Option<Marker>,
        bytes: Vec<u8>,
    ) -> Result<(Pulled, Applied), PullError> {
        if bytes.is_empty() {
            return Ok((Pulled::Current, self.stay(place, had).await?));
        }
        let decoded = tokio::task::spawn_blocking(move || Revision::decode(&bytes)).await?;
        let revision = match decoded {
            Ok(revision) => revision,
            Err(error) => {
                let refused = self
                    .refuse(place, None, Unacceptable::Decode(error))
                    .await?;
                return Ok((refused, Applied::default()));
            }
        };
        let refusal = match place.scope.admit(&revision) {
            Err(error) => Some(Unacceptable::Scope(error)),
            Ok(()) => validate(self.config(), &place.scope, self.state(), &revision)
                .await
                .err()
                .map(Unacceptable::Validate),
        };
        if let Some(refusal) = refusal {
            let refused = self.refuse(place, Some(revision), refusal).await?;
            return Ok((refused, Applied::default()));
        }
        let number = revision.number();
        let summary = revision.summary();
        let applied = place
            .work(move |scope, history| {
                let applied = install(scope, history, &revision, Origin::Received)?;
                history.clear_refused()?;
                Ok(applied)
            })
            .await?;
        self.note_applied(number, summary.bytes, summary.entries);
        self.tell(number, &applied, "settings_applied", "was applied");
        self.reload(place).await?;
        Ok((Pulled::Applied { number }, applied))
    }

    /// The primary has nothing newer than what this node `had`: that is the newest, and local changes are undone.
    async fn stay(&self, place: &mut Place, had: Option<Marker>) -> Result<Applied, PullError> {
        let applied = place
            .work(move |scope, history| {
                // Something newer was accepted and not completed, and the primary has gone back.
                let finished = finish(scope, history)?;
                let restored = restore(scope, history)?;
                history.clear_refused()?;
                // What this node captured as primary is of the primary's lineage, then: after a restart, too,
                // when nobody may be there to say so again.
                let captured = had.filter(|had| had.origin == Origin::Captured);
                if let Some(marker) = captured
                    && history.applied()?.as_ref() == Some(&marker)
                {
                    history.set_applied(&Marker {
                        origin: Origin::Received,
                        ..marker
                    })?;
                }
                Ok(finished
                    .filter(|_| restored.changed.is_empty())
                    .unwrap_or(restored))
            })
            .await?;
        let Some(marker) = place.history.applied()? else {
            return Ok(applied);
        };
        let summary = place.history.load(marker.number, marker.digest)?.summary();
        self.note_applied(marker.number, summary.bytes, summary.entries);
        if !applied.changed.is_empty() {
            self.tell(
                marker.number,
                &applied,
                "settings_restored",
                "was applied again over local changes",
            );
        }
        self.reload(place).await?;
        Ok(applied)
    }

    /// Completes what was accepted and not completed, then reloads.
    pub(super) async fn complete(&self) -> Result<(), PullError> {
        let mut place = self.place().await;
        let finished = place
            .work(|scope, history| Ok(finish(scope, history)?))
            .await?;
        if let (Some(applied), Some(marker)) = (finished, place.history.applied()?) {
            let summary = place.history.load(marker.number, marker.digest)?.summary();
            self.note_applied(marker.number, summary.bytes, summary.entries);
            self.tell(marker.number, &applied, "settings_applied", "was applied");
        }
        self.reload(&mut place).await
    }

    /// Runs the reload command unless it has succeeded since the settings changed.
    async fn reload(&self, place: &mut Place) -> Result<(), PullError> {
        let Some(marker) = place
            .history
            .applied()?
            .filter(|marker| !marker.is_reloaded)
        else {
            self.note_reload(0, None);
            return Ok(());
        };
        let result: Result<(), CommandError> = reload(self.config()).await;
        if result.is_ok() {
            place.history.set_applied(&Marker {
                is_reloaded: true,
                ..marker.clone()
            })?;
        }
        self.note_reload(marker.number, result.err().as_ref());
        Ok(())
    }

    async fn refuse(
        &self,
        place: &mut Place,
        revision: Option<Revision>,
        refusal: Unacceptable,
    ) -> Result<Pulled, PullError> {
        let reason = error_chain(&refusal as &dyn Error);
        let digest = revision.as_ref().map(Revision::digest);
        if let Some(revision) = revision {
            let reason = reason.clone();
            place
                .work(move |_, history| Ok(history.set_refused(&revision, &reason)?))
                .await?;
        }
        self.note_refused(digest, &reason);
        Ok(Pulled::Refused { reason })
    }

    fn tell(&self, number: u64, applied: &Applied, kind: &str, what: &str) {
        let count = applied.changed.len();
        let mut message = format!("revision {number} of the settings {what} ({count} changed)");
        let severity = match applied.kept.first() {
            None => Severity::Info,
            Some(first) => {
                let count = applied.kept.len();
                message.push_str(&format!(
                    "; {count} local versions were replaced and are kept, such as {}",
                    first.display()
                ));
                Severity::Warning
            }
        };
        self.events().record(severity, kind, message);
    }
}
