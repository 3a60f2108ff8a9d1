//! All nodes, and what may happen next.

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::role::{Event, Role};

use crate::broken::Broken;
use crate::check::Violation;
use crate::network::{Message, NODES_MAX, Network};
use crate::node::{Node, Stage, Waiter, Waiting};
use crate::random::Random;
use crate::seen::{Happening, Seen};

/// What is different from history to history.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// A fence command is configured.
    pub(crate) has_command: bool,
    /// It says that a node is off when it is not.
    pub(crate) command_lies: bool,
    /// Operators use `--force`.
    pub(crate) has_force: bool,
    /// Superseded nodes rejoin by themselves.
    pub(crate) is_automatic: bool,
    /// How often machines, daemons and links fail, in thousandths of all steps.
    pub(crate) failures: u64,
    /// How often operators do something, in thousandths of all steps.
    pub(crate) orders: u64,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) policy: Policy,
    pub(crate) broken: Option<Broken>,
    pub(crate) asks: u64,
    /// Whether anything may fail.
    pub(crate) faults: bool,
    /// The epochs that were ever opened.
    pub(crate) opened: Vec<Epoch>,
    /// The highest epoch that each node has answered a fence for.
    pub(crate) answered: Vec<Option<Epoch>>,
    pub(crate) was_forced: bool,
    pub(crate) has_lied: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) seen: Seen,
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, names: &[NodeName], broken: Option<Broken>, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let count = match random.below(100) {
            0..45 => 2,
            45..85 => 3,
            _ => NODES_MAX,
        };
        let policy = Policy {
            has_command: random.chance(70),
            command_lies: random.chance(15),
            has_force: random.chance(45),
            is_automatic: random.chance(40),
            failures: [5, 15, 40][random.below(3)],
            orders: [5, 15, 30][random.below(3)],
        };
        // Any of them may be the first primary: the order of names decides between equal numbers.
        let first = random.below(count);
        let epoch = Epoch::first(names[first].clone());
        let nodes: Vec<Node> = (0..count)
            .map(|at| {
                let role = if at == first {
                    Role::Primary {
                        epoch: epoch.clone(),
                        standbys: (0..count)
                            .filter(|it| *it != first)
                            .map(|it| names[it].clone())
                            .collect(),
                    }
                } else {
                    Role::Standby {
                        epoch: epoch.clone(),
                        primary: names[first].clone(),
                        proposed: None,
                    }
                };
                let mut node = Node::new(names[at].clone(), role);
                node.start();
                node
            })
            .collect();
        Self {
            random,
            answered: vec![None; count],
            nodes,
            network: Network::default(),
            policy,
            broken,
            asks: 0,
            faults: true,
            opened: vec![epoch],
            was_forced: false,
            has_lied: false,
            violation: None,
            seen: Seen::default(),
            trace: traced.then(Vec::new),
        }
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    pub(crate) fn index(&self, name: &NodeName) -> Option<usize> {
        self.nodes.iter().position(|node| node.me == *name)
    }

    /// Runs one history: what must never happen does not while everything fails, and when nothing fails any
    /// more, everything heals.
    pub(crate) fn run_history(&mut self) -> Result<(), Violation> {
        let steps = 80 + self.random.below(240);
        for _ in 0..steps {
            self.step();
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.heal();
        self.violation.take().map_or(Ok(()), Err)
    }

    fn step(&mut self) {
        let at = self.random.below(self.nodes.len());
        let dice = u64::try_from(self.random.below(1000)).unwrap_or(0);
        if dice < self.policy.failures {
            return self.fail(at);
        }
        let dice = dice - self.policy.failures;
        if dice < self.policy.orders {
            return self.order(at);
        }
        match dice - self.policy.orders {
            0..120 => self.timer(at),
            120..160 => self.write(at),
            160..520 => self.progress(at),
            _ => match self.network.take(&mut self.random, true) {
                Some(letter) => self.deliver(letter),
                None => self.progress(at),
            },
        }
    }

    /// Something inside a daemon goes on.
    pub(crate) fn progress(&mut self, at: usize) {
        match self.random.below(4) {
            0 | 1 => self.run_shell(at),
            2 => self.run_waiter(at),
            _ => self.run_task(at),
        }
    }

    /// A timer fires. Any may at any time: so clocks may jump as they like.
    fn timer(&mut self, at: usize) {
        if !self.nodes[at].is_up {
            return;
        }
        match self.random.below(12) {
            0..5 => {
                let peers = self.peers(at);
                let peer = peers[self.random.below(peers.len())];
                self.greet(at, peer);
            }
            5..8 => self.join(at),
            8 => self.stand_alone(at),
            9 => self.tick(at),
            10 => self.come_back(at),
            _ => self.give_up_waiting(at),
        }
    }

    pub(crate) fn greet(&mut self, at: usize, peer: usize) {
        let ask = self.new_ask();
        let node = &mut self.nodes[at];
        let fenced = matches!(node.role, Role::Fenced { .. });
        if node.is_asking && (matches!(node.role, Role::Returning { .. }) || fenced) {
            node.greeting = Some(ask);
        }
        self.send(at, peer, Message::Hello(ask));
    }

    /// A standby asks its primary for the stream of what it writes.
    pub(crate) fn join(&mut self, at: usize) {
        if let Stage::Standby(primary, None) = self.nodes[at].stage
            && primary != at
        {
            let ask = self.new_ask();
            self.nodes[at].joining = Some(ask);
            self.send(at, primary, Message::Joined(ask));
        }
    }

    /// A returning primary has waited for long enough.
    pub(crate) fn stand_alone(&mut self, at: usize) {
        let others = self.nodes.len() - 1;
        let node = &mut self.nodes[at];
        if node.is_asking && !node.is_alone && matches!(node.role, Role::Returning { .. }) {
            let standbys = match &node.role {
                Role::Returning { standbys, .. } => standbys.len(),
                Role::Primary { .. }
                | Role::Standby { .. }
                | Role::Promoting { .. }
                | Role::Fenced { .. } => 0,
            };
            // The documented exception: the only other node is one that this one has superseded.
            node.has_word |= standbys == 0 && others <= 1;
            self.happen(at, Event::Alone { others }, Waiter::Nobody);
        }
    }

    pub(crate) fn come_back(&mut self, at: usize) {
        let follows = match &self.nodes[at].role {
            Role::Fenced { follows, .. } => *follows || self.policy.is_automatic,
            Role::Primary { .. }
            | Role::Returning { .. }
            | Role::Standby { .. }
            | Role::Promoting { .. } => false,
        };
        if follows {
            self.order_rejoin(at);
        }
    }

    /// Nobody has answered in time.
    pub(crate) fn give_up_waiting(&mut self, at: usize) {
        self.nodes[at].greeting = None;
        self.nodes[at].joining = None;
        let waiting = self.nodes[at]
            .task
            .as_ref()
            .map(|task| task.waiting.clone());
        if let Some(Waiting::Answer(ask)) = waiting {
            self.answered(at, ask, None);
        }
    }

    /// A standby whose primary's process is gone has no stream any more.
    pub(crate) fn lose_streams(&mut self) {
        for at in 0..self.nodes.len() {
            if let Stage::Standby(primary, Some(life)) = self.nodes[at].stage {
                let there = &self.nodes[primary];
                if !there.is_up || there.life != life || there.stage != Stage::Primary {
                    self.nodes[at].stage = Stage::Standby(primary, None);
                }
            }
        }
    }

    fn fail(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let me = node.me.clone();
        match self.random.below(10) {
            0..3 if node.is_up => {
                if node.doing.as_ref().is_some_and(|it| it.is_begun) {
                    self.seen.count(Happening::CrashBetween);
                }
                self.nodes[at].crash();
                self.seen.count(Happening::Crash);
                self.note(|| format!("the daemon of {me} dies"));
            }
            3 if node.is_on => {
                node.power_off();
                self.seen.count(Happening::PowerOff);
                self.note(|| format!("{me} loses power"));
            }
            0..6 if !node.is_up => {
                node.start();
                self.note(|| format!("{me} starts"));
            }
            _ => {
                let (other, is_parted) =
                    (self.random.below(self.nodes.len()), self.random.chance(50));
                if other != at {
                    self.network.part(at, other, is_parted);
                    // Mostly both ways.
                    if self.random.chance(80) {
                        self.network.part(other, at, is_parted);
                    }
                    let name = self.nodes[other].me.clone();
                    self.note(|| format!("{me} and {name} parted: {is_parted}"));
                }
            }
        }
        if self.random.chance(50) {
            self.lose_streams();
        }
    }

    fn order(&mut self, at: usize) {
        let is_forced = self.policy.has_force && self.random.chance(40);
        match self.random.below(8) {
            0..4 => self.order_promotion(at, is_forced, false),
            4 => self.order_promotion(at, false, true),
            5 => self.order_rejoin(at),
            6 => self.come_back(at),
            // An operator switches a machine on again.
            _ if !self.nodes[at].is_up => {
                self.nodes[at].start();
                let me = self.nodes[at].me.clone();
                self.note(|| format!("{me} starts"));
            }
            _ => {}
        }
    }
}
