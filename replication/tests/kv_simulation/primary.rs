//! The rim of a primary.

use std::rc::Rc;
use std::time::Instant;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::{
    Attempt, Durability, Leader, LeaderAction, Meeting, Mode, Policy, Session, Sketch, Start,
    Welcome, meet,
};
use understudy_replication::position::Position;

use crate::disk::{KEYS, Snapshot};
use crate::fault::Fault;
use crate::network::{Message, NODES_MAX};
use crate::oracle::Invariant;
use crate::seen::Happening;
use crate::world::{Link, Primary, Role, World, say};

/// How many entries are sent at once.
const BURST: usize = 3;

impl World {
    /// Opens a run: everything in the log is committed, or only what is known to be.
    pub(crate) fn open_run(&mut self, node: usize, known: Option<Position>) {
        let is_silent = self.is_faulty(Fault::OpensWithoutEntry);
        let is_hasty = self.is_faulty(Fault::SendsTheOpeningEarly);
        let is_early = self.is_faulty(Fault::CommitsBelowTheOpening);
        let it = &mut self.nodes[node];
        let epoch = it.disk.promised.clone();
        let last = it.disk.place();
        let tail = last.point.position;
        let committed = known.unwrap_or(tail);
        let mut opened = tail;
        if is_silent && known.is_some() && last.id.is_some() {
            opened = last.opened;
        } else {
            let opening = self
                .oracle
                .entry(&last, tail, &epoch, committed, Vec::new());
            it.disk.append(opening);
            if !is_hasty {
                it.disk.sync();
                if self.may_crash(node, 3) {
                    return;
                }
            }
        }
        let it = &mut self.nodes[node];
        let end = it.disk.end();
        let start = Start {
            epoch,
            opened: tail,
            end: if is_early { tail } else { end },
            committed,
            session: Session(self.random.word()),
        };
        it.applied_id = it.disk.at(committed).and_then(|it| it.id);
        it.table = it.disk.table_at(committed);
        it.applied = committed;
        let mut policy = self.policy;
        if self.is_rough && self.random.chance(10) {
            policy.standbys = 0;
        }
        let now = self.now();
        let (leader, actions) = Leader::new(start, policy, now);
        if known.is_none() && !leader.is_open() {
            self.oracle.broken(Invariant::EverythingHeals, || {
                format!("{node} was promoted at {tail}, and does not open")
            });
        }
        say!(
            self,
            "{node} opens a run at {tail}, committed {committed}: {actions:?}"
        );
        self.nodes[node].role = Role::Primary(Box::new(Primary {
            leader,
            opened,
            links: [const { None }; NODES_MAX],
        }));
        self.conduct(node, actions);
        if is_early {
            self.lead(node, |leader, now| {
                let mut actions = leader.appended(end, now);
                actions.extend(leader.synced(end, now));
                actions
            });
        }
    }

    /// Tells a leader something, and does what follows.
    pub(crate) fn lead(
        &mut self,
        node: usize,
        tell: impl FnOnce(&mut Leader, Instant) -> Vec<LeaderAction>,
    ) {
        let now = self.now();
        if let Some(primary) = self.primary(node) {
            let actions = tell(&mut primary.leader, now);
            self.conduct(node, actions);
        }
    }

    fn conduct(&mut self, node: usize, actions: Vec<LeaderAction>) {
        let Some(primary) = self.primary(node) else {
            return;
        };
        let epoch = primary.leader.epoch().clone();
        let is_free_now = match primary.leader.durability() {
            Durability::Alone { .. } | Durability::Async | Durability::Standalone => true,
            Durability::Held | Durability::Waiting { .. } => false,
        };
        let degraded = actions
            .iter()
            .position(|it| matches!(it, LeaderAction::Degrade { .. }));
        for (index, action) in actions.iter().enumerate() {
            say!(self, "{node} {action:?}");
            match action {
                LeaderAction::Commit(upto) => {
                    // Up to a degradation, commits are by the standbys.
                    let is_alone = degraded.map_or(is_free_now, |it| it < index);
                    self.commit(node, *upto, &epoch, is_alone);
                }
                LeaderAction::Degrade { .. } => {
                    self.seen.count(Happening::Degraded);
                    let never = matches!(
                        self.policy.mode,
                        Mode::StandbyFirst {
                            degrade_after: None,
                            ..
                        }
                    );
                    if never {
                        self.oracle.broken(Invariant::VisibleIsOnTheStandbys, || {
                            format!("{node} degrades in {epoch}, which it never may")
                        });
                    }
                }
                LeaderAction::Recover => self.seen.count(Happening::Recovered),
                LeaderAction::Refuse => self.seen.count(Happening::Refused),
                LeaderAction::Open | LeaderAction::Rejoin | LeaderAction::Accept => {}
            }
        }
    }

