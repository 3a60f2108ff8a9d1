//! What can be wrong with what is on the disk.

use std::path::PathBuf;

use crate::log::LogError;
use crate::position::Position;

use super::super::entry::EntryError;
use super::super::snapshot::SnapshotError;

/// Why the store's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The log failed.
    #[error("the log of the key-value store cannot be used")]
    Log(#[from] LogError),
    /// The snapshot failed.
    #[error("the snapshot of the key-value store cannot be used")]
    Snapshot(#[from] SnapshotError),
    /// An entry of the log is not what it should be, although it is what was once written.
    #[error("the log of the key-value store has an entry from {start} on that cannot be used")]
    Entry {
        /// Where it begins.
        start: Position,
        /// Why.
        source: EntryError,
    },
    /// An entry does not follow the one before.
    #[error("the log of the key-value store breaks at {at}: its entries are of two histories")]
    Broken {
        /// Where.
        at: Position,
    },
    /// What the snapshot needs of the log is not there.
    #[error(
        "the snapshot {} needs the log from {start} to {end}, which holds {first} to {last}: a part of it is lost",
        path.display()
    )]
    Short {
        /// The snapshot.
        path: PathBuf,
        /// What it needs,
        start: Position,
        /// to where.
        end: Position,
        /// What the log holds,
        first: Position,
        /// to where.
        last: Position,
    },
    /// The log does not begin at the beginning, and there is no snapshot.
    #[error("the snapshot {} is lost, and the log holds {first} to {last} only", path.display())]
    Lost {
        /// The snapshot.
        path: PathBuf,
        /// What the log holds,
        first: Position,
        /// to where.
        last: Position,
    },
    /// Snapshot and log do not give the table that was there.
    #[error(
        "the snapshot {} and the log do not give the table that was there at {at}",
        path.display()
    )]
    Differs {
        /// The snapshot.
        path: PathBuf,
        /// Where they were compared.
        at: Position,
    },
    /// There was a store, and it is gone.
    #[error("the key-value store was in {}, and is gone", path.display())]
    Gone {
        /// Where it was.
        path: PathBuf,
    },
    /// The files are another's by now: the store was opened anew.
    #[error("the key-value store was opened anew meanwhile")]
    Retired,
    /// Nobody waits for it any more.
    #[error("the work on the key-value store was stopped")]
    Stopped,
    /// The entry does not follow the end of the log.
    #[error("an entry from {start} on does not follow the log, which ends at {end}")]
    Gap {
        /// Where the entry begins.
        start: Position,
        /// Where the log ends.
        end: Position,
    },
    /// What is kept here does not reach so far back.
    #[error("the table cannot be taken back to {to}: the snapshot is of {snapshot}")]
    TooFarBack {
        /// Where to.
        to: Position,
        /// What there is.
        snapshot: Position,
    },
}

impl StorageError {
    /// Returns whether what is on the disk is not what was written: trying again does not help, as it may where
    /// a file could not be read or written.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log(LogError::Damaged { .. } | LogError::Foreign { .. })
            | Self::Snapshot(SnapshotError::Damaged { .. })
            | Self::Entry { .. }
            | Self::Broken { .. }
            | Self::Short { .. }
            | Self::Lost { .. }
            | Self::Gone { .. }
            | Self::Differs { .. } => true,
            Self::Log(
                LogError::File { .. }
                | LogError::Poisoned { .. }
                | LogError::TooLong { .. }
                | LogError::Backwards { .. }
                | LogError::Gone { .. }
                | LogError::NotABoundary { .. },
            )
            | Self::Snapshot(SnapshotError::File { .. })
            | Self::Retired
            | Self::Stopped
            | Self::Gap { .. }
            | Self::TooFarBack { .. } => false,
        }
    }
}
