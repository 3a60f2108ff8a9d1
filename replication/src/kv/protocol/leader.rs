//! The primary's side: what is committed, and what is promised about it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use understudy_config::NodeName;

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

/// What is known of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerSeen {
    /// Its session; `None` while it is not linked.
    pub session: Option<Session>,
    /// Up to where it has everything durable.
    pub acknowledged: Position,
}

/// The primary's log as the rules see it.
#[derive(Clone, Debug)]
pub struct Leader {
    followers: BTreeMap<NodeName, FollowerSeen>,
}

impl Leader {
    /// Begins a run, whose opening is in the log and durable: not before may any link send what is behind
    /// `start.opened`.
    pub fn new(start: Start, policy: Policy, now: Instant) -> (Self, Vec<LeaderAction>) {
        todo!()
    }

    /// Takes that the log was extended to `end`, durable or not.
    pub fn appended(&mut self, end: Position, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes that the log is durable up to `end`.
    pub fn synced(&mut self, end: Position, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes a follower whose log, all durable, shares everything up to `matched`; a session it had is over.
    ///
    /// `promised` is the highest epoch that it knows. `None` when that is above the leader's own: the follower
    /// has left it, what it has counts no more, and the primary has to fence itself.
    pub fn join(
        &mut self,
        name: &NodeName,
        promised: Option<&Epoch>,
        matched: Position,
        now: Instant,
    ) -> Option<(Session, Vec<LeaderAction>)> {
        todo!()
    }

    /// Takes that a follower has everything durable up to `position`. Of another session: nothing.
    pub fn acknowledged(
        &mut self,
        name: &NodeName,
        session: Session,
        position: Position,
        now: Instant,
    ) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes that a follower's link is gone. Of another session: nothing.
    pub fn left(&mut self, name: &NodeName, session: Session, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes that a standby is none of this primary's any more. The policy says how many are left.
    pub fn forget(&mut self, name: &NodeName, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes other rules.
    pub fn regulate(&mut self, policy: Policy, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Takes that time has passed; see [`Self::deadline`].
    pub fn tick(&mut self, now: Instant) -> Vec<LeaderAction> {
        todo!()
    }

    /// Returns when [`Self::tick`] has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        todo!()
    }

    /// Returns the epoch.
    pub fn epoch(&self) -> &Epoch {
        todo!()
    }

    /// Returns up to where everything is committed. Never falls.
    pub fn committed(&self) -> Position {
        todo!()
    }

    /// Returns what can be promised.
    pub fn durability(&self) -> Durability {
        todo!()
    }

    /// Returns how many operations are committed that not as many standbys have as are demanded (in `Async`: one).
    pub fn at_risk(&self) -> u64 {
        todo!()
    }

    /// Returns whether reads and writes may be served.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Returns whether a write may be taken now, rather than refused for want of standbys.
    pub fn takes_writes(&self) -> bool {
        todo!()
    }

    /// Returns the followers that this run has seen.
    pub fn followers(&self) -> &BTreeMap<NodeName, FollowerSeen> {
        &self.followers
    }
}