    fn commit(&mut self, node: usize, upto: Position, epoch: &Epoch, is_alone: bool) {
        self.apply(node, upto);
        let id = self.nodes[node].applied_id;
        self.oracle.shows(epoch, id);
        if is_alone {
            self.seen.count(Happening::CommitAlone);
            self.oracle.excuses(epoch, id);
            return;
        }
        self.seen.count(Happening::CommitByStandbys);
        let demanded = match self.policy.mode {
            Mode::Async => 1,
            Mode::StandbyFirst { acknowledge, .. } => acknowledge.get(),
        };
        if !self.is_on(node, demanded, epoch, id) {
            self.oracle.broken(Invariant::VisibleIsOnTheStandbys, || {
                format!(
                    "{node} has committed {id:?} in {epoch}, and it is not on {demanded} standbys"
                )
            });
        }
        self.oracle.holds(epoch, id);
    }

    /// Applies entries of the own log to the table.
    pub(crate) fn apply(&mut self, node: usize, upto: Position) {
        let it = &mut self.nodes[node];
        for entry in it.disk.behind(it.applied) {
            if entry.head.end > upto {
                break;
            }
            entry.apply(&mut it.table);
            it.applied = entry.head.end;
            it.applied_id = Some(entry.id);
        }
        let applied = it.applied;
        if applied != upto {
            self.oracle
                .broken(Invariant::TablesHoldWhatIsCommitted, || {
                    format!("{node} was to apply {upto}, and has {applied}")
                });
        }
    }

    /// A client writes, here.
    pub(crate) fn write(&mut self, node: usize) {
        let Some(primary) = self.primary(node) else {
            return;
        };
        if !primary.leader.takes_writes() {
            return;
        }
        let (opened, committed) = (primary.opened, primary.leader.committed());
        let sets = (0..=self.random.below(2)).map(|_| {
            self.values += 1;
            (self.random.below(KEYS), self.values)
        });
        let sets = sets.collect();
        let it = &mut self.nodes[node];
        let last = it.disk.place();
        let epoch = it.disk.promised.clone();
        let entry = self.oracle.entry(&last, opened, &epoch, committed, sets);
        let (id, end) = (entry.id, entry.head.end);
        it.disk.append(entry);
        say!(self, "{node} appends {id} up to {end} in {epoch}");
        self.lead(node, |leader, now| leader.appended(end, now));
        if self.random.chance(60) {
            self.stream(node);
        }
    }

    /// A follower asks to be one.
    pub(crate) fn greet(
        &mut self,
        node: usize,
        from: usize,
        attempt: Attempt,
        sketch: &Sketch,
        promised: &Epoch,
    ) {
        let now = self.now();
        let name = self.nodes[from].name.clone();
        let it = &mut self.nodes[node];
        let Role::Primary(primary) = &mut it.role else {
            return;
        };
        // Who goes without standbys so far hears that there are some.
        let policy = self.policy;
        match meet(
            sketch,
            |position| it.disk.digest_at(position),
            it.disk.first(),
        ) {
            Meeting::Stream { from: shared } => {
                let mut actions = primary.leader.regulate(policy, now);
                let joined = primary
                    .leader
                    .join(&name, Some(promised), shared.position, now);
                let Some((session, more)) = joined else {
                    return;
                };
                actions.extend(more);
                primary.links[from] = Some(Link {
                    session,
                    sent: shared.position,
                });
                let welcome = Welcome {
                    attempt,
                    session,
                    epoch: primary.leader.epoch().clone(),
                    from: shared,
                    end: it.disk.end(),
                };
                say!(
                    self,
                    "{node} welcomes {from} behind {}",
                    welcome.from.position
                );
                self.send(node, from, Message::Welcome(welcome));
                self.conduct(node, actions);
            }
            Meeting::Snapshot { shared } => {
                let snapshot = Rc::new(Snapshot {
                    place: it.disk.at(it.applied).unwrap_or_else(|| it.disk.place()),
                    table: it.table,
                });
                // It is read from a table whose log may still be volatile; a restart would begin below it.
                let at = snapshot.place.point.position;
                let is_rash = self.fault == Some(Fault::SendsAnySnapshot);
                let may = is_rash || primary.leader.may_send_snapshot(at, sketch);
                if at > it.disk.durable_end() || !may {
                    return;
                }
                say!(self, "{node} sends {from} a snapshot at {}", it.applied);
                let message = Message::Snapshot {
                    attempt,
                    shared,
                    snapshot,
                };
                self.send(node, from, message);
            }
        }
    }

