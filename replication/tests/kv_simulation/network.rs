//! What is on its way between the nodes.

use std::collections::VecDeque;
use std::rc::Rc;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::point::Point;
use understudy_replication::kv::protocol::{Attempt, Session, Sketch, Tail, Welcome};
use understudy_replication::position::Position;

use crate::disk::{Entry, Snapshot};
use crate::random::Random;

/// The most nodes that a schedule has.
pub(crate) const NODES_MAX: usize = 3;

/// The most messages on the way from one node to another; the oldest are lost first.
const QUEUE_MAX: usize = 48;

#[derive(Clone)]
pub(crate) enum Message {
    /// A follower asks to be one.
    Hello {
        attempt: Attempt,
        sketch: Sketch,
    },
    /// It is one.
    Welcome(Welcome),
    /// It needs a snapshot first.
    Snapshot {
        attempt: Attempt,
        shared: Option<Point>,
        snapshot: Rc<Snapshot>,
    },
    Entry {
        session: Session,
        entry: Rc<Entry>,
    },
    /// What is committed, and how far this link was sent.
    Beat {
        session: Session,
        committed: Position,
        sent: Position,
    },
    Acknowledged {
        session: Session,
        position: Position,
    },
    /// The leader has ended the session.
    Reset {
        session: Session,
    },
    /// A promotion asks to be followed, and for the log's end.
    Propose,
    /// The answer.
    Answer {
        epoch: Epoch,
        tail: Tail,
    },
    /// Nothing but the epoch.
    Gossip,
}

/// A message, with the epoch that its sender had recorded.
#[derive(Clone)]
pub(crate) struct Letter {
    pub(crate) epoch: Epoch,
    pub(crate) message: Message,
}

/// The queues between the nodes, and which of them do not move.
#[derive(Default)]
pub(crate) struct Network {
    queues: [[VecDeque<Letter>; NODES_MAX]; NODES_MAX],
    parted: [[bool; NODES_MAX]; NODES_MAX],
    pending: usize,
}

impl Network {
    pub(crate) fn send(&mut self, from: usize, to: usize, letter: Letter) {
        let queue = &mut self.queues[from][to];
        if queue.len() < QUEUE_MAX {
            self.pending += 1;
        } else {
            queue.pop_front();
        }
        queue.push_back(letter);
    }

    /// Sends on a new link, which overtakes what is still on its way on an old one.
    pub(crate) fn send_first(&mut self, from: usize, to: usize, letter: Letter) {
        self.pending += 1;
        self.queues[from][to].push_front(letter);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending == 0
    }

    pub(crate) fn is_parted(&self, from: usize, to: usize) -> bool {
        self.parted[from][to]
    }

    pub(crate) fn part(&mut self, from: usize, to: usize, is_parted: bool) {
        self.parted[from][to] = is_parted;
    }

    pub(crate) fn lose(&mut self, from: usize, to: usize) {
        self.pending -= self.queues[from][to].len();
        self.queues[from][to].clear();
    }

    /// Takes the next message of some queue that moves: mostly in order.
    pub(crate) fn take(
        &mut self,
        random: &mut Random,
        is_lossy: bool,
    ) -> Option<(usize, usize, Letter)> {
        if self.pending == 0 {
            return None;
        }
        let start = random.below(NODES_MAX * NODES_MAX);
        let pairs = (0..NODES_MAX * NODES_MAX).map(|it| (it + start) % (NODES_MAX * NODES_MAX));
        let (from, to) = pairs
            .map(|it| (it / NODES_MAX, it % NODES_MAX))
            .find(|(from, to)| !self.parted[*from][*to] && !self.queues[*from][*to].is_empty())?;
        let queue = &mut self.queues[from][to];
        let odds = if is_lossy { random.below(100) } else { 99 };
        if odds < 2 {
            let letter = queue[random.below(queue.len())].clone();
            return Some((from, to, letter));
        }
        self.pending -= 1;
        if odds < 4 {
            let index = random.below(queue.len());
            return queue.remove(index).map(|it| (from, to, it));
        }
        if odds < 6 {
            queue.pop_front();
            return None;
        }
        queue.pop_front().map(|it| (from, to, it))
    }
}
