//! The standby's side: what it appends, what it cuts, what it may acknowledge and apply.

use crate::epoch::Epoch;
use crate::kv::point::{EntryDigest, Point};
use crate::kv::protocol::message::{Attempt, EntryHead, Session, Welcome};
use crate::position::Position;

/// What a follower's disk holds when it starts, all of it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where the snapshot is that the table is built from; 0 if there is none.
    pub base: Position,
    /// The end of the log.
    pub tail: Position,
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
    verified: Point,
    /// What is committed, as far as this session has told.
    committed: Position,
    acknowledged: Position,
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
    ///
    /// Tries are numbered from behind `attempt`, which is random or higher than before.
    pub fn new(kept: Kept, promised: Option<Epoch>, attempt: Attempt) -> Self {
        Self {
            promised,
            attempt,
            base: kept.base,
            tail: kept.tail,
            durable: kept.tail,
            applied: kept.applied,
            stream: None,
        }
    }

    /// Begins a try to open a session; the one before is over. The hello goes out with a sketch of the log as it is
    /// now, all of it durable.
    pub fn connect(&mut self) -> Attempt {
        self.attempt = Attempt(self.attempt.0.wrapping_add(1));
        self.stream = None;
        self.attempt
    }

    /// Returns whether an answer (a welcome, a snapshot) to a try may be followed: it is to the last one, and of an
    /// epoch that is not below the promised one. For a snapshot it has to be asked again when it is installed.
    pub fn accepts(&self, attempt: Attempt, epoch: &Epoch) -> bool {
        attempt == self.attempt && self.promised.as_ref().is_none_or(|it| it <= epoch)
    }

    /// Takes the leader's answer. `own` is the digest of the own entry that ends at `welcome.from`.
    ///
    /// The rim has recorded the epoch, durably, before. An answer that is not accepted changes nothing.
    pub fn welcomed(&mut self, welcome: &Welcome, own: Option<EntryDigest>) -> Vec<FollowerAction> {
        let is_known = |it: &Stream| it.session == welcome.session;
        if !self.accepts(welcome.attempt, &welcome.epoch)
            || self.stream.as_ref().is_some_and(is_known)
        {
            return Vec::new();
        }
        self.promised = Some(welcome.epoch.clone());
        if welcome.from != Point::ORIGIN && own != Some(welcome.from.digest) {
            return self.reopen();
        }
        if welcome.from.position < self.base {
            self.stream = None;
            return vec![FollowerAction::NeedSnapshot];
        }
        self.stream = Some(Stream {
            session: welcome.session,
            epoch: welcome.epoch.clone(),
            verified: welcome.from.clone(),
            committed: Position(0),
            acknowledged: welcome.from.position,
        });
        Vec::new()
    }

    /// Takes an entry of the stream. `own` is the digest of the own entry that ends where this one does, if there
    /// is one. The operations have been checked against the head's digest before.
    pub fn offered(
        &mut self,
        session: Session,
        head: &EntryHead,
        own: Option<EntryDigest>,
    ) -> Vec<FollowerAction> {
        let Some(stream) = self.stream.as_mut().filter(|it| it.session == session) else {
            return Vec::new();
        };
        if head.end <= stream.verified.position {
            return Vec::new();
        }
        let fits = head.start == stream.verified.position
            && head.previous == stream.verified.digest
            && head.start < head.end
            && head.epoch <= stream.epoch;
        if !fits {
            return self.reopen();
        }
        let mut actions = Vec::new();
        if self.tail >= head.end && own == Some(head.digest) {
            // It may be all that makes a write of a client durable in two places: it is not written again.
            actions.push(FollowerAction::Have);
        } else {
            if self.tail > head.start {
                // A snapshot of the own table may have been taken since the sketch.
                if stream.verified.position < self.base {
                    self.stream = None;
                    return vec![FollowerAction::NeedSnapshot];
                }
                let to = stream.verified.clone();
                self.tail = to.position;
                self.durable = self.durable.min(to.position);
                let rebuild = self.applied > to.position;
                self.applied = self.applied.min(to.position);
                actions.push(FollowerAction::Cut { to, rebuild });
            }
            self.tail = head.end;
            actions.push(FollowerAction::Append);
        }
        stream.verified = head.point();
        stream.committed = stream.committed.max(head.committed);
        self.progress(&mut actions);
        actions
    }

    /// Takes that the log is durable up to `position`, which is not behind its end.
    ///
    /// Syncs and cuts are told in the order in which they were done: a sync that ended before a cut is not told
    /// after it.
    pub fn synced(&mut self, position: Position) -> Vec<FollowerAction> {
        self.durable = self.durable.max(position.min(self.tail));
        let mut actions = Vec::new();
        self.progress(&mut actions);
        actions
    }

    /// Takes the leader's word for what is committed.
    pub fn committed(&mut self, session: Session, position: Position) -> Vec<FollowerAction> {
        let mut actions = Vec::new();
        if let Some(stream) = self.stream.as_mut().filter(|it| it.session == session) {
            stream.committed = stream.committed.max(position);
            self.progress(&mut actions);
        }
        actions
    }

    /// Takes that the link is gone.
    pub fn session_lost(&mut self) {
        self.stream = None;
    }

    /// Takes that a higher epoch was recorded: nothing of a lower one is answered from now on.
    pub fn promise(&mut self, epoch: &Epoch) {
        if self.stream.as_ref().is_some_and(|it| it.epoch < *epoch) {
            self.stream = None;
        }
        if self.promised.as_ref().is_none_or(|it| it < epoch) {
            self.promised = Some(epoch.clone());
        }
    }

    /// Takes that table and log were replaced, atomically and durably, by the leader's at `point`, after what the
    /// leader is not known to have was salvaged. A new session has to be opened.
    pub fn installed(&mut self, point: &Point) {
        self.stream = None;
        self.base = point.position;
        self.tail = point.position;
        self.durable = point.position;
        self.applied = point.position;
    }

    /// Takes that the own table was snapshotted at a position, or that an older snapshot went.
    pub fn rebased(&mut self, base: Position) {
        self.base = base;
    }

    /// Returns the session that entries are taken from.
    pub fn session(&self) -> Option<Session> {
        self.stream.as_ref().map(|it| it.session)
    }

    /// Returns the epoch of the leader that entries are taken from.
    ///
    /// Entries *of that epoch* that are cut need not be salvaged: they are what the leader lost in a crash before
    /// they were durable there, so that nobody can have committed them.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.stream.as_ref().map(|it| &it.epoch)
    }

    /// Returns up to where the own log is known to be the leader's, in this session.
    pub fn verified(&self) -> Option<&Point> {
        self.stream.as_ref().map(|it| &it.verified)
    }

    /// Returns up to where the table holds.
    pub fn applied(&self) -> Position {
        self.applied
    }

    fn reopen(&mut self) -> Vec<FollowerAction> {
        self.stream = None;
        vec![FollowerAction::Reopen]
    }

    /// Acknowledges and applies what has become durable and verified.
    fn progress(&mut self, actions: &mut Vec<FollowerAction>) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let sure = self.durable.min(stream.verified.position);
        if stream.acknowledged < sure {
            stream.acknowledged = sure;
            actions.push(FollowerAction::Acknowledge {
                session: stream.session,
                position: sure,
            });
        }
        let upto = sure.min(stream.committed);
        if self.applied < upto {
            self.applied = upto;
            actions.push(FollowerAction::Apply(upto));
        }
    }
}

#[cfg(test)]
mod tests;
