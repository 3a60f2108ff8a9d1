//! The standby's side: what it appends, what it cuts, what it may acknowledge and apply.

use crate::epoch::Epoch;
use crate::kv::point::{EntryDigest, Point};
use crate::kv::protocol::message::{Attempt, EntryHead, Session, Welcome};
use crate::position::Position;

/// What a follower's disk holds when it starts, or after a snapshot was installed: all of it durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The point of the snapshot that the table can be built from; the origin if there is none.
    pub base: Point,
    /// The end of the log.
    pub tail: Point,
    /// Up to where the table has been built.
    pub applied: Position,
}

/// What has to be done, in this order, before the next event is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowerAction {
    /// Append the entry just offered. Sync soon, and tell [`Follower::synced`].
    Append,
    /// The log has the entry just offered already: nothing to do.
    Have,
    /// Salvage what lies behind `to`, durably; then cut it off, durably. What follows comes after that.
    Cut {
        /// Where the log ends afterwards.
        to: Point,
        /// The table holds some of what is cut: throw away any snapshot of it behind `to` before the cut, and
        /// build it again from what is left, up to `to`.
        rebuild: bool,
    },
    /// Tell the leader that everything up to here is durable, and the same as its own.
    Acknowledge {
        /// In which session.
        session: Session,
        /// How far.
        position: Position,
    },
    /// Apply the log to the table, up to here.
    Apply(Position),
    /// Give this link up and begin a new session: something is missing or does not fit.
    Reopen,
    /// The table could not be rebuilt below the snapshot it is built from: fetch the leader's.
    NeedSnapshot,
}

#[derive(Clone, Debug)]
struct Stream {
    session: Session,
    epoch: Epoch,
    /// Up to where the own log is known to be the leader's.
    verified: Position,
    verified_digest: EntryDigest,
    /// The end of the leader's log when it welcomed.
    end: Position,
    /// What is committed, as far as this session has told.
    committed: Position,
    acknowledged: Option<Position>,
}

/// A standby's log as the rules see it.
#[derive(Clone, Debug)]
pub struct Follower {
    promised: Option<Epoch>,
    attempt: Attempt,
    base: Position,
    tail: Position,
    durable: Position,
    applied: Position,
    stream: Option<Stream>,
}

impl Follower {
    /// Begins with what the disk holds, and `promised`, the highest epoch that this node has recorded.
    pub fn new(kept: &Kept, promised: Option<Epoch>) -> Self {
        todo!()
    }

    /// Begins a try to open a session; the one before is over. The hello goes out with a sketch of the log as it is
    /// now, all of it durable.
    pub fn connect(&mut self) -> Attempt {
        todo!()
    }

    /// Takes the leader's answer. `own` is the digest of the own entry that ends at `welcome.from`.
    ///
    /// An answer to an older try, or in an epoch below the promised one, changes nothing. The rim has recorded
    /// the epoch, durably, before.
    pub fn welcomed(&mut self, welcome: &Welcome, own: Option<EntryDigest>) -> Vec<FollowerAction> {
        todo!()
    }

    /// Takes an entry of the stream. `own` is the digest of the own entry that ends where this one does.
    pub fn offered(
        &mut self,
        session: Session,
        head: &EntryHead,
        own: Option<EntryDigest>,
    ) -> Vec<FollowerAction> {
        todo!()
    }

    /// Takes that the log is durable up to `position`, which is not behind its end.
    pub fn synced(&mut self, position: Position) -> Vec<FollowerAction> {
        todo!()
    }

    /// Takes the leader's word for what is committed.
    pub fn committed(&mut self, session: Session, position: Position) -> Vec<FollowerAction> {
        todo!()
    }

    /// Takes that the link is gone.
    pub fn session_lost(&mut self) {
        todo!()
    }

    /// Takes that a higher epoch was recorded: nothing of a lower one is answered from now on.
    pub fn promise(&mut self, epoch: &Epoch) {
        todo!()
    }

    /// Takes that table and log were replaced, atomically and durably, by the leader's at `point`, after what the
    /// leader is not known to have was salvaged. A new session has to be opened.
    pub fn installed(&mut self, point: &Point) {
        todo!()
    }

    /// Returns the session that entries are taken from.
    pub fn session(&self) -> Option<Session> {
        todo!()
    }

    /// Returns up to where the own log is known to be the leader's, in this session.
    pub fn verified(&self) -> Option<Position> {
        todo!()
    }

    /// Returns up to where the table holds.
    pub fn applied(&self) -> Position {
        todo!()
    }
}
