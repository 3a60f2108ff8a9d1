//! Why a copy cannot be kept.

use std::io;
use std::path::PathBuf;

use understudy_config::StoreName;
use understudy_replication::files::wire::WireError;
use understudy_replication::files::{BatchError, LedgerError, LogEntryError, Misfit, RelPath};
use understudy_replication::log::LogError;
use understudy_replication::position::Position;
use understudy_replication::transport::PeerError;

/// Why a copy of a files store cannot be made or followed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is something where the copy should go, and it was not put there by a seeding.
    #[error(
        "{} is not empty, and what is in it was not put there by a seeding of store {store}; move it \
         away, or choose another path",
        path.display()
    )]
    NotEmpty {
        /// The store.
        store: StoreName,
        /// The top of the tree.
        path: PathBuf,
    },
    /// The copy was made on another file system than is there now.
    #[error("{} is empty and not where the copy was made; mount what belongs there", path.display())]
    NotMounted {
        /// The top of the tree.
        path: PathBuf,
    },
    /// What is kept of the store cannot be used.
    #[error("cannot use what is kept of the store")]
    Ledger(#[from] LedgerError),
    /// The log failed.
    #[error("cannot log what was received")]
    Log(#[from] LogError),
    /// The log holds something else.
    #[error("cannot read the log")]
    Record(#[from] LogEntryError),
    /// A batch cannot be logged.
    #[error("cannot log what was received")]
    Batch(#[from] BatchError),
    /// A list cannot be encoded.
    #[error("cannot encode a list")]
    Encode(#[from] postcard::Error),
    /// The primary cannot be asked.
    #[error("cannot follow the primary")]
    Peer(#[from] PeerError),
    /// The primary sent something that cannot be understood.
    #[error("the primary sent something that cannot be understood")]
    Wire(#[from] WireError),
    /// The primary has sent nothing for too long.
    #[error("the primary has been silent for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The primary ended the stream.
    #[error("the primary ended the stream")]
    Ended,
    /// A path could not be written.
    #[error("cannot {action} {}", path.display())]
    Tree {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What came is not what was announced. It is thrown away.
    #[error("the content of {path} does not have the hash that was announced")]
    Damaged {
        /// The file.
        path: RelPath,
    },
    /// A change lies in something that is no directory.
    #[error("the primary sent a change that does not fit")]
    Misfit(#[from] Misfit),
    /// The trees of the two sides differ.
    #[error(
        "the copy differs from the primary's at position {position}; it has to be compared whole"
    )]
    Diverged {
        /// Where.
        position: Position,
    },
    /// A snapshot is not what it says it is.
    #[error("the primary sent a snapshot that contradicts itself")]
    Snapshot,
    /// The work broke off.
    #[error("the work broke off")]
    Broken,
    /// There is no copy yet.
    #[error("there is no whole copy of store {store} to take over; seed it first")]
    NoCopy {
        /// The store.
        store: StoreName,
    },
}

impl FilesError {
    /// Returns the constructor of [`FilesError::Tree`], for `map_err`.
    pub(super) fn tree<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Tree {
            action,
            path,
            source: source.into(),
        }
    }
}
