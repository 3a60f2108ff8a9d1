//! The primary's state: what is appended, handed to the links, made durable, committed. One lock around it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::draft::Draft;
use understudy_replication::kv::entry::{After, Entry};
use understudy_replication::kv::operation::Operation;
use understudy_replication::kv::point::Point;
use understudy_replication::kv::protocol::{Leader, LeaderAction};
use understudy_replication::kv::storage::Storage;
use understudy_replication::position::Position;

use super::KvError;
use super::recent::Recent;

/// How many bytes of operations an entry takes, unless a single command has more.
const ENTRY_BYTES_MAX: usize = 512 << 10;

/// An entry that is not committed yet.
struct Made {
    start: Position,
    point: Point,
    operations: Vec<Operation>,
}

/// What happened that somebody outside has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// More is visible, or the state has changed in which clients are answered.
    Settled,
    /// See [`LeaderAction::Degrade`].
    Degraded(Position),
    /// See [`LeaderAction::Rejoin`].
    Rejoining,
    /// See [`LeaderAction::Recover`].
    Recovered,
    /// See [`LeaderAction::Refuse`].
    Refusing,
    /// See [`LeaderAction::Accept`].
    Accepting,
}

/// The primary's state.
pub(super) struct Core {
    pub(super) draft: Draft,
    pub(super) leader: Leader,
    pub(super) recent: Recent,
    storage: Arc<Storage>,
    epoch: Epoch,
    opened: Position,
    tail: Point,
    bytes: u64,
    made: VecDeque<Made>,
    /// Made, and not yet taken by the committer.
    unsynced: Vec<Entry>,
    is_syncing: bool,
    /// The operations of the last entry, for who watches.
    pub(super) group: u64,
}

impl Core {
    /// Begins behind the opening of a run, which is durable.
    pub(super) fn new(storage: Arc<Storage>, opening: &Entry, leader: Leader) -> Self {
        Self {
            draft: Draft::new(opening.head.end),
            leader,
            recent: Recent::new(opening.clone()),
            storage,
            epoch: opening.head.epoch.clone(),
            opened: opening.head.start,
            tail: opening.point(),
            bytes: opening.bytes_after(),
            made: VecDeque::new(),
            unsynced: Vec::new(),
            is_syncing: false,
            group: 0,
        }
    }

    /// Returns the store's files and table.
    pub(super) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Returns the end of what was handed to the links.
    pub(super) fn handed(&self) -> &Point {
        &self.tail
    }

    /// Makes an entry of what waits, if nothing is on its way to the disk: what comes meanwhile goes together.
    /// Returns whether there is something for the committer.
    pub(super) fn make_if_idle(&mut self, now: Instant) -> Result<(bool, Vec<News>), KvError> {
        if self.is_syncing || !self.unsynced.is_empty() {
            return Ok((false, Vec::new()));
        }
        let news = self.make(now)?;
        Ok((!self.unsynced.is_empty(), news))
    }

    /// Makes an entry of the oldest that waits, and hands it to the links.
    pub(super) fn make(&mut self, now: Instant) -> Result<Vec<News>, KvError> {
        let Some(taken) = self.draft.take(ENTRY_BYTES_MAX) else {
            return Ok(Vec::new());
        };
        let after = After {
            epoch: &self.epoch,
            opened: Some(self.opened),
            point: &self.tail,
            bytes: self.bytes,
            committed: self.leader.committed(),
        };
        let entry = Entry::make(&after, &taken.operations).map_err(KvError::Entry)?;
        self.group = taken.end.ahead_of(taken.start);
        self.tail = entry.point();
        self.bytes = entry.bytes_after();
        self.made.push_back(Made {
            start: taken.start,
            point: entry.point(),
            operations: taken.operations,
        });
        self.recent.push(entry.clone());
        let end = entry.head.end;
        self.unsynced.push(entry);
        let actions = self.leader.appended(end, now);
        self.act(actions)
    }

    /// Gives the committer what it has to make durable.
    pub(super) fn begin_sync(&mut self) -> Vec<Entry> {
        self.is_syncing = !self.unsynced.is_empty();
        std::mem::take(&mut self.unsynced)
    }

    /// Takes that everything up to `end` is durable here, and makes the next entry.
    pub(super) fn synced(&mut self, end: Position, now: Instant) -> Result<Vec<News>, KvError> {
        self.is_syncing = false;
        let actions = self.leader.synced(end, now);
        let mut news = self.act(actions)?;
        news.extend(self.make(now)?);
        Ok(news)
    }

    /// Returns whether everything that was written is durable here.
    pub(super) fn is_flushed(&self) -> bool {
        !self.is_syncing && self.unsynced.is_empty() && self.draft.end() == self.tail.position
    }

    /// Does what the rules say.
    pub(super) fn act(&mut self, actions: Vec<LeaderAction>) -> Result<Vec<News>, KvError> {
        let mut news = Vec::new();
        for action in actions {
            news.push(match action {
                LeaderAction::Commit(position) => {
                    self.commit(position)?;
                    News::Settled
                }
                LeaderAction::Open => News::Settled,
                LeaderAction::Degrade { from } => News::Degraded(from),
                LeaderAction::Rejoin => News::Rejoining,
                LeaderAction::Recover => News::Recovered,
                LeaderAction::Refuse => News::Refusing,
                LeaderAction::Accept => News::Accepting,
            });
        }
        Ok(news)
    }

    fn commit(&mut self, upto: Position) -> Result<(), KvError> {
        while let Some(made) = self.made.pop_front_if(|made| made.point.position <= upto) {
            // What was in the log at the start comes first.
            self.storage.apply_up_to(made.start)?;
            self.storage
                .apply_operations(made.start, &made.operations, made.point)?;
        }
        self.storage.apply_up_to(upto)?;
        self.draft.settle(upto);
        Ok(())
    }
}
