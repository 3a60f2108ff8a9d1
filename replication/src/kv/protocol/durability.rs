//! What a primary waits for, and what it can promise for it.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use crate::epoch::Epoch;
use crate::kv::protocol::message::Session;
use crate::position::Position;

/// What has to hold before a write is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Durable here.
    Async,
    /// Durable here and on standbys.
    StandbyFirst {
        /// On how many.
        acknowledge: NonZeroUsize,
        /// After how long without progress it is made durable here alone; `None` for never.
        degrade_after: Option<Duration>,
        /// With `degrade_after` never: how long the oldest waiting write may wait before others are refused.
        write_timeout: Duration,
    },
}

/// By which rules a leader commits; may change at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What has to hold.
    pub mode: Mode,
    /// How many standbys are joined to this primary, linked or not. With none it commits locally.
    pub standbys: usize,
    /// How many operations a follower may be behind for writes to wait for it again.
    pub near: u64,
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The epoch of the run.
    pub epoch: Epoch,
    /// The end of the log before the run: where its opening starts.
    pub opened: Position,
    /// The end of its opening, which is durable.
    pub end: Position,
    /// What is known to be committed. After a promotion: all (`opened`). After a restart: the most that the log's
    /// entries, the snapshot and a clean stop's mark say.
    pub committed: Position,
    /// The number of the run's first session: random.
    pub session: Session,
}

/// What a primary can promise about what it has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Everything committed is on as many standbys as demanded, which are linked.
    Held,
    /// Writes wait for standbys, and not enough are linked, or they do not have everything committed yet.
    Waiting {
        /// Since when.
        since: Instant,
    },
    /// Writes are committed here alone.
    Alone {
        /// Since when.
        since: Instant,
        /// Behind here everything committed was committed alone.
        from: Position,
    },
    /// Writes are not meant to wait.
    Async,
    /// There is no standby that could have them.
    Standalone,
}

/// What follows from an event, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderAction {
    /// Everything up to here is committed: apply it to the table, answer those who wait, tell the followers.
    Commit(Position),
    /// The fate of what the log held at the start is known: reads and writes may be served.
    Open,
    /// From here on writes are committed here alone.
    Degrade {
        /// From where.
        from: Position,
    },
    /// Writes wait for standbys again; what was committed alone is not all there yet.
    Rejoin,
    /// Everything committed is on enough standbys again.
    Recover,
    /// Writes are refused at once until the oldest that waits is committed.
    Refuse,
    /// Writes are taken again.
    Accept,
}
