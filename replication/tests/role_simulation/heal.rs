//! No faults any more, and an operator who does what the status says.

use understudy_replication::role::Role;
use understudy_replication::status::RoleName;

use crate::check::Invariant;
use crate::node::{Stage, Waiting};
use crate::world::World;

/// Within how many rounds everything has to be well again.
const ROUNDS_MAX: usize = 80;

/// Within how many steps a round comes to rest.
const STEPS_MAX: usize = 3000;

impl World {
    pub(crate) fn heal(&mut self) {
        self.note(|| "---- no faults any more".to_owned());
        self.faults = false;
        self.network.heal();
        let mut attempts = 0;
        for _ in 0..ROUNDS_MAX {
            for at in 0..self.nodes.len() {
                // A fence command may have switched it off meanwhile.
                if !self.nodes[at].is_up {
                    self.nodes[at].start();
                }
            }
            self.come_to_rest();
            if self.violation.is_some() || self.is_well() {
                return;
            }
            for at in (0..self.nodes.len())
                .filter(|it| self.nodes[*it].is_up)
                .collect::<Vec<_>>()
            {
                for peer in self.peers(at) {
                    self.greet(at, peer);
                }
                self.join(at);
                self.tick(at);
                self.come_back(at);
                if self.network.is_empty() {
                    self.stand_alone(at);
                }
            }
            self.come_to_rest();
            if self.nodes.iter().all(|it| it.task.is_none()) {
                self.operate(&mut attempts);
            }
        }
        let roles: Vec<String> = self
            .nodes
            .iter()
            .map(|it| format!("{}: {:?} {:?} {:?}", it.me, it.role, it.stage, it.running))
            .collect();
        self.breaks(Invariant::TheClusterHeals, || roles.join("; "));
    }

    /// Everything that can go on without a timer or an operator does.
    fn come_to_rest(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.violation.is_some() {
                return;
            }
            self.lose_streams();
            let mut is_moving = false;
            while let Some(letter) = self.network.take(&mut self.random, false) {
                self.deliver(letter);
                is_moving = true;
            }
            for at in 0..self.nodes.len() {
                let node = &self.nodes[at];
                let is_waiting = node
                    .task
                    .as_ref()
                    .is_some_and(|it| matches!(it.waiting, Waiting::Ready | Waiting::Effect));
                is_moving |= !node.is_idle() || !node.done.is_empty() || is_waiting;
                self.run_shell(at);
                self.run_waiter(at);
                self.run_task(at);
            }
            if !is_moving {
                // Nobody answers what is still waited for.
                let mut gave_up = false;
                for at in 0..self.nodes.len() {
                    let task = self.nodes[at].task.as_ref();
                    gave_up |= task.is_some_and(|it| matches!(it.waiting, Waiting::Answer(_)));
                    self.give_up_waiting(at);
                }
                if !gave_up {
                    return;
                }
            }
        }
    }

    /// Does what `understudy status` says on the nodes.
    fn operate(&mut self, attempts: &mut usize) {
        let with = |world: &Self, role: RoleName| -> Vec<usize> {
            (0..world.nodes.len())
                .filter(|it| world.nodes[*it].role.name() == role)
                .collect()
        };
        let primaries = with(self, RoleName::Primary);
        if !primaries.is_empty() {
            for at in with(self, RoleName::Fenced) {
                self.order_rejoin(at);
            }
            return;
        }
        *attempts += 1;
        let (promoting, standbys) = (
            with(self, RoleName::Promoting),
            with(self, RoleName::Standby),
        );
        // Force is for what is refused without.
        let is_forced = *attempts > 2;
        let candidates = if !promoting.is_empty() {
            promoting
        } else if !standbys.is_empty() {
            standbys
        } else {
            (0..self.nodes.len()).collect()
        };
        let at = candidates[self.random.below(candidates.len())];
        self.order_promotion(at, is_forced, false);
    }

    /// One node is primary and serves; all others follow it.
    fn is_well(&self) -> bool {
        let primary = self.nodes.iter().position(|node| {
            matches!(&node.role, Role::Primary { epoch, .. } if node.running.as_ref() == Some(epoch))
                && node.stage == Stage::Primary
        });
        let Some(primary) = primary else { return false };
        let (epoch, life) = (self.nodes[primary].role.epoch(), self.nodes[primary].life);
        let Role::Primary { standbys, .. } = &self.nodes[primary].role else {
            return false;
        };
        self.nodes.iter().enumerate().all(|(at, node)| {
            at == primary
                || (matches!(node.role, Role::Standby { .. })
                    && node.role.epoch() == epoch
                    && node.running.is_none()
                    && standbys.contains(&node.me)
                    && node.stage == Stage::Standby(primary, Some(life)))
        })
    }
}
