//! Copies of a standby's stores, made beside it while it follows on.
//!
//! ```text
//! COPY/root/PATH    what the configuration calls PATH: a data directory, a tree of files, settings
//! COPY/state/       the key-value store, the history of the settings: as a node's own state
//! COPY/tablespaces/ those of Postgres
//! COPY/root/socket/ where its server puts its socket
//! ```
//! Blocks are shared with the original where the file system can do that, and copied where it cannot. The
//! original is never changed, and never kept waiting for longer than the last look at a tree takes.
//!
//! Read first: [`Place`] and [`Pace`].

mod kv;
mod listening;
mod pace;
mod postgres;
mod settings;
mod stores;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

use understudy_config::Local;
use understudy_replication::files::LedgerError;
use understudy_replication::kv::snapshot::SnapshotError;
use understudy_replication::kv::storage::StorageError;
use understudy_replication::postgres::PostgresError;
use understudy_replication::settings::{CaptureError, HistoryError, PathError, RevisionError};

use crate::files::FilesError;

pub use kv::{KvCopied, copy_kv, take_over_kv};
pub use listening::{ClusterCopy, Purpose, Served};
pub use pace::{Copied, Pace};
pub use postgres::{PostgresCopied, copy_postgres, own_tablespaces, tablespaces};
pub use settings::{SettingsCopied, copy_settings};
pub use stores::{CheckOutcome, CopiedAndChecked, CopyCheck, Originals, StoreCopied};
pub(crate) use stores::{failed as check_failed, passed as check_passed, skipped as check_skipped};
pub(crate) use tree::content;
pub use tree::{can_share_blocks, remove_tree, tree_bytes};

/// Why a copy could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file could not be handled.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A folder of the copy is a link to somewhere else.
    #[error("{} leads out of the copy, to {}: nothing is written there", path.display(), found.display())]
    Outside {
        /// The folder.
        path: PathBuf,
        /// What it is.
        found: PathBuf,
    },
    /// It was told to stop.
    #[error("it was told to stop")]
    Stopped,
    /// The standby's server does not do its part.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A query of the standby's server failed.
    #[error("postgres cannot {what}")]
    Query {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        source: tokio_postgres::Error,
    },
    /// The log that the copy needs is not there.
    #[error("the write-ahead log from {start} to {end} is not all in {}", folder.display())]
    NoLog {
        /// Where it should be.
        folder: PathBuf,
        /// From where on it is needed.
        start: understudy_replication::position::Lsn,
        /// Up to where.
        end: understudy_replication::position::Lsn,
    },
    /// A tree of files could not be copied.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// What is kept of a tree of files cannot be used.
    #[error("cannot use what is kept of a store of files")]
    Ledger(#[from] LedgerError),
    /// The key-value store could not be copied.
    #[error("cannot copy the key-value store")]
    Kv(#[from] StorageError),
    /// Its snapshot could not be written.
    #[error("cannot write a snapshot of the key-value store")]
    Snapshot(#[from] SnapshotError),
    /// The copy of the key-value store is not what was copied.
    #[error("the copy of the key-value store differs from the original at {at}: {what}")]
    KvDiffers {
        /// Where.
        at: understudy_replication::position::Position,
        /// How.
        what: String,
    },
    /// The settings cannot be read.
    #[error("cannot read the settings of the copy")]
    Capture(#[from] CaptureError),
    /// Their history cannot be read.
    #[error("cannot read the history of the settings")]
    History(#[from] HistoryError),
    /// A path of theirs cannot be copied.
    #[error("a path of the settings cannot be copied")]
    Path(#[from] PathError),
    /// They are too much.
    #[error("the settings of the copy are no revision")]
    Revision(#[from] RevisionError),
    /// The work broke off.
    #[error("the work broke off")]
    Broken,
}

/// Returns the constructor of an error of a file, for `map_err`.
pub(crate) fn failed(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.as_ref().to_owned();
    move |source| CopyError::File {
        action,
        path,
        source,
    }
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    folder: PathBuf,
    /// The root of this machine's paths, which the copy has its own of.
    root: PathBuf,
}

impl Place {
    /// Returns the place of a copy in `folder`, of a node that is `local`.
    pub fn new(folder: PathBuf, local: &Local) -> Self {
        Self {
            folder,
            root: local.root.clone(),
        }
    }

    /// Returns the folder of the copy.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns what is the root for the copy: what `root` of `node.toml` is for a node.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Returns the folder of what a node keeps for itself.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Returns the folder of the tablespaces.
    pub fn tablespaces(&self) -> PathBuf {
        self.folder.join("tablespaces")
    }

    /// Returns the folder of the socket of the copy's server.
    pub fn socket(&self) -> PathBuf {
        self.root().join("socket")
    }

    /// Returns where the copy has what this machine has at `path`.
    pub fn of(&self, path: &Path) -> PathBuf {
        let within = path.strip_prefix(&self.root);
        let within = within.or_else(|_| path.strip_prefix("/"));
        self.root().join(within.unwrap_or(path))
    }
}

/// Runs what blocks on a thread of its own that gives way to others; dropping the future does not end it:
/// who drops it stops the pace.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("copy".to_owned());
    let started = thread.spawn(move || {
        pace::give_way();
        let _nobody_waits = sender.send(work()).is_err();
    });
    started.map_err(failed("begin to work on", "the copy"))?;
    receiver.await.map_err(|_| CopyError::Broken)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_paths_as_the_machine_has_them_beneath_its_root() {
        let place = |root: &str| Place {
            folder: "/state/rehearsal/1".into(),
            root: root.into(),
        };
        let of = |root: &str, path: &str| place(root).of(Path::new(path)).display().to_string();
        assert_eq!(of("/", "/srv/files"), "/state/rehearsal/1/root/srv/files");
        assert_eq!(of("/n/a", "/n/a/srv"), "/state/rehearsal/1/root/srv");
        // What lies elsewhere (a configuration in /etc that was found) has its whole path.
        assert_eq!(of("/n/a", "/etc/pg"), "/state/rehearsal/1/root/etc/pg");
    }
}
