//! The rim of a standby.

use std::rc::Rc;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::point::Point;
use understudy_replication::kv::protocol::{Attempt, FollowerAction, Session, Sketch, Welcome};
use understudy_replication::position::Position;

use crate::disk::{Entry, Snapshot};
use crate::fault::Fault;
use crate::network::{Letter, Message};
use crate::oracle::Invariant;
use crate::seen::Happening;
use crate::world::{World, say};

impl World {
    /// Connects a standby that has no session, or has one that is as good as lost.
    pub(crate) fn connect_if_idle(&mut self, node: usize) {
        let source = self.nodes[node].source;
        let is_idle = match self.follower(node).map(|it| it.session()) {
            Some(Some(session)) => !self.is_linked(source, node, session),
            Some(None) => true,
            None => false,
        };
        if is_idle || self.random.chance(10) {
            self.connect(node);
        }
    }

    pub(crate) fn is_linked(&mut self, source: usize, node: usize, session: Session) -> bool {
        self.primary(source)
            .and_then(|it| it.links[node].as_ref())
            .is_some_and(|it| it.session == session)
    }

    /// Begins a session with the node that the promised epoch names.
    pub(crate) fn connect(&mut self, node: usize) {
        if self.nodes[node].candidacy.is_some() || self.follower(node).is_none() {
            return;
        }
        self.sync(node, false);
        let leader = self.index_of(&self.nodes[node].disk.promised.node);
        if leader == node {
            return;
        }
        let Some(attempt) = self.follower(node).map(|it| it.connect()) else {
            return;
        };
        self.nodes[node].source = leader;
        let mut sketch = self.nodes[node].disk.sketch();
        // A poor sketch costs comparing, and nothing else: these logs are shorter than what a sketch names one by one.
        if self.is_rough && self.random.chance(30) {
            let mut points = sketch.points().to_vec();
            let last = points.len() - 1;
            points.drain(1..last.max(1));
            sketch = Sketch::try_from(points).unwrap_or(sketch);
        }
        let message = Message::Hello { attempt, sketch };
        if self.is_rough && self.random.chance(40) {
            let epoch = self.nodes[node].disk.promised.clone();
            self.network
                .send_first(node, leader, Letter { epoch, message });
        } else {
            self.send(node, leader, message);
        }
    }

    pub(crate) fn welcomed(&mut self, node: usize, from: usize, welcome: &Welcome) {
        let own = self.nodes[node].disk.digest_at(welcome.from.position);
        let Some(follower) = self.follower(node) else {
            return;
        };
        let actions = follower.welcomed(welcome, own);
        self.nodes[node].source = from;
        self.obey(node, actions, None);
    }

    pub(crate) fn offered(&mut self, node: usize, session: Session, entry: &Rc<Entry>) {
        let mut own = self.nodes[node].disk.digest_at(entry.head.end);
        if self.is_faulty(Fault::ComparesNoDigests) && own.is_some() {
            own = Some(entry.head.digest);
        }
        let applies = self.is_faulty(Fault::AppliesEarly);
        let Some(follower) = self.follower(node) else {
            return;
        };
        let mut actions = follower.offered(session, &entry.head, own);
        if applies {
            actions.extend(follower.committed(session, entry.head.end));
        }
        self.obey(node, actions, Some(entry));
    }

    pub(crate) fn beaten(
        &mut self,
        node: usize,
        session: Session,
        committed: Position,
        sent: Position,
    ) {
        let Some(follower) = self.follower(node) else {
            return;
        };
        let is_present = follower.session() == Some(session);
        let has_missed = follower.verified().is_some_and(|it| it.position < sent);
        let actions = follower.committed(session, committed);
        self.obey(node, actions, None);
        if is_present && has_missed {
            // What was sent before this was lost.
            self.connect(node);
        }
    }

