//! The nodes, and what befalls one of them.

use std::time::{Duration, Instant};

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::{
    Attempt, Follower, Kept, Leader, Policy, Session, Tail,
};
use understudy_replication::position::Position;

use crate::disk::{Disk, Id, Table};
use crate::fault::Fault;
use crate::network::{Letter, Message, NODES_MAX, Network};
use crate::oracle::{Invariant, Oracle};
use crate::random::Random;
use crate::schedule::{Weights, policy, weights};
use crate::seen::{Happening, Seen};

/// Notes what happens, if this run is traced.
macro_rules! say {
    ($world:expr, $($argument:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($argument)*);
            $world.note(line);
        }
    };
}
pub(crate) use say;

/// A leader's end of a link.
pub(crate) struct Link {
    pub(crate) session: Session,
    /// What was sent.
    pub(crate) sent: Position,
}

pub(crate) struct Primary {
    pub(crate) leader: Leader,
    pub(crate) opened: Position,
    pub(crate) links: [Option<Link>; NODES_MAX],
}

/// What runs on a node.
pub(crate) enum Role {
    Down,
    Standby(Follower),
    Primary(Box<Primary>),
}

/// A promotion that waits for answers.
pub(crate) struct Candidacy {
    pub(crate) epoch: Epoch,
    pub(crate) answers: Vec<(NodeName, Tail)>,
}

pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) disk: Disk,
    pub(crate) role: Role,
    pub(crate) table: Table,
    pub(crate) applied: Position,
    pub(crate) applied_id: Option<Id>,
    pub(crate) candidacy: Option<Candidacy>,
    /// Whom the standby follows in its session, or tries to.
    pub(crate) source: usize,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) began: Instant,
    pub(crate) millis: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) oracle: Oracle,
    pub(crate) fault: Option<Fault>,
    /// The rules of the schedule; a leader may have others for a while.
    pub(crate) policy: Policy,
    /// Messages are lost, doubled and reordered, and nodes crash between two writes.
    pub(crate) is_rough: bool,
    pub(crate) values: u32,
    pub(crate) attempts: u64,
    pub(crate) seen: Seen,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) weights: Weights,
}

impl World {
    pub(crate) fn new(seed: u64, began: Instant, fault: Option<Fault>, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        // Some troubles need a third node, and more promotions and crashes than most schedules have.
        let is_turmoil = random.chance(50);
        let count = if is_turmoil { 3 } else { 2 + random.below(2) };
        let names = ["a", "b", "c"];
        let nodes = names
            .iter()
            .take(count)
            .filter_map(|it| it.parse::<NodeName>().ok());
        let nodes: Vec<NodeName> = nodes.collect();
        let first = Epoch::first(nodes[0].clone());
        let policy = policy(&mut random, count - 1);
        let weights = weights(&mut random, is_turmoil);
        let nodes = nodes.into_iter().map(|name| Node {
            name,
            disk: Disk::new(first.clone()),
            role: Role::Down,
            table: Table::default(),
            applied: Position(0),
            applied_id: None,
            candidacy: None,
            source: 0,
        });
        let mut world = Self {
            nodes: nodes.collect(),
            network: Network::default(),
            oracle: Oracle::default(),
            random,
            began,
            millis: 0,
            fault,
            policy,
            is_rough: true,
            values: 0,
            attempts: 0,
            seen: Seen::default(),
            trace: is_traced.then(Vec::new),
            weights,
        };
        world.nodes[0].disk.leads = true;
        world.oracle.opens(&first, None, true);
        say!(world, "{} nodes, {:?}", count, world.policy);
        for node in 0..count {
            world.start(node);
        }
        world
    }

