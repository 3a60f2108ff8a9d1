//! What can go wrong on a standby.

use std::time::Duration;

use understudy_replication::kv::salvage::SalvageError;
use understudy_replication::kv::storage::StorageError;
use understudy_replication::kv::wire::KvWireError;
use understudy_replication::position::Position;
use understudy_replication::transport::PeerError;

/// Returns why a copy is not whole before `until`.
pub(super) fn why(until: Position) -> String {
    if until == Position(u64::MAX) {
        return "it was damaged, and is being copied anew".to_owned();
    }
    format!("a snapshot was taken, and the log behind it has not come up to operation {until} yet")
}

/// Why the copy of the key-value store cannot follow, or become the original.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// Its files cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What only this node has cannot be put aside, so that nothing was cut off.
    #[error("what only this node has in the key-value store cannot be salvaged")]
    Salvage(#[from] SalvageError),
    /// The primary cannot be reached.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The primary says what cannot be understood.
    #[error("the primary's link says what cannot be understood")]
    Wire(#[from] KvWireError),
    /// The primary has said nothing for too long.
    #[error("the primary has said nothing for {} s", limit.as_secs())]
    Silent {
        /// How long it may be silent.
        limit: Duration,
    },
    /// The primary has closed the link.
    #[error("the primary has closed the link")]
    Closed,
    /// The primary refuses this node.
    #[error("the primary refuses: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The primary says what it may not say now.
    #[error("the primary has said something out of turn")]
    OutOfTurn,
    /// Something of the stream is missing or does not fit: the link is opened anew.
    #[error("the primary's entries do not follow this node's log; the link is opened anew")]
    Gap,
    /// The copy waits for the rest of what a snapshot needs.
    #[error(
        "the copy of the key-value store is not whole: {}; let it follow the primary, or promote another standby",
        why(*until)
    )]
    NotWhole {
        /// Up to where the log has to come.
        until: Position,
    },
    /// A thread is gone.
    #[error("the thread of the key-value store has ended unexpectedly")]
    Ended,
}
