//! Why a copy cannot be kept.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use understudy_config::StoreName;
use understudy_replication::files::wire::WireError;
use understudy_replication::files::{BatchError, LedgerError, LoadError, LogEntryError, Misfit};
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
    /// It changes faster than it can be copied.
    #[error(
        "store {store} changes faster than it can be copied: {bytes} bytes have changed while the changes before \
         them were copied; raise `bandwidth` in [drill], or try it when less is written"
    )]
    Restless {
        /// The store.
        store: StoreName,
        /// How many bytes are still to be copied.
        bytes: u64,
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
    /// The list of a snapshot is none.
    #[error("the primary sent a snapshot that is none")]
    List(#[from] LoadError),
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
    /// It was told to stop.
    #[error("it was told to stop")]
    Stopped,
    /// There is no copy yet.
    #[error("there is no whole copy of store {store} to take over; seed it first")]
    NoCopy {
        /// The store.
        store: StoreName,
    },
}

/// Why one entry, or the whole store, could not be brought up to date.
#[derive(Debug)]
pub(super) enum Setback {
    /// Nothing goes on.
    Store(FilesError),
    /// The others go on; this one is tried again.
    Entry(String),
}

impl From<FilesError> for Setback {
    fn from(error: FilesError) -> Self {
        Self::Store(error)
    }
}

impl Setback {
    /// Returns the constructor for what a system call on `path` says, for `map_err`.
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if concerns_all(&source) {
                Self::Store(FilesError::tree(action, path)(source))
            } else {
                Self::Entry(format!("cannot {action} it: {source}"))
            }
        }
    }

    /// Like [`Setback::at`], for what takes a name away. Nothing awaits a name that should be no more: a
    /// disk that fails stops the store, and the batch is done again.
    pub(super) fn at_leaving(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if source.raw_os_error() == Some(Errno::IO.raw_os_error()) {
                Self::Store(FilesError::tree(action, path)(source))
            } else {
                Self::at(action, path)(source)
            }
        }
    }
}

/// Returns whether an error says nothing of the path but of the disk or the process.
pub(super) fn concerns_all(error: &io::Error) -> bool {
    [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::ROFS,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::STALE,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl FilesError {
    /// Returns whether it says that something could not be made durable: what can be read then says
    /// nothing about the disk.
    pub(super) fn is_failed_sync(&self) -> bool {
        matches!(self, Self::Tree { action: "sync", .. })
    }

    /// Returns whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        let mut at: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = at {
            let errno = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            if errno.is_some_and(|errno| {
                [Errno::NOSPC, Errno::DQUOT]
                    .map(Errno::raw_os_error)
                    .contains(&errno)
            }) {
                return true;
            }
            at = error.source();
        }
        false
    }

    /// Returns whether only the link to the primary has failed.
    pub(super) fn is_of_link(&self) -> bool {
        match self {
            Self::Peer(_) | Self::Wire(_) | Self::Silent { .. } | Self::Ended => true,
            Self::NotEmpty { .. }
            | Self::NotMounted { .. }
            | Self::Restless { .. }
            | Self::Ledger(_)
            | Self::Log(_)
            | Self::Record(_)
            | Self::Batch(_)
            | Self::Encode(_)
            | Self::Tree { .. }
            | Self::Misfit(_)
            | Self::List(_)
            | Self::Diverged { .. }
            | Self::Snapshot
            | Self::Broken
            | Self::Stopped
            | Self::NoCopy { .. } => false,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stays_for_a_failing_disk_stops_the_store_and_a_content_does_not() {
        let stops = |errno: Errno, is_leaving: bool| {
            let (path, error) = (Path::new("a"), io::Error::from(errno));
            let setback = if is_leaving {
                Setback::at_leaving("remove", path)(error)
            } else {
                Setback::at("write", path)(error)
            };
            matches!(setback, Setback::Store(_))
        };
        assert!(stops(Errno::IO, true));
        assert!(!stops(Errno::IO, false));
        for is_leaving in [true, false] {
            assert!(stops(Errno::NOSPC, is_leaving));
            assert!(!stops(Errno::PERM, is_leaving));
        }
    }
}
