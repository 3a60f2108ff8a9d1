//! What is looked at after each step.

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::{Durability, Mode};
use understudy_replication::position::Position;

use crate::disk::Id;
use crate::oracle::Invariant;
use crate::world::{Role, World};

impl World {
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