    /// Does what a follower says.
    pub(crate) fn obey(
        &mut self,
        node: usize,
        actions: Vec<FollowerAction>,
        offered: Option<&Rc<Entry>>,
    ) {
        for action in actions {
            say!(self, "{node} {action:?} {:?}", offered.map(|it| it.id));
            match action {
                FollowerAction::Append => {
                    let Some(entry) = offered else { continue };
                    self.nodes[node].disk.append(Rc::clone(entry));
                    if self.is_faulty(Fault::AcknowledgesBeforeDurable) {
                        let more = self.follower(node).map(|it| it.synced(entry.head.end));
                        self.obey(node, more.unwrap_or_default(), None);
                    }
                }
                FollowerAction::Have => self.seen.count(Happening::EntryHad),
                FollowerAction::Cut { to, rebuild } => {
                    if self.cut(node, to.position, rebuild).is_none() {
                        return;
                    }
                }
                FollowerAction::Acknowledge { session, position } => {
                    let source = self.nodes[node].source;
                    if self.nodes[node].candidacy.is_none() {
                        let message = Message::Acknowledged { session, position };
                        self.send(node, source, message);
                    }
                }
                FollowerAction::Apply(upto) => {
                    self.apply(node, upto);
                    let id = self.nodes[node].applied_id;
                    if !self.oracle.is_committed(id) {
                        self.oracle
                            .broken(Invariant::TablesHoldWhatIsCommitted, || {
                                format!("{node} has applied {id:?}, which nobody has committed")
                            });
                    }
                }
                FollowerAction::Reopen | FollowerAction::NeedSnapshot => self.connect(node),
            }
        }
    }

    /// Keeps what is cut, cuts, and mends the table; `None` if the node crashed meanwhile.
    fn cut(&mut self, node: usize, to: Position, rebuild: bool) -> Option<()> {
        if !self.is_faulty(Fault::CutsWithoutSalvage) {
            // What a run of the leader's own epoch has left was never durable there, and so never committed.
            let epoch = self.follower(node).and_then(|it| it.epoch().cloned());
            for entry in self.nodes[node].disk.behind(to) {
                if Some(&entry.head.epoch) != epoch.as_ref() {
                    self.oracle.salvage(entry.id);
                }
            }
        }
        if self.may_crash(node, 4) {
            return None;
        }
        let keeps = self.is_faulty(Fault::KeepsTheTable);
        let it = &mut self.nodes[node];
        let base = it.disk.snapshot.place.point.position;
        if to < base {
            self.oracle
                .broken(Invariant::TablesHoldWhatIsCommitted, || {
                    format!("{node} cuts to {to}, below its snapshot at {base}")
                });
            return None;
        }
        it.disk.cut(to);
        self.seen.count(Happening::EntryCut);
        if rebuild {
            self.seen.count(Happening::AppliedCut);
            if !keeps {
                it.table = it.disk.table_at(to);
            }
            it.applied = to;
            it.applied_id = it.disk.at(to).and_then(|it| it.id);
        }
        (!self.may_crash(node, 4)).then_some(())
    }

    pub(crate) fn take_snapshot(
        &mut self,
        node: usize,
        attempt: Attempt,
        epoch: &Epoch,
        shared: Option<&Point>,
        snapshot: &Snapshot,
    ) {
        let accepts = |world: &mut Self| {
            let follower = world.follower(node);
            follower.is_some_and(|it| it.session().is_none() && it.accepts(attempt, epoch))
        };
        if accepts(self) {
            self.install(node, shared, snapshot);
            self.connect(node);
        }
    }

    /// Keeps what only this node may have, and replaces all it has.
    pub(crate) fn install(&mut self, node: usize, shared: Option<&Point>, snapshot: &Snapshot) {
        if !self.is_faulty(Fault::CutsWithoutSalvage) {
            let disk = &self.nodes[node].disk;
            let from = shared.map_or(disk.first(), |it| it.position);
            for entry in disk.behind(from) {
                self.oracle.salvage(entry.id);
            }
            if shared.is_none_or(|it| it.position < disk.first()) {
                // Entries that were let go, maybe since the sketch, are in the own snapshot alone.
                self.oracle.salvage_all(disk.snapshot.place.id);
            }
        }
        if self.may_crash(node, 4) {
            return;
        }
        let it = &mut self.nodes[node];
        it.disk.install(snapshot.clone());
        it.table = snapshot.table;
        it.applied = snapshot.place.point.position;
        it.applied_id = snapshot.place.id;
        let position = it.applied;
        self.seen.count(Happening::SnapshotInstalled);
        say!(self, "{node} has installed a snapshot at {position}");
        if let Some(follower) = self.follower(node) {
            follower.installed(&snapshot.place.point);
        }
    }
}
