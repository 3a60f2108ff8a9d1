//! How a verb fails: what to print, what to do next, and the exit status.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};
use understudy_replication::error_chain;
use understudy_replication::store::{StoreFailure, StoreRefusal};

/// What kind of failure it is; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// It was tried, and failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// It would not be safe.
    Refused,
    /// The daemon cannot be reached.
    NoDaemon,
}

impl Kind {
    /// Returns the exit status, which is a contract.
    pub(crate) fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NoDaemon => 4,
        }
    }
}

/// A failure at the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What kind it is.
    pub(crate) kind: Kind,
    /// What was being done, to what, and what happened.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Tells an error with its sources.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        Self::failed(error_chain(error))
    }

    /// Tells why a store failed; what a store refuses has a kind of its own.
    pub(crate) fn of_store(error: &StoreFailure) -> Self {
        let failure = Self::failed(error_chain(error.as_ref()));
        let kind = match error.downcast_ref() {
            Some(StoreRefusal::NoDeleteGuard { .. } | StoreRefusal::NoCheck { .. }) => Kind::Usage,
            Some(StoreRefusal::DeletesWithheld { id, .. }) => {
                return Self {
                    kind: Kind::Refused,
                    ..failure
                }
                .hint(format!(
                    "if it is meant, run `understudy sync {} --allow-deletes`; if not, put back what \
                     is missing: the standbys still have it",
                    id.name
                ));
            }
            Some(StoreRefusal::NoPosition { .. }) => {
                return failure.hint("see `understudy status`");
            }
            None => Kind::Failed,
        };
        Self { kind, ..failure }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::guard::Withheld;
    use understudy_replication::store::{StoreId, StoreKind};

    #[test]
    fn what_a_store_refuses_has_its_exit_status() {
        let id = StoreId {
            name: "docs".parse().unwrap(),
            kind: StoreKind::Files,
        };
        let withheld = Withheld {
            gone_entries: 90,
            of_entries: 100,
            gone_bytes: 0,
            of_bytes: 0,
            share: "50%".parse().unwrap(),
        };
        let refusals = [
            StoreRefusal::NoDeleteGuard { id: id.clone() },
            StoreRefusal::NoCheck { id: id.clone() },
            StoreRefusal::NoPosition { id: id.clone() },
            StoreRefusal::DeletesWithheld { id, withheld },
        ];
        let told = refusals.map(|refusal| {
            let failure = Failure::of_store(&refusal.into());
            format!("{} {failure}", failure.kind.exit_status())
        });
        assert_eq!(
            told,
            [
                "2 error: store docs is of kind files, which has no delete guard",
                "2 error: store docs is of kind files, which cannot be checked",
                "1 error: store docs cannot tell its position now\nhint: see `understudy status`",
                "3 error: store docs holds back a deletion: 90 of 100 entries and 0 of 0 bytes would go, \
                 and no more than 50% may\nhint: if it is meant, run `understudy sync docs \
                 --allow-deletes`; if not, put back what is missing: the standbys still have it",
            ]
        );
    }
}