    pub(crate) fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.millis)
    }

    pub(crate) fn note(&mut self, line: String) {
        let millis = self.millis;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{millis:>5} ms  {line}"));
        }
    }

    /// Whether a rule is broken: while things go wrong, because what is mended is mended with all of them.
    pub(crate) fn is_faulty(&self, fault: Fault) -> bool {
        self.is_rough && self.fault == Some(fault)
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        !matches!(self.nodes[node].role, Role::Down)
    }

    pub(crate) fn primary(&mut self, node: usize) -> Option<&mut Primary> {
        match &mut self.nodes[node].role {
            Role::Primary(primary) => Some(primary),
            Role::Down | Role::Standby(_) => None,
        }
    }

    pub(crate) fn follower(&mut self, node: usize) -> Option<&mut Follower> {
        match &mut self.nodes[node].role {
            Role::Standby(follower) => Some(follower),
            Role::Down | Role::Primary(_) => None,
        }
    }

    pub(crate) fn index_of(&self, name: &NodeName) -> usize {
        self.nodes
            .iter()
            .position(|it| it.name == *name)
            .unwrap_or(0)
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        let epoch = self.nodes[from].disk.promised.clone();
        self.network.send(from, to, Letter { epoch, message });
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        self.millis += millis;
        for node in 0..self.nodes.len() {
            self.lead(node, |leader, now| leader.tick(now));
        }
    }

    pub(crate) fn receive(&mut self, from: usize, to: usize, letter: Letter) {
        if !self.is_up(to) {
            return;
        }
        let Letter { epoch, message } = letter;
        let is_survey = matches!(message, Message::Propose);
        if is_survey && self.is_faulty(Fault::AnswersWithoutPromise) {
            self.answer(to, from, epoch);
            return;
        }
        // What goes over a link that is open names its session, and no epoch.
        let is_of_a_session = match message {
            Message::Entry { .. }
            | Message::Beat { .. }
            | Message::Acknowledged { .. }
            | Message::Reset { .. } => true,
            Message::Hello { .. }
            | Message::Welcome(_)
            | Message::Snapshot { .. }
            | Message::Propose
            | Message::Answer { .. }
            | Message::Gossip => false,
        };
        if !is_of_a_session {
            self.hear(to, &epoch);
        }
        match message {
            Message::Hello { attempt, sketch } => self.greet(to, from, attempt, &sketch, &epoch),
            Message::Acknowledged { session, position } => {
                self.count(to, from, session, position);
            }
            Message::Propose => self.answer(to, from, epoch),
            Message::Answer { epoch, tail } => self.collect(to, from, &epoch, tail),
            Message::Gossip => {}
            Message::Welcome(welcome) => self.welcomed(to, from, &welcome),
            Message::Snapshot {
                attempt,
                shared,
                snapshot,
            } => self.take_snapshot(to, attempt, &epoch, shared.as_ref(), &snapshot),
            Message::Entry { session, entry } => self.offered(to, session, &entry),
            Message::Beat {
                session,
                committed,
                sent,
            } => self.beaten(to, session, committed, sent),
            Message::Reset { session } => {
                if self
                    .follower(to)
                    .is_some_and(|it| it.session() == Some(session))
                {
                    self.connect(to);
                }
            }
        }
    }

    /// Takes notice of an epoch: a primary of a lower one steps down before anything else.
    pub(crate) fn hear(&mut self, node: usize, epoch: &Epoch) {
        if *epoch <= self.nodes[node].disk.promised {
            return;
        }
        let it = &mut self.nodes[node];
        it.disk.promised = epoch.clone();
        it.disk.leads = false;
        it.candidacy = None;
        match &mut it.role {
            Role::Down => {}
            Role::Standby(follower) => follower.promise(epoch),
            Role::Primary(_) => {
                say!(self, "{node} steps down for {epoch}");
                self.seen.count(Happening::StepDown);
                self.become_standby(node);
            }
        }
    }

    pub(crate) fn become_standby(&mut self, node: usize) {
        self.attempts += 1000;
        let attempt = Attempt(self.attempts);
        let it = &mut self.nodes[node];
        it.disk.sync();
        let kept = Kept {
            base: it.disk.snapshot.place.point.position,
            tail: it.disk.end(),
            applied: it.applied,
        };
        it.role = Role::Standby(Follower::new(kept, Some(it.disk.promised.clone()), attempt));
    }

    pub(crate) fn start(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let known = it.disk.known_committed();
        it.table = it.disk.table_at(known);
        it.applied = known;
        let Some(place) = it.disk.at(known) else {
            self.oracle
                .broken(Invariant::TablesHoldWhatIsCommitted, || {
                    format!("{node} knows {known:?} to be committed, where no entry ends")
                });
            return;
        };
        it.applied_id = place.id;
        if it.disk.leads {
            let durable = it.disk.durable_id();
            let epoch = it.disk.promised.clone();
            say!(self, "{node} starts again as primary of {epoch}");
            self.seen.count(Happening::RestartInTheEpoch);
            self.oracle.reopens(&epoch, durable);
            let is_unknown = !self.is_faulty(Fault::ServesAnUnknownTail);
            self.open_run(node, is_unknown.then_some(known));
        } else {
            say!(self, "{node} starts as a standby");
            self.become_standby(node);
        }
    }

    pub(crate) fn crash(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let it = &mut self.nodes[node];
        let had = it.disk.end();
        it.disk.crash(&mut self.random);
        it.role = Role::Down;
        it.candidacy = None;
        let end = it.disk.end();
        self.seen.count(Happening::Crash);
        say!(self, "{node} crashes; its log ends at {end}, was at {had}");
    }

    /// Crashes in the middle of something, now and then.
    pub(crate) fn may_crash(&mut self, node: usize, percent: u64) -> bool {
        let crashes = self.is_rough && self.random.chance(percent);
        if crashes {
            self.crash(node);
        }
        crashes
    }

    pub(crate) fn sync(&mut self, node: usize, may_be_partial: bool) {
        if !self.is_up(node) {
            return;
        }
        let it = &mut self.nodes[node];
        let before = it.disk.durable_end();
        if may_be_partial {
            it.disk.sync_partly(&mut self.random);
        } else {
            it.disk.sync();
        }
        let end = it.disk.durable_end();
        if before == end {
            return;
        }
        say!(self, "{node} has synced up to {end}");
        if self.follower(node).is_some() {
            let actions = self.follower(node).map(|it| it.synced(end));
            self.obey(node, actions.unwrap_or_default(), None);
            return;
        }
        self.lead(node, |leader, now| leader.synced(end, now));
        if self.is_faulty(Fault::CommitsWithoutAcknowledgement) {
            self.forge(node, end);
        }
    }

    /// Takes a snapshot of the table, and lets older entries go.
    pub(crate) fn keep(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let it = &mut self.nodes[node];
        it.disk.snapshot(it.applied, it.table, &mut self.random);
        let base = it.disk.snapshot.place.point.position;
        let first = it.disk.first();
        say!(
            self,
            "{node} has a snapshot at {base}, and a log from {first}"
        );
        if let Some(follower) = self.follower(node) {
            follower.rebased(base);
        }
    }
}
