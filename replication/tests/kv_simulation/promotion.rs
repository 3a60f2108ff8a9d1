//! The rim of a promotion.

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::{Meeting, Mode, Session, Tail, Welcome, meet, survey};

use crate::disk::Snapshot;
use crate::fault::Fault;
use crate::network::Message;
use crate::seen::Happening;
use crate::world::{Candidacy, Role, World, say};

impl World {
    /// An operator wants a standby to be primary: it asks the others to follow it.
    pub(crate) fn propose(&mut self, node: usize) {
        if self.follower(node).is_none() {
            return;
        }
        let it = &mut self.nodes[node];
        let epoch = it.disk.promised.superseded_by(it.name.clone());
        say!(self, "{node} proposes {epoch}");
        self.hear(node, &epoch);
        self.sync(node, false);
        self.nodes[node].candidacy = Some(Candidacy {
            epoch,
            answers: Vec::new(),
        });
        for other in (0..self.nodes.len()).filter(|it| *it != node) {
            self.send(node, other, Message::Propose);
        }
    }

    /// Tells where the log ends, after the epoch was recorded: from here on nothing is acknowledged in a lower one.
    pub(crate) fn answer(&mut self, node: usize, to: usize, epoch: Epoch) {
        let is_promised = self.nodes[node].disk.promised == epoch;
        if !is_promised && !self.is_faulty(Fault::AnswersWithoutPromise) {
            return;
        }
        self.sync(node, false);
        let tail = self.nodes[node].disk.tail();
        say!(self, "{node} answers {epoch}: {:?}", tail.point.position);
        self.send(node, to, Message::Answer { epoch, tail });
    }

    pub(crate) fn collect(&mut self, node: usize, from: usize, epoch: &Epoch, tail: Tail) {
        let name = self.nodes[from].name.clone();
        let candidacy = self.nodes[node].candidacy.as_mut();
        if let Some(candidacy) = candidacy.filter(|it| it.epoch == *epoch) {
            candidacy.answers.retain(|(it, _)| *it != name);
            candidacy.answers.push((name, tail));
        }
    }

    /// Goes on with a promotion, if what is known suffices or the operator insists.
    pub(crate) fn conclude(&mut self, node: usize, is_forced: bool) {
        let it = &self.nodes[node];
        let Some(candidacy) = &it.candidacy else {
            return;
        };
        let acknowledge = match self.policy.mode {
            Mode::Async => 0,
            Mode::StandbyFirst { acknowledge, .. } => acknowledge.get(),
        };
        let own = it.disk.tail();
        let mut outlook = survey(&own, &candidacy.answers, self.policy.standbys, acknowledge);
        if self.is_faulty(Fault::IsAlwaysSure) {
            outlook.missing = 0;
        }
        if self.is_faulty(Fault::IgnoresRuns) {
            let rank = |it: &Tail| (it.point.epoch.clone(), it.point.position);
            let best = candidacy.answers.iter().max_by_key(|(_, it)| rank(it));
            let best = best.filter(|(_, it)| rank(&own) < rank(it));
            outlook.adopt = best.map(|(name, _)| name.clone());
        }
        if !outlook.is_sure() && !is_forced {
            return;
        }
        let mut is_sure = outlook.is_sure();
        if let Some(donor) = outlook.adopt {
            let donor = self.index_of(&donor);
            let is_adopted = self.adopt(node, donor);
            if self.nodes[node].candidacy.is_none() || !is_adopted && !is_forced {
                return;
            }
            is_sure &= is_adopted;
            if is_adopted {
                self.seen.count(Happening::Adoption);
            }
        }
        self.take_over(node, is_sure);
    }

    /// Makes the log that of another node, which has promised to follow.
    fn adopt(&mut self, node: usize, donor: usize) -> bool {
        let Some(epoch) = self.nodes[node]
            .candidacy
            .as_ref()
            .map(|it| it.epoch.clone())
        else {
            return false;
        };
        say!(self, "{node} adopts the log of {donor}");
        for _ in 0..2 {
            let is_there = self.follower(donor).is_some()
                && self.nodes[donor].disk.promised == epoch
                && !self.network.is_parted(node, donor)
                && !self.network.is_parted(donor, node);
            let Some(attempt) = self
                .follower(node)
                .filter(|_| is_there)
                .map(|it| it.connect())
            else {
                return false;
            };
            self.sync(node, false);
            let sketch = self.nodes[node].disk.sketch();
            let source = &self.nodes[donor];
            match meet(&sketch, |it| source.disk.digest_at(it), source.disk.first()) {
                Meeting::Stream { from } => {
                    let session = Session(self.random.word());
                    let entries = source.disk.behind(from.position).to_vec();
                    let end = source.disk.end();
                    let welcome = Welcome {
                        attempt,
                        session,
                        epoch,
                        from,
                        end,
                    };
                    self.welcomed(node, donor, &welcome);
                    for entry in entries {
                        if self.may_crash(node, 2) {
                            return false;
                        }
                        self.offered(node, session, &entry);
                    }
                    self.sync(node, false);
                    return self.nodes[node].disk.end() == end;
                }
                Meeting::Snapshot { shared } => {
                    let Some(place) = source.disk.at(source.applied) else {
                        return false;
                    };
                    // Better that node is promoted than that this one loses what it has acknowledged.
                    if !sketch.is_covered_by(place.point.position) {
                        return false;
                    }
                    let table = source.table;
                    self.install(node, shared.as_ref(), &Snapshot { place, table });
                }
            }
        }
        false
    }

    /// Everything durable here counts as committed from now on.
    fn take_over(&mut self, node: usize, is_sure: bool) {
        let forgets = self.is_faulty(Fault::TakesOverWithoutTheTail);
        let it = &mut self.nodes[node];
        let is_standby = matches!(it.role, Role::Standby(_));
        let epoch = it.candidacy.take().map(|it| it.epoch);
        let Some(epoch) = epoch.filter(|epoch| is_standby && *epoch == it.disk.promised) else {
            return;
        };
        it.disk.sync();
        if forgets {
            it.disk.cut(it.applied);
        }
        it.disk.leads = true;
        let taken = it.disk.durable_id();
        say!(
            self,
            "{node} takes over in {epoch} with {taken:?}; sure: {is_sure}"
        );
        self.seen.count(if is_sure {
            Happening::SurePromotion
        } else {
            Happening::UnsurePromotion
        });
        self.oracle.opens(&epoch, taken, is_sure);
        if !self.may_crash(node, 5) {
            self.open_run(node, None);
        }
    }
}
