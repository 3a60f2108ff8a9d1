//! What can go wrong on the primary's side.

use understudy_replication::kv::entry::EntryError;
use understudy_replication::kv::snapshot::SnapshotError;
use understudy_replication::kv::storage::StorageError;
use understudy_replication::kv::wire::KvWireError;
use understudy_replication::transport::PeerError;

impl From<StorageError> for KvError {
    fn from(error: StorageError) -> Self {
        if error.is_damage() {
            Self::Damaged(error)
        } else {
            Self::Storage(error)
        }
    }
}

/// Why the key-value store cannot be served or shipped.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// What is on the disk is damaged.
    #[error(
        "the key-value store of this primary is damaged, and nothing was changed; a standby has everything that was \
         acknowledged: promote it with `understudy promote`"
    )]
    Damaged(#[source] StorageError),
    /// Its files cannot be used.
    #[error(transparent)]
    Storage(StorageError),
    /// A snapshot cannot be sent.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// An entry cannot be made.
    #[error("an entry of the key-value store's log cannot be made")]
    Entry(#[source] EntryError),
    /// A copy that waits for the rest of a snapshot was to become the original.
    #[error(
        "the copy of the key-value store is not whole: a snapshot was taken, and the log behind it has not come up \
         to {until} yet; start the former primary, or promote another standby"
    )]
    NotWhole {
        /// Up to where the log has to come.
        until: understudy_replication::position::Position,
    },
    /// The link to a standby failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A standby says what cannot be understood.
    #[error("a standby's link says what cannot be understood")]
    Wire(#[from] KvWireError),
    /// A standby has said nothing for too long.
    #[error("the standby has said nothing for {} s", limit.as_secs())]
    Silent {
        /// How long it may be silent.
        limit: std::time::Duration,
    },
    /// A standby says what it may not say now.
    #[error("the standby has said something out of turn")]
    OutOfTurn,
    /// A standby is in a higher epoch.
    #[error("the standby knows of epoch {epoch}, which supersedes this node's")]
    Superseded {
        /// The epoch.
        epoch: understudy_replication::epoch::Epoch,
    },
    /// What a snapshot would say is not settled yet.
    #[error(
        "the primary has not settled yet what its log ended with, and sends no snapshot before; it is asked again"
    )]
    Unsettled,
    /// A link of another version.
    #[error(
        "the standby's link is of version {version}; run the same version of understudy on both"
    )]
    Version {
        /// Its version.
        version: u32,
    },
    /// A thread of the store is gone.
    #[error("the key-value store is closed")]
    Closed,
    /// Nothing random is to be had.
    #[error("the operating system gives no random numbers")]
    Random,
}
