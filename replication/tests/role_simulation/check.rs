//! The invariants, each a sentence.

use std::fmt;

use understudy_replication::epoch::Epoch;
use understudy_replication::role::Role;

use crate::world::World;

/// What must hold in every history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invariant {
    /// An epoch is opened once, by the node that it names: so no two are ever primary in one.
    AnEpochIsOpenedOnce,
    /// What serves in an epoch does so with that epoch on disk: a crash must not forget it.
    AnEpochIsDurableBeforeItActs,
    /// A peer hears of a proposed epoch only once its proposer cannot forget it.
    AProposalIsDurableBeforeItIsHeardOf,
    /// The epoch on disk never falls.
    TheEpochOnDiskNeverFalls,
    /// A node serves in the highest epoch that it has dealt with, and in no other.
    ANodeServesInTheHighestEpochItHasSeen,
    /// Once its fence is done, a fenced node serves nothing.
    AFencedNodeServesNothing,
    /// A node that is told a higher epoch gives way with that one message.
    TheLesserFencesAtFirstContact,
    /// Without force and without a lying fence command, no two ever serve at once.
    WithoutForceNoTwoServe,
    /// A former primary that restarts serves nothing before it has reason to.
    ARestartedPrimaryWaitsForAWord,
    /// No standby takes a write of an epoch below its own.
    NoPeerTakesAWriteOfALowerEpoch,
    /// A node that has answered a fence does not serve in a lower epoch, for as long as whoever asked for it goes
    /// on with it.
    AnAnsweredFenceHolds,
    /// When the faults stop and an operator does what the status says, one node is primary and all follow it.
    TheClusterHeals,
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

impl World {
    pub(crate) fn breaks(&mut self, invariant: Invariant, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.violation = Some(Violation { invariant, what });
        }
    }

    /// Looks at what node `at` does, after every step of it.
    pub(crate) fn check(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(running) = node.running.clone() else {
            return self.check_told(at);
        };
        let me = node.me.clone();
        if running.node != me || !self.opened.contains(&running) {
            self.breaks(Invariant::AnEpochIsOpenedOnce, || {
                format!("{me} serves in {running}, which it has not opened")
            });
        }
        let node = &self.nodes[at];
        if node.is_shut && !node.is_fence_owed && node.is_up {
            self.breaks(Invariant::AFencedNodeServesNothing, || {
                format!("{me} serves in {running}, and its fence is done")
            });
        }
        if !self.was_forced && !self.has_lied {
            let other =
                (0..self.nodes.len()).find(|it| *it != at && self.nodes[*it].running.is_some());
            if let Some(other) = other {
                let (name, epoch) = (&self.nodes[other].me, &self.nodes[other].running);
                let what = format!("{me} serves in {running}, and {name} in {epoch:?}");
                self.breaks(Invariant::WithoutForceNoTwoServe, || what);
            }
        }
        self.check_told(at);
    }

    fn check_told(&mut self, at: usize) {
        let node = &self.nodes[at];
        if !node.is_idle() {
            return;
        }
        let (me, told) = (node.me.clone(), node.told_max.clone());
        if *node.role.highest_epoch() < told {
            let role = node.role.clone();
            self.breaks(Invariant::TheLesserFencesAtFirstContact, || {
                format!("{me} was told of {told}, and is {role:?}")
            });
            return;
        }
        let superseded = node
            .running
            .clone()
            // What it has opened itself supersedes nothing of its own.
            .filter(|running| told > *running && told.node != me && !node.is_fence_owed);
        if let Some(running) = superseded {
            self.breaks(Invariant::TheLesserFencesAtFirstContact, || {
                format!("{me} was told of {told}, and serves in {running}")
            });
        }
    }

    /// Looks at a node that starts to take writes in `epoch`.
    pub(crate) fn check_start(&mut self, at: usize, epoch: &Epoch) {
        let node = &self.nodes[at];
        let me = node.me.clone();
        let is_on_disk = match &node.disk {
            Role::Primary { epoch: durable, .. } | Role::Promoting { epoch: durable } => {
                durable == epoch
            }
            Role::Returning { .. } | Role::Standby { .. } | Role::Fenced { .. } => false,
        };
        let (disk, seen, has_word) = (node.disk.clone(), node.seen_max.clone(), node.has_word);
        if !is_on_disk {
            self.breaks(Invariant::AnEpochIsDurableBeforeItActs, || {
                format!("{me} starts to serve in {epoch} with {disk:?} on disk")
            });
        }
        if seen != *epoch {
            self.breaks(Invariant::ANodeServesInTheHighestEpochItHasSeen, || {
                format!("{me} starts to serve in {epoch}, and has seen {seen}")
            });
        }
        if !has_word {
            self.breaks(Invariant::ARestartedPrimaryWaitsForAWord, || {
                format!("{me} has restarted, and serves in {epoch} without a word of anybody")
            });
        }
        let is_meant = |answered: &Epoch| {
            // A promotion that was given up binds nobody: the next one has its peers fenced anew.
            self.nodes.iter().any(|other| {
                let opens = *other.disk.epoch() >= *answered || other.task.is_some();
                other.me == answered.node && opens
            })
        };
        if self.answered[at]
            .as_ref()
            .is_some_and(|answered| answered > epoch && is_meant(answered))
        {
            self.breaks(Invariant::AnAnsweredFenceHolds, || {
                format!("{me} serves in {epoch}, and has answered a fence for a higher one")
            });
        }
    }

    /// Looks at a role that has just become durable.
    pub(crate) fn check_record(&mut self, at: usize, before: &Role) {
        let node = &mut self.nodes[at];
        let (me, disk) = (node.me.clone(), node.disk.clone());
        if *disk.epoch() < node.durable_max {
            let durable = node.durable_max.clone();
            self.breaks(Invariant::TheEpochOnDiskNeverFalls, || {
                format!("{me} records {disk:?} after {durable}")
            });
            return;
        }
        node.durable_max = disk.epoch().clone();
        let is_opened = matches!(disk, Role::Promoting { .. });
        if is_opened && !matches!(before, Role::Promoting { .. }) {
            let epoch = disk.epoch();
            if epoch.node != me || self.opened.contains(epoch) {
                self.breaks(Invariant::AnEpochIsOpenedOnce, || {
                    format!("{me} opens {epoch}, which it must not")
                });
            }
            self.opened.push(disk.epoch().clone());
        }
    }

    /// Looks at a write that a standby is about to take.
    pub(crate) fn check_write(&mut self, at: usize, epoch: &Epoch) {
        let node = &self.nodes[at];
        // Between the record of a new epoch and the end of the old stream nothing is promised to anybody.
        if node.is_idle() && (epoch < node.disk.epoch() || epoch < node.role.epoch()) {
            let (me, ours) = (node.me.clone(), node.disk.epoch().clone());
            self.breaks(Invariant::NoPeerTakesAWriteOfALowerEpoch, || {
                format!("{me} takes a write of {epoch}, and is in {ours}")
            });
        }
    }
}
