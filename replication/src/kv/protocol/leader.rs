//! The primary's side: what is committed, and what is promised about it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use understudy_config::NodeName;

use crate::epoch::Epoch;
use crate::kv::protocol::durability::{Durability, LeaderAction, Mode, Policy, Start};
use crate::kv::protocol::meeting::Sketch;
use crate::kv::protocol::message::Session;
use crate::position::Position;

/// How many appends are remembered apart by when they were made; later ones count as made with the last of them.
const APPENDS_MAX: usize = 1024;

/// What is known of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerSeen {
    /// Its session; `None` while it is not linked.
    pub session: Option<Session>,
    /// Up to where it has everything durable. What a follower has when it leaves, it still has.
    pub acknowledged: Position,
    /// What it shared when it joined.
    matched: Position,
    /// Whether it has acknowledged anything new in this session, and since writes were last committed alone. Without,
    /// a follower whose disk hangs would be waited for again each time its link comes back.
    is_lively: bool,
}

/// The primary's log as the rules see it.
#[derive(Clone, Debug)]
pub struct Leader {
    epoch: Epoch,
    /// Behind here the entries are this run's.
    opened: Position,
    /// The end of the opening: acknowledgements below it commit nothing.
    opening_end: Position,
    end: Position,
    durable: Position,
    committed: Position,
    policy: Policy,
    durability: Durability,
    /// Something was committed alone since [`Durability::Held`] was last true.
    was_alone: bool,
    is_open: bool,
    is_refusing: bool,
    is_fenced: bool,
    followers: BTreeMap<NodeName, FollowerSeen>,
    next_session: Session,
    /// Ends of what waits, and when it was appended; oldest first.
    appends: VecDeque<(Position, Instant)>,
    /// The most that enough followers have had in this run, and since when.
    reached: Position,
    reached_at: Instant,
}

impl Leader {
    /// Begins a run, whose opening is in the log and durable: not before may any link send what is behind
    /// `start.opened`.
    pub fn new(start: Start, policy: Policy, now: Instant) -> (Self, Vec<LeaderAction>) {
        let mut leader = Self {
            epoch: start.epoch,
            opened: start.opened,
            opening_end: start.end,
            end: start.end,
            durable: start.end,
            committed: start.committed,
            policy,
            durability: Durability::Waiting { since: now },
            was_alone: false,
            is_open: false,
            is_refusing: false,
            is_fenced: false,
            followers: BTreeMap::new(),
            next_session: start.session,
            appends: VecDeque::from([(start.end, now)]),
            reached: Position(0),
            reached_at: now,
        };
        let actions = leader.settle(now);
        (leader, actions)
    }

    /// Takes that the log was extended to `end`, durable or not.
    pub fn appended(&mut self, end: Position, now: Instant) -> Vec<LeaderAction> {
        if end <= self.end {
            return Vec::new();
        }
        self.end = end;
        let is_full = self.appends.len() >= APPENDS_MAX;
        match self.appends.back_mut() {
            Some(last) if is_full => last.0 = end,
            Some(_) | None => self.appends.push_back((end, now)),
        }
        self.settle(now)
    }

    /// Takes that the log is durable up to `end`.
    pub fn synced(&mut self, end: Position, now: Instant) -> Vec<LeaderAction> {
        self.durable = self.durable.max(end.min(self.end));
        self.settle(now)
    }

    /// Takes a follower whose log, all durable, shares everything up to `matched`; a session it had is over.
    ///
    /// `promised` is the highest epoch that it had recorded when it asked. If that is the leader's own, what matches
    /// counts as acknowledged at once; otherwise the follower may have followed another since, and cut it, and
    /// has to acknowledge it in the session. `None` when it is above the leader's own: the follower has left it,
    /// and the primary has to fence itself.
    pub fn join(
        &mut self,
        name: &NodeName,
        promised: Option<&Epoch>,
        matched: Position,
        now: Instant,
    ) -> Option<(Session, Vec<LeaderAction>)> {
        if promised.is_some_and(|it| self.epoch < *it) {
            return None;
        }
        let session = self.next_session;
        self.next_session = Session(session.0.wrapping_add(1));
        let matched = matched.min(self.end);
        let is_ours = promised == Some(&self.epoch);
        self.followers.insert(
            name.clone(),
            FollowerSeen {
                session: Some(session),
                acknowledged: if is_ours { matched } else { Position(0) },
                matched,
                is_lively: false,
            },
        );
        Some((session, self.settle(now)))
    }

