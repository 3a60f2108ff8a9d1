//! The second half of a schedule: nothing fails any more, and everything has to come right.

use understudy_replication::kv::protocol::{Durability, Mode};

use crate::oracle::Invariant;
use crate::world::{Role, World, say};

/// How long that may take.
const ROUNDS_MAX: usize = 60;

impl World {
    pub(crate) fn mend(&mut self) {
        self.is_rough = false;
        say!(self, "everything is mended");
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                self.network.part(from, to, false);
            }
        }
        for node in 0..self.nodes.len() {
            if !self.is_up(node) {
                self.start(node);
            }
        }
        // Links that have lost something are no links.
        for node in 0..self.nodes.len() {
            self.connect(node);
        }
        let mut is_written = false;
        for round in 0..ROUNDS_MAX {
            self.mend_round(round);
            if self.oracle.violation.is_some() {
                return;
            }
            let Some(primary) = self.ruler() else {
                continue;
            };
            if self.is_at_rest(primary) {
                if is_written {
                    self.agree(primary);
                    return;
                }
                // The last word: a write that everybody gets.
                is_written = true;
                self.write(primary);
            }
        }
        self.oracle.broken(Invariant::EverythingHeals, || {
            format!("nothing is at rest after {ROUNDS_MAX} rounds without faults")
        });
    }

    /// The primary of the highest epoch, if that has one.
    fn ruler(&self) -> Option<usize> {
        let highest = self.nodes.iter().map(|it| &it.disk.promised).max()?;
        let mut nodes = self.nodes.iter();
        nodes.position(|it| it.disk.promised == *highest && matches!(it.role, Role::Primary(_)))
    }

    fn mend_round(&mut self, round: usize) {
        match self.ruler() {
            Some(primary) => {
                let epoch = self.nodes[primary].disk.promised.clone();
                for node in 0..self.nodes.len() {
                    self.hear(node, &epoch);
                }
                let mut policy = self.policy;
                // A strict primary that has to open, and whose standbys all need its table before they can acknowledge
                // anything, needs an operator's word.
                if round % 24 == 23 {
                    policy.mode = Mode::Async;
                }
                self.lead(primary, |leader, now| leader.regulate(policy, now));
            }
            None => {
                let standing = self.nodes.iter().position(|it| it.candidacy.is_some());
                // Who may not adopt what it lacks leaves it to another.
                let next = round / 4 % self.nodes.len();
                let node = standing.filter(|_| round % 4 != 3).unwrap_or(next);
                if standing != Some(node) || round % 4 == 3 {
                    self.propose(node);
                }
                self.drain();
                self.conclude(node, false);
            }
        }
        for node in 0..self.nodes.len() {
            let source = self.nodes[node].source;
            let session = self.follower(node).map(|it| it.session());
            let is_lost = match session {
                Some(Some(session)) => !self.is_linked(source, node, session),
                Some(None) => true,
                None => false,
            };
            if is_lost {
                self.connect(node);
            }
        }
        self.drain();
        for node in 0..self.nodes.len() {
            for _ in 0..40 {
                self.stream(node);
            }
        }
        self.drain();
        for node in 0..self.nodes.len() {
            self.sync(node, false);
        }
        self.drain();
        self.pass(5);
        for node in 0..self.nodes.len() {
            self.beat(node);
        }
        self.drain();
        self.check();
    }

    /// Delivers everything that is on the way, and what follows from it.
    fn drain(&mut self) {
        while !self.network.is_empty() && self.oracle.violation.is_none() {
            if let Some((from, to, letter)) = self.network.take(&mut self.random, false) {
                self.receive(from, to, letter);
            }
        }
    }

    fn is_at_rest(&self, primary: usize) -> bool {
        let it = &self.nodes[primary];
        let Role::Primary(leads) = &it.role else {
            return false;
        };
        let promise = match self.policy.mode {
            Mode::Async => leads.leader.durability() == Durability::Async,
            Mode::StandbyFirst { .. } => leads.leader.durability() == Durability::Held,
        };
        let end = it.disk.end();
        let all = self.nodes.iter();
        promise
            && leads.leader.takes_writes()
            && leads.leader.at_risk() == 0
            && all
                .clone()
                .all(|it| it.disk.durable_end() == end && it.applied == end)
    }

    fn agree(&mut self, primary: usize) {
        let agreed = self.nodes[primary].disk.durable_id();
        let table = self.oracle.replay(agreed);
        for node in 0..self.nodes.len() {
            let it = &self.nodes[node];
            if it.disk.durable_id() != agreed {
                let own = it.disk.durable_id();
                self.oracle.broken(Invariant::EverythingHeals, || {
                    format!("{node}'s log ends with {own:?}, and {primary}'s with {agreed:?}")
                });
            } else if it.table != table {
                let own = it.table;
                self.oracle.broken(Invariant::EverythingHeals, || {
                    format!("{node}'s table is {own:?}, and the log leads to {table:?}")
                });
            }
        }
        self.oracle.check_salvage(agreed);
    }
}
