//! The nodes, what may happen to them, and what is looked at after each step.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::{
    Attempt, Durability, Follower, Kept, Leader, Mode, Policy, Session, Tail,
};
use understudy_replication::position::Position;

use crate::disk::{Disk, Id, Table};
use crate::fault::Fault;
use crate::network::{Letter, Message, NODES_MAX, Network};
use crate::oracle::{Invariant, Oracle};
use crate::random::Random;
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

/// How likely each thing is in a schedule.
struct Weights {
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
    weights: Weights,
}

impl World {
    pub(crate) fn new(seed: u64, began: Instant, fault: Option<Fault>, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        // Some troubles need a third node, and more promotions and crashes than most schedules have.
        let is_turmoil = random.chance(30);
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

    /// Runs the schedule; `Err` holds what was broken.
    pub(crate) fn run(&mut self) -> Result<(), crate::oracle::Violation> {
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

    pub(crate) fn pass(&mut self, millis: u64) {
        self.millis += millis;
        for node in 0..self.nodes.len() {
            self.lead(node, |leader, now| leader.tick(now));
        }
    }

    fn deliver(&mut self) {
        let is_lossy = self.is_rough;
        if let Some((from, to, letter)) = self.network.take(&mut self.random, is_lossy) {
            self.receive(from, to, letter);
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
        self.hear(to, &epoch);
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
    fn keep(&mut self, node: usize) {
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

    /// Looks at everything that can be seen between two steps.
    pub(crate) fn check(&mut self) {
        for node in 0..self.nodes.len() {
            self.check_primary(node);
        }
    }

    fn check_primary(&mut self, node: usize) {
        let Role::Primary(primary) = &self.nodes[node].role else {
            return;
        };
        let leader = &primary.leader;
        if !leader.is_open() {
            return;
        }
        let epoch = leader.epoch().clone();
        let (durability, at_risk) = (leader.durability(), leader.at_risk());
        let demanded = match (durability, self.policy.mode) {
            (Durability::Async, _) | (_, Mode::Async) => 1,
            (_, Mode::StandbyFirst { acknowledge, .. }) => acknowledge.get(),
        };
        let committed = leader.committed();
        let applied = self.nodes[node].applied;
        let visible = self.nodes[node].applied_id;
        if committed != applied {
            self.oracle
                .broken(Invariant::TablesHoldWhatIsCommitted, || {
                    format!("{node} has applied {applied}, and {committed} is committed")
                });
        }
        self.oracle.shows(&epoch, visible);
        if self.random.chance(20) && self.nodes[node].table != self.oracle.replay(visible) {
            self.oracle
                .broken(Invariant::TablesHoldWhatIsCommitted, || {
                    format!("{node}'s table at {applied} is not what the log leads to")
                });
        }
        if !self.oracle.is_excused(&epoch, visible) && !self.is_on(node, demanded, &epoch, visible)
        {
            self.oracle.broken(Invariant::VisibleIsOnTheStandbys, || {
                format!(
                    "{visible:?} is visible on {node} in {epoch}, and not on {demanded} standbys"
                )
            });
        }
        if durability == Durability::Held {
            self.oracle.holds(&epoch, visible);
        }
        if durability != Durability::Standalone {
            let safe = Position(committed.0 - at_risk);
            let safe = self.oracle.at(visible, safe);
            if !self.is_on(node, demanded, &epoch, safe) {
                self.oracle.broken(Invariant::RiskIsNotUnderstated, || {
                    format!("{node} tells {at_risk} at risk in {epoch}, and {safe:?} is not on {demanded} standbys")
                });
            }
        }
    }

    /// Whether enough others have the log up to `id` durable, or have left the primary for a higher epoch.
    pub(crate) fn is_on(
        &self,
        primary: usize,
        demanded: usize,
        epoch: &Epoch,
        id: Option<Id>,
    ) -> bool {
        let others = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(it, _)| *it != primary);
        let have = others.filter(|(_, it)| {
            it.disk.promised > *epoch || self.oracle.has(it.disk.durable_id(), id)
        });
        id.is_none() || have.count() >= demanded
    }
}

fn policy(random: &mut Random, standbys: usize) -> Policy {
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
fn weights(random: &mut Random, is_turmoil: bool) -> Weights {
    let mut of = [0; STEPS.len()];
    for (weight, (step, usual)) in of.iter_mut().zip(STEPS) {
        let factor = match step {
            Step::Deliver => 2,
            Step::Write | Step::Sync | Step::Stream | Step::Connect => 1 + random.below(2),
            Step::Crash | Step::Restart | Step::Propose | Step::Conclude if is_turmoil => 3,
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
