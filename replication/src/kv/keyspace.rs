//! What a node offers to whoever speaks RESP to it.

use std::fmt;
use std::time::Duration;

use crate::position::Position;
use crate::store::BoxFuture;

use super::space::Space;

/// Why a node does not do what a command asks. Each has the text that a Redis server would answer with,
/// where Redis knows the case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This node is not the primary; its name is told where it is known.
    ReadOnly,
    /// This node is not the primary, and the configuration does not let standbys answer reads.
    NotHere {
        /// The primary, if it is known.
        primary: Option<String>,
    },
    /// Too few standbys have it, and the configuration does not let the primary go on alone. What was asked
    /// for may still come to be, if it was appended already.
    NoReplicas,
    /// The store is being opened.
    Loading,
    /// The node is about to lose, or has just lost, the role in which it could have answered. What was asked
    /// for may have come to be.
    Closed,
    /// Too much waits for the standbys already.
    Busy,
    /// The table has grown to the memory that it may use.
    OutOfMemory,
    /// The log cannot be written.
    Storage {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Refusal {
    /// Writes the error as RESP clients get it, without the leading `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("READONLY You can't write against a read only replica."),
            Self::NotHere { primary: None } => {
                f.write_str("READONLY This node is a standby and does not answer reads.")
            }
            Self::NotHere {
                primary: Some(primary),
            } => write!(
                f,
                "READONLY This node is a standby and does not answer reads; the primary is {primary}."
            ),
            Self::NoReplicas => f.write_str("NOREPLICAS Not enough good replicas to write."),
            Self::Loading => f.write_str("LOADING Redis is loading the dataset in memory"),
            Self::Closed => f.write_str(
                "READONLY This node is no longer the primary; whether the write was kept is not known.",
            ),
            Self::Busy => f.write_str("BUSY Too many writes wait for the standby."),
            Self::OutOfMemory => {
                f.write_str("OOM command not allowed when used memory > 'maxmemory'.")
            }
            Self::Storage { reason } => write!(f, "MISCONF The log cannot be written: {reason}"),
        }
    }
}

/// What is told in `INFO`, `ROLE`-like answers and the first lines of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// This node takes writes.
    pub is_primary: bool,
    /// The primary, where this node is a standby and knows it.
    pub primary: Option<String>,
    /// How far the visible table is.
    pub position: Position,
    /// The standbys that follow now, and how much of the log is durable there.
    pub standbys: Vec<(String, Position)>,
    /// Which durability is in force now: `standby-first`, `degraded` or `async`.
    pub durability: &'static str,
    /// What the table may use at most, in bytes.
    pub memory_bytes_max: u64,
    /// `FLUSHDB` is allowed.
    pub allows_flush: bool,
}

/// A store that commands run against. Cheap to call; nothing in it waits but what returns a future.
pub trait Keyspace: Send + Sync + 'static {
    /// Looks at what is visible now.
    ///
    /// # Errors
    /// When this node does not answer reads now.
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal>;

    /// Runs `act` against the newest state, what is not visible yet included, with nobody else in between.
    /// What it saw and did may be told only once the returned position has settled.
    ///
    /// # Errors
    /// When this node does not take writes now; then `act` has not run.
    fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal>;

    /// Waits until everything up to `position` is committed and visible.
    fn settled(&self, position: Position) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Waits until `count` standbys have made everything up to `position` durable, or `limit` is over;
    /// returns how many have. Without a limit it waits for as long as the store is open.
    fn replicated(
        &self,
        position: Position,
        count: usize,
        limit: Option<Duration>,
    ) -> BoxFuture<'_, usize>;

    /// Tells what the node is.
    fn standing(&self) -> Standing;

    /// Returns why it will take no write for as long as its role lasts, if that is so: a client hears it when
    /// it prepares writes already.
    fn refuses_writes(&self) -> Option<Refusal> {
        None
    }
}