    /// Takes that a follower has everything durable up to `position`. Of another session: nothing.
    pub fn acknowledged(
        &mut self,
        name: &NodeName,
        session: Session,
        position: Position,
        now: Instant,
    ) -> Vec<LeaderAction> {
        let position = position.min(self.end);
        match self.followers.get_mut(name) {
            Some(follower)
                if follower.session == Some(session) && follower.acknowledged < position =>
            {
                follower.acknowledged = position;
                follower.is_lively |= follower.matched < position;
                self.settle(now)
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// Takes that a follower's link is gone. Of another session: nothing.
    pub fn left(&mut self, name: &NodeName, session: Session, now: Instant) -> Vec<LeaderAction> {
        match self.followers.get_mut(name) {
            Some(follower) if follower.session == Some(session) => {
                follower.session = None;
                self.settle(now)
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// Takes that a standby is none of this primary's any more. The policy says how many are left.
    pub fn forget(&mut self, name: &NodeName, now: Instant) -> Vec<LeaderAction> {
        self.followers.remove(name);
        self.settle(now)
    }

    /// Takes other rules.
    pub fn regulate(&mut self, policy: Policy, now: Instant) -> Vec<LeaderAction> {
        self.policy = policy;
        self.settle(now)
    }

    /// Takes that time has passed; see [`Self::deadline`].
    pub fn tick(&mut self, now: Instant) -> Vec<LeaderAction> {
        self.settle(now)
    }

    /// Returns when [`Self::tick`] has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let refused = self.refuses_at().filter(|_| !self.is_refusing);
        [self.degrades_at(), refused].into_iter().flatten().min()
    }

    /// Returns the epoch.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Returns up to where everything is committed. Never falls.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Returns what can be promised.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Returns how many operations are committed that not as many standbys have as are demanded (in `Async`: one).
    pub fn at_risk(&self) -> u64 {
        match self.durability {
            Durability::Standalone => 0,
            Durability::Held
            | Durability::Waiting { .. }
            | Durability::Alone { .. }
            | Durability::Async => self.committed.ahead_of(self.acknowledged_by_enough()),
        }
    }

    /// Takes that another is to be primary: nothing is committed alone from here on that was not before. What
    /// standbys acknowledge still counts.
    pub fn fence(&mut self) {
        self.is_fenced = true;
    }

    /// Returns whether reads and writes may be served: whether the fate of what the log held at the start is known.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns whether a write may be taken now, rather than refused for want of standbys.
    pub fn takes_writes(&self) -> bool {
        self.is_open && !self.is_refusing
    }

    /// Returns whether a follower with this sketch may be given the table as it is at `at`, in place of its own log.
    ///
    /// Where the two logs part cannot be known if what they share was let go. Until it is open, the leader knows less
    /// to be committed than it has, and a follower may have more of that than the table: it would lose what it has
    /// acknowledged. It is left without an answer then, and asks again.
    pub fn may_send_snapshot(&self, at: Position, sketch: &Sketch) -> bool {
        self.is_open && self.opened <= at || sketch.is_covered_by(at)
    }

    /// Returns the followers that this run has seen.
    pub fn followers(&self) -> &BTreeMap<NodeName, FollowerSeen> {
        &self.followers
    }

    /// Draws every conclusion from what is known.
    fn settle(&mut self, now: Instant) -> Vec<LeaderAction> {
        let mut actions = Vec::new();
        let reached = self.acknowledged_by_enough();
        if self.reached < reached {
            self.reached = reached;
            self.reached_at = now;
        }
        self.follow_policy(now);
        self.rejoin(now, &mut actions);
        self.commit(&mut actions);
        if self.degrades_at().is_some_and(|at| at <= now) {
            let from = self.committed;
            self.be_alone(now, from);
            actions.push(LeaderAction::Degrade { from });
            self.commit(&mut actions);
        }
        self.hold(now, &mut actions);
        let refuses = self.refuses_at().is_some_and(|at| at <= now);
        if refuses != self.is_refusing {
            self.is_refusing = refuses;
            actions.push(if refuses {
                LeaderAction::Refuse
            } else {
                LeaderAction::Accept
            });
        }
        actions
    }

    fn follow_policy(&mut self, now: Instant) {
        if self.is_fenced {
            return;
        }
        let free = match self.policy.mode {
            Mode::Async | Mode::StandbyFirst { .. } if self.policy.standbys == 0 => {
                Some(Durability::Standalone)
            }
            Mode::Async => Some(Durability::Async),
            Mode::StandbyFirst { .. } => None,
        };
        if let Some(free) = free {
            self.durability = free;
            return;
        }
        match self.durability {
            // What was committed without standbys would otherwise block every write until the first of them has
            // been filled, which takes as long as the data is large.
            Durability::Async | Durability::Standalone => {
                let from = self.acknowledged_by_enough().min(self.committed);
                self.be_alone(now, from);
            }
            Durability::Held | Durability::Waiting { .. } | Durability::Alone { .. } => {}
        }
    }

    fn be_alone(&mut self, now: Instant, from: Position) {
        self.durability = Durability::Alone { since: now, from };
        self.was_alone = true;
        for follower in self.followers.values_mut() {
            follower.is_lively = false;
        }
    }

    /// Has writes wait again once enough followers are near the end, and show that they are alive.
    fn rejoin(&mut self, now: Instant, actions: &mut Vec<LeaderAction>) {
        let Durability::Alone { .. } = self.durability else {
            return;
        };
        let near = |it: &&FollowerSeen| {
            it.session.is_some()
                && (it.acknowledged >= self.end
                    || it.is_lively && self.end.ahead_of(it.acknowledged) <= self.policy.near)
        };
        if self.followers.values().filter(near).count() >= self.demanded() {
            self.durability = Durability::Waiting { since: now };
            self.reached_at = now;
            actions.push(LeaderAction::Rejoin);
        }
    }

    fn commit(&mut self, actions: &mut Vec<LeaderAction>) {
        let upto = match self.durability {
            Durability::Alone { .. } if !self.is_fenced => self.durable,
            Durability::Held | Durability::Waiting { .. } | Durability::Alone { .. } => {
                let upto = self.durable.min(self.acknowledged_by_enough());
                // Entries of an earlier run that enough nodes have can still lose to a tail of a run in between:
                // only an entry of this run on top of them rules that out.
                if upto < self.opening_end {
                    Position(0)
                } else {
                    upto
                }
            }
            Durability::Async | Durability::Standalone => self.durable,
        };
        if self.committed < upto {
            self.committed = upto;
            actions.push(LeaderAction::Commit(upto));
        }
        while self
            .appends
            .front()
            .is_some_and(|(end, _)| *end <= self.committed)
        {
            self.appends.pop_front();
        }
        if !self.is_open && self.opened <= self.committed {
            self.is_open = true;
            actions.push(LeaderAction::Open);
        }
    }

    /// Judges whether all is held, after what could be committed was.
    fn hold(&mut self, now: Instant, actions: &mut Vec<LeaderAction>) {
        let is_held = self.linked() >= self.demanded()
            && self.acknowledged_by_enough() >= self.committed.max(self.opening_end);
        match self.durability {
            Durability::Waiting { .. } if is_held => {
                self.durability = Durability::Held;
                if self.was_alone {
                    self.was_alone = false;
                    actions.push(LeaderAction::Recover);
                }
            }
            Durability::Held if !is_held => {
                self.durability = Durability::Waiting { since: now };
            }
            Durability::Held
            | Durability::Waiting { .. }
            | Durability::Alone { .. }
            | Durability::Async
            | Durability::Standalone => {}
        }
    }

    /// Returns when writes are committed alone unless standbys make progress; `None` if nothing waits for them.
    fn degrades_at(&self) -> Option<Instant> {
        if self.is_fenced {
            return None;
        }
        let (Mode::StandbyFirst { degrade_after, .. }, Some(oldest)) =
            (self.policy.mode, self.oldest_wait())
        else {
            return None;
        };
        // What is not durable here would not be committed alone either.
        if self.durable <= self.committed {
            return None;
        }
        oldest.max(self.reached_at).checked_add(degrade_after?)
    }

    /// Returns when writes are refused; `None` if none waits, or waiting ends by degrading.
    fn refuses_at(&self) -> Option<Instant> {
        match self.policy.mode {
            Mode::StandbyFirst {
                degrade_after: None,
                write_timeout,
                ..
            } => self.oldest_wait()?.checked_add(write_timeout),
            Mode::StandbyFirst { .. } | Mode::Async => None,
        }
    }

    /// Returns since when the oldest of what waits for standbys waits.
    fn oldest_wait(&self) -> Option<Instant> {
        match self.durability {
            Durability::Held | Durability::Waiting { .. } => {
                self.appends.front().map(|(_, at)| *at)
            }
            Durability::Alone { .. } | Durability::Async | Durability::Standalone => None,
        }
    }

    fn linked(&self) -> usize {
        let is_linked = |it: &&FollowerSeen| it.session.is_some();
        self.followers.values().filter(is_linked).count()
    }

    fn demanded(&self) -> usize {
        match self.policy.mode {
            Mode::StandbyFirst { acknowledge, .. } => acknowledge.get(),
            Mode::Async => 1,
        }
    }

    /// Returns up to where as many followers have everything as are demanded.
    fn acknowledged_by_enough(&self) -> Position {
        let demanded = self.demanded();
        let has = |position: Position| {
            let those = self
                .followers
                .values()
                .filter(|it| it.acknowledged >= position);
            those.count() >= demanded
        };
        let positions = self.followers.values().map(|it| it.acknowledged);
        positions.filter(|it| has(*it)).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