    /// Sends each follower what comes next.
    pub(crate) fn stream(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let Role::Primary(primary) = &mut it.role else {
            return;
        };
        let mut messages = Vec::new();
        let mut lost = Vec::new();
        for (to, link) in primary.links.iter_mut().enumerate() {
            let Some(open) = link else { continue };
            let session = open.session;
            if open.sent < it.disk.first() {
                *link = None;
                lost.push((to, session));
                continue;
            }
            for entry in it.disk.behind(open.sent).iter().take(BURST) {
                open.sent = entry.head.end;
                let entry = Rc::clone(entry);
                messages.push((to, Message::Entry { session, entry }));
            }
        }
        for (to, message) in messages {
            self.send(node, to, message);
        }
        for (to, session) in lost {
            let name = self.nodes[to].name.clone();
            self.lead(node, |leader, now| leader.left(&name, session, now));
            self.send(node, to, Message::Reset { session });
        }
    }

    /// Tells each follower what is committed.
    pub(crate) fn beat(&mut self, node: usize) {
        let Some(primary) = self.primary(node) else {
            return;
        };
        let committed = primary.leader.committed();
        let links = primary.links.iter().enumerate();
        let open = links.filter_map(|(to, it)| it.as_ref().map(|it| (to, it.session, it.sent)));
        for (to, session, sent) in open.collect::<Vec<_>>() {
            let beat = Message::Beat {
                session,
                committed,
                sent,
            };
            self.send(node, to, beat);
        }
    }

    pub(crate) fn count(&mut self, node: usize, from: usize, session: Session, position: Position) {
        let name = self.nodes[from].name.clone();
        let ignores = self.is_faulty(Fault::IgnoresSessions);
        let Some(primary) = self.primary(node) else {
            return;
        };
        let present = primary.links[from].as_ref().map(|it| it.session);
        if present != Some(session) {
            self.seen.count(Happening::StaleAcknowledgement);
        }
        let session = present.filter(|_| ignores).unwrap_or(session);
        self.lead(node, |leader, now| {
            leader.acknowledged(&name, session, position, now)
        });
    }

    /// A broken rule: what is durable here counts as acknowledged.
    pub(crate) fn forge(&mut self, node: usize, end: Position) {
        let Some(primary) = self.primary(node) else {
            return;
        };
        let links = primary.links.iter().enumerate();
        let open = links.filter_map(|(to, it)| it.as_ref().map(|it| (to, it.session)));
        for (to, session) in open.collect::<Vec<_>>() {
            self.count(node, to, session, end);
        }
    }

    /// A link breaks; one side or both notice.
    pub(crate) fn reset(&mut self, node: usize, other: usize) {
        let Some(primary) = self.primary(node) else {
            return;
        };
        let Some(link) = primary.links[other].take() else {
            return;
        };
        say!(self, "the link from {node} to {other} breaks");
        let name = self.nodes[other].name.clone();
        self.lead(node, |leader, now| leader.left(&name, link.session, now));
        if self.random.chance(70) {
            self.network.lose(node, other);
        }
        if self.random.chance(50) {
            self.network.lose(other, node);
        }
    }

    /// An operator changes the rules of a running primary; for a while, or back.
    pub(crate) fn regulate(&mut self, node: usize) {
        let mut policy = self.policy;
        if self.random.chance(60) {
            policy = Policy {
                mode: Mode::Async,
                ..policy
            };
        }
        say!(self, "{node} is to go by {policy:?}");
        self.lead(node, |leader, now| leader.regulate(policy, now));
    }
}
