//! What happens, and in which order: all of it from the seed.

use std::num::NonZeroUsize;
use std::time::Duration;

use understudy_replication::kv::protocol::{Mode, Policy};

use crate::network::Message;
use crate::oracle::Violation;
use crate::random::Random;
use crate::world::{World, say};

/// How likely each thing is in a schedule.
pub(crate) struct Weights {
    of: [usize; STEPS.len()],
    total: usize,
}

/// What can happen in a step, and how likely it is at first.
const STEPS: [(Step, usize); 18] = [
    (Step::Calm, 4),
    (Step::Deliver, 40),
    (Step::Write, 14),
    (Step::Sync, 18),
    (Step::Stream, 12),
    (Step::Beat, 6),
    (Step::Connect, 8),
    (Step::Time, 6),
    (Step::Crash, 3),
    (Step::Restart, 8),
    (Step::Part, 2),
    (Step::Unpart, 3),
    (Step::Reset, 1),
    (Step::Propose, 2),
    (Step::Conclude, 5),
    (Step::Snapshot, 2),
    (Step::Regulate, 1),
    (Step::Gossip, 2),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// For once, everything that is up and not parted works.
    Calm,
    Deliver,
    Write,
    Sync,
    Stream,
    Beat,
    Connect,
    Time,
    Crash,
    Restart,
    Part,
    Unpart,
    Reset,
    Propose,
    Conclude,
    Snapshot,
    Regulate,
    Gossip,
}

impl World {
    /// Runs the schedule; `Err` holds what was broken.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        let steps = 50 + self.random.below(150);
        for _ in 0..steps {
            self.step();
            self.check();
            if let Some(violation) = self.oracle.violation.take() {
                return Err(violation);
            }
        }
        self.mend();
        self.oracle.violation.take().map_or(Ok(()), Err)
    }

    fn step(&mut self) {
        let mut chosen = self.random.below(self.weights.total);
        let mut step = Step::Deliver;
        for ((it, _), weight) in STEPS.iter().zip(self.weights.of) {
            if chosen < weight {
                step = *it;
                break;
            }
            chosen -= weight;
        }
        let node = self.random.below(self.nodes.len());
        let other = (node + 1 + self.random.below(self.nodes.len() - 1)) % self.nodes.len();
        match step {
            Step::Calm => self.be_calm(),
            Step::Deliver => {
                for _ in 0..=self.random.below(4) {
                    self.deliver();
                }
            }
            Step::Write => {
                for node in 0..self.nodes.len() {
                    self.write(node);
                }
            }
            Step::Sync => self.sync(node, true),
            Step::Stream => {
                for node in 0..self.nodes.len() {
                    self.stream(node);
                }
            }
            Step::Beat => {
                for node in 0..self.nodes.len() {
                    self.beat(node);
                }
            }
            Step::Connect => self.connect_if_idle(node),
            Step::Time => {
                let millis = 1 + self.random.below(40);
                self.pass(u64::try_from(millis).unwrap_or(1));
            }
            Step::Crash => {
                self.crash(node);
                if self.random.chance(40) && !self.is_up(node) {
                    self.start(node);
                }
            }
            Step::Restart => {
                if !self.is_up(node) {
                    self.start(node);
                }
            }
            Step::Part => {
                say!(self, "{node} and {other} are parted");
                let is_one_way = self.random.chance(30);
                let loses = self.random.chance(50);
                self.network.part(node, other, true);
                self.network.part(other, node, !is_one_way);
                if loses {
                    self.network.lose(node, other);
                    self.network.lose(other, node);
                }
            }
            Step::Unpart => {
                say!(self, "{node} and {other} are together");
                self.network.part(node, other, false);
                self.network.part(other, node, false);
            }
            Step::Reset => self.reset(node, other),
            Step::Propose => self.propose(node),
            Step::Conclude => {
                for node in 0..self.nodes.len() {
                    let force = self.random.chance(25);
                    self.conclude(node, force);
                }
            }
            Step::Snapshot => self.keep(node),
            Step::Regulate => self.regulate(node),
            Step::Gossip => self.send(node, other, Message::Gossip),
        }
    }

    fn be_calm(&mut self) {
        for node in 0..self.nodes.len() {
            self.connect_if_idle(node);
        }
        self.flow();
        for node in 0..self.nodes.len() {
            self.stream(node);
        }
        self.flow();
        for node in 0..self.nodes.len() {
            self.sync(node, false);
        }
        self.flow();
        for node in 0..self.nodes.len() {
            self.beat(node);
        }
        self.flow();
    }

    /// Delivers what moves, in order.
    fn flow(&mut self) {
        for _ in 0..50 {
            let Some((from, to, letter)) = self.network.take(&mut self.random, false) else {
                return;
            };
            self.receive(from, to, letter);
        }
    }

    fn deliver(&mut self) {
        let is_lossy = self.is_rough;
        if let Some((from, to, letter)) = self.network.take(&mut self.random, is_lossy) {
            self.receive(from, to, letter);
        }
    }
}

pub(crate) fn policy(random: &mut Random, standbys: usize) -> Policy {
    let millis = |it: usize| Duration::from_millis(u64::try_from(it).unwrap_or(0));
    let acknowledge = if standbys > 1 && random.chance(35) {
        2
    } else {
        1
    };
    let mode = if random.chance(8) {
        Mode::Async
    } else {
        Mode::StandbyFirst {
            acknowledge: NonZeroUsize::new(acknowledge).unwrap_or(NonZeroUsize::MIN),
            degrade_after: (!random.chance(30)).then(|| millis(20 + random.below(60))),
            write_timeout: millis(20 + random.below(40)),
        }
    };
    Policy {
        mode,
        standbys,
        near: [0, 2, 1000][random.below(3)],
    }
}

/// Each schedule has its own habits: what all of them did would seldom go far into one direction.
pub(crate) fn weights(random: &mut Random, is_turmoil: bool) -> Weights {
    let mut of = [0; STEPS.len()];
    for (weight, (step, usual)) in of.iter_mut().zip(STEPS) {
        let factor = match step {
            Step::Deliver => 2,
            Step::Write | Step::Sync | Step::Stream | Step::Connect => 1 + random.below(2),
            Step::Crash | Step::Restart | Step::Propose | Step::Conclude | Step::Part
                if is_turmoil =>
            {
                3
            }
            Step::Calm
            | Step::Beat
            | Step::Time
            | Step::Crash
            | Step::Restart
            | Step::Part
            | Step::Unpart
            | Step::Reset
            | Step::Propose
            | Step::Conclude
            | Step::Snapshot
            | Step::Regulate
            | Step::Gossip => [0, 1, 1, 3][random.below(4)],
        };
        *weight = usual * factor;
    }
    Weights {
        of,
        total: of.iter().sum(),
    }
}
